"""An authority of our own and the certificates that it issues, made on the spot by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from stack import Trouble

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
DAYS = 825  # the most that some clients accept


def make_authority(folder: Path, name: str = "ca") -> Path:
    """Return the certificate of a new authority, <name>.crt; its key is <name>.key."""
    certificate = folder / f"{name}.crt"
    subject = f"/CN=Employee CDC {name}"
    openssl(
        "req",
        "-x509",
        *KEY,
        "-days",
        str(DAYS),
        "-subj",
        subject,
        "-keyout",
        folder / f"{name}.key",
        "-out",
        certificate,
    )
    return certificate


def issue(authority: Path, name: str, host: str = "localhost", days: int = DAYS) -> Path:
    """Return a new certificate for a host, <name>.crt beside the authority's. Its key is <name>.key, both <name>.pem.

    days: how long it is valid; -1 makes one that has expired.
    """
    folder = authority.parent
    key, request, certificate = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "crt"))
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName=DNS:{host}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("req", *KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
    signer: list[str | Path] = ["-CA", authority, "-CAkey", authority.with_suffix(".key"), "-CAcreateserial"]
    openssl("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-days", str(days), "-out", certificate)
    both = folder / f"{name}.pem"
    both.touch(mode=0o600)
    both.write_text(key.read_text() + certificate.read_text())
    request.unlink()
    extensions.unlink()
    return certificate


def openssl(*arguments: str | Path) -> None:
    if not shutil.which("openssl"):
        raise Trouble("openssl is missing, which makes the certificates: install it")
    run = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    if run.returncode != 0:
        raise Trouble(f"openssl {arguments[0]} failed: {run.stderr.strip()[-500:]}")
