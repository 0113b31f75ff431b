"""Logs, commands and ports of pods on any site, over the connection that the site's agent opened."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from metaos.apiserver.tunnels import Streams
from metaos.apiserver.verbs import warning_headers
from metaos.resources.errors import ApiError, bad_request
from metaos.resources.meta import Obj, format_time, parse_time
from metaos.tunnel import MAX_DATA, Stream, StreamReset

CHANNEL_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
PORT_PROTOCOLS = ("v4.channel.k8s.io",)
ERROR = 3
#: Of one ``v4.channel.k8s.io`` port forward: its channels are numbered in one byte, two to a port.
MAX_PORTS = 32


def site_of(pod: Obj) -> str:
    """Where a pod runs. Raises ``ApiError`` where it has no place yet."""
    site = (pod.get("spec") or {}).get("nodeName")
    if not site:
        raise bad_request(f"pod {pod['metadata']['name']!r} does not have a host assigned")
    return str(site)


def container_of(pod: Obj, asked: str) -> str:
    """The container that is meant: the asked-for one, the annotated default, or the only one."""
    spec = pod.get("spec") or {}
    known = [c["name"] for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))]
    if asked:
        if asked not in known:
            raise bad_request(f"container {asked} is not valid for pod {pod['metadata']['name']}")
        return asked
    default = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
    containers = [c["name"] for c in spec.get("containers") or ()]
    if default in containers:
        return str(default)
    if len(containers) > 1:
        names = " ".join(containers)
        raise bad_request(f"a container name must be specified for pod {pod['metadata']['name']}, choose one of: [{names}]")
    return str(containers[0])


def _number(query: Any, word: str) -> int | None:
    text = query.get(word)
    if text is None or text == "":
        return None
    if not text.isdigit():
        raise bad_request(f"query parameter {word}={text!r} must be a whole number of at least 0")
    return int(text)


def _newest_seconds(query: Any, now: float) -> float | None:
    """How far back a log is wanted: ``sinceSeconds`` or ``sinceTime``. Sites get an age: their clocks differ."""
    seconds, time = _number(query, "sinceSeconds"), query.get("sinceTime") or ""
    if seconds is not None and time:
        raise bad_request("at most one of sinceTime or sinceSeconds may be specified")
    if seconds is not None and seconds < 1:
        raise bad_request("query parameter sinceSeconds must be greater than 0")
    if not time:
        return None if seconds is None else float(seconds)
    try:
        return max(0.0, now - parse_time(time))
    except ValueError:
        raise bad_request(f"query parameter sinceTime={time!r} must be a time like {format_time(now)}") from None


async def log(request: web.Request, streams: Streams, pod: Obj, now: float) -> web.StreamResponse:
    """``GET …/pods/NAME/log``."""
    query = request.query
    header = {
        "type": "log",
        "namespace": pod["metadata"]["namespace"],
        "pod": pod["metadata"]["name"],
        "container": container_of(pod, query.get("container", "")),
        "follow": query.get("follow") in ("true", "1"),
        "previous": query.get("previous") in ("true", "1"),
        "tail": _number(query, "tailLines"),
        "newestSeconds": _newest_seconds(query, now),
    }
    limit = _number(query, "limitBytes")
    try:
        stream = await streams.open(site_of(pod), header)
    except ApiError as error:
        # What the agent refuses about a container is the caller's mistake, as a kubelet says it.
        if error.reason == "BadGateway":
            raise bad_request(error.message) from None
        raise
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    for name, text in warning_headers(_not_honoured(query)):
        response.headers.add(name, text)
    await response.prepare(request)
    try:
        while data := await stream.read():
            if limit is not None:
                data, limit = data[:limit], limit - len(data)
            await response.write(data)
            if limit is not None and limit <= 0:
                break
    except StreamReset:
        # The site went away: the reader must see that this is not the end.
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        await stream.close()
    await response.write_eof()
    return response


def _not_honoured(query: Any) -> list[str]:
    asked = ["timestamps"] if _flag(query, "timestamps") else []
    return [f"log option {word} is not honoured: sites keep lines without their times" for word in asked]


def _flag(query: Any, *words: str) -> bool:
    return any(query.get(w) in ("true", "1") for w in words)


async def execute(request: web.Request, streams: Streams, pod: Obj, kind: str) -> web.StreamResponse:
    """``exec`` and ``attach`` over a WebSocket with channels (``v5.channel.k8s.io``, ``v4.channel.k8s.io``)."""
    query = request.query
    command = query.getall("command", [])
    if kind == "exec" and not command:
        raise bad_request("you must specify at least one command for the container")
    header = {
        "type": kind,
        "namespace": pod["metadata"]["namespace"],
        "pod": pod["metadata"]["name"],
        "container": container_of(pod, query.get("container", "")),
        "command": command,
        **{word: _flag(query, word) for word in ("stdin", "stdout", "stderr", "tty")},
    }
    _require_websocket(request, CHANNEL_PROTOCOLS)
    site = site_of(pod)
    socket = web.WebSocketResponse(protocols=CHANNEL_PROTOCOLS, max_msg_size=1 << 20, heartbeat=30, compress=False)
    await socket.prepare(request)
    try:
        stream = await streams.open(site, header)
    except ApiError as error:
        await socket.send_bytes(bytes((ERROR,)) + orjson.dumps(error.status()))
        await socket.close()
        return socket
    up = asyncio.create_task(_up(socket, stream))
    try:
        while data := await stream.read():
            await socket.send_bytes(data)
    except StreamReset as error:
        with suppress(ConnectionError):
            failure = ApiError(500, "InternalError", str(error)).status()
            await socket.send_bytes(bytes((ERROR,)) + orjson.dumps(failure))
    except ConnectionError:
        pass
    finally:
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
        await stream.close()
        await socket.close()
    return socket


async def _up(socket: web.WebSocketResponse, stream: Stream) -> None:
    """From the client's channels to the site. Large messages are cut, each part on the same channel."""
    with suppress(ConnectionError):
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data:
                channel, data = message.data[:1], message.data[1:]
                for start in range(0, max(1, len(data)), MAX_DATA - 1):
                    await stream.write(channel + data[start : start + MAX_DATA - 1])
        await stream.write_eof()


