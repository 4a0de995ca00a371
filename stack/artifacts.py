"""What servers.py needs before it can start a server: the programs, which Maven fetches once as pom.xml says, and a
user and a folder that PostgreSQL accepts. Standard library only: there may be no virtual environment yet."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
import zipfile
from pathlib import Path

from stack import Trouble
from stack.folders import ROOT, STATE, account, locked, make, reachable

__all__ = ["STATE", "Trouble", "account"]  # names that tests import from here

POM = ROOT / "stack" / "pom.xml"

TITLES = {"zookeeper": "ZooKeeper", "kafka": "Kafka", "postgres": "PostgreSQL"}
INSTALL = "apt-get install openjdk-17-jre-headless maven"
if sys.platform == "darwin":
    INSTALL = 'brew install openjdk@17 maven, then export PATH="$(brew --prefix openjdk@17)/bin:$PATH"'


# Versions


def version(kind: str, wanted: str) -> str:
    """The version that pom.xml names for a major number; a full version is taken at its word."""
    properties = xml.etree.ElementTree.parse(POM).iterfind("./{*}properties/*")
    known = {item.tag.rpartition("}")[2]: item.text or "" for item in properties}
    if f"{kind}-{wanted}" in known:
        return known[f"{kind}-{wanted}"]
    if re.fullmatch(r"\d+\.[\d.]+(-\d+)?", wanted):
        return wanted
    majors = ", ".join(name.partition("-")[2] for name in known if name.startswith(f"{kind}-"))
    raise Trouble(f"{TITLES[kind]} {wanted} is not known: give one of {majors}, or a full version")


def machine() -> str:
    """This machine in the names of the PostgreSQL artifacts: linux-amd64, darwin-arm64v8, ..."""
    processor = platform.machine().lower()
    processor = {"x86_64": "amd64", "aarch64": "arm64v8", "arm64": "arm64v8"}.get(processor, processor)
    alpine = "-alpine" if Path("/etc/alpine-release").exists() else ""
    return f"{platform.system().lower()}-{processor}{alpine}"


# Programs


def java() -> str:
    """The path of a Java that is new enough."""
    home = os.environ.get("JAVA_HOME")
    program = (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")
    # Asked even where it is found: macOS has a `java` that only says that there is none.
    said = subprocess.run([program, "-version"], capture_output=True, text=True).stderr if program else ""
    found = re.search(r'version "(\d+)', said)
    if not program or not found:
        raise Trouble(f"Java is missing: {INSTALL}")
    if int(found[1]) < 17:
        raise Trouble(f"Java 17 or newer is needed, {program} is older: {INSTALL}")
    return program


def programs(kind: str, version: str) -> Path:
    """The folder with Kafka's and ZooKeeper's jars, or with PostgreSQL's bin, lib and share; fetched where missing."""
    kind = "postgres" if kind == "postgres" else "kafka"
    library = reachable(STATE) / "lib"
    folder = library / f"{kind}-{version}"
    if not folder.is_dir():
        with locked(library):
            if not folder.is_dir():
                fetch(kind, version, folder)
    return folder


def fetch(kind: str, version: str, folder: Path) -> None:
    """Makes the folder; it is there complete or not at all."""
    java()
    maven = shutil.which("mvn")
    if not maven:
        raise Trouble(f"Maven is missing: {INSTALL}")
    print(f"fetching {TITLES[kind]} {version}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = make(Path(temporary, "new"))
        goal = "org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies"
        command = [maven, "-q", "-B", "-f", str(POM), "-P", kind, goal]
        command += [f"-D{kind}.version={version}", f"-Dplatform={machine()}", f"-DoutputDirectory={new}"]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if run.returncode != 0:
            said = re.sub("\x1b\\[[0-9;]*m", "", run.stdout + run.stderr).strip().splitlines()
            error = next((line for line in said if "ERROR" in line), "\n".join(said[-3:]))
            raise Trouble(
                f"Maven could not fetch {TITLES[kind]} {version}. Is its repository reachable, and does it have this"
                f" version for {machine()}? Maven says:\n{error}"
            )
        if kind == "postgres":
            unpack(next(new.glob("*.jar")))
        new.rename(folder)


def unpack(jar: Path) -> None:
    """Puts what is in PostgreSQL's jar beside it, and removes the jar."""
    umask = os.umask(0o022)  # PostgreSQL's user must be able to read it
    try:
        with zipfile.ZipFile(jar) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(name) as inner, tarfile.open(fileobj=inner, mode="r|xz") as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(jar.parent)
    except (zipfile.BadZipFile, tarfile.TarError) as error:  # or a Python built without lzma
        raise Trouble(f"{jar.name} could not be unpacked: {error}") from error
    finally:
        os.umask(umask)
    jar.unlink()
