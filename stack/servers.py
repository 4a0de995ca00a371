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
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script Python knows this folder only
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stack.answers import answer, ask
from stack.artifacts import ROOT, STATE, TITLES, Trouble, account, as_account, java, locked, make, programs, reachable
from stack.artifacts import version as artifact_version

PATIENCE = 60  # seconds that a server gets until it answers
SIGNALS = {  # an end in good order, an end at once
    "zookeeper": (signal.SIGTERM, signal.SIGKILL),
    "kafka": (signal.SIGTERM, signal.SIGKILL),
    "postgres": (signal.SIGINT, signal.SIGQUIT),  # never SIGKILL: the backends would live on in the data
}
JVM = {
    "zookeeper": ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
    "kafka": ["-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"],
}
LOGGING = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
]
POSTGRES = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_level": "logical",  # not for the pipeline: the benchmarks set native replication beside it
}
CLUSTER_ID = "employee-cdc-cluster-A"  # KRaft wants 22 characters of base64


@dataclass(frozen=True)
class Server:
    name: str  # zookeeper, kafka, source, destination; in a cluster kafka1, kafka2, kafka3
    kind: str  # zookeeper, kafka, postgres
    version: str  # of the artifact; ZooKeeper comes with Kafka and has Kafka's
    port: int
    state: str  # the folder with its data, log and pid file
    settings: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def data(self) -> Path:
        return Path(self.state, f"{self.name}-{self.version.partition('.')[0]}")

    def file(self, suffix: str) -> Path:
        return Path(self.state, f"{self.name}.{suffix}")


# Which servers


def servers(
    offset: int = 0, cluster: bool = False, kafka: str = "", postgres: str = "17", state: str | Path = STATE
) -> list[Server]:
    """The servers of one set, in the order in which they start. Versions are a major number or a full version."""
    folder = str(reachable(Path(state)) / f"offset-{offset}")
    kafka = artifact_version("kafka", kafka or ("4" if cluster else "3"))
    postgres = artifact_version("postgres", postgres)
    found = []
    if cluster:
        for node in 1, 2, 3:
            settings = kraft_settings(node, 3, offset)
            found.append(Server(f"kafka{node}", "kafka", kafka, 9091 + node + offset, folder, settings))
    elif kafka.startswith("3."):
        found.append(Server("zookeeper", "zookeeper", kafka, 2181 + offset, folder, zookeeper_settings(offset)))
        found.append(Server("kafka", "kafka", kafka, 9092 + offset, folder, kafka_settings(offset)))
    else:
        found.append(Server("kafka", "kafka", kafka, 9092 + offset, folder, kraft_settings(1, 1, offset)))
    found.append(Server("source", "postgres", postgres, 5433 + offset, folder, POSTGRES))
    found.append(Server("destination", "postgres", postgres, 5434 + offset, folder, POSTGRES))
    return found


def zookeeper_settings(offset: int) -> dict[str, str]:
    return {
        "clientPort": str(2181 + offset),
        "clientPortAddress": "127.0.0.1",
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "srvr,dump",
    }


def kafka_settings(offset: int) -> dict[str, str]:
    """A broker with ZooKeeper."""
    return {
        "broker.id": "1",
        "zookeeper.connect": f"127.0.0.1:{2181 + offset}",
        "zookeeper.session.timeout.ms": "6000",  # so long a killed broker's place stays taken
        "listeners": f"PLAINTEXT://127.0.0.1:{9092 + offset}",
        "advertised.listeners": f"PLAINTEXT://localhost:{9092 + offset}",
        **broker_settings(1),
    }


def kraft_settings(node: int, nodes: int, offset: int) -> dict[str, str]:
    """A broker that is one of the controllers, too; these are 10000 above the brokers' ports."""
    port = 9091 + node + offset
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{19091 + n + offset}" for n in range(1, nodes + 1)),
        "controller.listener.names": "CONTROLLER",
        # So long a killed broker's partitions wait for other leaders; see docker-compose.cluster.yml.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 10000}",
        "advertised.listeners": f"PLAINTEXT://localhost:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **broker_settings(nodes),
    }