def _require_websocket(request: web.Request, protocols: tuple[str, ...], *, bare: bool = False) -> None:
    """``bare``: whether a client may name no protocol at all."""
    offered = [word.strip() for value in request.headers.getall("Sec-WebSocket-Protocol", ()) for word in value.split(",")]
    fits = bool(set(offered) & set(protocols)) or (bare and not offered)
    if request.headers.get("Upgrade", "").lower() != "websocket" or not fits:
        raise bad_request(f"this needs a WebSocket with one of the protocols {', '.join(protocols)}: use kubectl 1.31 or newer")


async def port_forward(request: web.Request, streams: Streams, pod: Obj) -> web.StreamResponse:
    """``portforward`` over a WebSocket: SPDY/3.1 inside it as kubectl does it, or two channels a port (``v4.channel.k8s.io``,
    also where no protocol is named, as kubelets take it)."""
    from metaos.apiserver.spdy import PORTFORWARD, SpdyForward

    _require_websocket(request, (PORTFORWARD, *PORT_PROTOCOLS), bare=True)
    ports = _ports(request.query)
    site = site_of(pod)
    where, name = pod["metadata"]["namespace"], pod["metadata"]["name"]

    async def dial(port: int) -> Stream:
        return await streams.open(site, {"type": "dial", "namespace": where, "pod": name, "port": port})

    socket = web.WebSocketResponse(protocols=(PORTFORWARD, *PORT_PROTOCOLS), max_msg_size=1 << 20, heartbeat=30, compress=False)
    await socket.prepare(request)
    if socket.ws_protocol == PORTFORWARD:
        await SpdyForward(socket, dial).run()
        return socket
    await _forward_channels(socket, dial, ports)
    return socket


def _ports(query: Any) -> list[int]:
    """Raises ``ApiError`` 400."""
    found = [part for text in query.getall("ports", []) for part in text.split(",")]
    if len(found) > MAX_PORTS or not all(p.isdecimal() and 0 < int(p[:6]) < 65536 for p in found):
        raise bad_request(f"ports must be at most {MAX_PORTS} numbers from 1 to 65535")
    return [int(p) for p in found]


async def _forward_channels(socket: web.WebSocketResponse, dial: Any, ports: list[int]) -> None:
    """Channel 2n carries data of the n-th port, 2n + 1 its errors; both begin with the port number, little endian."""
    opened: dict[int, Stream] = {}
    tasks: list[asyncio.Task[None]] = []

    async def down(index: int, stream: Stream) -> None:
        with suppress(ConnectionError):
            while data := await stream.read():
                await socket.send_bytes(bytes((2 * index,)) + data)
            await socket.close()

    try:
        for index, port in enumerate(ports):
            number = port.to_bytes(2, "little")
            await socket.send_bytes(bytes((2 * index,)) + number)
            await socket.send_bytes(bytes((2 * index + 1,)) + number)
            try:
                opened[index] = await dial(port)
            except ApiError as error:
                await socket.send_bytes(bytes((2 * index + 1,)) + error.message.encode())
                continue
            tasks.append(asyncio.create_task(down(index, opened[index])))
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data:
                stream = opened.get(message.data[0] // 2)
                if stream is not None and message.data[0] % 2 == 0:
                    with suppress(ConnectionError):
                        await stream.write(message.data[1:])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in opened.values():
            await stream.close()
        await socket.close()
