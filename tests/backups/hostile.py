"""An S3 server that keeps objects in memory and does, one request after another, what a test tells it to."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from metaos.volumes.s3 import Bucket, Credentials

#: Given the request, answers it itself (``True``) or lets the server go on.
Trick = Callable[[BaseHTTPRequestHandler], bool]


@dataclass
class Hostile:
    endpoint: str = ""
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    tricks: list[Trick] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    #: So many names are on a page of a listing.
    page: int = 1000
    #: What the server does to bytes that it gives out.
    bend: Callable[[str, bytes], bytes] = lambda key, data: data
    conditional: bool = True

    def bucket(self, **more: Any) -> Bucket:
        return Bucket(self.endpoint, "b", Credentials("id", "secret"), now=time.time, **{"back_off_seconds": 0.005, **more})


def answers(status: int, code: str = "", headers: dict[str, str] | None = None) -> Trick:
    def trick(request: BaseHTTPRequestHandler) -> bool:
        reply(request, status, f"<Error><Code>{code}</Code></Error>".encode() if code else b"", headers)
        return True

    return trick


def truncated(request: BaseHTTPRequestHandler) -> bool:
    """Says more than it gives."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)
    request.close_connection = True
    return True


def hung_up(request: BaseHTTPRequestHandler) -> bool:
    request.close_connection = True
    return True


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Hostile]:
    found = Hostile()

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            return

        def _one(self) -> None:
            where = urlsplit(self.path)
            key = unquote(where.path).removeprefix("/b").removeprefix("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.requests.append(f"{self.command} {key}")
            assert hashlib.sha256(body).hexdigest() == self.headers["x-amz-content-sha256"]
            if found.tricks and found.tricks.pop(0)(self):
                return None
            if self.command == "PUT":
                if found.conditional and self.headers.get("If-None-Match") == "*" and key in found.objects:
                    return reply(self, 412, b"<Error><Code>PreconditionFailed</Code></Error>")
                found.objects[key] = body, time.time()
                return reply(self, 200, b"")
            if self.command == "DELETE":
                found.objects.pop(key, None)
                return reply(self, 204, b"")
            if key:
                if key not in found.objects:
                    return reply(self, 404, b"<Error><Code>NoSuchKey</Code></Error>")
                return reply(self, 200, found.bend(key, found.objects[key][0]))
            return reply(self, 200, self._listing(parse_qs(where.query)))

        def _listing(self, query: dict[str, list[str]]) -> bytes:
            prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
            keys = sorted(k for k in found.objects if k.startswith(prefix) and k > after)
            page, more = keys[: found.page], keys[found.page :]
            rows = "".join(
                f"<Contents><Key>{escape(k)}</Key><Size>{len(found.objects[k][0])}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for k in page
            )
            rest = (
                f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
                if more
                else ""
            )
            return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}{rest}</ListBucketResult>'.encode()

        do_GET = do_PUT = do_DELETE = do_HEAD = _one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    server.daemon_threads = True
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
