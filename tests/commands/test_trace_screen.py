"""admin.py trace: what it shows, at which widths, and how it ends."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from admin import employee_id
from harness.database import query
from harness.pipeline import Pipeline

import pytest

NASTY = "\x1b[31mred\nline \u202eesrever \x9b"
ESCAPED = r"\x1b[31mred\nline \u202eesrever \x9b"


@pytest.fixture(scope="module")
def hanging(shared: Pipeline) -> Pipeline:
    """An employee with a change that is applied, one that is not read, one not published, and a dead letter."""
    source = shared.source()
    query(source, "INSERT INTO employees (emp_id, first_name, city) VALUES (-7, %s, 'Oslo')", (NASTY,))
    shared.send("no change", key="-7")
    shared.drain()
    longer = "UPDATE employees SET city = city || ', the capital of Norway' WHERE emp_id = -7"
    query(source, longer)
    assert shared.run("producer.py", "--once").returncode == 0
    query(source, longer)
    return shared


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_breaks_at_any_width(hanging: Pipeline, width: int) -> None:
    result = hanging.run("admin.py", "trace", "-7", COLUMNS=str(width))
    assert (result.returncode, result.stderr) == (0, "")
    assert not {"\x1b", "\u202e", "\x9b", "\r"} & set(result.stdout)
    *lines, last = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in result.stdout
    assert all(line.endswith("│") for line in lines if line.startswith("│"))
    assert last == "hangs before the topic: UPDATE, log offset 3, is not published; start python producer.py"
    if width == 120:
        assert re.search(rf"first_name +{re.escape(ESCAPED)} +{re.escape(ESCAPED)} ", result.stdout)
        assert re.search(r"│ 3 +│ UPDATE +│ .*│ - +│ - +│", result.stdout)
        assert re.search(r"│ 2 +│ UPDATE +│ .*│ not read yet +│", result.stdout)
        assert re.search(r"│ 1 +│ INSERT +│ .*│ applied +│", result.stdout)
        assert re.search(r"│ - +│ no change +│ .*│ dead letter at offset 0", result.stdout)
    else:
        headings = [line.strip() for line in lines if line.startswith("log offset ")]
        assert headings == [f"log offset {text}" for text in ("3: UPDATE", "2: UPDATE", "1: INSERT", "-: no change")]
        assert re.search(r"\n  destination not read yet *\nlog offset 1: INSERT", result.stdout)


@pytest.mark.parametrize("text", ["seven", "7.0", "2147483648", "-2147483649", "1" * 20, "", "٣", "7\n"])
def test_what_is_no_emp_id_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not an emp_id: give a whole number from -2147483648 to"):
        employee_id(text)


def test_no_emp_id_is_wrong_use(databases: Pipeline) -> None:
    assert (employee_id("-2147483648"), employee_id("2147483647")) == (-(2**31), 2**31 - 1)
    result = databases.run("admin.py", "trace", "seven")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


NOT_ANSWERING: dict[str, tuple[dict[str, Any], str]] = {
    "source": ({"SOURCE_DATABASE_URL": "postgresql://postgres@localhost:1/none"}, "source at localhost:1: "),
    "kafka": ({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "Kafka at localhost:1: "),
    "destination": (
        {"DESTINATION_DATABASE_URL": "postgresql://postgres@localhost:1/none"},
        "destination at localhost:1: ",
    ),
}


@pytest.mark.parametrize("side", NOT_ANSWERING)
def test_a_side_that_does_not_answer_is_named_and_the_others_are_shown(hanging: Pipeline, side: str) -> None:
    settings, said = NOT_ANSWERING[side]
    impatient = hanging.sabotaged(
        "import admin", "from cdc import topic", "from cdc.trace import sides", "topic.ANSWER_WAIT = sides.SLOW = 1"
    )
    result = hanging.run(impatient, "trace", "-7", "--json", **settings)
    assert result.returncode == 1
    assert (result.stderr[: len(said)] == said) if side == "kafka" else (result.stderr == ""), (
        "said at once if it is slow"
    )
    found = json.loads(result.stdout)
    assert [(key, text.startswith(said)) for key, text in found["errors"].items()] == [(side, True)]
    assert (found["state"], found["in_sync"]) == ("unknown", False)
    seen = {"source": found["log"], "kafka": found["read_up_to"], "destination": found["applied"]}
    assert [other for other in seen if not seen[other]] == [side]
    if side == "kafka":
        human = hanging.run(impatient, "trace", "-7", **settings)
        assert human.returncode == 1
        assert human.stdout.splitlines()[-1].startswith(f"not known: {said}")
