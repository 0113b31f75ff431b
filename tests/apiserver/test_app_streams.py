"""What passes through the hub to sites and between them: the Service's stable URL, upgrades, relays."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources.errors import ApiError
from metaos.tunnel import Stream, StreamReset
from tests.apiserver.objects import cluster, pod
from tests.apiserver.serving import ServedHub, endpoint_slice, served, service, site

PROXY = "/api/v1/namespaces/default/services/web:80/proxy"
CLOSE = b"Connection: close\r\n"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        await running.make(service())
        yield running


@pytest.fixture
async def client(hub: ServedHub) -> AsyncIterator[HttpClient]:
    made = hub.client()
    yield made
    await made.close()


class Web:
    """Pods that answer HTTP with ``answer(head, body)``; ``seen`` holds (pod, head, body) of each request."""

    def __init__(self, answer: Callable[[bytes, bytes], bytes] | None = None) -> None:
        self.seen: list[tuple[str, bytes, bytes]] = []
        self._answer = answer

    async def __call__(self, header: dict[str, Any], stream: Stream) -> None:
        assert header["type"] == "dial" and header["port"] == 8080
        await stream.accept()
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.read()
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0)
        while len(body) < length:
            body += await stream.read()
        self.seen.append((header["pod"], head, body))
        if self._answer is not None:
            await stream.write(self._answer(head, body))
            return
        text = header["pod"].encode()
        await stream.write(
            b"HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        )


async def refuse(header: dict[str, Any], stream: Stream) -> None:
    raise ConnectionRefusedError("nothing listens there")


async def test_requests_reach_pods_as_they_were_sent(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), endpoint_slice("edge", "web-1"))
    web = Web()
    async with site(hub, "edge", web):
        answer = await client.request("POST", f"{PROXY}/a//b%2Fc%20d?x=%20&y", b"body", accept="text/plain")
    assert (answer.status, answer.body, answer.header("x-a")) == (200, b"web-1", "1")
    assert [value for key, value in answer.headers if key == "set-cookie"] == ["a=1", "b=2"]
    [(_, head, body)] = web.seen
    assert head.startswith(b"POST /a//b%2Fc%20d?x=%20&y HTTP/1.1\r\n") and body == b"body"
    assert b"authorization" not in head.lower()


async def test_large_bodies_pass_both_ways(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), endpoint_slice("edge", "web-1"))
    sent = bytes(range(256)) * 20_000
    web = Web(lambda head, body: b"HTTP/1.1 200 OK\r\n" + CLOSE + b"\r\n" + body[::-1])
    async with site(hub, "edge", web):
        answer = await client.request("PUT", PROXY, sent)
    assert answer.status == 200 and answer.body == sent[::-1]


async def test_another_endpoint_is_tried(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("a"), cluster("b"), cluster("c"))
    await hub.make(endpoint_slice("a", "web-1"), endpoint_slice("b", "web-2"), endpoint_slice("c", "web-3"))
    web = Web()
    # One refuses, one is not connected; a POST may be sent on as nobody has seen it.
    async with site(hub, "a", refuse), site(hub, "b", web):
        for _ in range(6):
            answer = await client.request("POST", PROXY, b"x")
            assert (answer.status, answer.body) == (200, b"web-2")
    assert len(web.seen) == 6


async def test_only_repeatable_requests_are_repeated(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("a"), cluster("b"), endpoint_slice("a", "web-1"), endpoint_slice("b", "web-2"))
    web = Web()
    seen: list[bytes] = []

    async def break_off(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        seen.append(await stream.read())

    async with site(hub, "a", break_off), site(hub, "b", web):
        codes = [(await client.request("POST", PROXY, b"x")).status for _ in range(2)]
        assert sorted(codes) == [200, 502] and len(seen) == 1 and len(web.seen) == 1
        assert [(await client.request("GET", PROXY)).status for _ in range(4)] == [200] * 4


async def test_nobody_there(hub: ServedHub, client: HttpClient) -> None:
    answer = await client.request("GET", PROXY)
    assert answer.status == 503 and "no endpoints available" in answer.json()["message"]
    none = await client.request("GET", PROXY.replace("web:80", "none"))
    assert none.status == 404
    port = await client.request("GET", PROXY.replace("web:80", "web:81"))
    assert port.status == 503 and "no port '81'" in port.json()["message"]
    jane = hub.client("jane")
    assert (await jane.request("GET", PROXY)).status == 403
    await jane.close()


async def test_a_request_waits_a_moment_for_the_first_endpoint(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"))
    async with site(hub, "edge", Web()):
        asked = asyncio.create_task(client.request("GET", PROXY))
        await asyncio.sleep(0)
        await hub.make(endpoint_slice("edge", "web-1"))
        assert (await asked).status == 200


async def test_an_answer_that_breaks_off_is_seen_to(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), endpoint_slice("edge", "web-1"))

    async def half(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        await stream.read()
        await stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        raise RuntimeError("the pod died")

    from metaos.resources.errors import ApiError

    async with site(hub, "edge", half):
        with pytest.raises(ApiError) as broken:
            await client.request("GET", PROXY)
    assert broken.value.code == 503


async def test_web_sockets_pass_through(hub: ServedHub) -> None:
    from websockets.asyncio.client import connect
    from websockets.server import ServerProtocol

    await hub.make(cluster("edge"), endpoint_slice("edge", "web-1"))

    async def echo(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        protocol = ServerProtocol()
        while data := await stream.read():
            protocol.receive_data(data)
            event: Any
            for event in protocol.events_received():
                if hasattr(event, "headers"):
                    protocol.send_response(protocol.accept(event))
                elif event.opcode == 1:
                    protocol.send_text(event.data)
            for out in protocol.data_to_send():
                if out:
                    await stream.write(out)
            if protocol.close_expected():
                return

    url = hub.url.replace("https", "wss") + PROXY + "/chat"
    async with site(hub, "edge", echo), connect(url, ssl=hub.context("admin", "system:masters")) as socket:
        for size in (1, 1000, 200_000):
            await socket.send("x" * size)
            assert await asyncio.wait_for(socket.recv(), 10) == "x" * size


async def test_sites_reach_each_other_where_a_service_leads(hub: ServedHub) -> None:
    await hub.make(cluster("a"), cluster("b"))

    async def upper(header: dict[str, Any], stream: Stream) -> None:
        assert header == {"type": "dial", "namespace": "shop", "pod": "db-0", "port": 80}
        await stream.accept()
        while data := await stream.read():
            await stream.write(data.upper())

    asked = {"type": "dial", "cluster": "b", "namespace": "shop", "service": "db", "pod": "db-0", "port": 80}
    async with site(hub, "a", refuse) as here, site(hub, "b", upper):
        stream = await here.open(asked)
        await asyncio.wait_for(stream.accepted(), 5)
        await stream.write(b"hello")
        assert await asyncio.wait_for(stream.read(), 5) == b"HELLO"
        await stream.write_eof()
        assert await asyncio.wait_for(stream.read(), 5) == b""
        for wrong, why in (
            (asked | {"port": 81}, "no service leads there"),
            (asked | {"cluster": "c"}, "'c' is not connected"),
            (asked | {"type": "exec"}, "type dial, datagrams, volumes only"),
        ):
            refused = await here.open(wrong)
            with pytest.raises(StreamReset, match=why):
                await asyncio.wait_for(refused.accepted(), 5)


async def test_a_second_tunnel_replaces_the_first(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), endpoint_slice("edge", "web-1"))
    web = Web()
    async with site(hub, "edge", refuse) as first:
        async with site(hub, "edge", web):
            async with asyncio.timeout(5):
                while (await client.request("GET", PROXY)).status != 200:
                    await asyncio.sleep(0.01)
        assert first is not None
    async with asyncio.timeout(5):
        while hub.tunnels.connected():
            await asyncio.sleep(0.01)
    assert (await client.request("GET", PROXY)).status == 502


async def test_connections_are_audited_without_their_commands(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"))
    answer = await client.request("GET", "/api/v1/namespaces/default/pods/web-1/exec", query={"command": "hunter2"})
    assert answer.status == 400 and "WebSocket" in answer.json()["message"]
    [event] = hub.audit
    assert (event["verb"], event["subresource"], event["code"]) == ("create", "exec", 400)
    assert "hunter2" not in json.dumps(hub.audit)


async def test_bodies_of_unknown_length_stream_through(hub: ServedHub) -> None:
    """More than an API request may have, and the answer begins before the request has ended."""
    from aiohttp import ClientSession

    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"), endpoint_slice("edge", "web-1"))
    begun = asyncio.Event()
    taken = 0

    async def sink(header: dict[str, Any], stream: Stream) -> None:
        nonlocal taken
        await stream.accept()
        await stream.read()
        await stream.write(b"HTTP/1.1 200 OK\r\n" + CLOSE + b"\r\nfirst\n")
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = await stream.read()
            taken += len(data)
            tail = (tail + data)[-8:]
        await stream.write(b"last\n")

    async def parts() -> AsyncIterator[bytes]:
        yield b"begin"
        await begun.wait()
        for _ in range(64):
            yield bytes(64 * 1024)

    async with site(hub, "edge", sink), ClientSession() as session:
        for path in (PROXY, "/api/v1/namespaces/default/pods/web-1:8080/proxy/"):
            begun.clear()
            async with session.post(hub.url + path, data=parts(), ssl=hub.context("admin", "system:masters")) as answer:
                assert await asyncio.wait_for(answer.content.readline(), 5) == b"first\n"
                begun.set()
                assert await asyncio.wait_for(answer.content.readline(), 10) == b"last\n"
    assert taken > 2 * 4 * 1024 * 1024
    await asyncio.sleep(0.05)  # The session's TLS connections say goodbye.


async def test_log_options_that_are_not_honoured_are_named(hub: ServedHub, client: HttpClient) -> None:
    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"))

    async def log(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        await stream.write(b"0123456789")

    path = "/api/v1/namespaces/default/pods/web-1/log"
    async with site(hub, "edge", log):
        answer = await client.request("GET", path, query={"timestamps": "true", "limitBytes": "4"}, accept="*/*")
    assert answer.body == b"0123" and "timestamps is not honoured" in answer.header("warning")


async def test_a_web_socket_of_another_protocol_is_refused(hub: ServedHub, client: HttpClient) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"))
    url = hub.url.replace("https", "wss") + "/api/v1/namespaces/default/pods/web-1/exec?command=ls"
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, ssl=hub.context("admin", "system:masters"), subprotocols=["other"])  # type: ignore[list-item]
    assert refused.value.response.status_code == 400
    for ports in ("0", "70000", "x"):
        asked = await client.request("GET", "/api/v1/namespaces/default/pods/web-1/portforward", query={"ports": ports})
        assert asked.status == 400


async def test_the_bounds_of_a_tunnel_are_told_to_who_meets_them(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []

    async def silent(header: dict[str, Any], stream: Stream) -> None:
        if header["type"] == "answered":
            await stream.accept()
        await stream.wait_closed()
        gone.append(header["type"])

    async def until_gone(*kinds: str) -> None:
        async with asyncio.timeout(5):
            while sorted(gone) != sorted(kinds):
                await asyncio.sleep(0.005)

    monkeypatch.setattr("metaos.apiserver.tunnels.ACCEPT_SECONDS", 0.2)
    async with site(hub, "a", silent):
        with pytest.raises(ApiError, match=r"may have 8192 bytes.*is the command too long") as caught:
            await hub.tunnels.open("a", {"type": "exec", "command": ["x" * 9000]})
        assert caught.value.code == 400
        with pytest.raises(ApiError, match=r"did not answer within 0\.2 s") as caught:
            await hub.tunnels.open("a", {"type": "late"})
        assert caught.value.code == 503
        await until_gone("late")
        monkeypatch.setattr("metaos.apiserver.tunnels.ACCEPT_SECONDS", 60.0)
        waiting = asyncio.create_task(hub.tunnels.open("a", {"type": "left"}))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until_gone("late", "left")
        monkeypatch.setattr(hub.tunnels._tunnels["a"]._core, "_max_streams", 2)
        held = [await hub.tunnels.open("a", {"type": "answered"}) for _ in range(2)]
        with pytest.raises(ApiError, match="carries 2 streams already") as caught:
            await hub.tunnels.open("a", {"type": "answered"})
        assert caught.value.code == 503
        await held[0].close()
        held.append(await hub.tunnels.open("a", {"type": "answered"}))
        for stream in held:
            await stream.close()


async def test_users_streams_end_when_nothing_passes_for_hours(hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        while await stream.read():
            pass

    monkeypatch.setattr("metaos.apiserver.tunnels.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("metaos.apiserver.tunnels.IDLE_SECONDS", 0.1)
    async with site(hub, "a", accept):
        users = await hub.tunnels.open("a", {"type": "exec"})
        pods = await hub.tunnels.open("a", {"type": "dial", "source": {"pod": "p"}})
        with pytest.raises(StreamReset, match="nothing has passed"):
            await asyncio.wait_for(users.read(), 10)
        await pods.write(b"still open")
        await pods.close()


@pytest.mark.parametrize("protocols", [["v4.channel.k8s.io"], None])
async def test_ports_are_forwarded_also_to_a_client_that_names_no_protocol(hub: ServedHub, protocols: Any) -> None:
    """kr8s names none; kubelets take that for two channels a port."""
    from websockets.asyncio.client import connect

    async def echo(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        while data := await stream.read():
            await stream.write(data.upper())

    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"))
    url = f"{hub.url.replace('https', 'wss')}/api/v1/namespaces/default/pods/web-1/portforward?ports=80"
    async with site(hub, "edge", echo):
        context = hub.context("admin", "system:masters")
        async with connect(url, ssl=context, subprotocols=protocols, compression=None) as socket:
            assert [await socket.recv(), await socket.recv()] == [b"\0\x50\0", b"\1\x50\0"]
            await socket.send(b"\0hello")
            assert await socket.recv() == b"\0HELLO"
