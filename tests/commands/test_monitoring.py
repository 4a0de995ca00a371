"""monitoring/: the alerts over recorded cases, and that they and the dashboard speak of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cdc import metrics
from cdc.metrics import PREFIX, Histogram
from harness import ROOT

import pytest

MONITORING = ROOT / "monitoring"
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
CASES = (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads(
    (MONITORING / "grafana" / "dashboards" / "employee-cdc.json").read_text(encoding="utf-8")
)
NAMES = re.findall(r"- alert: (\w+)", ALERTS)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool here (Debian: apt-get install prometheus)")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_each_alert_fires_and_keeps_quiet_as_recorded() -> None:
    result = promtool("test", "rules", str(MONITORING / "alerts_test.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 8
    for name in NAMES:
        assert re.search(rf"alertname: {name}\W+exp_alerts", CASES), name
        assert f"alertname: {name}}}" in CASES, name


def test_docs_metrics_has_each_alert() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(EmployeeCdc\w+)`", text, re.MULTILINE) == NAMES


def test_the_cases_notice_each_alert_that_never_fires(tmp_path: Path) -> None:
    never = re.sub(r"expr: (>-\n\s+)?", "expr: vector(0) > 1 and ", ALERTS)
    (tmp_path / "alerts.yml").write_text(never, encoding="utf-8")
    (tmp_path / "alerts_test.yml").write_text(CASES, encoding="utf-8")
    result = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert result.returncode == 1
    assert [name for name in NAMES if f"alertname: {name}" not in result.stdout + result.stderr] == []


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.cluster.yml"])
def test_prometheus_takes_its_configuration(name: str) -> None:
    result = promtool("check", "config", str(MONITORING / name))
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_metric_that_is_asked_for_is_there() -> None:
    there = {"build_info"}
    for metric in (*metrics.OF_PRODUCER, *metrics.OF_CONSUMER):
        ends = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
        there |= {metric.name + end for end in ends}
    for text in (ALERTS, CASES, *questions()):
        assert set(re.findall(rf"{PREFIX}(\w+)", text)) <= there


def questions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_prometheus_understands_each_question_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"question_{number}", "expr": text} for number, text in enumerate(questions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    result = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    """Grafana itself is not run: its data source, the places and the questions of the panels are what is checked."""
    source = (MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert f"uid: {panel['datasource']['uid']}\n" in source
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.cluster.yml"])
def test_monitoring_and_ui_are_off_unless_asked_for(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    services = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n|\n)+)", text.split("\nservices:\n")[1], re.MULTILINE))
    off = {"prometheus": "monitoring", "grafana": "monitoring", "kafka-ui": "ui"}
    profiles = {service: re.findall(r"profiles: \[(\w+)\]", body) for service, body in services.items()}
    assert {service: found for service, found in profiles.items() if found} == {
        service: [profile] for service, profile in off.items()
    }
    for service in off:
        for mounted in re.findall(r"(\./[\w./-]+):", services[service]):
            assert (ROOT / mounted).exists()
