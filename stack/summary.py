"""What `up` and `down` print last: addresses, next steps, what stays on the disk."""

from __future__ import annotations

from pathlib import Path

from stack.folders import ROOT, megabytes
from stack.pid_file import pid
from stack.sets import Server, password


def next_steps(servers: list[Server]) -> str:
    """Return how to connect, where the logs are, and what to do next."""
    ports = {server.name: server.port for server in servers}
    brokers = ",".join(f"localhost:{server.port}" for server in servers if server.kind == "kafka")
    shown = "postgres" if password() == "postgres" else "that of POSTGRES_PASSWORD"
    activate = ". .venv/bin/activate"
    if not (ROOT / ".venv").exists():
        activate = f"python3 -m venv .venv && {activate} && pip install -r requirements.txt"
    secure = Path(servers[0].state, "secure") if servers[0].encrypted else None
    logs = [f"logs         {short(Path(servers[0].state))}/*.log"] if any(map(pid, servers)) else []
    lines = [
        f"source       psql -h localhost -p {ports['source']} -U postgres    (password: {shown})",
        f"destination  psql -h localhost -p {ports['destination']} -U postgres",
        f"Kafka        {brokers}",
        *logs,
        *(f"setting      export {setting}" for setting in settings(ports, brokers) if not secure),
        f"next         {activate}",
        *(first_steps_with_tls(short(secure)) if secure else FIRST_STEPS),
        f"to stop      {'make down' if ports['source'] == 5433 else 'servers.py down with the same options'}",
    ]
    return "\n" + "\n".join(lines) + "\n"


FIRST_STEPS = [
    "             python db_setup.py && python admin.py",
    "             python producer.py, python consumer.py, python test_cdc.py: a terminal each, with .venv active",
]


def first_steps_with_tls(folder: str) -> list[str]:
    """Return the same for `--secure`: each script has a login of its own."""
    return [
        f"             (set -a; . {folder}/admin.env; python db_setup.py --roles",
        "             python admin.py; python -m harness.acls)",
        *(
            f"             (set -a; . {folder}/{user}.env; python {script})"
            for user, script in (("producer", "producer.py"), ("consumer", "consumer.py"), ("monitor", "verify.py"))
        ),
    ]


def settings(ports: dict[str, int], brokers: str) -> list[str]:
    """Return the settings that the scripts need to find these servers."""
    if ports["source"] == 5433:
        return []
    login = "postgres:" + ("postgres" if password() == "postgres" else "PASSWORD")
    return [
        f"KAFKA_BOOTSTRAP_SERVERS={brokers}",
        f"SOURCE_DATABASE_URL=postgresql://{login}@localhost:{ports['source']}/postgres",
        f"DESTINATION_DATABASE_URL=postgresql://{login}@localhost:{ports['destination']}/postgres",
    ]


def what_stays(state: Path) -> str:
    """Return what a set that was stopped leaves on the disk."""
    programs = state.parent / "lib"
    lines = []
    if state.exists():
        purge = "make purge" if state.name == "offset-0" else "down --purge"
        lines += [f"data and logs stay in {short(state)} ({megabytes(state)} MB): `{purge}` removes them"]
    if programs.exists():
        lines += [f"programs stay in {short(programs)} ({megabytes(programs)} MB): `make clean` removes all"]
    return "".join(f"{line}\n" for line in lines)


def short(path: Path) -> str:
    """Return the path as seen from the clone, if it is in there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
