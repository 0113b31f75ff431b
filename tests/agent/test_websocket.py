"""The agent's WebSocket against a server of another make: messages of every size, pings, refusals and broken connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import serve

from metaos.agent.websocket import Refused, WebSocket

LIMIT = 70_000


@asynccontextmanager
async def serving(talk: Any, **more: Any) -> AsyncIterator[str]:
    options: dict[str, Any] = {"subprotocols": ["t"], "compression": None} | more
    async with serve(talk, "127.0.0.1", 0, **options) as server:
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/some/path"


async def opened(url: str) -> WebSocket:
    return await asyncio.wait_for(WebSocket.open(url, None, "t", LIMIT), 5)


async def test_messages_of_every_size_come_back_whole_and_in_order() -> None:
    async def echo(connection: Any) -> None:
        assert connection.request.path == "/some/path" and connection.subprotocol == "t"
        async for message in connection:
            await connection.ping()
            await connection.send([message[:3], message[3:9], message[9:]])  # in fragments

    async with serving(echo) as url:
        socket = await opened(url)
        sent = [bytes([size % 251]) * size for size in (1, 2, 9, 125, 126, 4000, 65_535, 65_536, 65_537)]
        for message in sent:
            await socket.send(message)
        got: list[bytes] = []
        async with asyncio.timeout(10), aclosing(socket.messages()) as messages:
            async for message in messages:
                got.append(message)
                if len(got) == len(sent):
                    break
        assert got == sent
        socket.abort()


async def test_what_is_said_with_the_handshake_is_not_lost_and_a_goodbye_ends_it() -> None:
    async def speak(connection: Any) -> None:
        await connection.send(b"at once")

    async with serving(speak) as url:
        socket = await opened(url)
        async with asyncio.timeout(5), aclosing(socket.messages()) as messages:
            assert [message async for message in messages] == [b"at once"]
        with pytest.raises(OSError, match="closed"):
            await socket.send(b"late")
        socket.abort()


async def test_a_ping_is_answered_while_messages_are_read() -> None:
    async def hold(connection: Any) -> None:
        await connection.wait_closed()

    async with serving(hold) as url:
        socket = await opened(url)
        reading = asyncio.create_task(anext(socket.messages(), None))
        await asyncio.wait_for(socket.ping(), 5)
        socket.abort()
        assert await asyncio.wait_for(reading, 5) is None


@pytest.mark.parametrize("message", [b"x" * (LIMIT + 1), [b"x" * LIMIT, b"x"]])
async def test_a_message_that_is_too_long_ends_it(message: Any) -> None:
    async def speak(connection: Any) -> None:
        await connection.send(message)
        await connection.wait_closed()

    async with serving(speak) as url:
        socket = await opened(url)
        with pytest.raises(OSError, match="more than 70000 bytes"):
            await asyncio.wait_for(anext(socket.messages()), 5)
        socket.abort()


async def test_a_refusal_says_what_the_server_said() -> None:
    def refuse(connection: Any, request: Any) -> Any:
        return connection.respond(HTTPStatus.FORBIDDEN, "not you")

    async def never(connection: Any) -> None:
        raise AssertionError

    async with serving(never, process_request=refuse) as url:
        with pytest.raises(Refused) as caught:
            await opened(url)
        assert (caught.value.status, caught.value.body) == (403, b"not you")
    async with serving(never, subprotocols=None) as url:
        with pytest.raises((OSError, Refused)):
            await opened(url)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"SSH-2.0-x\r\n"])
async def test_what_is_no_websocket_server(answer: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        with pytest.raises((OSError, Refused)):
            await opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
