"""admin.py rewind at a broker with rights: what is refused is said, and nothing is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import config
from harness.consuming import change
from harness.kafka import client_settings
from harness.own_servers import ours_alone, purge
from harness.pipeline import Pipeline, new_pipeline
from stack import servers

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

pytestmark = [pytest.mark.alone, pytest.mark.long]

OFFSET = 2800  # of the ports of the servers here
RIGHTS = {
    "authorizer.class.name": "kafka.security.authorizer.AclAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@pytest.fixture(scope="module")
def broker_with_rights() -> Iterator[None]:
    pair = [server for server in servers.servers(OFFSET, kafka="3") if server.kind != "postgres"]
    pair = [
        replace(server, settings={**server.settings, **RIGHTS}) if server.kind == "kafka" else server for server in pair
    ]
    with ours_alone(state := Path(pair[0].state)), pytest.MonkeyPatch.context() as patch:
        purge(state)
        try:
            servers.up(pair)
            address = f"localhost:{pair[1].port}"
            patch.setattr(config, "KAFKA", {**config.KAFKA, "bootstrap.servers": address})
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
            yield
        finally:
            purge(state)


@pytest.fixture(scope="module")
def read(stack: None, broker_with_rights: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline whose group has read a message."""
    with new_pipeline(tmp_path_factory.mktemp("rights")) as pipeline:
        pipeline.set_up()
        pipeline.send(change(1, 1))
        assert pipeline.run("consumer.py", "--once").returncode == 0
        yield pipeline


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ResourceType.TOPIC, "Broker: Topic authorization failed"),
        (ResourceType.GROUP, "Broker: Group authorization failed"),
    ],
    ids=["the topic", "the group"],
)
def test_a_rewind_without_the_right_to_read_is_one_line_and_exit_1(
    read: Pipeline, kind: ResourceType, reason: str
) -> None:
    admin = AdminClient(client_settings())
    who = (kind, read.name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    rights = {AclOperation.ALL: AclPermissionType.ALLOW, AclOperation.READ: AclPermissionType.DENY}
    for created in admin.create_acls([AclBinding(*who, *right) for right in rights.items()]).values():
        created.result(10)
    try:
        result = read.run("admin.py", "rewind")
    finally:
        for deleted in admin.delete_acls([AclBindingFilter(*who, *right) for right in rights.items()]).values():
            deleted.result(10)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.endswith(reason)
    again = read.run("admin.py", "rewind")
    assert (again.returncode, " reads 1 message " in again.stdout) == (0, True), again.stderr
    assert read.run("consumer.py", "--once").returncode == 0
