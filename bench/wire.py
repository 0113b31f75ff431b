"""The leanest HTTPS/1.1 client, so that a benchmark measures the server, and a fault test knows what was sent how often."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


class NotSent(ConnectionError):
    """No connection: the server cannot have seen the request."""


class Unanswered(ConnectionError):
    """The connection broke after the request was sent: it may have been carried out, or not."""


def unverified() -> ssl.SSLContext:
    """For test servers on this machine whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and as whom to speak to it."""

    host: str
    port: int
    context: ssl.SSLContext
    token: str = ""

    @classmethod
    def of(cls, kubeconfig: Path) -> Endpoint:
        """From a kubeconfig's first cluster and user: certificates inline or in files, or a token."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]

        def pem(section: dict[str, str], name: str) -> str:
            data = section.get(f"{name}-data")
            return base64.b64decode(data).decode() if data else (kubeconfig.parent / section[name]).read_text()

        if cluster.get("insecure-skip-tls-verify"):
            context = unverified()
        else:
            context = ssl.create_default_context(cadata=pem(cluster, "certificate-authority"))
        if "token" not in user:
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(pem(user, "client-certificate").rstrip() + "\n" + pem(user, "client-key"))
                file.flush()
                context.load_cert_chain(file.name)
        parts = urlsplit(cluster["server"])
        return cls(parts.hostname or "", parts.port or 443, context, user.get("token", ""))


class Connection:
    """One kept-alive connection; a request at a time, each sent once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(
        self, method: str, path: str, body: bytes = b"", *, accept: str = "application/json", media: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and body. ``media``: what the body is. Raises ``NotSent`` or ``Unanswered``."""
        reader, writer = await self._open()
        sent = False
        try:
            writer.write(self._head(method, path, body, accept, media) + body)
            sent = True
            await writer.drain()
            status, headers = await self._answer(reader)
            return status, await self._body(reader, headers)
        except (OSError, EOFError) as error:
            self.close()
            raise (Unanswered if sent else NotSent)(str(error)) from None
        except BaseException:
            self.close()
            raise

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of a watch, until the server ends it. Raises ``NotSent`` or ``Unanswered``; the connection is used up."""
        _, writer = await self._open()
        writer.write(self._head("GET", path, b"", "application/json"))
        async for line in self._lines(path):
            yield line

    async def _lines(self, path: str) -> AsyncIterator[bytes]:
        reader, _ = await self._open()
        try:
            status, headers = await self._answer(reader)
            if status != 200:
                raise RuntimeError(f"{path}: {status} {(await self._body(reader, headers))!r}")
            rest = b""
            while chunk := await self._chunk(reader):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
        except (OSError, EOFError) as error:
            raise Unanswered(str(error)) from None
        finally:
            self.close()

    async def stall(self, path: str) -> None:
        """Begins a watch and reads nothing of it, until :meth:`resumed` or :meth:`close`."""
        _, writer = await self._open()
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write(self._head("GET", path, b"", "application/json"))
        await writer.drain()

    async def resumed(self, after: float = 0.0) -> AsyncIterator[bytes]:
        """The lines of a stalled watch, read again ``after`` some seconds."""
        await asyncio.sleep(after)
        if self._streams is not None:
            transport: Any = self._streams[1].transport
            transport.resume_reading()
            async for line in self._lines(""):
                yield line

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def closed(self) -> None:
        """:meth:`close`, and waits until the socket is gone."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            try:
                where = self._endpoint
                self._streams = await asyncio.open_connection(where.host, where.port, ssl=where.context, limit=1 << 22)
            except OSError as error:
                raise NotSent(str(error)) from None
        return self._streams

    def _head(self, method: str, path: str, body: bytes, accept: str, media: str = "application/json") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._endpoint.host}\r\nAccept: {accept}\r\n"
        if self._endpoint.token:
            head += f"Authorization: Bearer {self._endpoint.token}\r\n"
        if body:
            head += f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n"

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head[9:12]), head.lower()

    async def _body(self, reader: asyncio.StreamReader, headers: bytes) -> bytes:
        if b"\r\ntransfer-encoding: chunked" in headers:
            parts = []
            while chunk := await self._chunk(reader):
                parts.append(chunk)
            return b"".join(parts)
        start = headers.find(b"\r\ncontent-length: ")
        size = int(headers[start + 18 : headers.index(b"\r\n", start + 2)]) if start >= 0 else 0
        return await reader.readexactly(size)

    @staticmethod
    async def _chunk(reader: asyncio.StreamReader) -> bytes:
        size = int(await reader.readuntil(b"\r\n"), 16)
        data = await reader.readexactly(size + 2)
        return data[:-2]


def config_map(name: str, value: str) -> bytes:
    """A ConfigMap's JSON."""
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}).encode()
