"""The servers' programs, which Maven fetches once, in the versions of pom.xml.

Standard library only, as in all of stack/: there may be no virtual environment yet.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import xml.etree.ElementTree
import zipfile
from pathlib import Path

from stack import Trouble
from stack.folders import STATE, account, locked, make, reachable
from stack.maven import INSTALL, POM, copy_dependencies

__all__ = ["STATE", "Trouble", "account"]  # names that tests import from here

TITLES = {"zookeeper": "ZooKeeper", "kafka": "Kafka", "postgres": "PostgreSQL"}
MEGABYTES = {"kafka": 65, "postgres": 15}  # to download if Maven's cache is empty


def version(kind: str, wanted: str) -> str:
    """Return pom.xml's version for a major number; a full version as it is."""
    properties = xml.etree.ElementTree.parse(POM).iterfind("./{*}properties/*")
    known = {item.tag.rpartition("}")[2]: item.text or "" for item in properties}
    if f"{kind}-{wanted}" in known:
        return known[f"{kind}-{wanted}"]
    if re.fullmatch(r"\d+\.[\d.]+(-\d+)?", wanted):
        return wanted
    majors = ", ".join(name.partition("-")[2] for name in known if name.startswith(f"{kind}-"))
    raise Trouble(f"{TITLES[kind]} {wanted} is not known: give one of {majors}, or a full version")


def machine() -> str:
    """Return this machine's name in PostgreSQL's artifacts, such as linux-amd64."""
    processor = platform.machine().lower()
    processor = {"x86_64": "amd64", "aarch64": "arm64v8", "arm64": "arm64v8"}.get(processor, processor)
    alpine = "-alpine" if Path("/etc/alpine-release").exists() else ""
    return f"{platform.system().lower()}-{processor}{alpine}"


def java() -> str:
    """Return the path of a Java that is new enough."""
    home = os.environ.get("JAVA_HOME")
    program = (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")
    # Run even if found: macOS has a `java` that only says that there is none.
    output = subprocess.run([program, "-version"], capture_output=True, text=True).stderr if program else ""
    found = re.search(r'version "(\d+)', output)
    if not program or not found:
        raise Trouble(f"Java is missing: {INSTALL}")
    if int(found[1]) < 17:
        raise Trouble(f"{program} is Java {found[1]}, too old: {INSTALL}")
    return program


def programs(kind: str, version: str) -> Path:
    """Return the folder with a server's programs, and fetch them if it is not there.

    It holds Kafka's and ZooKeeper's jars, or PostgreSQL's bin, lib and share.
    """
    kind = "postgres" if kind == "postgres" else "kafka"
    library = reachable(STATE) / "lib"
    folder = library / f"{kind}-{version}"
    if not folder.is_dir():
        with locked(library):
            if not folder.is_dir():
                fetch(kind, version, folder)
    return folder


def fetch(kind: str, version: str, folder: Path) -> None:
    """Make the folder, complete or not at all."""
    java()
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = make(Path(temporary, "new"))
        settings = {f"{kind}.version": version, "platform": machine(), "outputDirectory": str(new)}
        copy_dependencies(f"{TITLES[kind]} {version}", MEGABYTES[kind], kind, settings)
        if kind == "postgres":
            unpack(next(new.glob("*.jar")))
        new.rename(folder)


def unpack(jar: Path) -> None:
    """Put what is in PostgreSQL's jar beside it, and remove the jar."""
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
