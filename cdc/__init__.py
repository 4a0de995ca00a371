"""The machinery of Employee CDC. The scripts above this folder are what people run; each module here has one job.

In the order in which a change meets them:

    capture       is `employees` a table that can be kept equal, and is all of it captured?
    emp_cdc       read the log without losing a row; prune it
    position      how far the producer has come: load, save, rebase
    history       is the log that we read the one that we published from?
    signature     which of two producers was there first?
    upkeep        watch the capture and the history, prune the log
    wakeup        the advisory locks: who is the active producer; sleep without missing a change
    standby       one producer is active, another takes over; a frozen one is replaced
    message       a change as a Kafka message
    publisher     hand a page to Kafka and wait until all of it is acknowledged
    flush         the wait for the acknowledgements: report one that lasts
    intake        messages into batches, read ahead while the destination works
    apply         the statement that applies records through the gate
    bulk          the same for a large batch, by COPY
    destination   apply a batch whatever happens: wait out outages, single out what is refused
    dead_letters  the dead-letter topic: send there; list, replay, discard
    drain         when `consumer.py --once` is done
    offsets       where a consumer stands: assigned, applied, committed, left

Around them:

    postgres, session   connect to a database; what each session sets
    schema              the schema version of our own tables
    kafka, topic        make a client; what the topic and the group hold now
    listener            what a broker's port speaks, where it does not let us in
    waiting             wait for a statement: stop when asked to, read ahead, report a wait that lasts
    outage, progress    wait longer and longer, warn once; report what moved
    bar                 how far long work has come: a bar, or lines
    logs                the lines of the log, as text or JSON
    cli, text           options, stopping, exit codes; numbers with their nouns, texts of others made harmless
    status/             where every change is, and what is wrong: `admin.py status`
    comparison          the engine of `verify.py`
    letters_screen      what `admin.py dead-letters` shows
    rows                rows of both tables as `test_cdc.py` shows them
    trace/              where one employee's changes are: `admin.py trace`
    check/              is the set-up right? `admin.py check`
    metrics, health     what is counted and measured; whether the loop turns, and which servers are down
    endpoints           both over HTTP, for Prometheus and for probes
    delay, lag          from the source's change to the destination's commit; how far the topic is ahead
    verified            when verify.py last found both tables equal
    supervisor          tell systemd that the script is up, that its loop turns, that it ends
    roles               the roles of `db_setup.py --roles`, and their rights
"""

import sys
from importlib.util import find_spec

__version__ = "1.0.0"

missing = [
    name
    for name in ("confluent_kafka", "dotenv", "msgspec", "prometheus_client", "psycopg2", "rich")
    if find_spec(name) is None
]
if missing:
    print(
        f"Python packages are missing ({', '.join(missing)}): activate .venv (. .venv/bin/activate), "
        "or run pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
