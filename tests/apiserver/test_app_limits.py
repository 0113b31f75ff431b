"""Bounds of the HTTP form: sizes, times, large answers, and how much one caller may have open."""

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from metaos.apiserver import app, gates, listening, transfer
from metaos.apiserver.fairness import WORKLOAD_HIGH
from metaos.clock import SystemClock
from metaos.resources import scheme
from metaos.resources.meta import Obj
from tests.apiserver.objects import config_map
from tests.apiserver.serving import ServedHub, served

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


@asynccontextmanager
async def raw(hub: ServedHub, buffer_bytes: int = 0) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of the administrator, for requests as they should not be. ``buffer_bytes``: no more is kept unread."""
    context: ssl.SSLContext = hub.context("admin", "system:masters")
    with ExitStack() as unless_it_is_made:
        connection = unless_it_is_made.enter_context(socket.socket())
        if buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", urlsplit(hub.url).port))
        reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname="127.0.0.1")
        unless_it_is_made.pop_all()
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(hub: ServedHub, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(10), raw(hub) as (reader, writer):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def test_lines_and_headers_are_bounded(hub: ServedHub) -> None:
    fine = b"GET /version HTTP/1.1\r\nHost: h\r\n"
    for wrong in (
        b"GET /version?" + b"x" * (app.MAX_LINE + 1) + b" HTTP/1.1\r\nHost: h\r\n",
        fine + b"X: " + b"x" * (app.MAX_FIELD + 1) + b"\r\n",
        fine + b"".join(b"X-%d: x\r\n" % i for i in range(app.MAX_FIELDS + 1)),
    ):
        assert (await answered(hub, wrong + b"\r\n"))[0] == 400
    assert (await answered(hub, fine + b"\r\n"))[0] == 200


async def test_a_body_that_does_not_come_ends_the_request_and_holds_no_seat(
    hub: ServedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ahead = list[bool](), app.Precedence.ahead

    def noted(precedence: app.Precedence) -> AbstractContextManager[None]:
        begun.append(True)
        return ahead(precedence)

    monkeypatch.setattr(app.Precedence, "ahead", noted)
    monkeypatch.setattr(app, "REQUEST_SECONDS", 0.1)
    head = f"POST {CONFIG_MAPS} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode()
    code, _, body = await answered(hub, head + b'{"kind": ')
    assert code == 504 and json.loads(body)["reason"] == "Timeout"
    assert begun == []
    await answered(hub, f"GET {CONFIG_MAPS} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert begun == [True]


async def test_a_large_answer_is_compressed_for_who_accepts_it(hub: ServedHub) -> None:
    await hub.make(*(config_map(f"c{i}", k="x" * 2000) for i in range(100)))
    client = hub.client()
    plain = await client.request("GET", CONFIG_MAPS)
    assert len(plain.body) > transfer.GZIP_BYTES and not plain.header("content-encoding")
    request = f"GET {CONFIG_MAPS} HTTP/1.1\r\nHost: h\r\nAccept-Encoding: deflate, gzip\r\n\r\n"
    _, headers, body = await answered(hub, request.encode())
    assert headers["content-encoding"] == "gzip" and "Accept-Encoding" in headers["vary"]
    assert gzip.decompress(body) == plain.body and len(body) < len(plain.body) / 4
    small = await answered(hub, request.replace("configmaps ", "configmaps?limit=2 ").encode())
    assert "content-encoding" not in small[1]
    # The same objects in a form that is made in turns.
    listed = yaml.safe_load((await client.request("GET", CONFIG_MAPS, accept="application/yaml")).body)
    assert listed == plain.json()
    assert yaml.safe_load((await client.request("GET", "/api/v1/secrets", accept="application/yaml")).body)["items"] == []
    await client.close()


async def test_a_reader_that_does_not_read_is_cut_off(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(transfer, "SLOWEST_BYTES", 1 << 40)
    for i in range(8):
        await hub.make(config_map(f"c{i}", k="x" * 1_000_000))
    async with asyncio.timeout(10), raw(hub, 1 << 16) as (reader, writer):
        writer.write(f"GET {CONFIG_MAPS} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        client = hub.client()
        # It may be over before the answer's beginning is read.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        while "nemo_bodies_bytes 0\n" not in (await client.request("GET", "/metrics")).body.decode():
            await asyncio.sleep(0.01)
        got = 0
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                got += len(await reader.readexactly(1 << 16))
        assert got < 8_000_000
        await client.close()


async def test_one_caller_has_so_many_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONG_RUNNING_EACH", 2)
    async with served(tmp_path, SystemClock()) as hub:
        watch = f"GET {CONFIG_MAPS}?watch=1 HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        async with raw(hub) as (one, first), raw(hub) as (other, second):
            for reader, writer in ((one, first), (other, second)):
                writer.write(watch)
                assert b" 200 " in await reader.readline()
            code, headers, body = await answered(hub, watch)
            assert code == 429 and headers["retry-after"] == "5" and "watches" in json.loads(body)["message"]
            # Somebody else may.
            reader_of = hub.client("reader", "system:masters")
            seen = reader_of.lines(CONFIG_MAPS, {"watch": "1", "timeoutSeconds": "1"})
            await hub.make(config_map("a"))
            assert b"ADDED" in await anext(seen)
            await seen.aclose()
            await reader_of.close()
        async with asyncio.timeout(5):
            while (await answered(hub, watch.replace(b"watch=1", b"watch=1&fieldSelector=x%3Dy")))[0] == 429:
                await asyncio.sleep(0.01)


async def test_discovery_and_schemas_are_sent_once(hub: ServedHub) -> None:
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

    async def get(path: str, accept: str = "*/*", tag: str = "") -> tuple[int, dict[str, str], bytes]:
        return await answered(hub, f"GET {path} HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\nIf-None-Match: {tag}\r\n\r\n".encode())

    under_hash = json.loads((await get("/openapi/v3"))[2])["paths"]["apis/apps/v1"]["serverRelativeURL"]
    assert "immutable" in (await get(under_hash))[1]["cache-control"]
    assert "immutable" not in (await get(under_hash.partition("?")[0]))[1]["cache-control"]
    for path, accept in (
        ("/apis", aggregated),
        ("/apis", "*/*"),
        ("/api/v1", "*/*"),
        ("/openapi/v2", "*/*"),
        (under_hash, "*/*"),
    ):
        code, headers, body = await get(path, accept)
        assert code == 200 and body
        assert (await get(path, accept, headers["etag"]))[::2] == (304, b""), path


async def test_who_begins_no_tls_or_asks_for_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_SECONDS", 0.1)
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.3)
    async with served(tmp_path, SystemClock()) as hub, asyncio.timeout(10):
        silent, silently = await asyncio.open_connection("127.0.0.1", urlsplit(hub.url).port)
        assert await silent.read(1) == b""
        silently.close()
        async with raw(hub) as (idle, _):
            assert await idle.read(1) == b""
        async with raw(hub) as (slow, drip):
            drip.write(b"GET /version HTTP/1.1\r\nHost: ")
            assert await slow.read(1) == b""
        while hub.room.open:
            await asyncio.sleep(0.01)


async def test_the_room_of_one_address_is_bounded(hub: ServedHub) -> None:
    hub.room.of_address = 3
    async with raw(hub) as (_, first), raw(hub), raw(hub):
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with raw(hub) as (reader, writer):
                writer.write(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
                await reader.readexactly(1)
        assert hub.room.refused == 1
        first.transport.abort()
        async with asyncio.timeout(5):
            while hub.room.open > 2:
                await asyncio.sleep(0.01)
        assert (await answered(hub, b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"))[0] == 200


async def test_those_who_do_not_say_who_they_are_have_few_connections(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CONNECTIONS_UNKNOWN", 2)
    unknown, request = hub.context(), b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
    opened = [await asyncio.open_connection("127.0.0.1", urlsplit(hub.url).port, ssl=unknown) for _ in range(3)]
    codes = []
    for reader, writer in opened:
        writer.write(request)
        codes.append(int((await reader.readuntil(b"\r\n\r\n")).split()[1]))
    assert codes == [200, 200, 429]
    assert b"connections" in await opened[2][0].read()  # To the end: it is closed.
    assert (await answered(hub, request))[0] == 200
    for _, writer in opened:
        writer.transport.abort()


async def test_commands_that_wait_for_their_devices_hold_no_seats(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are seats of the level that agents and administrators share."""
    answer, waiting = asyncio.Event(), list[str]()

    async def asleep(asked: str, *given: Any) -> Obj:
        waiting.append(asked)
        await answer.wait()
        return {"kind": "DeviceCommand"}

    monkeypatch.setattr(hub.registry.desk, "answer", asleep)
    await hub.make({**scheme.DEVICE.empty("d", "default"), "spec": {}})
    path = "/apis/meta-os.eu/v1alpha1/namespaces/default/devices/d/command"
    body = '{"spec": {"action": "look"}}'
    command = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    commands = [asyncio.create_task(answered(hub, command.encode())) for _ in range(WORKLOAD_HIGH.seats)]
    async with asyncio.timeout(10):
        while len(waiting) < len(commands):
            await asyncio.sleep(0.01)
        assert (await answered(hub, f"GET {CONFIG_MAPS} HTTP/1.1\r\nHost: h\r\n\r\n".encode()))[0] == 200
        assert not any(command.done() for command in commands)
        answer.set()
        assert {(await command)[0] for command in commands} == {201}
