"""What admin.py status shows people, taken apart."""

from __future__ import annotations

import json
import re
from typing import Any

from harness.pipeline import Pipeline


def screen(pipeline: Pipeline, *, code: int = 0, **environment: Any) -> dict[str, str]:
    """The rows of the table by their stage, their cells joined by "; "; the first line under "answer"."""
    result = pipeline.run("admin.py", "status", **{"COLUMNS": "250", **environment})
    assert result.returncode == code, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("stage "))
    starts = [match.start() for match in re.finditer(r"\S+( \S+)*|\S+", lines[head].replace(", ", ",_"))]
    rows = {"answer": lines[0].strip()}
    for line in lines[head + 2 :]:
        if not line.strip():
            break
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        rows[cells[0]] = "; ".join(" ".join(cell.split()) for cell in cells[1:] if cell)
    return rows


def lag(found: Any) -> int:
    return sum(partition["lag"] for partition in found["kafka"]["partitions"])


def status_of(pipeline: Pipeline, script: str = "admin.py", **environment: Any) -> Any:
    """What status says as JSON, whatever it thinks of it."""
    result = pipeline.run(script, "status", "--json", **environment)
    assert result.stdout, result.stderr
    return json.loads(result.stdout)


def alarms(pipeline: Pipeline, script: str = "admin.py", **environment: Any) -> list[tuple[str, str, str, str]]:
    """The alarms: stage, level, what, and what to do."""
    found = status_of(pipeline, script, **environment)["alarms"]
    return [(alarm["stage"], alarm["level"], alarm["what"], alarm["do"]) for alarm in found]
