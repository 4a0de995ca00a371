"""What is shipped: requirements*.txt are what requirements*.in say, each package with its hashes; one version."""

from __future__ import annotations

import re

from cdc import __version__
from harness import ROOT

import pytest

PIN = re.compile(r"^([\w.-]+)==([^\s;]+)(.*)$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """The packages of a file and their versions."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {package: version for package, version, _ in PIN.findall(text)}
    for other in re.findall(r"^-r (\S+)$", text, re.MULTILINE):
        found |= pins(other)
    return found


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_what_is_asked_for_is_what_is_installed(name: str) -> None:
    named, compiled = pins(f"{name}.in"), pins(f"{name}.txt")
    assert len(named) >= 6
    assert {package: compiled.get(package) for package in named} == named, "run make requirements"
    assert "-r " not in re.sub(r"#.*", "", (ROOT / f"{name}.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_each_package_has_hashes(name: str) -> None:
    """So that pip takes nothing else, and nothing that is not named: one hash makes it want all."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    packages = re.split(r"\n(?=\S)", text)
    assert len(packages) >= 6
    assert [package for package in packages if "--hash=sha256:" not in package] == []


def test_the_packages_of_the_scripts_are_the_same_for_the_tests() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


def test_the_image_and_the_manifest_name_this_version() -> None:
    named = {"Dockerfile": r'image.version="(.*?)"', "deploy/kubernetes.yml": r"image: employee-cdc:(\S+)"}
    for file, pattern in named.items():
        assert set(re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"))) == {__version__}, file
