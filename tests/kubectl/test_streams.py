"""kubectl's connections into pods, with a site that answers in this process: logs, exec, port-forward, and both proxies."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metaos.resources import scheme
from metaos.tunnel import Stream, Tunnel
from tests.apiserver.objects import cluster, pod
from tests.apiserver.serving import ADMIN, ServedHub, endpoint_slice, service, site
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system

STDIN, STDOUT, STDERR, ERROR, CLOSE = (bytes((n,)) for n in (0, 1, 2, 3, 255))


class Site:
    """A site with pods that echo. ``opened`` holds the headers of its streams; ``more`` lets a followed log go on."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.more = asyncio.Event()

    async def __call__(self, header: dict[str, Any], stream: Stream) -> None:
        self.opened.append(header)
        await getattr(self, header["type"])(header, stream)

    async def log(self, header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        await stream.write(b"one\n")
        if header["follow"]:
            await self.more.wait()
        await stream.write(b"two\n")

    async def exec(self, header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        await stream.write(STDOUT + f"ran {' '.join(header['command'])}\n".encode())
        await stream.write(STDERR + b"careful\n")
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if header["command"][0] == "false":
            causes = [{"reason": "ExitCode", "message": "3"}]
            message = "command terminated with non-zero exit code"
            status = {"status": "Failure", "reason": "NonZeroExitCode", "message": message, "details": {"causes": causes}}
        while header["stdin"] and (message_ := await stream.read()):
            if message_ == CLOSE + STDIN:
                break
            if message_[:1] == STDIN:
                await stream.write(STDOUT + message_[1:].upper())
        await stream.write(ERROR + json.dumps(status).encode())

    async def dial(self, header: dict[str, Any], stream: Stream) -> None:
        if header["port"] != 8080:
            raise ConnectionRefusedError(f"port {header['port']} refuses")
        await stream.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.read()
        body = f"{header['pod']} {request.split(b' ')[1].decode()}".encode()
        await stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))


def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


@pytest.fixture
async def edge(hub: ServedHub) -> AsyncIterator[Site]:
    await hub.make(cluster("edge"), pod("web-1", nodeName="edge"), service(), endpoint_slice("edge", "web-1"))
    status = {"status": {"phase": "Running"}}
    await hub.registry.patch(ADMIN, scheme.POD, "web-1", "default", status, subresource="status")
    found = Site()
    async with site(hub, "edge", found) as tunnel:
        assert isinstance(tunnel, Tunnel)
        yield found


async def test_logs(edge: Site, kubectl: Kubectl) -> None:
    assert await kubectl("logs", "web-1", "--tail=5") == "one\ntwo\n"
    assert edge.opened[-1] | {"previous": False, "tail": 5, "follow": False, "container": "web"} == edge.opened[-1]
    assert await kubectl("logs", "web-1", "-c", "web", "-p") == "one\ntwo\n" and edge.opened[-1]["previous"]
    code, _, err = await kubectl.run("logs", "web-1", "-c", "none")
    assert code == 1 and "container none is not valid for pod web-1" in err


async def test_logs_follow(edge: Site, kubectl: Kubectl) -> None:
    process = await kubectl.start("logs", "-f", "web-1")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 10) == b"one\n"
    edge.more.set()
    assert await asyncio.wait_for(process.stdout.readline(), 10) == b"two\n"
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await process.communicate()


async def test_exec(edge: Site, kubectl: Kubectl) -> None:
    code, out, err = await kubectl.run("exec", "web-1", "--", "ls", "-l", "/")
    assert (code, out) == (0, "ran ls -l /\n") and "careful" in err
    code, _, err = await kubectl.run("exec", "web-1", "--", "false")
    assert code == 3 and "exit code 3" in err
    assert await kubectl("exec", "-i", "web-1", "--", "cat", text="hello\n") == "ran cat\nHELLO\n"
    large = "x" * 300_000
    assert await kubectl("exec", "-i", "web-1", "--", "cat", text=large) == "ran cat\n" + large.upper()


async def test_port_forward(edge: Site, kubectl: Kubectl) -> None:
    process = await kubectl.start("port-forward", "pod/web-1", ":8080")
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
        found = re.search(r"127\.0\.0\.1:(\d+) -> 8080", line)
        assert found is not None, line

        async def ask(path: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

        answers = await asyncio.wait_for(asyncio.gather(*(ask(f"/{n}") for n in range(8))), 15)
        assert [a.rpartition(b"\r\n\r\n")[2] for a in answers] == [f"web-1 /{n}".encode() for n in range(8)]
        assert (await asyncio.wait_for(ask("/again"), 10)).endswith(b"web-1 /again")
    finally:
        stop(process)
        await process.communicate()


async def test_port_forward_to_a_closed_port_says_so(edge: Site, kubectl: Kubectl) -> None:
    process = await kubectl.start("port-forward", "pod/web-1", ":99")
    assert process.stdout is not None and process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(line.split("127.0.0.1:")[1].split()[0]))
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await writer.wait_closed()
        said = ""
        async with asyncio.timeout(10):
            while "port 99 refuses" not in said:
                said += (await process.stderr.readline()).decode()
    finally:
        stop(process)
        await process.communicate()


async def test_the_proxies(edge: Site, kubectl: Kubectl) -> None:
    for url in ("services/web:80", "services/web", "services/http:web:http", "pods/web-1:8080"):
        path = f"/api/v1/namespaces/default/{url}/proxy/a/b%20c?x=y"
        assert await kubectl("get", "--raw", path) == "web-1 /a/b%20c?x=y", url


async def test_a_site_that_is_away(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(cluster("away"), pod("far", nodeName="away"), pod("nowhere"))
    for arguments in (("logs", "far"), ("exec", "far", "--", "ls")):
        code, _, err = await kubectl.run(*arguments)
        assert code == 1 and "'away' is not connected" in err, err
    code, _, err = await kubectl.run("logs", "nowhere")
    assert code == 1 and "does not have a host assigned" in err


async def test_the_python_client_execs(edge: Site, hub: ServedHub, tmp_path: Any) -> None:
    await asyncio.to_thread(python_exec, str(hub.kubeconfig(tmp_path)))


def python_exec(kubeconfig: str) -> None:
    from kubernetes import client
    from kubernetes import config as untyped
    from kubernetes.stream import stream

    config: Any = untyped
    api: Any = config.new_client_from_config(kubeconfig)
    try:
        core = client.CoreV1Api(api)
        ran: Any = stream(
            core.connect_get_namespaced_pod_exec,
            "web-1",
            "default",
            command=["ls"],
            stdin=True,
            stderr=True,
            _preload_content=False,
        )
        ran.write_stdin("hello")
        assert ran.readline_stdout(timeout=10) == "ran ls"
        ran.close()
        assert core.read_namespaced_pod_log("web-1", "default") == "one\ntwo\n"
    finally:
        api.rest_client.pool_manager.clear()
        api.close()
