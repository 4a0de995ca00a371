"""python -m lose: the plain design loses rows, ours does not, and what is said of each lost row is true."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import config
from employee import CDCRecord
from harness.database import query
from harness.kafka import all_messages
from harness.own_servers import own_servers
from harness.terminal import Key, record
from lose.__main__ import run, verdict
from lose.experiment import Experiment, experiment
from lose.reasons import Lost, explain
from lose.show import Lines

import pytest
from rich.console import Console

SECONDS = 3  # of writing; the plain design loses two rows a second and more
EMP_IDS = "SELECT emp_id FROM employees"
LOGGED = "SELECT emp_id, txid::text::bigint FROM emp_cdc WHERE cdc_id = %s"
SEEN = "SELECT pg_visible_in_snapshot(%s::text::xid8, %s::pg_snapshot)"
LINE = r"lost: cdc_id (\d+), employee \d+, transaction \d+: writer \d drew it at \S+ and committed at \S+; the poll at "
VERDICT = r"([\d,]+) rows written. The plain design lost (\d+), Employee CDC lost (\d+)."


def check_reason(made: Experiment, lost: Lost) -> None:
    """Ask PostgreSQL, and the log, whether it was so."""
    assert lost.poll
    assert query(made.source, LOGGED, (lost.cdc_id,)) == [(lost.row.emp_id, lost.row.txid)]
    ((_, overtaker),) = query(made.source, LOGGED, (lost.poll.offset,))
    assert lost.cdc_id < lost.poll.offset
    assert query(made.source, SEEN, (overtaker, lost.poll.snapshot)) == [(True,)], "it was committed before the poll"
    assert query(made.source, SEEN, (lost.row.txid, lost.poll.snapshot)) == [(False,)], "this one after it"
    assert lost.poll.at < lost.row.committed


def test_the_plain_design_loses_rows_ours_none_and_the_reasons_are_true(stack: None) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False)
    with experiment() as made:
        run(made, Lines(console), time.monotonic(), SECONDS)
        assert verdict(console, made, Lines.most_lost)
        plain = explain(made, made.plain)
        source, copy, ours = (
            set(query(one, EMP_IDS)) for one in (made.source, made.plain.destination, made.ours.destination)
        )
        published = {CDCRecord.from_json(message.value()).cdc_id for message in all_messages(made.plain.pipeline.topic)}
        for lost in plain:
            check_reason(made, lost)
    assert ours == source
    assert source - copy == {(lost.row.emp_id,) for lost in plain} != set()
    assert published.isdisjoint(lost.cdc_id for lost in plain)
    assert [int(cdc_id) for cdc_id in re.findall(f"^{LINE}", out.getvalue(), re.MULTILINE)] == [
        lost.cdc_id for lost in plain
    ]
    (counts,) = re.findall(VERDICT, out.getvalue())
    assert counts == (f"{len(made.writers.rows):,}", f"{len(plain)}", "0")


@pytest.mark.long
def test_what_the_keys_break_loses_nothing_at_our_side_and_the_run_ends_within_a_minute(tmp_path: Path) -> None:
    keys = [
        Key("s left", "h", 1),
        Key("stays open", "c", 1),
        Key("consumers were killed", "k", 1),
        Key("Kafka stops", "w", 1),
        Key("one more writer", "k", 4),  # until then Kafka is still stopping
        Key("Kafka starts again", "c", 2),
        Key("consumers start again", "h", 1),
        Key("open commits", "q", 5),
    ]
    with own_servers(3100, tmp_path):
        shown = record(
            *("-m", "lose"),
            keys=keys,
            environment={
                "SOURCE_DATABASE_URL": config.SOURCE_DATABASE_URL,
                "DESTINATION_DATABASE_URL": config.DESTINATION_DATABASE_URL,
            },
        )
    screen = shown.text()
    print(screen)
    assert shown.code == 0, screen
    assert shown.frames[-1][0] < 60
    (counts,) = re.findall(VERDICT, screen)
    assert int(counts[1]) > 3
    assert counts[2] == "0"
    assert "held open" in screen
    assert any("Kafka starts again" in line for _, lines in shown.frames for line in lines)