def broker_settings(nodes: int) -> dict[str, str]:
    """What each of so many brokers has; few partitions in the internal topics, for a quick start and end."""
    copies, needed = str(nodes), str(min(nodes, 2))
    settings = {
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "default.replication.factor": copies,
        "min.insync.replicas": needed,
        "offsets.topic.num.partitions": "3",
        "offsets.topic.replication.factor": copies,
    }
    for topic in "transaction.state.log", "share.coordinator.state.topic":
        settings |= {f"{topic}.num.partitions": "3", f"{topic}.replication.factor": copies, f"{topic}.min.isr": needed}
    return settings


def password() -> str:
    """POSTGRES_PASSWORD from the environment, else from .env, else `postgres`."""
    if "POSTGRES_PASSWORD" in os.environ:
        return os.environ["POSTGRES_PASSWORD"]
    text = (ROOT / ".env").read_text() if (ROOT / ".env").exists() else ""
    found = re.findall(r"^\s*(?:export\s+)?POSTGRES_PASSWORD\s*=\s*(.*?)\s*$", text, re.MULTILINE)
    return found[-1].strip("'\"") if found else "postgres"


# One server: start, wait, stop, kill


def start(server: Server) -> None:
    """Starts the server unless it runs already; wait() waits until it answers."""
    if pid(server):
        return
    make(Path(server.state))
    folder = programs(server.kind, server.version)
    if server.kind == "postgres":
        launch(server, postgres_command(server, folder), **as_account())
    else:
        launch(server, java_command(server, folder))


def launch(server: Server, command: list[str], **options: Any) -> None:
    """Runs the command detached from us and our terminal; the log of the run before is kept as .log.1."""
    if server.file("log").exists():
        server.file("log").replace(server.file("log.1"))
    with open(server.file("log"), "wb") as log:
        options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": server.state}
        child = subprocess.Popen(command, start_new_session=True, **options)
    child.returncode = 0  # it is to outlive us: without this Python complains
    record = asdict(server) | {"pid": child.pid, "started": started(child.pid)}
    server.file("pid.new").write_text(json.dumps(record))
    server.file("pid.new").replace(server.file("pid"))


def postgres_command(server: Server, folder: Path) -> list[str]:
    """The command that runs PostgreSQL; its data folder is made where missing."""
    if not server.data.is_dir():
        initialize(server, folder)
    last, lock = recorded(server), server.data / "postmaster.pid"
    # After a power cut that pid may be another process of the same user by now, and PostgreSQL would not start. Only of
    # a server that was started here do we know that it has ended.
    if last and lock.exists() and lock.read_text().partition("\n")[0] == str(last["pid"]):
        lock.unlink()
    settings = [f"--{name}={value}" for name, value in server.settings.items()]
    return [str(folder / "bin" / "postgres"), "-D", str(server.data), "-p", str(server.port), *settings]


def initialize(server: Server, folder: Path) -> None:
    """Makes PostgreSQL's data folder, under another name until it is complete."""
    new, secret, user = server.data.with_suffix(".new"), server.file("password"), account()
    shutil.rmtree(new, ignore_errors=True)
    secret.unlink(missing_ok=True)
    new.mkdir(mode=0o700)
    secret.touch(mode=0o600)
    secret.write_text(password())
    for path in new, secret:
        if user:
            os.chown(path, user.pw_uid, user.pw_gid)
    # macOS has no C.UTF-8.
    locale = ["--locale=C", "--lc-ctype=en_US.UTF-8"] if sys.platform == "darwin" else ["--locale=C.UTF-8"]
    command = [str(folder / "bin" / "initdb"), "-D", str(new), "-U", "postgres", f"--pwfile={secret}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", *locale]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=server.state, **as_account())
    finally:
        secret.unlink()
    if run.returncode != 0:
        raise Trouble(f"initdb failed for {server.name}: {run.stderr.strip()}")
    new.rename(server.data)


