"""Break the pipeline under load in every way we know, one fault after the other, and see that nothing is lost.

    python -m tests.chaos                           240 s of faults, in the order that a seed from the clock gives
    python -m tests.chaos --seconds 60 --seed 7     the same order again
    python -m tests.chaos --only "Kafka killed"     only faults with that text in their name

On servers of its own, started and purged by the run. Writers change the source all the time. After each fault it takes
the time from the moment the fault is over (the killed server answers again, the killed script has been started again)
until a change of rows in all partitions, made then, is seen at the destination. At the end both tables must be equal.
A fault that changes the history loses something: a script must say so, and verify.py --repair mends it.

Exit code 0: nothing lost, no employee went backwards at the destination, no script ended by itself, no dead letters,
and in sync at most 10 s (--limit) after each fault; 1: something of that is not so; 2: wrong use.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random

from harness.database import query
from harness.own_servers import own_servers
from harness.pipeline import Pipeline
from harness.proxy import Proxy
from stack import servers
from stack.artifacts import Trouble, account
from tests.chaos.faults import FAULTS, break_it
from tests.chaos.run import MARKERS, Run, autocommit, console, end_scripts, say, start, time_until_in_sync
from tests.chaos.verdict import WITNESS, check, report
from tests.chaos.writers import writers_at_work

OF_HISTORY = ["back in time", "commits lost"]  # faults after which the log does not hold what was read from it


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


def chaos(seconds: float, seed: int, kinds: list[str], limit: float, offset: int, record: bool) -> bool:
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
        run = Run(
            Random(seed), own, Pipeline("cdc_chaos", logs), proxies, disk, limit, logs / "polls" if record else None
        )
        try:
            prepare(run)
            if not disk:
                kinds = [kind for kind in kinds if kind != "destination's disk full"]
            with writers_at_work(run, seed):
                break_it(run, time.monotonic() + seconds, kinds)
        except BaseException:
            end_scripts(run)
            raise
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=240, help="how long faults go on; default 240")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: from the clock")
    parser.add_argument("--limit", type=float, default=10, help="seconds until in sync after a fault; default 10")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only faults with TEXT in their name")
    parser.add_argument("--without", action="append", default=[], metavar="TEXT", help="no faults with TEXT in them")
    parser.add_argument(
        "--port-offset", type=int, default=2000, metavar="N", help="of the servers' ports; default 2000"
    )
    parser.add_argument(
        "--replay", action="store_true", help="replay the polls through the model in proofs/; no fault of history then"
    )
    arguments = parser.parse_args()
    without = arguments.without + (OF_HISTORY if arguments.replay else [])
    kinds = [kind for kind in FAULTS if named(kind, arguments.only or [""]) and not named(kind, without)]
    if not kinds:
        parser.error(f"no such fault; there are: {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # through every `finally`
    try:
        passed = chaos(
            arguments.seconds, arguments.seed, kinds, arguments.limit, arguments.port_offset, arguments.replay
        )
        sys.exit(0 if passed else 1)
    except (Trouble, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
