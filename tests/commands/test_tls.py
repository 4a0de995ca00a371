"""TLS settings that cannot work: one line that names the setting, and exit 2."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.own_servers import ours_alone, purge, url
from harness.pipeline import Pipeline
from stack import servers
from stack.folders import account

import pytest

OFFSET = 3950  # of the port here


@pytest.fixture(scope="module")
def encrypted(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a PostgreSQL with TLS, whose certificate is for another host, and that certificate."""
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate by openssl")
    (server,) = (server for server in servers.servers(OFFSET) if server.name == "source")
    state = Path(server.state)
    key, certificate = state.parent / f"tls-{OFFSET}.key", state.parent / f"tls-{OFFSET}.crt"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=another.host"]
    subprocess.run([*new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    key.chmod(0o600)
    if user := account():
        for file in (key, certificate):
            shutil.chown(file, user.pw_uid, user.pw_gid)
    tls = {"ssl": "on", "ssl_key_file": str(key), "ssl_cert_file": str(certificate)}
    with ours_alone(state):
        purge(state)
        try:
            servers.up([replace(server, settings={**server.settings, **tls})])
            yield url(server.port), certificate
        finally:
            purge(state)
            key.unlink()
            certificate.unlink()


def fails(pipeline: Pipeline, source: str, said: str) -> None:
    result = pipeline.run("producer.py", seconds=20, SOURCE_DATABASE_URL=source)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert said in line
    assert "check SOURCE_DATABASE_URL" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("sslmode=require", "server does not support SSL"),
        ("sslmode=requires", "invalid sslmode value"),
        ("service=none", 'definition of service "none" not found'),
    ],
)
def test_an_option_that_cannot_work_is_a_wrong_setting(databases: Pipeline, options: str, said: str) -> None:
    fails(databases, f"{databases.source_url}?{options}", said)


def test_an_unknown_authority_is_a_wrong_setting(
    databases: Pipeline, encrypted: tuple[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.crt"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-out", str(other)]
    subprocess.run([*new, "-keyout", str(tmp_path / "other.key")], check=True, capture_output=True)
    address, _ = encrypted
    fails(databases, f"{address}?sslmode=verify-ca&sslrootcert={other}", "certificate verify failed")


def test_a_certificate_for_another_host_is_a_wrong_setting(databases: Pipeline, encrypted: tuple[str, Path]) -> None:
    address, certificate = encrypted
    fails(databases, f"{address}?sslmode=verify-full&sslrootcert={certificate}", "does not match host name")


def test_an_authority_that_cannot_be_read_is_a_wrong_setting(
    databases: Pipeline, encrypted: tuple[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.crt").touch()
    address, _ = encrypted
    fails(databases, f"{address}?sslmode=verify-ca&sslrootcert={tmp_path}/empty.crt", "root certificate file")
