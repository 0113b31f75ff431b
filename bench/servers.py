"""The servers that are compared: the hub, a real kube-apiserver with its etcd (KUBECONFIG), and a bare HTTPS server.

The same client code drives all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.wire import Connection, Endpoint, unverified
from metaos.twin.processes import free_port

CLIENTS = 16
PATH = "/api/v1/namespaces/default/configmaps"
BARE = """
import asyncio, ssl, sys
from aiohttp import web
async def answer(request):
    await request.read()
    return web.Response(body=b'{"kind":"ConfigMap","data":{"value":"' + b"x" * 500 + b'"}}', content_type="application/json")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
context.load_verify_locations(sys.argv[1])
context.verify_mode = ssl.CERT_OPTIONAL
app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), ssl_context=context, print=None, access_log=None)
"""


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """One server and the processes that it consists of."""

    name: str
    endpoint: Endpoint
    pids: list[int]
    connections: list[Connection] = field(default_factory=list)

    def memory(self) -> float:
        return sum(map(resident_mb, self.pids))

    def cpu(self) -> float:
        return sum(map(cpu_seconds, self.pids))

    async def call(self, connection: Connection, method: str, path: str, body: bytes = b"") -> bytes:
        status, answer = await connection.call(method, path, body)
        if status >= 400:
            raise RuntimeError(f"{self.name}: {method} {path}: {status} {answer[:200]!r}")
        return answer

    async def rate(self, count: int, request: Callable[[int], tuple[str, str, bytes]]) -> float:
        """Requests per second by ``CLIENTS`` clients, each with a connection of its own."""
        while len(self.connections) < CLIENTS:
            self.connections.append(Connection(self.endpoint))
        turn = iter(range(count))

        async def client(connection: Connection) -> None:
            for number in turn:
                await self.call(connection, *request(number))

        started = time.monotonic()
        await asyncio.gather(*map(client, self.connections))
        return count / (time.monotonic() - started)

    async def close(self) -> None:
        for connection in self.connections:
            await connection.closed()


async def until(what: str, test: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if await test():
                return
        await asyncio.sleep(0.005)
    raise TimeoutError(f"waited {seconds:g} s in vain for {what}")


async def answers(endpoint: Endpoint) -> bool:
    connection = Connection(endpoint)
    try:
        return (await connection.call("GET", "/readyz"))[0] == 200
    finally:
        await connection.closed()


@contextlib.asynccontextmanager
async def hub(data: Path, patience: float = 120.0) -> AsyncIterator[tuple[Server, float]]:
    """A hub on a data directory, and the seconds that it took to be ready. ``patience``: how many it may take."""
    port = free_port()
    command = [sys.executable, "-m", "metaos", "up", "--no-local", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=(data.parent / "hub.log").open("ab")
    )
    try:
        kubeconfig = data / "admin.kubeconfig"

        async def ready() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"the hub ended: {(data.parent / 'hub.log').read_text()[-1000:]}")
            if not kubeconfig.exists() or f":{port}" not in kubeconfig.read_text():
                return False
            return await answers(Endpoint.of(kubeconfig))

        await until("the hub", ready, patience)
        seconds = time.monotonic() - started
        server = Server("hub", Endpoint.of(kubeconfig), [process.pid])
        yield server, seconds
        await server.close()
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def bare(data: Path) -> AsyncIterator[Server]:
    """aiohttp with TLS and a constant answer: what the hub's HTTP library can do at most."""
    port, pem = free_port(), data / "pki" / "server.pem"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BARE, str(pem), str(port))
    try:
        endpoint = Endpoint("127.0.0.1", port, unverified())
        await until("the bare server", lambda: answers(endpoint))
        server = Server("bare aiohttp", endpoint, [process.pid])
        yield server
        await server.close()
    finally:
        process.terminate()
        await process.wait()


def running() -> dict[int, list[str]]:
    """The command lines of this machine's processes, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def cluster_pids(port: int) -> tuple[list[int], list[int]]:
    """The processes of the kube-apiserver at a port of this machine: it and its etcd, and its controllers and scheduler where
    these have a kubeconfig that names it. Empty where they do not run here."""
    found, servers, others = running(), list[int](), list[int]()
    for pid, arguments in found.items():
        # As flag and value, in one word or two.
        flags = {word.partition("=")[0]: word.partition("=")[2] or after for word, after in pairwise([*arguments, ""])}
        if arguments[0].endswith("kube-apiserver") and flags.get("--secure-port") == str(port):
            store = flags.get("--etcd-servers", "?")
            servers += [pid, *(p for p, other in found.items() if other[0].endswith("etcd") and store in other)]
        if arguments[0].endswith(("kube-controller-manager", "kube-scheduler")):
            with contextlib.suppress(OSError):
                config = Path(f"/proc/{pid}/cwd") / flags.get("--kubeconfig", "")
                if f":{port}" in config.read_text():
                    others.append(pid)
    return servers, others


def real() -> Server | None:
    """The kube-apiserver of KUBECONFIG and its etcd, where both run on this machine; says loudly where there is none."""
    named = os.environ.get("KUBECONFIG", "").split(":")[0]
    if not named or not Path(named).exists():
        print("NOT COMPARED with kube-apiserver and etcd: KUBECONFIG names none", flush=True)
        return None
    endpoint = Endpoint.of(Path(named))
    pids, _ = cluster_pids(endpoint.port)
    if len(pids) < 2:
        print(f"NOT COMPARED with kube-apiserver and etcd: that of {named} does not run on this machine", flush=True)
        return None
    return Server("kube-apiserver + etcd", endpoint, pids)
