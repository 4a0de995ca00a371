"""Does ZooKeeper, Kafka or PostgreSQL answer at a port of this machine?

Each is asked in a few bytes of its own protocol, so that no client library is needed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct

LOGIN = b"user\0postgres\0database\0postgres\0\0"
QUESTIONS = {
    "zookeeper": b"srvr",
    "kafka": struct.pack(">ihhih", 10, 18, 0, 7, -1),  # ApiVersions, version 0, correlation id 7, no client id
    "postgres": struct.pack(">ii", 8 + len(LOGIN), 3 << 16) + LOGIN,
}


def answer(kind: str, port: int, encrypted: bool = False) -> str:
    """Return "answers", "starting", "other" or "closed".

    answers: such a server is there, and ready. starting: it is there, and says that it
    is not ready. other: something else holds the port. closed: nothing does.
    """
    try:
        reply = ask(port, QUESTIONS[kind], encrypted)
    except ConnectionRefusedError:
        return "closed"
    except OSError:
        return "other"
    if kind == "zookeeper":
        return "answers" if b"Zookeeper version" in reply else "starting" if b"ZooKeeper" in reply else "other"
    if kind == "kafka":
        return "answers" if reply[4:10] == struct.pack(">ih", 7, 0) else "other"
    if reply[:1] == b"E" and b"\0C57P03\0" in reply:
        return "starting"
    # R asks for the password. Any error but 57P03 comes from a server that is up.
    return "answers" if reply[:1] == b"R" or (reply[:1] == b"E" and b"\0C" in reply) else "other"


def ask(port: int, question: bytes, encrypted: bool = False) -> bytes:
    """Return the first bytes that come back; OSError if none do."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
        if encrypted:  # whoever answers: nothing secret is asked
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = stack.enter_context(context.wrap_socket(connection))
        connection.sendall(question)
        return connection.recv(65536)
