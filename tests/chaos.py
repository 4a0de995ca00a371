"""Break the pipeline under load in every way we know, one fault after the other, and see that nothing is lost.

    python -m tests.chaos                           240 s of faults, in the order that a seed from the clock gives
    python -m tests.chaos --seconds 60 --seed 7     the same order again
    python -m tests.chaos --only "Kafka killed"     only faults with that text in their name

On servers of its own, started and purged by the run. Writers change the source all the time. After each fault it takes
the time from the moment the fault is over (the killed server answers again, the killed script has been started again)
until a change of rows in all partitions, made then, is seen at the destination. At the end both tables must be equal.

Exit code 0: nothing lost, no employee went backwards at the destination, no script ended by itself, no dead letters,
and in sync at most 10 s (--limit) after each fault; 1: something of that is not so; 2: wrong use.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from rich.console import Console
from rich.table import Table

from harness.database import query
from harness.own_servers import bring_back, own_servers
from harness.pipeline import Pipeline
from harness.proxy import Proxy
from harness.script import Script
from harness.waiting import wait_until
from stack import servers
from stack.artifacts import Trouble, account
from stack.servers import Server

PATIENCE = 45.0  # seconds that we look for it
SESSION = 6.0  # seconds: session.timeout.ms of consumer.py
WRITERS = 5
HELD = 0.08  # seconds that a transaction is held open at most
KEYS = 300  # employees that the writers share
MARKERS = range(1_000_001, 1_000_041)  # employees that no writer touches: enough of them for every partition

# At the destination: every state that an employee had, with the change that cdc_applied names for it.
WITNESS = """
CREATE TABLE seen (number BIGSERIAL PRIMARY KEY, emp_id INT, state TEXT, cdc_id BIGINT);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen (emp_id, state, cdc_id)
    VALUES (coalesce(NEW.emp_id, OLD.emp_id), NEW::text,
            (SELECT cdc_id FROM cdc_applied WHERE emp_id = coalesce(NEW.emp_id, OLD.emp_id)));
    RETURN NULL;
END $$;
CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON employees FOR EACH ROW EXECUTE FUNCTION see();
ALTER TABLE employees ENABLE ALWAYS TRIGGER see;

CREATE TABLE lowered (emp_id INT, was BIGINT, became BIGINT);
CREATE FUNCTION see_lowered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lowered VALUES (OLD.emp_id, OLD.cdc_id, NEW.cdc_id);
    RETURN NULL;
END $$;
CREATE TRIGGER see_lowered AFTER UPDATE ON cdc_applied FOR EACH ROW
    WHEN (NEW.cdc_id <= OLD.cdc_id) EXECUTE FUNCTION see_lowered();
ALTER TABLE cdc_applied ENABLE ALWAYS TRIGGER see_lowered;
"""
SEEN = "SELECT emp_id, state, cdc_id FROM seen ORDER BY number"
LOG = """
SELECT cdc_id, emp_id, CASE WHEN action <> 'DELETE' THEN (emp_id, first_name, last_name, dob, city, salary)::text END
FROM emp_cdc
"""
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
CUT_ACTIVE_PRODUCER = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 6513763 AND objid = 1 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle in transaction'
"""

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@dataclass
class Running:
    """A script that the run keeps running, as a supervisor would."""

    name: str
    environment: dict[str, str]
    proxied: bool
    script: Script


@dataclass
class Run:
    random: Random
    servers: dict[str, Server]
    pipeline: Pipeline
    proxies: dict[str, Proxy]  # source, destination, kafka
    small_disk: Path | None  # where the destination's tables are, if that could be made
    limit: float  # seconds until in sync after a fault
    running: dict[str, Running] = field(default_factory=dict)  # by role: producer, consumer, second
    problems: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=dict)  # by kind of fault
    rounds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    over: threading.Event = field(default_factory=threading.Event)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        say(f"[bold red]{text}[/bold red]")


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")


# Writers


