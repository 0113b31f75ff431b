"""Probes and hooks that ask over the network, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.agent.calls import Caller
from metaos.security.identity import Authority
from tests.agent.fakes import FakeRuntime
from tests.clock import FakeClock

CONTAINER = {"name": "c", "ports": [{"name": "web", "containerPort": 80}]}


class Server(FakeRuntime):
    """Answers on every port of every pod, with what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.answer, self.requests = b"HTTP/1.1 204 No Content\r\n\r\n", []  # type: tuple[bytes, list[bytes]]
        self.server: asyncio.Server | None = None

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
                await writer.drain()
            writer.close()

        self.server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        self.servers["p", 80] = self.server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    yield found
    await found.close()


def caller(server: Server) -> Caller:
    return Caller(server.as_runtime(), FakeClock(), "p", CONTAINER)


async def test_http(server: Server) -> None:
    await server.start()
    get = {"port": "web", "path": "/ok", "httpHeaders": [{"name": "X-A", "value": "b"}]}
    assert await caller(server).call({"httpGet": get}, 5) is None
    assert server.requests[0].startswith(b"GET /ok HTTP/1.1\r\n") and b"X-A: b\r\n" in server.requests[0]
    server.answer = b"HTTP/1.1 503 No\r\n\r\n"
    assert await caller(server).call({"httpGet": get}, 5) == "HTTP probe failed with statuscode: 503"
    server.answer = b"SSH-2.0\r\n"
    assert await caller(server).call({"httpGet": get}, 5) == "the answer is not HTTP"


async def test_https_without_looking_at_the_certificate(server: Server, tmp_path: Path) -> None:
    pair = Authority.create(Random(1), 1_700_000_000.0).issue_server(("somewhere.else",), 1_700_000_000.0)
    (tmp_path / "pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    await server.start(context)
    assert await caller(server).call({"httpGet": {"port": 80, "scheme": "HTTPS"}}, 5) is None


async def test_tcp(server: Server) -> None:
    refused = await caller(server).call({"tcpSocket": {"port": "web"}}, 5)
    assert refused == "nobody listens there"
    await server.start()
    assert await caller(server).call({"tcpSocket": {"port": "web"}}, 5) is None


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({"tcpSocket": {"port": "nowhere"}}, "port 'nowhere' is not a port of the container"),
        ({"else": {"port": 1}}, "there is none of exec, httpGet, tcpSocket, grpc, sleep"),
    ],
)
async def test_what_cannot_be_asked(server: Server, what: dict[str, Any], text: str) -> None:
    assert await caller(server).call(what, 5) == text


async def test_a_server_that_does_not_answer(server: Server) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server.servers["q", 80] = await asyncio.start_server(hold, "127.0.0.1", 0)
    found = Caller(server.as_runtime(), FakeClock(), "q", CONTAINER)
    assert await found.call({"httpGet": {"port": 80}}, 0.05) == "no answer within 0.05 s"
