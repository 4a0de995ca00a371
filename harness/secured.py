"""Servers of a test's own that take nothing in the clear, as `stack/servers.py up --secure` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import config
from harness.database import database_url
from harness.own_servers import ours_alone, purge
from harness.pipeline import Pipeline
from stack import servers
from stack.certificates import issue
from stack.secure import read, secured
from stack.servers import Server

import pytest

EXPIRED, OPEN = "the listener with an expired certificate", "the listener in the clear"


@dataclass
class Secured:
    """The servers, and the files with the settings of their users."""

    servers: dict[str, Server]
    folder: Path

    def settings(self, user: str, pipeline: Pipeline) -> dict[str, Any]:
        """The settings with which a script comes as that user, on the pipeline's databases."""
        found = read(self.folder / f"{user}.env")
        databases = {"SOURCE": pipeline.name, "DESTINATION": f"{pipeline.name}_copy"}
        urls = {f"{side}_DATABASE_URL": name for side, name in databases.items()}
        return {**found, **{variable: database_url(found[variable], name) for variable, name in urls.items()}}

    def port(self, listener: str) -> int:
        return self.servers["kafka"].port + (1 if listener == EXPIRED else 2)


@contextmanager
def secured_servers(offset: int) -> Iterator[Secured]:
    """Start them, and remove them afterwards. Meanwhile the tests themselves, and Pipeline, use them as their admin."""
    state = Path(servers.servers(offset, kafka="4")[0].state)
    with ours_alone(state), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            wanted = secured(servers.servers(offset, kafka="4"))
            folder = state / "secure"
            issue(folder / "ca.crt", "expired", days=-1)
            wanted = [with_more_listeners(server, folder) if server.kind == "kafka" else server for server in wanted]
            servers.up(wanted)
            become_admin(patch, read(folder / "admin.env"))
            yield Secured({server.name: server for server in wanted}, folder)
        finally:
            purge(state)


def become_admin(patch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        patch.setenv(name, value)
    for side in "SOURCE", "DESTINATION":
        patch.setattr(config, f"{side}_DATABASE_URL", settings[f"{side}_DATABASE_URL"])
    ours = {name[6:].lower().replace("_", "."): value for name, value in settings.items() if name.startswith("KAFKA_")}
    patch.setattr(config, "KAFKA", {**config.KAFKA, **ours})


def with_more_listeners(server: Server, folder: Path) -> Server:
    old, one, two = server.settings, server.port + 1, server.port + 2
    login = old["listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config"]
    settings = {
        "listeners": f"{old['listeners']},EXPIRED://127.0.0.1:{one},OPEN://127.0.0.1:{two}",
        "advertised.listeners": f"{old['advertised.listeners']},EXPIRED://localhost:{one},OPEN://localhost:{two}",
        "listener.security.protocol.map": f"{old['listener.security.protocol.map']},EXPIRED:SASL_SSL,OPEN:PLAINTEXT",
        "listener.name.expired.scram-sha-512.sasl.jaas.config": login,
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.expired.ssl.keystore.location": str(folder / "expired.pem"),
    }
    return replace(server, settings={**old, **settings})
