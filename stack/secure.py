"""A set of servers that take nothing in the clear: TLS and SCRAM for all, ACLs in Kafka.

What the set needs is in <state>/secure: an authority, a certificate for localhost, and for each user a file of
settings, <user>.env, with a password made at random. The files stay as long as the data.

Kafka 4 only. With ZooKeeper no user could log in before the first one was made by a client, which could not log in.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from stack.certificates import issue, make_authority
from stack.folders import account, make
from stack.sets import Server, password

ADMIN = "admin"  # the broker logs in as this user, too
USERS = {ADMIN: "postgres", "producer": "cdc_producer", "consumer": "cdc_consumer", "monitor": "cdc_monitor"}
"""Kafka's users, and PostgreSQL's role of each."""

ITERATIONS = 8192
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required"


def secured(wanted: list[Server]) -> list[Server]:
    """Return the same servers with TLS and logins; make their files if there are none."""
    folder = make(make(Path(wanted[0].state)) / "secure")
    if not (folder / "server.pem").exists():
        issue(make_authority(folder), "server")
        if user := account():  # PostgreSQL reads no key that others can read, or that is not its own
            shutil.chown(folder / "server.key", user.pw_uid, user.pw_gid)
    if not (folder / "broker.secret").exists():
        write_settings(folder, {server.name: server.port for server in wanted})
    (folder / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
    return [
        replace(
            server, settings={**server.settings, **(postgres if server.kind == "postgres" else kafka)(server, folder)}
        )
        for server in wanted
    ]


def postgres(_server: Server, folder: Path) -> dict[str, str]:
    return {
        "ssl": "on",
        "ssl_cert_file": str(folder / "server.crt"),
        "ssl_key_file": str(folder / "server.key"),
        "hba_file": str(folder / "pg_hba.conf"),
        "password_encryption": "scram-sha-256",
    }


def kafka(server: Server, folder: Path) -> dict[str, str]:
    """Clients, and the broker itself, log in over TLS; the controller knows the broker by its certificate."""
    return {
        "listeners": f"SASL_SSL://127.0.0.1:{server.port},CONTROLLER://127.0.0.1:{server.port + 10000}",
        "advertised.listeners": f"SASL_SSL://localhost:{server.port}",
        "controller.quorum.voters": f"1@localhost:{server.port + 10000}",  # the certificate's name
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:SSL",
        "inter.broker.listener.name": "SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.crt"),
        "listener.name.controller.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        # the password stays in a file that only the broker's user can read
        "config.providers": "file",
        "config.providers.file.class": "org.apache.kafka.common.config.provider.FileConfigProvider",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
            f'{SCRAM} username="{ADMIN}" password="${{file:{folder / "broker.secret"}:password}}";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN};User:CN=localhost",
    }


def write_settings(folder: Path, ports: dict[str, int]) -> None:
    """Write each user's settings, and the broker's password, which shows last that all of it is there."""
    words = {user: secrets.token_urlsafe(24) for user in USERS}
    roles = {role: words[user] for user, role in USERS.items() if user != ADMIN}
    for user, role in USERS.items():
        login = f"{role}:{quote(roles.get(role, password()), safe='')}"
        urls = {side: f"postgresql://{login}@localhost:{ports[side]}/postgres" for side in ("source", "destination")}
        settings = {
            **{f"{side.upper()}_DATABASE_URL": url for side, url in urls.items()},
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": str(folder / "ca.crt"),
            "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{ports['kafka']}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SSL_CA_LOCATION": str(folder / "ca.crt"),
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD": words[user],
        }
        if user == ADMIN:  # for db_setup.py --roles
            settings |= {f"{role.upper()}_PASSWORD": word for role, word in roles.items()}
        write(folder / f"{user}.env", settings)
    write(folder / "broker.secret", {"password": words[ADMIN]})


def write(file: Path, settings: dict[str, str]) -> None:
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def read(file: Path) -> dict[str, str]:
    """Return the settings of a user's file."""
    return dict(re.findall(r"^(\w+)=(.*)$", file.read_text(), re.MULTILINE))


def scram_users(server: Server) -> list[str]:
    """Return the options that make the users with Kafka's storage. Their passwords are salted: options can be seen."""
    options = []
    for user in USERS if "super.users" in server.settings else ():
        file = Path(server.state, "secure", f"{user}.env")
        if not file.exists():
            continue
        word, salt = read(file)["KAFKA_SASL_PASSWORD"].encode(), secrets.token_bytes(24)
        salted = hashlib.pbkdf2_hmac("sha512", word, salt, ITERATIONS)
        secret = [f"name={user}", f"iterations={ITERATIONS}"]
        secret += [
            f"{name}={base64.b64encode(value).decode()}" for name, value in (("salt", salt), ("saltedpassword", salted))
        ]
        options += ["--add-scram", f"SCRAM-SHA-512=[{','.join(secret)}]"]
    return options
