"""Shifting: the runs of a CronJob that may wait start in clean hours, and a site is told so in time."""

from typing import Any

from metaos.agent.cron import due_jobs
from metaos.controllers import placement, shifting, work
from metaos.resources import scheme
from metaos.resources.cron import STARTS, start_of
from metaos.resources.meta import Obj, format_time, parse_time
from metaos.scheduler.explain import explain, render
from metaos.scheduler.slack import DURATION, SLACK
from tests.clock import FakeClock
from tests.controllers.continuum import events, running, until
from tests.controllers.test_deferral import intent, site
from tests.fake_client import FakeClient

START = FakeClock().now()
SETUPS = placement.setup, work.setup, shifting.setup


def cron(schedule: str = "0 * * * *", said: dict[str, str] | None = None, **spec: Any) -> Obj:
    container = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": "1"}}}
    pods = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    template = {"metadata": {"annotations": said or {}}, "spec": {"template": pods}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "x", "namespace": "shop", "creationTimestamp": format_time(START)},
        "spec": {"schedule": schedule, "jobTemplate": template, **spec},
    }


def runs(client: FakeClient) -> list[dict[str, Any]]:
    found = client.find(scheme.PLACEMENT, "cronjob-x", "shop") or {}
    return list((((found.get("status") or {}).get("deferral") or {}).get("runs")) or ())


def told(client: FakeClient) -> Obj:
    manifest: Obj = client.objects(scheme.WORK)[0]["spec"]["manifests"][0]
    return manifest


#: By half hours from the start on: the fourth hour of each six is clean.
HOURS = [300.0, 300.0, 300.0, 300.0, 50.0, 300.0] * 8


async def test_the_next_run_waits_for_a_clean_hour_and_the_site_starts_it_then() -> None:
    # Every six hours; its forecast begins now.
    objects = site(*HOURS), cron("0 */6 * * *", {SLACK: "5h", DURATION: "30m"})
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: runs(client) and STARTS in (told(client)["metadata"].get("annotations") or {}))
        due, start = (parse_time(runs(client)[0][k]) for k in ("scheduledTime", "startTime"))
        assert due < start <= due + 5 * 3600
        assert HOURS[int((start - START) // 3600)] == 50.0
        assert "RunDeferred" in events(client)
        text = render(explain(client.find(scheme.PLACEMENT, "cronjob-x", "shop") or {}, (), ()))
        assert "run       due" in text and "gCO2eq/kWh then" in text
        # What the site makes of it.
        here = told(client)
        assert not due_jobs(here, [], {}, {}, due - 60, due + 1).create
        assert due_jobs(here, [], {}, {}, due - 60, start - 5).again <= 5.0
        made = due_jobs(here, [], {}, {}, due - 60, start + 1)
        assert len(made.create) == 1 and parse_time(made.status["lastScheduleTime"]) == due
        # One that is due and waits keeps to what it was told, and the next one is planned.
        await clock.advance(due - clock.now() + 30)
        await until(clock, lambda: len(runs(client)) == 2)
        assert parse_time(runs(client)[0]["startTime"]) == start
        await clock.advance(start - clock.now() + 900)
        assert parse_time(runs(client)[0]["scheduledTime"]) > due


async def test_a_run_waits_for_neither_the_next_one_nor_its_deadline() -> None:
    dirty = site(300, *[max(1.0, 300.0 - 5 * h) for h in range(47)])
    for spec, most in (({}, 3600 - 60), ({"startingDeadlineSeconds": 1200}, 1200 - 60), ({"startingDeadlineSeconds": 30}, 0)):
        async with running(*SETUPS, objects=(dirty, cron(said={SLACK: "5h", DURATION: "30m"}, **spec))) as (client, clock):
            await clock.advance(30)
            waits = [parse_time(r["startTime"]) - parse_time(r["scheduledTime"]) for r in runs(client)]
            assert all(0 <= w <= most for w in waits) and bool(waits) == bool(most)


async def test_without_a_forecast_or_without_asking_the_site_is_told_nothing() -> None:
    for world, found in ((site(300), cron(said={SLACK: "5h"})), (site(*HOURS), cron())):
        async with running(*SETUPS, objects=(world, found)) as (client, clock):
            await until(clock, lambda client=client: client.objects(scheme.WORK))
            await clock.advance(60)
            assert not runs(client) and STARTS not in (told(client)["metadata"].get("annotations") or {})


async def test_an_intent_asks_for_it_and_is_no_longer_heard_when_it_is_gone() -> None:
    objects = site(*HOURS), cron("0 */6 * * *"), intent({"slack": "5h", "expectedDuration": "30m"}, "carbonIntensity")
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: runs(client))
        await client.delete(scheme.INTENT, "patient", "shop")
        await until(clock, lambda: not runs(client))
        await until(clock, lambda: STARTS not in (told(client)["metadata"].get("annotations") or {}))


def test_an_annotation_that_makes_no_sense_starts_in_time() -> None:
    for said in ("", "x", "100=", "100=x", "=200", "200=300", "100=50", "100=99999999999999"):
        assert start_of({"metadata": {"annotations": {STARTS: said}}}, 100.0) == 100.0
    assert start_of({"metadata": {"annotations": {STARTS: "50=60,100=150"}}}, 100.0) == 150.0
