"""Where one employee's newest change hangs, and what to do about it, judged by what `cdc/trace/sides.py` has found."""

from __future__ import annotations

from cdc.text import counted
from cdc.trace.sides import Logged, Sent, Trace

IN_SYNC, UNPUBLISHED, NOT_READ, NOT_APPLIED, DEAD_LETTER, NOT_FOUND, DIFFERS, UNKNOWN = (
    "in sync",
    "unpublished",
    "not read",
    "not applied",
    "dead letter",
    "not found",
    "differs",
    "unknown",
)


def judge(found: Trace) -> tuple[str, str]:
    """Return the state of the employee, one of the above, and one line for people."""
    if found.errors:
        return UNKNOWN, f"not known: {next(iter(found.errors.values()))}"
    if found.pending is not None:
        return judge_pending(found, found.pending)
    if found.differing:
        return DIFFERS, f"differs in {', '.join(found.differing)}, and no change is on its way; {REPAIR}"
    if found.source is None:
        return IN_SYNC, f"in sync: there is no employee {found.emp_id} on either side"
    return IN_SYNC, "in sync"


REPAIR = "run python verify.py --repair"


def judge_pending(found: Trace, change: Logged | Sent) -> tuple[str, str]:
    """Follow the change along its way as far as it has come. The position may be saved a little after the message."""
    name = f"{change.action}, log offset {change.log_offset},"
    for letter in found.letters:
        if letter.log_offset == change.log_offset:
            return DEAD_LETTER, f"hangs as a dead letter: {name} {letter.error}; python admin.py dead-letters"
    sent = [message for message in found.messages if message.log_offset == change.log_offset]
    if not sent and isinstance(change, Logged) and not change.published:
        who = f"active producer: {found.producer}" if found.producer else "start python producer.py"
        return UNPUBLISHED, f"hangs before the topic: {name} is not published; {who}"
    if not sent:
        return NOT_FOUND, f"hangs: {name} is published and not applied; {why_not_found(found)}"
    place = f"partition {sent[-1].partition}, offset {sent[-1].offset}"
    if sent[-1].read:
        return NOT_APPLIED, f"hangs: {name} was read ({place}) and is not applied: a restored destination? {REPAIR}"
    reader = found.readers.get(sent[-1].partition)
    before = sent[-1].offset - found.read_up_to[sent[-1].partition]
    who = f"{reader} has {counted(before, 'message')} before it" if reader else "start python consumer.py"
    return NOT_READ, f"hangs before the destination: {name} is published ({place}) and not applied; {who}"


def why_not_found(found: Trace) -> str:
    unsearched = sum(part.searched_from - part.first_offset for part in found.searched)
    if unsearched:
        return f"its message may be among the {unsearched:,} that were not searched"
    return f"the topic does not hold it any more: {REPAIR}"