def write(run: Run, random: Random) -> None:
    """Change the source until the run is over, whatever becomes of the connection."""
    connection: Connection | None = None
    while not run.over.is_set():
        try:
            connection = connection or psycopg2.connect(run.pipeline.source_url, connect_timeout=5)
            with connection.cursor() as cursor:
                change(cursor, random)
                time.sleep(random.uniform(0, HELD))
            connection.rollback() if random.random() < 0.15 else connection.commit()
        except psycopg2.Error:  # two writers in each other's way, or an outage
            connection = usable(connection)
            time.sleep(0 if connection else 0.1)
    if connection:
        connection.close()


def usable(connection: Connection | None) -> Connection | None:
    """The connection after an error, rolled back; None if it is broken."""
    with contextlib.suppress(psycopg2.Error):
        if connection:
            connection.rollback()
            return connection
    return None


def change(cursor: Cursor, random: Random) -> None:
    """A transaction's statements."""
    for _ in range(random.randint(1, 5)):
        key, other = random.randint(1, KEYS), random.randint(1, KEYS)
        values = {"key": key, "other": other, "city": f"{random.getrandbits(60):x}", "salary": random.getrandbits(30)}
        undone = random.random() < 0.15
        if undone:
            cursor.execute("SAVEPOINT here")
        cursor.execute(random.choice(CHANGES), values)
        if undone:
            cursor.execute("ROLLBACK TO SAVEPOINT here")


CHANGES = (
    """INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
       VALUES (%(key)s, 'Ada', 'Ünal', '1999-12-31', %(city)s, %(salary)s) ON CONFLICT DO NOTHING""",
    "INSERT INTO employees (emp_id, city) VALUES (%(key)s, %(city)s) ON CONFLICT DO NOTHING",
    "UPDATE employees SET city = %(city)s, salary = %(salary)s WHERE emp_id = %(key)s",
    "UPDATE employees SET city = %(city)s WHERE emp_id BETWEEN %(key)s AND %(key)s + 3",
    "UPDATE employees SET last_name = %(city)s, dob = NULL WHERE emp_id = %(key)s",
    "DELETE FROM employees WHERE emp_id = %(key)s",
    """UPDATE employees SET emp_id = %(other)s, city = %(city)s
       WHERE emp_id = %(key)s AND NOT EXISTS (SELECT FROM employees WHERE emp_id = %(other)s)""",
)


# Scripts


def start(run: Run, role: str, proxied: bool = False, instance: str = "") -> None:
    """Start the script of this role: producer, consumer, second (consumer), standby (producer)."""
    environment = {"KAFKA_GROUP_INSTANCE_ID": instance} if instance else {}
    if proxied:
        ports = {name: proxy.port for name, proxy in run.proxies.items()}
        environment["KAFKA_BOOTSTRAP_SERVERS"] = f"localhost:{ports['kafka']}"
        for name, url in (("source", run.pipeline.source_url), ("destination", run.pipeline.destination_url)):
            through = url.replace(f":{run.servers[name].port}/", f":{ports[name]}/")
            environment[f"{name.upper()}_DATABASE_URL"] = through
    name = "producer.py" if role in ("producer", "standby") else "consumer.py"
    run.running[role] = Running(name, environment, proxied, run.pipeline.start(name, **environment))


def start_again(run: Run, role: str) -> None:
    last = run.running[role]
    last.script = run.pipeline.start(last.name, **last.environment)


def kill(run: Run, role: str) -> None:
    run.running[role].script.kill()


def stop(run: Run, role: str) -> None:
    """End a script in good order."""
    script = run.running.pop(role).script
    try:
        code = script.stop()
    except subprocess.TimeoutExpired:
        run.problem(f"{script.log.name} did not end within 20 s of SIGTERM\n{tail(script)}")
        script.kill()
    else:
        starting = code == -signal.SIGTERM and not script.output()  # Python does not heed signals yet
        if code != 0 and not starting:
            run.problem(f"{script.log.name} ended with exit code {code} after SIGTERM\n{tail(script)}")


