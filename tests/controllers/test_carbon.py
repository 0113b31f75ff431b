"""The carbon controller over a real server that answers as a carbon API does, and stops to."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from aiohttp import web

from metaos import fetching
from metaos.accounting.carbon import TraceCarbonSource
from metaos.accounting.feeds import FeedCarbonSource
from metaos.controllers.carbon import CarbonReconciler
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef
from tests.accounting.test_feeds import answer
from tests.clock import FakeClock
from tests.controllers.continuum import cluster
from tests.fake_client import FakeClient

SITE = ObjectRef(scheme.CLUSTER.group, "Cluster", "", "a")


async def test_a_replay_is_worked_out_once_an_hour_and_when_it_is_moved() -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    client.seed(cluster("a", electricity={"zone": "DE"}))
    manager = Manager(client, clock, Random(1))
    asked = 0

    class Counting(TraceCarbonSource):
        def intensity(self, zone: str, now: float) -> Sequence[float] | None:
            nonlocal asked
            asked += 1
            return super().intensity(zone, now)

    start = clock.now() // 3600 * 3600
    rows = "\n".join(["hour_utc,DE", *(f"2022-01-01T{hour:02}:00:00Z,{100 + hour}" for hour in range(24))])
    reconciler = CarbonReconciler(manager, client, clock, Counting(rows, start_time=start, name="t"))
    await manager.start()
    await clock.settle()

    async def look() -> Any:
        await reconciler.reconcile(SITE)
        await clock.settle()
        return (client.find(scheme.CLUSTER, "a", "") or {})["status"]["carbon"]["intensity"]

    assert [await look() for _ in range(5)] == [100.0] * 5 and asked == 1
    await clock.advance(3600)
    assert [await look() for _ in range(3)] == [101.0] * 3 and asked == 2
    reconciler.move({"data": {"startHour": "7", "speed": "1"}})
    assert await look() == 107.0
    client.seed(cluster("a", electricity={"zone": "DE", "carbonIntensity": 5}))
    await clock.settle()
    before = asked
    await look()
    assert asked > before, "its status is gone"
    await manager.stop()


async def test_a_zone_that_a_table_does_not_have_is_named() -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    client.seed(cluster("a", electricity={"zone": "XX"}))
    manager = Manager(client, clock, Random(1))
    source = TraceCarbonSource("hour_utc,DE\n0,100\n", start_time=0.0, name="t.csv")
    reconciler = CarbonReconciler(manager, client, clock, source)
    await manager.start()
    await clock.settle()
    await reconciler.reconcile(SITE)
    found = (client.find(scheme.CLUSTER, "a", "") or {})["status"]["carbon"]
    assert found["step"] == "Unknown"
    assert "replay of t.csv" in found["source"] and "no zone 'XX', and the site states no carbonIntensity" in found["source"]
    await manager.stop()


async def served(behave: Any) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", behave)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_a_site_follows_an_api_and_what_holds_when_it_is_gone() -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    client.seed(cluster("a", electricity={"zone": "DE", "carbonIntensity": 444}))
    manager = Manager(client, clock, Random(1))
    seen: list[Mapping[str, str]] = []
    healthy = True

    async def behave(asked: web.Request) -> web.Response:
        seen.append(asked.headers)
        if not healthy:
            return web.Response(status=503)
        return web.Response(body=answer("electricity-maps", [100, 90, 80], start=clock.now() // 3600 * 3600))

    runner, url = await served(behave)
    try:
        source = FeedCarbonSource("electricity-maps", base=url, token=lambda: "secret")
        reconciler = CarbonReconciler(manager, client, clock, source, fetching.get)
        await manager.start()
        await clock.settle()

        async def look() -> Obj:
            await reconciler.reconcile(SITE)
            await clock.settle()
            return dict((client.find(scheme.CLUSTER, "a", "") or {})["status"]["carbon"])

        found = await look()
        assert found["intensity"] == 100 and found["forecast"] == [100, 90, 80] and found["source"] == "electricity-maps"
        assert seen[0]["auth-token"] == "secret" and "secret" not in str(found)
        healthy = False
        await clock.advance(3600)
        found = await look()
        assert found["forecast"] == [90, 80] and "1.0 h old (answered 503)" in found["source"]
        await clock.advance(3 * 3600)
        found = await look()
        # Neither forecast nor enough of a past: what the site states, and why.
        assert found["intensity"] == 444 and found["forecast"] == []
        assert "stated by the site; not known: electricity-maps does not answer" in found["source"]
    finally:
        await manager.stop()
        await runner.cleanup()


async def test_a_get_is_bounded_and_follows_no_redirect() -> None:
    async def behave(asked: web.Request) -> web.StreamResponse:
        if asked.path == "/away":
            raise web.HTTPFound("http://127.0.0.1:1/")
        return web.Response(body=b"x" * (fetching.MOST_BYTES + 1))

    runner, url = await served(behave)
    try:
        assert await fetching.get(url + "/away", {}) == (302, b"302: Found")
        status, why = await fetching.get(url + "/large", {})
        assert status == 0 and b"more than" in why
    finally:
        await runner.cleanup()
    status, why = await fetching.get(url, {"auth-token": "secret"})
    assert status == 0 and b"cannot be reached" in why and b"secret" not in why
    await asyncio.sleep(0)
