"""Write down the polls of a real producer as they happen, for proofs/replay.py.

Called in the producer's process before its main(), as by Pipeline.sabotaged(). Nothing in the product is there for it:
record() puts itself between the producer and the functions that it calls. A line is written for each position that is
loaded, each page that is read, and each that is acknowledged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def record(producer: ModuleType, path: str) -> None:
    """Write down what this producer does. Other processes may write to the same file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(what: str, **values: object) -> None:
        os.write(file, (json.dumps({"what": what, "process": os.getpid(), **values}) + "\n").encode())

    def wrap(name: str, tell: Callable[..., None]) -> None:
        function = getattr(producer, name)

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            tell(result, *arguments)
            return result

        setattr(producer, name, call)

    def tell_page(page: Any, _source: object, position: Any, size: int) -> None:
        ids = [change.cdc_id for change in page.changes]
        found = {"ids": ids, "now": page.snapshot, "drawn": page.drawn, "too_many_late": page.too_many_late}
        write("page", position=[position.last_offset, position.snapshot], size=size, **found)

    late_pages = producer.late_pages

    def tell_late_pages(source: object, position: Any, size: int) -> Iterator[Any]:
        for page in late_pages(source, position, size):
            ids = [change.cdc_id for change in page.changes]
            write("late page", position=[position.last_offset, position.snapshot], ids=ids, now=page.snapshot)
            yield page

    wrap("load_position", lambda position, *_: write("loaded", position=[position.last_offset, position.snapshot]))
    wrap("read_page", tell_page)
    wrap("publish", lambda *_: write("acknowledged"))
    producer.late_pages = tell_late_pages  # type: ignore[attr-defined]
