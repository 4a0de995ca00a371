"""What tests and benchmarks run a pipeline with: real servers, databases and topics of its own, scripts as processes.

For tests and benchmarks:

    pipeline      one pipeline: its databases, its topics, its scripts
    script        a script as a process
    terminal      a script on a pseudo-terminal, and its screen
    database      statements on the databases of a pipeline
    kafka         what a topic holds
    waiting       wait for what must come true soon
    own_servers   a set of servers that may be killed
    roles, rights a role of a test's own; the rights that we grant, and who has exactly these
    scraping      what a script shows over HTTP, and a Prometheus that reads it
    proxy         connections that may be cut, held up and slowed

For the documents:

    tour          the commands of docs/tour.md: run, compared, and their output written there
    recordings    what README shows of the scripts at work, recorded on a terminal
    svg           a recording as a picture that moves

For tests only, along the way of a change:

    capturing     the source's tables, and what the triggers have logged
    log_reader    readers of the log in this process, and writers that commit late
    producing     the producer's script, and what it has published
    records       a record that is right, and values made from it
    consuming     messages for the consumer, its script, and what it has read
    destination   what the destination holds, and its absence
    dead_letters  dead letters: put there, listed and counted
    showing       what admin.py status shows, taken apart
    verifying     verify.py, and writers beside it
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
