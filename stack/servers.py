"""The servers without Docker, on the ports that docker-compose.yml gives them; needs Python 3.10+, Java 17+ and Maven.

    python stack/servers.py up              # ZooKeeper 2181, Kafka 9092, source PostgreSQL 5433, destination 5434
    python stack/servers.py status
    python stack/servers.py down [--purge]  # --purge: the data goes too

    python stack/servers.py up --port-offset 1000 --cluster --postgres 18   # for tests: another set beside the first

What already answers at an address is used as it is, and `down` leaves it running. Programs, data, logs and pid files
are in stack/.state. User and database are `postgres`, the password is POSTGRES_PASSWORD (environment or .env, default
`postgres`) as it was when the data was made. Tests use servers(), start(), wait(), stop(), kill() and pid().
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:  # run as a script Python knows this folder only
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stack import Trouble
from stack.answers import answer
from stack.artifacts import TITLES, java, programs
from stack.artifacts import version as artifact_version
from stack.folders import STATE, locked
from stack.pid_file import ours, pid
from stack.process import PATIENCE, kill, start, stop, wait
from stack.sets import Server, password, servers

__all__ = ["Server", "kill", "ours", "password", "pid", "servers", "start", "stop", "up", "wait"]


def settled(server: Server) -> str:
    """answer(), after some patience with a server that somebody else may be starting."""
    began, patience = time.monotonic(), {"starting": PATIENCE, "other": 3}
    while True:
        state = answer(server.kind, server.port)
        if pid(server) or time.monotonic() - began >= patience.get(state, 0):
            return state
        time.sleep(0.2)


def up(wanted: list[Server]) -> None:
    """Starts what does not answer and waits until all do; raises Trouble with the words of each that failed."""
    with locked(Path(wanted[0].state)), ThreadPoolExecutor(len(wanted)) as pool:
        for server in ours(Path(wanted[0].state)):
            if pid(server) and (server.name, server.version) not in [(other.name, other.version) for other in wanted]:
                raise Trouble(f"{server.name} {server.version} runs there, which is not of this set: `down` first")
        missing = []
        for server, state in zip(wanted, pool.map(settled, wanted), strict=True):
            if state == "answers":
                say(server, f"answers already, used as it is ({owner(server)})")
            elif state == "closed" or pid(server):
                missing.append(server)
            else:
                raise Trouble(f"port {server.port} is held by something else: end it, or move with --port-offset")
        if any(server.kind != "postgres" for server in missing):
            java()
        for server in missing:
            programs(server.kind, server.version)
        first = {server: pool.submit(bring, server) for server in missing if not needs_zookeeper(server)}
        keeper = next((server for server in first if server.kind == "zookeeper"), None)
        if keeper is None or first[keeper].exception() is None:
            first |= {server: pool.submit(bring, server) for server in missing if needs_zookeeper(server)}
        errors = [str(error) for future in first.values() if (error := future.exception())]
    if errors:
        raise Trouble("\n".join(errors))


def needs_zookeeper(server: Server) -> bool:
    return "zookeeper.connect" in server.settings


def bring(server: Server) -> None:
    """Starts one server and waits until it answers."""
    began = time.monotonic()
    start(server)
    wait(server)
    say(server, f"started in {time.monotonic() - began:.1f} s ({owner(server)})")


def down(state: Path) -> None:
    """Stops what was started here; ZooKeeper last, Kafka needs it to end in good order."""
    with locked(state), ThreadPoolExecutor() as pool:
        for last in False, True:
            group = [server for server in ours(state) if (server.kind == "zookeeper") == last]
            running = [server for server in group if pid(server)]
            list(pool.map(stop, group))
            for server in group:
                say(server, "stopped" if server in running else "had ended already")


def status(wanted: list[Server]) -> bool:
    """Prints a line per server; whether all answer."""
    words = {"closed": "does not answer", "other": "something else"}
    states = [answer(server.kind, server.port) for server in wanted]
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
    parser.add_argument("--purge", action="store_true", help="with down: remove the data, too")
    parser.add_argument("--state", type=Path, default=STATE, metavar="DIR", help="where data, logs and pid files go")
    parser.add_argument("--port-offset", type=int, default=0, metavar="N", help="a set of its own, all ports + N")
    parser.add_argument("--cluster", action="store_true", help="three Kafka 4 brokers, 9092 to 9094, and no ZooKeeper")
    parser.add_argument("--kafka", default="", metavar="VERSION", help="3 (default, with ZooKeeper), 4, or in full")
    parser.add_argument("--postgres", default="17", metavar="VERSION", help="13 to 18 (default 17), or in full")
    args = parser.parse_args()
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
    state = Path(wanted[0].state)
    if state.parent != Path(os.path.abspath(args.state)):
        print(f"PostgreSQL's user cannot reach {args.state}: {state.parent} is used instead", flush=True)
    if args.command == "status":
        return 0 if status(wanted) else 1
    if args.command == "up":
        up(wanted)
        return 0
    if state.is_dir():
        down(state)
        if args.purge:
            shutil.rmtree(state)
    for server in wanted:
        if answer(server.kind, server.port) == "answers":
            say(server, "is not ours, left running")
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
