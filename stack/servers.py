"""Run the servers without Docker, at docker-compose.yml's addresses.

Needs Python 3.10+, Java 17+ and Maven.

    python stack/servers.py up           # ports 2181, 9092, 5433, 5434
    python stack/servers.py status
    python stack/servers.py down         # the data stays
    python stack/servers.py down --purge

    # Another set, for tests:
    python stack/servers.py up --port-offset 1000 --cluster --postgres 18
    python stack/servers.py up --port-offset 1000 --secure

A server that answers already is used as it is, and `down` leaves it running. Programs,
data, logs and pid files are in stack/.state. User and database are `postgres`. The
password is POSTGRES_PASSWORD (environment or .env, default `postgres`) as it was when
the data was made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

if not __package__:  # as a script: Python knows only this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stack import Trouble
from stack.answers import answer
from stack.artifacts import TITLES, java, programs
from stack.artifacts import version as artifact_version
from stack.folders import STATE, locked
from stack.pid_file import ours, pid
from stack.process import PATIENCE, kill, start, stop, wait
from stack.secure import secured
from stack.sets import Server, password, servers
from stack.summary import next_steps, short, what_stays

# What tests use.
__all__ = ["Server", "kill", "ours", "password", "pid", "servers", "start", "stop", "up", "wait"]

PROGRESS_EVERY = 8.0  # seconds


def up(wanted: list[Server]) -> None:
    """Start the servers that do not answer, and return when all of them do."""
    state = Path(wanted[0].state)
    with locked(state), ThreadPoolExecutor(len(wanted)) as pool:
        refuse_other_set(wanted, state)
        missing = missing_servers(wanted, pool)
        if any(server.kind != "postgres" for server in missing):
            java()
        for server in missing:
            programs(server.kind, server.version)
        start_all(missing, pool)


def refuse_other_set(wanted: list[Server], state: Path) -> None:
    """Raise Trouble if a server runs that is not of this set."""
    for server in ours(state):
        if pid(server) and (server.name, server.version) not in [(other.name, other.version) for other in wanted]:
            raise Trouble(f"{server.name} {server.version} runs there, which is not of this set: `down` first")


def missing_servers(wanted: list[Server], pool: ThreadPoolExecutor) -> list[Server]:
    """Return the servers to start; raise Trouble if something else holds a port."""
    missing = []
    for server, state in zip(wanted, pool.map(settled_answer, wanted), strict=True):
        if state == "answers":
            say(server, f"answers already, used as it is ({owner(server)})")
        elif state == "closed" or pid(server):
            missing.append(server)
        else:
            raise Trouble(f"port {server.port} is held by something else: end it, or move with --port-offset")
    return missing


def settled_answer(server: Server) -> str:
    """Return answer(), but wait for a server that somebody else may be starting."""
    began, patience = time.monotonic(), {"starting": PATIENCE, "other": 3}
    while True:
        state = answer(server.kind, server.port, server.encrypted)
        if pid(server) or time.monotonic() - began >= patience.get(state, 0):
            return state
        time.sleep(0.2)


def start_all(missing: list[Server], pool: ThreadPoolExecutor) -> None:
    """Start the servers side by side; raise Trouble with the errors of all."""
    starts: dict[str, Future[None]] = {}
    for server in missing:  # ZooKeeper comes first in every set
        zookeeper = starts.get("zookeeper") if "zookeeper.connect" in server.settings else None
        starts[server.name] = pool.submit(start_one, server, zookeeper)
    while futures.wait(starts.values(), PROGRESS_EVERY).not_done:
        waiting = ", ".join(name for name, future in starts.items() if not future.done())
        print(f"waiting for {waiting}; logs: {short(Path(missing[0].state))}/*.log", flush=True)
    errors = [str(error) for future in starts.values() if (error := future.exception())]
    if errors:
        raise Trouble("\n".join(dict.fromkeys(errors)))


def start_one(server: Server, zookeeper: Future[None] | None) -> None:
    """Start a server, after its ZooKeeper if it has one, and wait for its answer."""
    if zookeeper:
        zookeeper.result()
    began = time.monotonic()
    start(server)
    wait(server)
    say(server, f"started in {time.monotonic() - began:.1f} s ({owner(server)})")


def down(state: Path) -> None:
    """Stop what was started here.

    ZooKeeper is the last: Kafka needs it to stop in good order.
    """
    with locked(state), ThreadPoolExecutor() as pool:
        for last in False, True:
            group = [server for server in ours(state) if (server.kind == "zookeeper") == last]
            running = [server for server in group if pid(server)]
            list(pool.map(stop, group))
            for server in group:
                say(server, "stopped" if server in running else "had ended already")


def status(wanted: list[Server]) -> bool:
    """Print a line per server; return whether all answer."""
    words = {"closed": "does not answer", "other": "something else"}
    states = [answer(server.kind, server.port, server.encrypted) for server in wanted]
    for server, state in zip(wanted, states, strict=True):
        say(server, f"{words.get(state, state):17}{owner(server) if state != 'closed' or pid(server) else ''}")
    return all(state == "answers" for state in states)


def owner(server: Server) -> str:
    process = pid(server)
    return f"started here, pid {process}" if process else "not ours"


def say(server: Server, what: str) -> None:
    print(f"{server.name:12} {TITLES[server.kind]:11} localhost:{server.port:<6} {what}".rstrip(), flush=True)


def arguments() -> argparse.Namespace:
    about, _, rest = (__doc__ or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=rest, formatter_class=formatter)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--purge", action="store_true", help="with down: remove data and logs, too")
    parser.add_argument("--brief", action="store_true", help="with up and down: no word on what to do next")
    parser.add_argument("--state", type=Path, default=STATE, metavar="DIR", help="where data, logs and pid files go")
    parser.add_argument("--port-offset", type=int, default=0, metavar="N", help="a set of its own, all ports + N")
    parser.add_argument("--cluster", action="store_true", help="three Kafka 4 brokers, 9092 to 9094, and no ZooKeeper")
    parser.add_argument("--kafka", default="", metavar="VERSION", help="3 (default, with ZooKeeper), 4, or in full")
    parser.add_argument("--postgres", default="17", metavar="VERSION", help="13 to 18 (default 17), or in full")
    parser.add_argument("--secure", action="store_true", help="TLS, logins and ACLs, with Kafka 4: docs/security.md")
    args = parser.parse_args()
    if args.secure and (args.cluster or args.kafka.startswith("3")):
        parser.error("--secure goes with one broker of Kafka 4")
    args.kafka = args.kafka or ("4" if args.secure else "")
    if not 0 <= args.port_offset <= 40000:
        parser.error("--port-offset is between 0 and 40000")
    if args.cluster and args.kafka.startswith("3"):
        parser.error("--cluster needs Kafka 4")
    if args.purge and args.command != "down":
        parser.error("--purge goes with down")
    for kind, wanted in ("kafka", args.kafka or "3"), ("postgres", args.postgres):
        try:
            artifact_version(kind, wanted)
        except Trouble as trouble:
            parser.error(str(trouble))
    return args


def run(args: argparse.Namespace) -> int:
    wanted = servers(args.port_offset, args.cluster, args.kafka, args.postgres, args.state)
    if args.secure:
        wanted = secured(wanted)
    state = Path(wanted[0].state)
    if state.parent != Path(os.path.abspath(args.state)):
        print(f"PostgreSQL's user cannot reach {args.state}: {state.parent} is used instead", flush=True)
    if args.command == "status":
        return 0 if status(wanted) else 1
    if args.command == "up":
        up(wanted)
        print("" if args.brief else next_steps(wanted), end="")
        return 0
    if state.is_dir():
        down(state)
        if args.purge:
            shutil.rmtree(state)
    for server in wanted:
        if answer(server.kind, server.port, server.encrypted) == "answers":
            say(server, "is not ours, left running")
    print("" if args.brief else what_stays(state), end="")
    return 0


def main() -> int:
    try:
        return run(arguments())
    except (Trouble, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
