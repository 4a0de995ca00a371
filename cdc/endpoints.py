"""/metrics, /healthz and /readyz over HTTP, answered from memory.

prometheus-client is imported here only, and only where METRICS_PORT is set: it takes 60 ms.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING

import config
from cdc import __version__, cli, metrics
from cdc.health import HEALTH
from cdc.metrics import PREFIX, Histogram, Metric

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import CollectorRegistry

log = logging.getLogger(__name__)

CLIENT_WAIT = 5.0  # seconds for a client to send its request
SCRIPTS: dict[str, tuple[Sequence[Metric | Histogram], tuple[str, ...], tuple[str, ...]]] = {
    # what it shows, which servers can be down, and to which it must be connected to be ready. A producer that stands by
    # is ready without Kafka.
    "producer": (metrics.OF_PRODUCER, ("source", "kafka"), ("source",)),
    "consumer": (metrics.OF_CONSUMER, ("destination", "kafka"), ("destination", "kafka")),
}


class Collector:
    """Gives the metrics of a script as prometheus-client wants them."""

    def __init__(self, shown: Iterable[Metric | Histogram]) -> None:
        self.shown = shown

    def collect(self) -> Iterator[Family]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in self.shown:
            name = PREFIX + metric.name
            if isinstance(metric, Histogram):
                yield HistogramMetricFamily(name, metric.help, buckets=buckets(metric), sum_value=metric.total)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.help, labels=[metric.label] if metric.label else [])
            for label, value in metric.read().items():
                family.add_metric([label] if metric.label else [], value)
            yield family
        build = GaugeMetricFamily(f"{PREFIX}build_info", "The version of this script; always 1.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def buckets(histogram: Histogram) -> Sequence[tuple[str, float]]:
    """Return how many values were up to each bound."""
    total, found = 0, []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), list(histogram.counts), strict=True):
        total += count
        found.append((bound, total))
    return found


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    timeout = CLIENT_WAIT
    registry: CollectorRegistry
    server_version, sys_version = "employee-cdc", ""

    def do_GET(self) -> None:
        paths: dict[str, Callable[[], None]] = {
            "/metrics": self.send_metrics,
            "/healthz": lambda: self.send_verdict(HEALTH.hangs()),
            "/readyz": lambda: self.send_verdict(HEALTH.unready(cli.STOP.requested)),
        }
        paths.get(self.path.partition("?")[0], lambda: self.answer(HTTPStatus.NOT_FOUND, b"not found\n"))()

    def send_metrics(self) -> None:
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self.answer(HTTPStatus.OK, encode(self.registry), content_type)

    def send_verdict(self, reason: str) -> None:
        self.answer(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, f"{reason or 'ok'}\n".encode())

    def answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug(format, *arguments)


class Server(ThreadingHTTPServer):
    """Asks no name service, and prints no traceback for a client that leaves in the middle of an answer."""

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks the name service for our name, which may take long

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a client of the metrics left")


def serve(script: str) -> None:
    """Answer requests from now on, if METRICS_PORT is set. Exits with one line where it cannot be listened on."""
    if not config.METRICS_PORT:
        return
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import CollectorRegistry

    shown, may_be_down, HEALTH.needed = SCRIPTS[script]
    for server in may_be_down:
        metrics.OUTAGES.add(0, server)
        metrics.OUTAGE_ACTIVE.set(0, server)
    registry = CollectorRegistry()
    registry.register(Collector(shown))
    ProcessCollector(registry=registry)
    handler = type("ScriptHandler", (Handler,), {"registry": registry})
    host, port = config.METRICS_HOST, config.METRICS_PORT
    kind = type("ScriptServer", (Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    try:
        listening = kind((host, port), handler)
    except OSError as error:
        reason = error.strerror or str(error)
        cli.fail(f"METRICS_PORT={port}, METRICS_HOST={host}: cannot listen there: {reason}", cli.WRONG_USE)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
