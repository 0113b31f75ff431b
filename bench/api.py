"""The hub's API over HTTPS with 16 clients, beside a bare HTTPS server of the same library that answers a constant body."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import SystemRandom

import aiohttp

from bench.results import Figure, figure, percentile, write
from examples.demo.continuum import Continuum, free_port
from metaos.pki import Pki

CLIENTS, COUNT, ROUNDS = 16, 1500, 3
LIST_COUNT = 2000
PATH = "/api/v1/namespaces/default/configmaps"
BARE = """
import asyncio, ssl, sys
from aiohttp import web
async def answer(request):
    await request.read()
    return web.Response(body=b'{"kind":"ConfigMap","data":{"value":"' + b"x" * 500 + b'"}}', content_type="application/json")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
context.load_verify_locations(sys.argv[3])
context.verify_mode = ssl.CERT_OPTIONAL
app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[4]), ssl_context=context, print=None, access_log=None)
"""


def body(name: str, value: str = "a") -> bytes:
    return json.dumps(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value * 500}}
    ).encode()


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def rate(count: int, call: Callable[[int], Awaitable[None]]) -> float:
    """Calls per second by 16 clients."""
    turn = iter(range(count))

    async def client() -> None:
        for number in turn:
            await call(number)

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.monotonic() - started)


class Target:
    """One server, by its URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
            raw = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {raw[:200]!r}")
            return raw

    async def round(self, mark: str) -> dict[str, float]:
        """Create, get, update: per second."""

        async def create(number: int) -> None:
            await self.call("POST", PATH, body(f"{mark}-{number}"))

        async def get(number: int) -> None:
            await self.call("GET", f"{PATH}/{mark}-{number}")

        async def update(number: int) -> None:
            await self.call("PUT", f"{PATH}/{mark}-{number}", body(f"{mark}-{number}", "b"))

        return {"create": await rate(COUNT, create), "get": await rate(COUNT, get), "update": await rate(COUNT, update)}

    async def list_ms(self, limit: int) -> float:
        started = time.monotonic()
        await self.call("GET", f"{PATH}?limit={limit}")
        return (time.monotonic() - started) * 1000


async def lag(session: aiohttp.ClientSession, url: str, count: int = 500) -> list[float]:
    """Milliseconds from the begin of a write to its event at another connection."""
    begun: dict[str, float] = {}
    seen: list[float] = []
    ready = asyncio.Event()

    async def watch() -> None:
        async with session.get(f"{url}{PATH}?watch=1&labelSelector=lag", timeout=aiohttp.ClientTimeout(total=None)) as answer:
            ready.set()
            async for line in answer.content:
                name = json.loads(line)["object"]["metadata"].get("name", "")
                if name in begun:
                    seen.append((time.monotonic() - begun[name]) * 1000)
                if len(seen) >= count:
                    return

    watching = asyncio.create_task(watch())
    await ready.wait()
    for number in range(count):
        name = f"lag-{number}"
        obj = json.loads(body(name))
        obj["metadata"]["labels"] = {"lag": "yes"}
        begun[name] = time.monotonic()
        headers = {"Content-Type": "application/json"}
        async with session.post(url + PATH, data=json.dumps(obj), headers=headers) as answer:
            await answer.read()
    await asyncio.wait_for(watching, 30)
    return seen


async def measure(continuum: Continuum) -> list[Figure]:
    pki = Pki(continuum.data / "pki", SystemRandom(), time.time)
    context = ssl.create_default_context(cadata=pki.bundle.decode())
    context.load_cert_chain(pki.path("admin"))
    port = free_port()
    files = [str(pki.path(name)) for name in ("server", "server", "ca-1")]
    bare = await asyncio.create_subprocess_exec(sys.executable, "-c", BARE, *files, str(port))
    assert continuum.hub is not None
    idle = resident_mb(continuum.hub.pid)
    connector = aiohttp.TCPConnector(limit=CLIENTS * 2, ssl=context)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            hub, base = Target(session, f"https://127.0.0.1:{continuum.port}"), Target(session, f"https://127.0.0.1:{port}")
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    await base.call("GET", "/")
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
            ours, theirs = [], []
            for number in range(ROUNDS):
                ours.append(await hub.round(f"r{number}"))
                theirs.append(await base.round(f"r{number}"))
            lists = [await hub.list_ms(LIST_COUNT) for _ in range(7)]
            bare_lists = [await base.list_ms(LIST_COUNT) for _ in range(7)]
            lags = await lag(session, f"https://127.0.0.1:{continuum.port}")
            present = ROUNDS * COUNT + 500
            await rate(10_000 - present, lambda n: hub.call("POST", PATH, body(f"fill-{n}")))  # type: ignore[arg-type, return-value]
            full = resident_mb(continuum.hub.pid)
    finally:
        bare.terminate()
        await bare.wait()
    figures = [
        figure(f"api: {word}, {CLIENTS} clients", [r[word] for r in ours], "1/s", baseline=[r[word] for r in theirs])
        for word in ("create", "get", "update")
    ]
    return [
        *figures,
        figure(f"api: list of {LIST_COUNT:,}", lists, "ms", baseline=bare_lists, aim=25),
        figure("api: write begun to watched, p50", [percentile(lags, 0.5)], "ms"),
        figure("api: write begun to watched, p99", [percentile(lags, 0.99)], "ms"),
        figure("hub: memory idle", [idle], "MB", aim=150),
        figure("hub: memory with 10,000 objects", [full], "MB", aim=300),
    ]


def main() -> None:
    continuum = Continuum(Path(tempfile.mkdtemp(prefix="nemo-bench-")), isolated=True)
    try:
        continuum.start_hub()
        write("api", asyncio.run(measure(continuum)))
    finally:
        continuum.stop()


if __name__ == "__main__":
    main()
