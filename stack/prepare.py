"""Prepare a server's data and configuration, and return the command that runs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stack import Trouble
from stack.answers import ask
from stack.artifacts import java
from stack.folders import account, as_account
from stack.pid_file import recorded
from stack.secure import scram_users
from stack.sets import Server, password

JVM = {
    "zookeeper": ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
    "kafka": ["-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"],
}
LOGGING = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
]
CLUSTER_ID = "employee-cdc-cluster-A"  # KRaft wants 22 characters of base64


def postgres_command(server: Server, folder: Path) -> list[str]:
    """Return the command that runs PostgreSQL; make its data if there is none."""
    if not server.data.is_dir():
        initialize(server, folder)
    last, lock = recorded(server), server.data / "postmaster.pid"
    # After a power cut another process of the same user may have the pid that stands in
    # postmaster.pid, and PostgreSQL would not start. If it is the pid of our last run,
    # that server has ended: start() has looked.
    if last and lock.exists() and lock.read_text().partition("\n")[0] == str(last["pid"]):
        lock.unlink()
    settings = [f"--{name}={value}" for name, value in server.settings.items()]
    return [str(folder / "bin" / "postgres"), "-D", str(server.data), "-p", str(server.port), *settings]


def initialize(server: Server, folder: Path) -> None:
    """Make PostgreSQL's data folder, under another name until it is complete."""
    new, secret, user = server.data.with_suffix(".new"), server.file("password"), account()
    shutil.rmtree(new, ignore_errors=True)
    secret.unlink(missing_ok=True)
    new.mkdir(mode=0o700)
    secret.touch(mode=0o600)
    secret.write_text(password())
    for path in new, secret:
        if user:
            os.chown(path, user.pw_uid, user.pw_gid)
    # macOS has no C.UTF-8.
    locale = ["--locale=C", "--lc-ctype=en_US.UTF-8"] if sys.platform == "darwin" else ["--locale=C.UTF-8"]
    command = [str(folder / "bin" / "initdb"), "-D", str(new), "-U", "postgres", f"--pwfile={secret}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", *locale]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=server.state, **as_account())
    finally:
        secret.unlink()
    if run.returncode != 0:
        raise Trouble(f"initdb failed for {server.name}: {run.stderr.strip()}")
    new.rename(server.data)


def java_command(server: Server, folder: Path) -> list[str]:
    """Return the command that runs ZooKeeper or Kafka.

    The configuration is written at each start, KRaft's storage is made once.
    """
    data = "dataDir" if server.kind == "zookeeper" else "log.dirs"
    settings = {data: str(server.data)} | server.settings
    properties = server.file("properties")
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    base = [java(), *JVM[server.kind], *LOGGING, "-cp", f"{folder}/*"]
    if server.kind == "zookeeper":
        return [*base, "org.apache.zookeeper.server.ZooKeeperServerMain", str(properties)]
    if "zookeeper.connect" in server.settings:
        wait_for_broker_id(server)
    elif not (server.data / "meta.properties").exists():
        form = [
            *base,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            CLUSTER_ID,
            "-c",
            str(properties),
            *scram_users(server),
        ]
        run = subprocess.run(form, capture_output=True, text=True)
        if run.returncode != 0:
            raise Trouble(f"the storage of {server.name} could not be formatted: {run.stderr.strip()[-500:]}")
    return [*base, "kafka.Kafka", str(properties)]


def wait_for_broker_id(server: Server) -> None:
    """Wait until ZooKeeper has freed the broker's id.

    The session of a killed broker holds the id for some seconds. A new broker with this
    id would give up.
    """
    keeper = int(server.settings["zookeeper.connect"].partition(":")[2])
    node, deadline = f"/brokers/ids/{server.settings['broker.id']}\n".encode(), time.monotonic() + 30
    with contextlib.suppress(OSError):  # no ZooKeeper: Kafka reports it
        while node in ask(keeper, b"dump") and time.monotonic() < deadline:
            time.sleep(0.2)
