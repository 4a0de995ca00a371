"""Poolers: one that shares our sessions is refused at the start, one in session mode works. With a real PgBouncer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import config
from harness.database import connect, query
from harness.pipeline import Pipeline
from harness.waiting import wait_until
from stack.artifacts import account
from stack.folders import as_account

import pytest

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PGBOUNCER, reason="PgBouncer is not installed: apt-get install pgbouncer"),
]

CONFIG = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
"""
# What a session looks like to those who share it.
LOOKS = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name IN ('search_path', 'row_security', 'jit', 'tcp_keepalives_idle') ORDER BY name
"""


@dataclass
class Pooler:
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://anybody@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def pooler(pool_mode: str, **settings: str | int) -> Iterator[Pooler]:
    """A PgBouncer before the source, which runs as the user of the servers: as root it refuses to."""
    found, parts = Pooler(free_port()), urlsplit(config.SOURCE_DATABASE_URL)
    words = {"host": parts.hostname, "port": parts.port, "user": parts.username, "listen": found.port}
    text = CONFIG.format(**words, password=unquote(parts.password or ""))
    text += "".join(f"{name} = {value}\n" for name, value in {"pool_mode": pool_mode, **settings}.items())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pgbouncer.ini")
        file.touch(0o600)
        file.write_text(text, encoding="utf-8")
        if user := account():
            for path in (folder, file):
                os.chown(path, user.pw_uid, user.pw_gid)
        process = subprocess.Popen(
            [str(PGBOUNCER), "--quiet", str(file)], stdin=subprocess.DEVNULL, cwd="/", **as_account()
        )
        try:
            wait_until(found.answers, what="PgBouncer answers")
            yield found
        finally:
            process.terminate()
            process.wait(20)


def refused(pipeline: Pipeline, found: Pooler, script: str, *arguments: str, which: str = "SOURCE") -> None:
    """Run a script through the pooler; it must end at once, with one line."""
    name = f"{which}_DATABASE_URL"
    result = pipeline.run(script, *arguments, seconds=30, **{name: found.url(pipeline.name)})
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    address = f"{which.lower()} at 127.0.0.1:{found.port}"
    assert line.startswith(f"{address}: this is a pooler in transaction or statement mode")
    assert name in line


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize(
    ("which", "script", "arguments"),
    [
        ("SOURCE", "producer.py", []),
        ("DESTINATION", "consumer.py", []),
        ("SOURCE", "verify.py", []),
        ("SOURCE", "db_setup.py", []),
        ("SOURCE", "admin.py", ["status"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pooler_that_shares_sessions_is_refused_and_its_sessions_stay_as_they_are(
    shared: Pipeline, mode: str, which: str, script: str, arguments: list[str]
) -> None:
    with pooler(mode) as found, closing(connect(found.url(shared.name))) as application:
        before = query(application, LOOKS)
        refused(shared, found, script, *arguments, which=which)
        assert query(application, LOOKS) == before


@pytest.mark.parametrize("server_round_robin", [0, 1])
@pytest.mark.parametrize("idle", [1, 2, 3, 7])
def test_it_is_noticed_however_many_servers_the_pooler_has_to_give(
    shared: Pipeline, idle: int, server_round_robin: int
) -> None:
    with pooler("transaction", server_round_robin=server_round_robin) as found:
        others = [connect(found.url(shared.name)) for _ in range(idle)]
        for statement in ("BEGIN", "COMMIT"):
            for other in others:
                query(other, statement)
        refused(shared, found, "producer.py", "--once")
        for other in others:
            other.close()


@pytest.mark.parametrize("pool_size", [1, 3, 20])
def test_it_is_noticed_while_others_use_the_pooler(shared: Pipeline, pool_size: int) -> None:
    with pooler("transaction", default_pool_size=pool_size) as found:
        stop = threading.Event()

        def use() -> None:
            with closing(connect(found.url(shared.name))) as other:
                while not stop.is_set():
                    query(other, "SELECT pg_sleep(0.001)")

        users = [threading.Thread(target=use) for _ in range(4)]
        try:
            for user in users:
                user.start()
            for _ in range(3):
                refused(shared, found, "producer.py", "--once")
        finally:
            stop.set()
            for user in users:
                user.join()


@pytest.mark.parametrize("pool_size", [20, 1])
def test_a_pooler_in_session_mode_works_even_if_it_has_no_second_server(shared: Pipeline, pool_size: int) -> None:
    with pooler("session", default_pool_size=pool_size) as found:
        through = {"SOURCE_DATABASE_URL": found.url(shared.name)}
        with shared.running("producer.py", **through) as producer, shared.running("consumer.py"):
            producer.wait_for("publishing from log offset")
            query(shared.source(), "INSERT INTO employees (city) SELECT 'Rome' FROM generate_series(1, 100)")
            shared.wait_until_equal()
            assert "waiting" not in producer.output()
            if pool_size > 1:  # another session may ask what ours waits for, by the number that the server has for it
                with closing(shared.source()) as holder:
                    query(holder, "BEGIN; LOCK TABLE emp_cdc")
                    producer.wait_for(f"a statement waits for a lock held by pid {holder.info.backend_pid}")
        if pool_size > 1:
            assert shared.run("verify.py", seconds=60, **through).returncode == 0