def java_command(server: Server, folder: Path) -> list[str]:
    """The command that runs ZooKeeper or Kafka. Its configuration is written each time, KRaft's storage made once."""
    data = "dataDir" if server.kind == "zookeeper" else "log.dirs"
    settings = {data: str(server.data)} | server.settings
    properties = server.file("properties")
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    base = [java(), *JVM[server.kind], *LOGGING, "-cp", f"{folder}/*"]
    if server.kind == "zookeeper":
        return [*base, "org.apache.zookeeper.server.ZooKeeperServerMain", str(properties)]
    if "zookeeper.connect" in server.settings:
        await_place(server)
    elif not (server.data / "meta.properties").exists():
        form = [*base, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
        run = subprocess.run(form, capture_output=True, text=True)
        if run.returncode != 0:
            raise Trouble(f"the storage of {server.name} could not be formatted: {run.stderr.strip()[-500:]}")
    return [*base, "kafka.Kafka", str(properties)]


def await_place(server: Server) -> None:
    """Waits while ZooKeeper holds the broker's id for a killed broker's session: the new broker would give up."""
    keeper = int(server.settings["zookeeper.connect"].partition(":")[2])
    place, deadline = f"/brokers/ids/{server.settings['broker.id']}\n".encode(), time.monotonic() + 30
    with contextlib.suppress(OSError):  # no ZooKeeper: Kafka says so itself
        while place in ask(keeper, b"dump") and time.monotonic() < deadline:
            time.sleep(0.2)


def wait(server: Server, seconds: float = PATIENCE) -> None:
    """Returns when the server answers; raises Trouble when it has ended or the time is over."""
    deadline = time.monotonic() + seconds
    log = server.file("log")
    while (state := answer(server.kind, server.port)) != "answers":
        if not pid(server) and state != "starting":
            end_of_log = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
            raise Trouble("\n".join([f"{server.name} does not run; the end of {log}:", *end_of_log]))
        if time.monotonic() > deadline:
            raise Trouble(f"{server.name} does not answer after {seconds:.0f} s, see {log}")
        time.sleep(0.05)


def stop(server: Server) -> None:
    """Ends a server that was started here, in good order or, if that takes over 15 s, at once."""
    orderly, at_once = SIGNALS[server.kind]
    if not end(server, orderly, 15) and not end(server, at_once, 15):
        raise Trouble(f"{server.name} (pid {pid(server)}) does not end")


def kill(server: Server) -> None:
    """Ends a server that was started here as a crash would; start() brings it back."""
    if not pid(server):
        raise Trouble(f"{server.name} was not started here, or has ended")
    if not end(server, SIGNALS[server.kind][1], 15):
        raise Trouble(f"{server.name} (pid {pid(server)}) does not end")


def end(server: Server, number: signal.Signals, seconds: float) -> bool:
    """Sends the signal; whether the process has ended within that time."""
    if process := pid(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    deadline = time.monotonic() + seconds
    while pid(server):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    if process:
        with contextlib.suppress(ChildProcessError):  # only of a child of ours there is something left to clear away
            os.waitpid(process, os.WNOHANG)
    server.file("pid").unlink(missing_ok=True)
    return True


def pid(server: Server) -> int | None:
    """The server's process if it was started here and still runs; another process that has its pid by now is not it."""
    last = recorded(server)
    return int(last["pid"]) if last and last["started"] and started(last["pid"]) == last["started"] else None


def recorded(server: Server) -> dict[str, Any] | None:
    """What launch() wrote down of the server's last run, unless stop() or kill() has ended it."""
    file = server.file("pid")
    return dict(json.loads(file.read_text())) if file.exists() else None


def started(process: int) -> str:
    """When the process started, in the system's own words; nothing if it has ended."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] == "Z" else fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(process)], capture_output=True, text=True)
    status, _, began = found.stdout.strip().partition(" ")
    return "" if status.startswith("Z") else began.strip()


# The commands


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


def ours(state: Path) -> list[Server]:
    """The servers that were started with this folder and not stopped, whatever set they are of."""
    records = [json.loads(path.read_text()) for path in state.glob("*.pid")]
    return [Server(**{name: record[name] for name in Server.__dataclass_fields__}) for record in records]


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
