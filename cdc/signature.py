"""Which of two producers was there first? Each signs its pages with the time of its start.

A copy of the source that nothing in it tells from the original, such as a clone of the disk, may have a producer of its
own on the same topic. Then the one that started later gives way: cdc/history.py.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime, timezone
from typing import Any

from confluent_kafka import Message

HEADER = "producer"  # of the first message of each page
SIGNATURE = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z {secrets.token_hex(4)}"
"""Of this process. Signatures compare as the times do."""
HEADERS = {HEADER: SIGNATURE.encode()}
FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [0-9a-f]{8}")


def signature_of(message: Message) -> str:
    """Return the signature in a message's header, "" if there is none."""
    headers: Any = dict(message.headers() or ())
    text = (headers.get(HEADER) or b"").decode("ascii", "replace")
    return text if FORM.fullmatch(text) else ""


def started_earlier(signature: str) -> bool:
    """Whether it is that of a producer that started before this process."""
    return "" < signature < SIGNATURE


def start_of(signature: str) -> str:
    """Return when that producer started, for people."""
    return f"{signature[:10]} {signature[11:19]} UTC"