def ensure(run: Run, role: str, proxied: bool | None = None, instance: str | None = None) -> None:
    """Have a script run with these connections and this KAFKA_GROUP_INSTANCE_ID, and the pipeline be in sync."""
    now = run.running[role]
    has = now.environment.get("KAFKA_GROUP_INSTANCE_ID", "")
    wanted = (now.proxied if proxied is None else proxied, has if instance is None else instance)
    if wanted != (now.proxied, has):
        stop(run, role)
        start(run, role, *wanted)
        time_until_in_sync(run)


def signal_to(run: Run, role: str, number: int) -> None:
    run.running[role].script.process.send_signal(number)


def watch(run: Run) -> None:
    """Note a script that has ended by itself, and start it again."""
    for role, running in run.running.items():
        code = running.script.process.poll()
        if code is not None:
            run.problem(f"{running.script.log.name} ended by itself, exit code {code}\n{tail(running.script)}")
            start_again(run, role)


def tail(script: Script) -> str:
    return "\n".join(f"    {line}" for line in script.output().splitlines()[-6:])


# Being in sync


def time_until_in_sync(run: Run) -> float:
    """Change the markers, and return the seconds until they are seen at the destination; infinite after PATIENCE."""
    began, number = time.monotonic(), next(run.rounds)
    mark = f"UPDATE employees SET salary = {number} WHERE emp_id >= {MARKERS.start} RETURNING emp_id"
    look = f"SELECT count(*) FROM employees WHERE emp_id >= {MARKERS.start} AND salary = {number}"
    for url, statement in ((run.pipeline.source_url, mark), (run.pipeline.destination_url, look)):
        connection: Connection | None = None
        rows: list[tuple[int]] = []
        while len(rows) < len(MARKERS) and (not rows or rows[0][0] != len(MARKERS)):
            if time.monotonic() - began > PATIENCE:
                return float("inf")
            watch(run)
            try:
                connection = connection or autocommit(url)
                rows = query(connection, statement)
            except psycopg2.Error:
                connection = None
            time.sleep(0.01)
        if connection:
            connection.close()
    return time.monotonic() - began


def autocommit(url: str) -> Connection:
    connection: Connection = psycopg2.connect(url, connect_timeout=5)
    connection.autocommit = True
    return connection


def ask(url: str, statement: str) -> int:
    with closing(autocommit(url)) as connection:
        return int(query(connection, statement)[0][0])


# Faults. Each yields when it is over: from then on the time runs until the pipeline is in sync.

Fault = Iterator[None]


def producer_killed(run: Run) -> Fault:
    kill(run, "producer")
    time.sleep(0.5)
    start_again(run, "producer")
    yield


def consumer_killed(run: Run, instance: str) -> Fault:
    ensure(run, "consumer", instance=instance)
    kill(run, "consumer")
    time.sleep(0.5)
    start_again(run, "consumer")
    yield


def server_killed(run: Run, name: str) -> Fault:
    servers.kill(run.servers[name])
    time.sleep(run.random.uniform(0, 2))
    bring_back(run.servers[name], run.pipeline.topic)
    yield


def kafka_killed(run: Run, instance: str) -> Fault:
    ensure(run, "consumer", instance=instance)
    return server_killed(run, "kafka")


def producer_stopped(run: Run) -> Fault:
    signal_to(run, "producer", signal.SIGSTOP)
    time.sleep(SESSION + 2)
    signal_to(run, "producer", signal.SIGCONT)
    yield


def producer_stopped_and_replaced(run: Run) -> Fault:
    start(run, "standby")
    time_until_in_sync(run)
    signal_to(run, "producer", signal.SIGSTOP)
    ask(run.pipeline.source_url, CUT_ACTIVE_PRODUCER)
    yield
    time.sleep(SESSION)
    signal_to(run, "producer", signal.SIGCONT)
    yield
    stop(run, "producer")
    run.running["producer"] = run.running.pop("standby")


def producer_killed_with_standby(run: Run) -> Fault:
    start(run, "standby")
    run.running["standby"].script.wait_for("standing by")
    kill(run, "producer")
    run.running["producer"] = run.running.pop("standby")
    yield


