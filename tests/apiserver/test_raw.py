"""Bytes that are no requests, to the hub's port: answered with 400 or cut off, and neither logged nor repeated."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from metaos.clock import SystemClock
from tests.apiserver.serving import ServedHub, served

CANARY = b"secret-canary"
NO_REQUESTS = [
    b"GARBAGE secret-canary\r\n\r\n",
    b"GET / HTTP/1.1\r\nAuthorization: Bearer secret-canary\r\nA line secret-canary\r\n\r\n",
    b"GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-canary\x00\r\n\r\n",
    b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nX: secret-canary\r\n\r\n",
    b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nX: secret-canary\r\n\r\n",
    b"GET / HTTP/9.9\r\nsecret-canary: a\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b"?secret-canary HTTP/1.1\r\n\r\n",
    b"POST /api/v1/namespaces/default/secrets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz-secret-canary\r\n",
    b"GET http://[::bad/secret-canary HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nsecret-canary",
]


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


async def said(hub: ServedHub, data: bytes, *, tls: bool = True) -> bytes:
    """What comes back before the hub closes, or before half a second is over."""
    context, name = (hub.context("ann"), "localhost") if tls else (None, None)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(hub.url.rpartition(":")[2]), ssl=context, server_hostname=name
    )
    found = b""
    try:
        writer.write(data)
        async with asyncio.timeout(0.5):
            while piece := await reader.read(4096):
                found += piece
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()
    return found


async def test_they_are_refused_and_not_repeated(hub: ServedHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    random = Random(1)
    noise = [random.randbytes(random.randrange(1, 400)) + CANARY for _ in range(6)]
    for data in (*NO_REQUESTS, *noise):
        answer = await said(hub, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.0 400 "), (data[:60], answer[:200])
        # The answer may show the line that was wrong: to its author, who knows it.
        assert await said(hub, data, tls=False) == b"" or data[:1] == b"\x16"
    assert "canary" not in caplog.text and "Traceback" not in caplog.text
    client = hub.client()
    assert (await client.request("GET", "/readyz")).status == 200
    await client.close()
