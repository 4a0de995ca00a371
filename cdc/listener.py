"""What a broker's port speaks, and whether its certificate can be trusted: the Kafka client does not say it well.

Asked only while no broker has ever let us in.
"""

from __future__ import annotations

import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import config

PATIENCE = 1.0  # seconds for each answer
FEW = 2  # brokers to ask
ILLEGAL_SASL_STATE = 34  # Kafka's answer to a login where there is none

_MECHANISM = b"PLAIN"
# SaslHandshake, version 1, correlation id 7, no client id: any listener answers it, each in its way.
_QUESTION = struct.pack(">hhihh", 17, 1, 7, -1, len(_MECHANISM)) + _MECHANISM
QUESTION = struct.pack(">i", len(_QUESTION)) + _QUESTION


def find_fault() -> str:
    """Return a line if what the brokers speak, or their certificate, does not fit our settings; else nothing."""
    ours = config.KAFKA.get("security.protocol", "PLAINTEXT").upper()
    for server in config.KAFKA["bootstrap.servers"].split(",")[:FEW]:
        host, _, port = server.strip().rpartition("://")[2].rpartition(":")
        theirs = find_protocol(host, int(port)) if port.isdecimal() else ""
        if theirs and theirs != ours:
            return f"{host}:{port} takes {theirs}, not {ours}; check KAFKA_SECURITY_PROTOCOL"
        if theirs:
            return explain_distrust(host, int(port)) if "SSL" in ours else ""
    return ""


def find_protocol(host: str, port: int) -> str:
    """Return what a listener speaks, such as SASL_SSL; nothing if it does not answer."""
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda encrypted: ask(host, port, encrypted), (False, True)))
    for encrypted, reply in enumerate(replies):
        if len(reply) >= 10 and reply[4:8] == struct.pack(">i", 7):
            no_login = reply[8:10] == struct.pack(">h", ILLEGAL_SASL_STATE)
            return ("" if no_login else "SASL_") + ("SSL" if encrypted else "PLAINTEXT")
    return ""


def ask(host: str, port: int, encrypted: bool) -> bytes:
    """Return the first bytes of the answer, if there is one. Whoever answers: nothing secret is asked."""
    with suppress(OSError), ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), PATIENCE))
        if encrypted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = stack.enter_context(context.wrap_socket(connection))
        connection.sendall(QUESTION)
        return connection.recv(1024)
    return b""


def explain_distrust(host: str, port: int) -> str:
    """Return a line if a broker's certificate is not trusted: why, and what to check."""
    reason = why_untrusted(host, port)
    what = "KAFKA_SSL_CA_LOCATION"
    if "mismatch" in reason:
        what = "KAFKA_BOOTSTRAP_SERVERS, which must have the certificate's name"
    elif "expired" in reason or "not yet valid" in reason:
        what = "the certificate, which must be renewed, or this machine's clock"
    return f"{host}:{port}: the broker's certificate is not trusted: {reason}; check {what}" if reason else ""


def why_untrusted(host: str, port: int) -> str:
    """Return what is wrong with a broker's certificate, as OpenSSL says; nothing if that cannot be found out."""
    location = config.KAFKA.get("ssl.ca.location", "")
    try:
        context = ssl.create_default_context(
            cafile=location if Path(location).is_file() else None,
            capath=location if location and Path(location).is_dir() else None,
            cadata=config.KAFKA.get("ssl.ca.pem"),
        )
        context.check_hostname = config.KAFKA.get("ssl.endpoint.identification.algorithm", "https") == "https"
        with (
            socket.create_connection((host, port), PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message.rstrip(".")
    except (OSError, ValueError):
        return ""