def consumer_stopped(run: Run, in_transaction: bool) -> Fault:
    """The other consumer must take over, and the zombie must do no harm when it goes on."""
    start(run, "second")
    time_until_in_sync(run)
    signal_to(run, "consumer", signal.SIGSTOP)
    for _ in range(400 if in_transaction else 0):
        time.sleep(0.01)
        if ask(run.pipeline.destination_url, IN_TRANSACTION):
            break
        signal_to(run, "consumer", signal.SIGCONT)
        time.sleep(run.random.uniform(0, 0.01))
        signal_to(run, "consumer", signal.SIGSTOP)
    began = time.monotonic()
    yield
    time.sleep(max(0.0, began + SESSION + 2 - time.monotonic()))
    signal_to(run, "consumer", signal.SIGCONT)
    yield
    stop(run, "second")
    yield


def sessions_cut(run: Run, name: str) -> Fault:
    ask(run.pipeline.source_url if name == "source" else run.pipeline.destination_url, CUT)
    yield


def consumer_joins_and_leaves(run: Run) -> Fault:
    start(run, "second")
    yield
    time.sleep(run.random.uniform(0, 2))
    stop(run, "second")
    yield


def connections_cut(run: Run, name: str) -> Fault:
    through_proxy(run, name)
    for _ in range(run.random.randint(1, 3)):
        run.proxies[name].cut()
        time.sleep(run.random.uniform(0, 0.3))
    yield


def connections_held_up(run: Run, name: str) -> Fault:
    """Nothing passes for a while, and then the connections break or go on."""
    through_proxy(run, name)
    run.proxies[name].flows.clear()
    time.sleep(run.random.uniform(1, 4))
    if run.random.random() < 0.5:
        run.proxies[name].cut()
    run.proxies[name].flows.set()
    yield


def connections_slow(run: Run, name: str) -> Fault:
    through_proxy(run, name)
    run.proxies[name].delay = run.random.uniform(0.05, 0.5)
    time.sleep(3)
    run.proxies[name].delay = 0.0
    yield


def through_proxy(run: Run, name: str) -> None:
    """Have the scripts that talk to this server do so through its proxy."""
    for role in {"source": ["producer"], "destination": ["consumer"], "kafka": ["producer", "consumer"]}[name]:
        ensure(run, role, proxied=True)


def disk_full(run: Run) -> Fault:
    assert run.small_disk
    filler, script = run.small_disk.parent / "filler", run.running["consumer"].script
    before = len(script.output())
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024**2))
    try:
        wait_until(lambda: "No space left" in script.output()[before:], 20, "the destination's disk is full")
        time.sleep(run.random.uniform(0, 2))
    finally:
        filler.unlink()
    yield


FAULTS: dict[str, Callable[[Run], Fault]] = {
    "producer killed": producer_killed,
    "producer killed, a standby there": producer_killed_with_standby,
    "producer stopped for 8 s": producer_stopped,
    "producer stopped, its session cut, a standby there": producer_stopped_and_replaced,
    "consumer killed": partial(consumer_killed, instance=""),
    "consumer with KAFKA_GROUP_INSTANCE_ID killed": partial(consumer_killed, instance="one"),
    "consumer stopped for 8 s, a second there": partial(consumer_stopped, in_transaction=False),
    "consumer stopped in a transaction, a second there": partial(consumer_stopped, in_transaction=True),
    "second consumer joins and leaves": consumer_joins_and_leaves,
    "Kafka killed": partial(kafka_killed, instance=""),
    "Kafka killed, a consumer with KAFKA_GROUP_INSTANCE_ID": partial(kafka_killed, instance="one"),
    "ZooKeeper killed": partial(server_killed, name="zookeeper"),
    "source killed": partial(server_killed, name="source"),
    "destination killed": partial(server_killed, name="destination"),
    "all sessions of the source cut": partial(sessions_cut, name="source"),
    "all sessions of the destination cut": partial(sessions_cut, name="destination"),
    "connections to the source cut": partial(connections_cut, name="source"),
    "connections to the destination cut": partial(connections_cut, name="destination"),
    "connections to Kafka cut": partial(connections_cut, name="kafka"),
    "connections to the source held up": partial(connections_held_up, name="source"),
    "connections to the destination held up": partial(connections_held_up, name="destination"),
    "connections to Kafka held up": partial(connections_held_up, name="kafka"),
    "connections to the source slow": partial(connections_slow, name="source"),
    "connections to the destination slow": partial(connections_slow, name="destination"),
    "connections to Kafka slow": partial(connections_slow, name="kafka"),
    "destination's disk full": disk_full,
}


