"""What tests and benchmarks run a pipeline with: real servers, databases and topics of its own, scripts as processes.

pipeline     one pipeline: its databases, its topics, its scripts
script       a script as a process
database     statements on the databases of a pipeline
kafka        what a topic holds
waiting      wait for what must come true soon
own_servers  a set of servers that may be killed
proxy        connections that may be cut, held up and slowed
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
