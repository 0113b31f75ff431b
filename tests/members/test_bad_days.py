"""A cluster's API server that throttles, is away, or refuses: what is said of it, and that nothing is lost."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest
from aiohttp import web

from metaos.agent import sync
from metaos.clock import SystemClock
from metaos.files import write_private
from metaos.members.claim import Membership, claim, release
from metaos.members.kubeconfig import Access
from metaos.members.member import Member, read_access
from metaos.resources import scheme
from tests.agent.hub import until
from tests.apiserver.serving import served
from tests.members.conftest import Applying, start


class Gate:
    """A proxy in front of a real API server, which answers for it on bad days. ``asked``: times of what was refused."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream, self._session = upstream, session
        self.throttling = 0
        self.away = self.full = False
        self.asked: list[float] = []
        self._clock = SystemClock()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.away:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if request.method == "PATCH" and self.throttling:
            self.throttling -= 1
            self.asked.append(self._clock.monotonic())
            # As API Priority and Fairness answers: plain text, and when to come again.
            return web.Response(status=429, headers={"Retry-After": "1"}, text="Too many requests, please try again later.")
        if request.method == "PATCH" and self.full:
            said = {"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError"}
            return web.json_response(said | {"message": "etcdserver: mvcc: database space exceeded"}, status=500)
        headers = {k: v for k, v in request.headers.items() if k in ("Accept", "Content-Type")}
        async with self._session.request(
            request.method, self._upstream + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[tuple[Applying, Gate]]:
    async with (
        served(tmp_path, SystemClock()) as hub,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=hub.context("admin", "system:masters")), timeout=aiohttp.ClientTimeout()
        ) as session,
    ):
        gate = Gate(hub.url, session)
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", gate.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found, task = await start(Access(f"http://127.0.0.1:{port}"), tmp_path, "shop", "m-1", real=False)
        try:
            yield found, gate
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await found.client.close()
            await runner.cleanup()


async def test_a_server_that_asks_for_a_pause_gets_it_from_all_and_nothing_is_lost(behind: tuple[Applying, Gate]) -> None:
    applying, gate = behind
    gate.throttling = 3
    applying.give(*(applying.work(f"w{n}", applying.config(f"c{n}", k="v")) for n in range(12)))
    await until(lambda: any(applying.condition(f"w{n}")["reason"] == "Throttled" for n in range(12)))
    await applying.applied(*(f"w{n}" for n in range(12)))
    assert len((await applying.client.list(scheme.CONFIG_MAP, "shop")).items) == 12
    assert gate.throttling == 0 and len(gate.asked) == 3


async def test_what_changed_while_the_server_was_away_is_applied_when_it_is_back(behind: tuple[Applying, Gate]) -> None:
    applying, gate = behind
    applying.give(applying.work("a", applying.config("one", k="v")))
    await applying.applied("a")
    gate.away = True
    await applying.member.look()
    assert "cannot reach the cluster's API server" in applying.member.problem and not applying.applier.held
    applying.give(applying.work("a", applying.config("one", k="w"), generation=2), applying.work("b", applying.config("two")))
    assert "cannot reach" in await applying.refused("b", "Unreachable")
    gate.away = False
    await applying.member.look()
    assert applying.member.problem == ""
    await applying.applied("a", "b")
    await applying.shows(scheme.CONFIG_MAP, "one", "data", value={"k": "w"})


async def test_a_cluster_is_one_memberships_until_it_is_given_up(tmp_path: Path) -> None:
    async with served(tmp_path, SystemClock()) as hub:
        client = hub.client()
        first, second = Membership("1", "madrid", "https://one"), Membership("2", "mine", "https://two")
        assert await claim(client, first) == await claim(client, first) == ""
        said = await claim(client, second)
        assert "https://one" in said and "'madrid'" in said and "kubectl delete configmap nemo-member -n nemo-system" in said
        await release(client, second)
        assert await claim(client, second) == said, "only its own is given up"
        await release(client, first)
        assert await claim(client, second) == ""
        await client.close()


async def test_a_held_applier_does_nothing_and_says_why(applying: Applying) -> None:
    applying.applier.hold("this cluster is another's")
    applying.give(applying.work("a", applying.config("one")))
    assert await applying.refused("a", "NotClaimed") == f"ConfigMap {applying.namespace}/one: this cluster is another's"
    assert await applying.get(scheme.CONFIG_MAP, "one") is None
    applying.applier.begin()
    await applying.applied("a")


class Ahead(SystemClock):
    """The clock of a machine that is a month ahead."""

    def now(self) -> float:
        return super().now() + 30 * 86400.0


async def test_a_clock_that_is_wrong_is_asked_about(tmp_path: Path) -> None:
    async with served(tmp_path, Ahead()) as hub:
        config = hub.kubeconfig(tmp_path)
        member = Member(await read_access(config, ""), config, "", tmp_path, SystemClock(), Random(1))
        await member.look()
        assert "not yet valid, by this machine's clock: is it right?" in member.problem and not member.able
        await member.client.close()


class Behind(SystemClock):
    """The clock of a machine whose certificates ended long ago."""

    def now(self) -> float:
        return super().now() - 4000 * 86400.0


async def test_a_certificate_that_has_ended_is_told_as_that(tmp_path: Path) -> None:
    async with served(tmp_path, Behind()) as hub:
        config = hub.kubeconfig(tmp_path)
        member = Member(await read_access(config, ""), config, "", tmp_path, SystemClock(), Random(1))
        await member.look()
        print(member.problem)
        assert "expired" in member.problem and not member.able
        await member.client.close()


@pytest.mark.parametrize("access", ["nemo"], indirect=True)
async def test_a_full_disk_of_the_agents_machine_is_told_and_stops_nothing(
    applying: Applying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def write(path: Path, content: str, *, durable: bool) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_private(path, content, durable=durable)

    monkeypatch.setattr(sync, "write_private", write)
    applying.give(applying.work("a", applying.config("one")), applying.work("b", applying.config("two")))
    await applying.applied("a", "b")
    assert "2 Works cannot be kept" in applying.works.problem and "No space left on device" in applying.works.problem
    applying.give(applying.work("a", applying.config("one")))
    assert "1 Works cannot be kept" in applying.works.problem, "what went needs no room"
    full = False
    assert applying.works.problem == "" and [path.name for path in (tmp_path / "works").iterdir()] == ["a.json"]


async def test_a_cluster_whose_own_store_is_full_is_told_of_and_tried_again(behind: tuple[Applying, Gate]) -> None:
    applying, gate = behind
    gate.full = True
    applying.give(applying.work("a", applying.config("one")))
    assert "compact it, or delete something there" in await applying.refused("a", "StorageFull")
    gate.full = False
    await applying.applied("a")