def break_it(run: Run, end: float, kinds: list[str]) -> None:
    """One fault after the other, all kinds in turn, in a new random order each time."""
    order: list[str] = []
    while kinds and time.monotonic() < end:
        order = order or run.random.sample(kinds, len(kinds))
        kind, longest = order.pop(), 0.0
        try:
            for _ in FAULTS[kind](run):
                longest = max(longest, time_until_in_sync(run))
        except AssertionError as error:  # of wait_until
            run.problem(f"{kind}: {error}")
        run.took.setdefault(kind, []).append(longest)
        say(f"{kind}: in sync after {longest:.1f} s")
        if longest > run.limit:
            run.problem(f"{kind}: in sync after {longest:.1f} s, more than {run.limit:.0f} s")
        time.sleep(run.random.uniform(0, 0.5))


# The verdict


@dataclass
class Verdict:
    changes: int
    states: int
    lost: int
    backwards: int
    repeated: int
    dead_letters: int


def judge(run: Run) -> Verdict:
    """Compare what the source logged, what went through Kafka, and what the destination has seen and shows."""
    with (
        closing(autocommit(run.pipeline.source_url)) as source,
        closing(autocommit(run.pipeline.destination_url)) as there,
    ):
        logged = {cdc_id: (emp_id, state) for cdc_id, emp_id, state in query(source, LOG)}
        seen = query(there, SEEN)
        backwards = query(there, "SELECT count(*) FROM lowered")[0][0]
    newest: dict[int, int] = {}
    for emp_id, state, cdc_id in seen:
        if cdc_id is None or cdc_id <= newest.get(emp_id, 0) or logged.get(cdc_id) != (emp_id, state):
            backwards += 1
        newest[emp_id] = max(newest.get(emp_id, 0), cdc_id or 0)
    published = Counter(json.loads(message.value() or b"")["cdc_id"] for message in run.pipeline.messages())
    return Verdict(
        changes=len(logged),
        states=len(seen),
        lost=len(logged.keys() - published.keys()),
        backwards=backwards,
        repeated=published.total() - len(published),
        dead_letters=len(run.pipeline.dead_letters()),
    )


def check(run: Run) -> Verdict:
    """Wait until what is on its way has arrived, stop the scripts, and note what is not as it must be."""
    with contextlib.suppress(AssertionError):
        wait_until(run.pipeline.equal, PATIENCE)
    watch(run)
    for role in list(run.running):
        stop(run, role)
    if not run.pipeline.equal():
        run.problem("the tables differ")
    found = judge(run)
    if found.lost:
        run.problem(f"{found.lost} changes were never published")
    if found.backwards:
        run.problem(f"{found.backwards} states at the destination went backwards, or are none that the source had")
    if found.dead_letters:
        run.problem(f"{found.dead_letters} dead letters")
    for script in run.pipeline.scripts:
        if "Traceback" in script.output():
            run.problem(f"a traceback in {script.log.name}")
    return found


