"""A Kafka of a test's own with passwords and an authorizer, at which a script has only the rights it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import config
from harness.own_servers import ours_alone, purge
from stack import servers
from stack.servers import Server

import pytest

PASSWORD = "secret"


@contextmanager
def guarded_kafka(offset: int, users: Iterable[str]) -> Iterator[Server]:
    """Start the broker, and remove it afterwards. Meanwhile the tests themselves use it, and may do all.

    offset: of its ports.
    """
    (server,) = (guarded(server, users) for server in servers.servers(offset, kafka="4") if server.kind == "kafka")
    with ours_alone(state := Path(server.state)), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            servers.up([server])
            patch.setattr(config, "KAFKA", {**config.KAFKA, "bootstrap.servers": f"localhost:{server.port}"})
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"localhost:{server.port}")
            yield server
        finally:
            purge(state)


def guarded(server: Server, users: Iterable[str]) -> Server:
    """The broker with an authorizer. Who comes to its first port may do all; at the next one users log in."""
    one, two, control = server.port, server.port + 1, server.port + 10000
    logins = " ".join(f'user_{user}="{PASSWORD}"' for user in users)
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{one},USERS://127.0.0.1:{two},CONTROLLER://127.0.0.1:{control}",
        "advertised.listeners": f"PLAINTEXT://localhost:{one},USERS://localhost:{two}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.users.plain.sasl.jaas.config": (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {logins};"
        ),
    }
    return replace(server, settings={**server.settings, **settings})


def login_as(server: Server, user: str) -> dict[str, str]:
    """The settings with which a script comes as that user."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{server.port + 1}",
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": user,
        "KAFKA_SASL_PASSWORD": PASSWORD,
    }
