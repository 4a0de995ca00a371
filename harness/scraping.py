"""What a script shows of itself over HTTP, and a Prometheus that reads it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from cdc.metrics import PREFIX
from harness.waiting import wait_until

import pytest
from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    """The status and the text of an answer; 0 where nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except URLError as error:
        return 0, str(error)


def scrape(port: int) -> dict[str, float]:
    """The metrics of a script, without our prefix: `outages_total{server="kafka"}` and so on."""
    values = {}
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            values[sample.name.removeprefix(PREFIX) + (f"{{{labels}}}" if labels else "")] = sample.value
    return values


@dataclass(frozen=True)
class Prometheus:
    port: int

    def ask(self, question: str) -> dict[str, float]:
        """The answer to a PromQL query, by the labels that tell its series apart; "" where there is one alone."""
        _, text = get(self.port, f"/api/v1/query?{urlencode({'query': question})}")
        result = json.loads(text)["data"]["result"]
        return {
            ",".join(value for name, value in sorted(one["metric"].items()) if name not in ("instance", "__name__")):
            float(one["value"][1])
            for one in result
        }  # fmt: skip

    def one(self, question: str) -> float:
        """The answer that is a single value; NaN where there is none yet."""
        return next(iter(self.ask(question).values()), float("nan"))


@contextmanager
def prometheus(folder: Path, *targets: int, every: str = "500ms") -> Iterator[Prometheus]:
    """A Prometheus that scrapes these ports of this machine. Skips the test where there is none."""
    if shutil.which("prometheus") is None:
        pytest.skip("there is no prometheus here (Debian: apt-get install prometheus)")
    port, configuration = free_port(), folder / "prometheus.yml"
    addresses = ", ".join(f'"127.0.0.1:{target}"' for target in targets)
    configuration.write_text(
        f"global: {{scrape_interval: {every}, scrape_timeout: {every}}}\n"
        f"scrape_configs: [{{job_name: employee-cdc, static_configs: [{{targets: [{addresses}]}}]}}]\n",
        encoding="utf-8",
    )
    with (folder / "prometheus.log").open("wb") as log:
        command = [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: get(port, "/-/ready")[0] == 200, 30, (folder / "prometheus.log").read_text)
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)
