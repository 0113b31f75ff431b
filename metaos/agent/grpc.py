"""gRPC probes: one ``grpc.health.v1.Health/Check`` over HTTP/2. Imported on first use: it weighs 1.3 MB in memory.

Source: the gRPC health checking protocol, and gRPC over HTTP/2. As a kubelet, it
asks whether somebody is there: nobody's certificate is checked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

#: Bytes that an answer may have: a message of two bytes, and headers.
ANSWER_BYTES = 64 * 1024
#: Characters of what a server says that are passed on.
SAID = 200
_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_CODES = {"4": "DEADLINE_EXCEEDED", "5": "NOT_FOUND", "12": "UNIMPLEMENTED", "14": "UNAVAILABLE", "16": "UNAUTHENTICATED"}


async def check(sock: socket.socket, port: int, service: str, tls: ssl.SSLContext | None = None) -> str | None:
    """Why the service is not healthy, or nothing. Takes the connected socket over. Raises ``OSError``."""
    if tls is not None:
        tls.set_alpn_protocols(["h2"])
    try:
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname="localhost" if tls else None)
    except BaseException:
        sock.close()
        raise
    try:
        answer = _Answer()
        connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "https" if tls else "http",
            ":path": "/grpc.health.v1.Health/Check",
            ":authority": f"localhost:{port}",
            "te": "trailers",
            "content-type": "application/grpc",
            "user-agent": "nemo-probe",
        }
        connection.send_headers(stream, list(headers.items()))
        connection.send_data(stream, request(service), end_stream=True)
        received = 0
        while not answer.complete:
            writer.write(connection.data_to_send())
            data = await reader.read(4096)
            if not received and data.startswith(b"HTTP/"):
                return "the answer is not HTTP/2"
            received += len(data)
            if not data or received > ANSWER_BYTES:
                return "the server ended the connection without an answer" if not data else "the answer is too long"
            for event in connection.receive_data(data):
                answer.take(event)
        return answer.problem()
    except ProtocolError as error:
        return f"the answer is not HTTP/2: {str(error)[:SAID]}"
    finally:
        writer.transport.abort()


def request(service: str) -> bytes:
    """``HealthCheckRequest`` as a message of gRPC."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def status(message: bytes) -> str:
    """What a ``HealthCheckResponse`` says; an empty one says the first."""
    if message[:1] == b"\x08" and len(message) == 2 and message[1] < len(_STATES):
        return _STATES[message[1]]
    return _STATES[0]


class _Answer:
    def __init__(self) -> None:
        self.complete = False
        self._http = ""
        self._trailers: dict[str, str] = {}
        self._body = b""
        self._broken = ""

    def take(self, event: object) -> None:
        if self.complete:
            return  # a server may take its leave right after the answer
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._headers(dict(event.headers))  # type: ignore[arg-type]
        elif isinstance(event, DataReceived):
            self._body += event.data
        elif isinstance(event, StreamEnded):
            self.complete = True
        elif isinstance(event, StreamReset | ConnectionTerminated):
            self.complete, self._broken = True, "the server broke the call off"

    def _headers(self, found: Mapping[str, str]) -> None:
        self._http = found.get(":status") or self._http
        self._trailers.update(found)

    def problem(self) -> str | None:
        if self._broken:
            return self._broken
        code = self._trailers.get("grpc-status")
        if code is None:
            return f"the answer is not gRPC (HTTP status {self._http[:SAID] or 'none'})"
        if code == "12":
            return "the server does not implement the gRPC health protocol (grpc.health.v1.Health)"
        if code != "0":
            said = unquote(self._trailers.get("grpc-message", ""))[:SAID]
            return f"the health check failed with gRPC status {_CODES.get(code, code[:SAID])}{': ' + said if said else ''}"
        found = status(self._body[5:])
        return None if found == "SERVING" else f"service unhealthy (responded with {found})"