def report(run: Run, found: Verdict) -> None:
    table = Table("fault", "times", "in sync after, at most", title="Faults", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, took in sorted(run.took.items(), key=lambda item: -max(item[1])):
        style = "bold red" if max(took) > run.limit else ""
        table.add_row(kind, str(len(took)), f"{max(took):.1f} s", style=style)
    table.add_section()
    table.add_row("all", str(sum(map(len, run.took.values()))), f"{max(map(max, run.took.values()), default=0):.1f} s")
    console.print(table)
    console.print(
        f"{found.changes:,} changes, {found.states:,} states seen at the destination: {found.lost} lost, "
        f"{found.backwards} went backwards, {found.dead_letters} dead letters; {found.repeated:,} messages came twice"
    )


# The run


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 64 MB for the destination's tables; None, and a word why, where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        say("left out: destination's disk full, as only root may mount a small file system")
        yield None
        return
    try:
        place, user = folder / "tables", account()
        place.mkdir()
        if user:
            os.chown(place, user.pw_uid, user.pw_gid)
        yield place
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def prepare(run: Run) -> None:
    """Databases, topic, witness, markers and scripts."""
    run.pipeline.create()
    run.pipeline.set_up()
    with closing(autocommit(run.pipeline.destination_url)) as destination:
        query(destination, WITNESS)
        if run.small_disk:
            query(destination, f"CREATE TABLESPACE small LOCATION '{run.small_disk}'")
            for table in ("employees", "cdc_applied", "seen"):
                query(destination, f"ALTER TABLE {table} SET TABLESPACE small")
    with closing(autocommit(run.pipeline.source_url)) as source:
        query(source, f"INSERT INTO employees (emp_id) SELECT generate_series({MARKERS.start}, {MARKERS.stop - 1})")
    start(run, "producer")
    start(run, "consumer")
    time_until_in_sync(run)


def chaos(seconds: float, seed: int, kinds: list[str], limit: float, offset: int) -> bool:
    """Whether all is as it must be, after so many seconds with faults of these kinds."""
    say(f"seed {seed}, {seconds:.0f} s")
    logs = Path(tempfile.mkdtemp(prefix="chaos-"))
    state = Path(servers.servers(offset)[0].state)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(state.with_suffix(".small")))
        ports = {server.name: server.port for server in servers.servers(offset)}
        targets = {"source": ports["source"], "destination": ports["destination"], "kafka": ports["kafka"] + 1}
        proxies = {name: stack.enter_context(closing(Proxy(port))) for name, port in targets.items()}
        own = stack.enter_context(own_servers(offset, logs, advertised=proxies["kafka"].port))
        run = Run(Random(seed), own, Pipeline("cdc_chaos", logs), proxies, disk, limit)
        writers = [threading.Thread(target=write, args=(run, Random(f"{seed} {n}"))) for n in range(WRITERS)]
        try:
            prepare(run)
            for writer in writers:
                writer.start()
            if not disk:
                kinds.remove("destination's disk full")
            break_it(run, time.monotonic() + seconds, kinds)
        finally:
            run.over.set()
            for writer in writers:
                if writer.is_alive():
                    writer.join()
            if sys.exc_info()[0]:
                end_scripts(run)
        found = check(run)
        end_scripts(run)
    report(run, found)
    if run.problems:
        console.print(f"[bold red]FAILED[/bold red] (seed {seed}; the scripts' output is in {logs}):")
        for problem in run.problems:
            console.print(f"- {problem}")
    else:
        shutil.rmtree(logs)
        console.print(f"PASSED (seed {seed})")
    return not run.problems


def named(kind: str, texts: list[str]) -> bool:
    return any(text.lower() in kind.lower() for text in texts)


def end_scripts(run: Run) -> None:
    for script in run.pipeline.scripts:
        if script.process.poll() is None:
            script.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="how long faults go on; default 240")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: from the clock")
    parser.add_argument("--limit", type=float, default=10, help="seconds until in sync after a fault; default 10")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only faults with TEXT in their name")
    parser.add_argument("--without", action="append", default=[], metavar="TEXT", help="no faults with TEXT in them")
    parser.add_argument(
        "--port-offset", type=int, default=2000, metavar="N", help="of the servers' ports; default 2000"
    )
    asked = parser.parse_args()
    kinds = [kind for kind in FAULTS if named(kind, asked.only or [""]) and not named(kind, asked.without)]
    if not kinds:
        parser.error(f"no such fault; there are: {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # through every `finally`
    try:
        sys.exit(0 if chaos(asked.seconds, asked.seed, kinds, asked.limit, asked.port_offset) else 1)
    except (Trouble, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
