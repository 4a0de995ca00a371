"""config.py, and .env.example beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from harness import ROOT


def settings(environment: dict[str, str]) -> str:
    """What config.py makes of an environment."""
    shown = "import config; print({name: value for name, value in vars(config).items() if name.isupper()})"
    command = [sys.executable, "-c", shown]
    environment = {**environment, "PYTHONHASHSEED": "0"}  # sets are shown in the same order
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_env_example_names_every_setting_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    text = (ROOT / "config.py").read_text(encoding="utf-8")
    read = set(re.findall(r'(?:environ\.get|_seconds|_identifier|_port|_choice)\("([A-Z_]+)"', text))
    assert read | {"KAFKA_BOOTSTRAP_SERVERS"} <= named.keys()
    examples_only = {name for name in named if name.startswith(("KAFKA_SECURITY", "KAFKA_SASL"))}
    defaults = {name: value for name, value in named.items() if name not in examples_only}
    nothing = dict.fromkeys(named, "")  # over .env
    assert settings({**os.environ, **nothing, **defaults}) == settings({**os.environ, **nothing})
