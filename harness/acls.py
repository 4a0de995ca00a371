"""Kafka's ACLs that docs/operations.md lists, read out of its table.

python -m harness.acls     grant them to the users of `stack/servers.py up --secure`, as its user admin
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import config
from harness import ROOT
from harness.kafka import client_settings

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

USERS = {"producer": "producer.py", "consumer": "consumer.py", "monitor": "admin.py status"}
"""The users of stack/secure.py, and the script whose ACLs each has."""


@dataclass(frozen=True)
class Acl:
    """One operation of one script on a topic or a group."""

    script: str
    operation: str
    resource: str

    def __str__(self) -> str:
        return f"{self.script} without {self.operation} on {self.resource}"


def documented() -> list[Acl]:
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("\n## Rights\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*", section, re.M)]
    (first,) = (number for number, row in enumerate(rows) if row[0] == "script")
    return [
        Acl(row[0].strip("`"), operation, resource.replace("`", ""))
        for row in rows[first + 2 :]
        for resource, cell in zip(rows[first][1:], row[1:], strict=True)
        for operation in cell.split(", ")
        if operation
    ]


def binding(acl: Acl, user: str, topic: str, group: str) -> AclBinding:
    """Return the ACL for a user, with the names of topic and group in place of the document's."""
    kind, name = acl.resource.split()
    return AclBinding(
        ResourceType.GROUP if kind == "group" else ResourceType.TOPIC,
        group if kind == "group" else name.replace("employee_cdc", topic),
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[acl.operation.upper()],
        AclPermissionType.ALLOW,
    )


def grant(topic: str, group: str) -> None:
    """Give each user what its script needs, and the producer the dead-letter topic, too."""
    found = [(user, acl) for user, script in USERS.items() for acl in documented() if acl.script == script]
    found.append(("producer", Acl("producer.py", "Write", "topic employee_cdc_dlq")))
    admin = AdminClient(client_settings())
    for future in admin.create_acls([binding(acl, user, topic, group) for user, acl in found]).values():
        future.result(10)


if __name__ == "__main__":
    grant(config.KAFKA_TOPIC, config.KAFKA_GROUP_ID)
    print(f"{', '.join(USERS)}: ACLs granted")
