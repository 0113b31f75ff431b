"""Deferral: a Job that may wait is suspended at its site until its electricity is cleaner, in virtual time."""

import math
from typing import Any

import pytest

from metaos.controllers import deferral, migration, placement, work
from metaos.controllers.deferral import ERROR_SECONDS
from metaos.controllers.outlook import LATE_SECONDS, ahead
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time, parse_time
from metaos.scheduler.explain import explain, render
from metaos.scheduler.slack import DEADLINE, DURATION, INTERRUPTIBLE, LEAST, SLACK, SUSPENDABLE, WAITS_FOR
from tests.clock import FakeClock
from tests.controllers.continuum import cluster, events, running, until
from tests.fake_client import FakeClient

START = FakeClock().now()
SETUPS = placement.setup, work.setup, deferral.setup
POWER: dict[str, Any] = {"power": {"idleWatts": 100, "maxWatts": 500}}


def site(*forecast: float, made: float = START, **more: Any) -> Obj:
    carbon = {"intensity": (forecast or (1,))[0], "forecast": list(forecast), "time": format_time(made), "source": "test"}
    return cluster("a", status={"carbon": carbon | more}, **POWER)


def job(**said: str) -> Obj:
    container = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": "1"}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x", "namespace": "shop", "creationTimestamp": format_time(START), "annotations": said},
        "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}},
    }


def suspended(client: FakeClient) -> bool | None:
    for each in client.objects(scheme.WORK):
        return bool(each["spec"]["manifests"][0]["spec"].get("suspend"))
    return None


def decided(client: FakeClient) -> dict[str, Any]:
    found: dict[str, Any] = ((client.find(scheme.PLACEMENT, "job-x", "shop") or {}).get("status") or {}).get("deferral") or {}
    return found


async def test_a_job_waits_for_the_cleanest_hour_and_says_so() -> None:
    objects = site(300, 300, 200, 100, 400, *[400] * 20), job(**{SLACK: "6h", DURATION: "1h"})
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        assert suspended(client) is True
        found = decided(client)
        assert abs(parse_time(found["startTime"]) - (START + 3 * 3600)) < 60
        # 100 W of its CPU for an hour, at 100 in place of 300 gCO2eq/kWh.
        assert found["savesGrams"] == 20.0 and found["reason"] == "100 gCO2eq/kWh then, 300 started at once"
        assert "Deferred" in events(client)
        text = render(explain(client.find(scheme.PLACEMENT, "job-x", "shop") or {}, (), ()))
        assert "starts    " in text and "saves about 20 g against starting at once" in text and "forecast: test" in text
        await clock.advance(2.5 * 3600)
        assert suspended(client) is True
        await clock.advance(0.6 * 3600)
        await until(clock, lambda: suspended(client) is False)
        assert "Started" in events(client)
        # What has started stays so, whatever comes.
        client.seed(site(900, 1, 1, 1, 1, 1, made=clock.now()))
        await clock.advance(600)
        assert suspended(client) is False and decided(client)["started"]


async def test_a_new_forecast_moves_the_start_and_slack_ends_the_wait() -> None:
    objects = site(300, 300, 200, 100, 400, *[400] * 20), job(**{SLACK: "3h", DURATION: "1h"})
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        await clock.advance(3600)
        client.seed(site(300, 290, 280, 100, made=clock.now()))
        await until(clock, lambda: abs(parse_time(decided(client)["startTime"]) - (START + 3 * 3600)) < 60)
        # Always better later: it starts when it may wait no longer.
        for _ in range(12):
            await clock.advance(900)
            client.seed(site(300, 200, 100, 50, made=clock.now()))
        await until(clock, lambda: suspended(client) is False)
        assert parse_time(decided(client)["startTime"]) <= START + 3 * 3600 + 60


async def test_without_a_forecast_or_with_one_too_old_it_starts_at_once_and_says_why() -> None:
    for world, why in ((cluster("a"), "no source"), (site(300, 1, 1, made=START - 50 * 3600), "50 h old")):
        async with running(*SETUPS, objects=(world, job(**{SLACK: "6h"}))) as (client, clock):
            await until(clock, lambda client=client: suspended(client) is False)
            assert "there is no forecast" in decided(client)["reason"] and why in decided(client)["reason"]


async def test_a_deadline_in_the_past_or_without_a_length_starts_at_once() -> None:
    for said, why in (
        ({DEADLINE: format_time(START - 60), DURATION: "1h"}, "no time is left to wait before the deadline, "),
        ({DEADLINE: format_time(START + 9e4)}, f"how long it runs is not known: state {DURATION}"),
    ):
        async with running(*SETUPS, objects=(site(300, 1, 1), job(**said))) as (client, clock):
            await until(clock, lambda client=client: suspended(client) is False)
            assert decided(client)["started"] and why in decided(client)["reason"]


async def test_annotations_that_say_nothing_hold_nothing() -> None:
    # Of a Job that was stored before they were checked.
    for said in ({SLACK: "soon"}, {SLACK: "6h", DURATION: "0s", SUSPENDABLE: "true"}):
        async with running(*SETUPS, objects=(site(300, 1, 1), job(**said))) as (client, clock):
            await until(clock, lambda client=client: suspended(client) is False)
            await clock.advance(60)
            assert not decided(client)


async def test_jobs_that_do_not_say_so_never_wait_and_a_user_suspends_for_himself() -> None:
    async with running(*SETUPS, objects=(site(300, 1), job())) as (client, clock):
        await until(clock, lambda: suspended(client) is False)
        assert not decided(client)
    own = job(**{SLACK: "1h"})
    own["spec"]["suspend"] = True
    async with running(*SETUPS, objects=(site(1, 300), own)) as (client, clock):
        await until(clock, lambda: suspended(client))
        await clock.advance(60)
        assert suspended(client) and not decided(client)


def test_hours_that_have_passed_are_left_out_and_clocks_that_jump_do_no_harm() -> None:
    found = ahead(site(1, 2, 3, 4), START + 1.5 * 3600)
    assert (found.values, found.passed, found.hour, found.source) == ([2, 3, 4], 0.5, 3600, "test, 2 h old")
    assert ahead(site(1, 2, 3), START - 1e6).values == [1, 2, 3]
    assert ahead(site(-5, 2, -0.5), START).values == [0, 2, 0]
    assert not ahead(site(1, 2, 3), START + 1e9).known
    quick = ahead(site(1, 2, 3, hourSeconds=10), START + 10)
    assert (quick.values, quick.passed, quick.hour) == ([2, 3], 0.0, 10)
    with pytest.raises(ValueError, match=r"an hour takes 0.0 s: it has to be a positive number"):
        ahead(site(1, 2, hourSeconds="0"), START)
    with pytest.raises(ValueError, match="has a value that is no number"):
        ahead(site(1, math.nan), START)


async def test_one_that_may_be_paused_runs_in_the_clean_hours_only_and_never_waits_too_long() -> None:
    prices = [100, 400, 400, 100, 400, 400, *[400] * 30]
    said = {SLACK: "6h", DURATION: "2h", SUSPENDABLE: "true"}
    async with running(*SETUPS, objects=(site(*prices), job(**said))) as (client, clock):
        await until(clock, lambda: suspended(client) is False)
        ran = []
        for quarter in range(40):
            hour = quarter // 4
            client.seed(site(*prices[hour:], made=START + hour * 3600))
            await clock.advance(900)
            ran.append(not suspended(client))
        assert "Paused" in events(client)
        # An hour, a pause of two, an hour; then it is expected to have ended, and is let run.
        assert ran[:3] == [True] * 3 and not any(ran[5:11]) and all(ran[12:])
        assert decided(client)["savesGrams"] > 20


async def test_one_that_may_be_paused_is_not_when_its_slack_is_gone() -> None:
    said = {SLACK: "1h", DURATION: "3h", SUSPENDABLE: "true"}
    async with running(*SETUPS, objects=(site(*[400] * 40), job(**said))) as (client, clock):
        await until(clock, lambda: decided(client))
        idle, changes, before = 0, 0, None
        for _ in range(16 * 15):
            # Always much better in an hour.
            client.seed(site(400, 300, 10, 10, 10, made=clock.now()))
            await clock.advance(60)
            idle += bool(suspended(client))
            changes, before = changes + (suspended(client) != before), suspended(client)
        assert 0 < idle <= 62 and changes <= 12 and not suspended(client), (idle, changes)


async def test_a_job_that_waits_leaves_a_site_that_is_drained_and_waits_on() -> None:
    carbon = {"intensity": 300.0, "forecast": [300.0, 300.0, 300.0, 50.0, 400.0], "time": format_time(START), "source": "test"}
    objects = (site(300, 300, 300, 100, 400), job(**{SLACK: "6h", DURATION: "1h"}))
    async with running(*SETUPS, migration.setup, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client).get("cluster") == "a")
        client.seed(cluster("b", status={"carbon": carbon}, **POWER))
        taint = {"key": "out", "effect": "NoExecute"}
        client.seed(cluster("a", status={"carbon": carbon}, taints=[taint], unschedulable=True, **POWER))
        await until(clock, lambda: decided(client).get("cluster") == "b", 60)
        assert all(w["spec"]["manifests"][0]["spec"]["suspend"] for w in client.objects(scheme.WORK))
        assert not decided(client)["started"]


async def test_a_start_that_cannot_be_decided_holds_no_job_for_good() -> None:
    objects = site(300, 100, math.nan), job(**{SLACK: "6h", DURATION: "1h"})
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client).get("errorTime"))
        assert suspended(client) is True and "no number" in decided(client)["reason"]
        condition = decided(client)["conditions"][0]
        assert (condition["type"], condition["status"], condition["reason"]) == ("Decided", "False", "Error")
        await clock.advance(ERROR_SECONDS - 30)
        assert suspended(client) is True
        await clock.advance(60)
        await until(clock, lambda: suspended(client) is False)
        assert "StartedUndecided" in events(client) and "cannot be decided since" in decided(client)["reason"]


async def test_an_error_that_goes_is_forgotten() -> None:
    objects = site(300, 100, math.nan), job(**{SLACK: "6h", DURATION: "1h"})
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client).get("errorTime"))
        client.seed(site(300, 300, 100, *[400] * 20))
        await until(clock, lambda: decided(client).get("conditions", [{}])[0].get("status") == "True", 70)
        await clock.advance(ERROR_SECONDS + 60)
        assert suspended(client) is True and "errorTime" not in decided(client)


async def test_a_job_of_which_nobody_decides_starts_late_and_says_so() -> None:
    async with running(placement.setup, work.setup, objects=(site(300, 100), job(**{SLACK: "1h"}))) as (client, clock):
        await until(clock, lambda: suspended(client))
        await clock.advance(3600 + LATE_SECONDS - 30)
        assert suspended(client) is True
        await clock.advance(60)
        await until(clock, lambda: suspended(client) is False)
        assert "StartedLate" in events(client)


def intent(value: Any, *targets: str, **more: Any) -> Obj:
    said = [{"name": name, "condition": "Minimize"} for name in targets]
    expectation = {"verb": "Ensure", "targets": said, "contexts": [{"name": "deferrable", "value": value}]}
    return {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Intent",
        "metadata": {"name": "patient", "namespace": "shop"},
        "spec": {"expectations": [expectation], **more},
    }


async def test_an_intent_lets_a_job_wait_and_starts_it_when_it_goes() -> None:
    objects = (site(300, 300, 100, *[400] * 20), intent({"slack": "6h", "expectedDuration": "1h"}, "carbonIntensity"), job())
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        assert suspended(client) is True and decided(client)["intent"] == "patient"
        assert decided(client)["forecasts"][0] == {
            "of": "carbonIntensity", "source": "test", "hours": 23, "time": format_time(START),
        }  # fmt: skip
        await client.delete(scheme.INTENT, "patient", "shop")
        await until(clock, lambda: suspended(client) is False)
        assert decided(client)["reason"] == "nothing asks for waiting any more"


async def test_an_annotation_goes_before_the_intent_and_other_workloads_are_not_concerned() -> None:
    objects = (
        site(300, 300, 100, *[400] * 20),
        intent("6h", "carbonIntensity", workloads={"refs": [{"kind": "Job", "name": "other"}]}),
        job(),
    )
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: suspended(client) is False)
    objects = (site(300, 300, 100, *[400] * 20), intent("6h", "carbonIntensity"), job(**{SLACK: "1h", DURATION: "1h"}))
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        assert "intent" not in decided(client)
        assert parse_time(decided(client)["latestStartTime"]) - START <= 3601


def priced(*prices: float, carbon: tuple[float, ...] = (), **stated: Any) -> Obj:
    found = site(*(carbon or (100, 100)))
    found["spec"] = {**found["spec"], "price": {"currency": "EUR", "cpuHour": 0.05, **stated}}
    if prices:
        figures = {"cpuHour": prices[0], "forecast": list(prices), "time": format_time(START), "source": "market"}
        found["status"] = {**found["status"], "price": figures}
    return found


async def test_a_job_waits_for_a_lower_price_and_says_what_it_saves() -> None:
    said = {SLACK: "6h", DURATION: "1h", WAITS_FOR: "cost"}
    async with running(*SETUPS, objects=(priced(0.08, 0.08, 0.02, *[0.08] * 20), job(**said))) as (client, clock):
        await until(clock, lambda: decided(client))
        found = decided(client)
        assert abs(parse_time(found["startTime"]) - (START + 2 * 3600)) < 60
        assert found["savesMoney"] == pytest.approx(0.06) and "0.02 EUR a CPU hour then" in found["reason"]
        assert found["source"] == "market" and "gramsAtOnce" not in found


async def test_carbon_and_cost_count_in_equal_parts() -> None:
    carbon = (100.0, 100.0, 90.0, 100.0, *[100.0] * 20)
    said = {SLACK: "6h", DURATION: "1h", WAITS_FOR: "carbonIntensity,cost"}
    objects = (priced(0.08, 0.08, 0.08, 0.01, *[0.08] * 20, carbon=carbon), job(**said))
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        assert abs(parse_time(decided(client)["startTime"]) - (START + 3 * 3600)) < 60
        assert len(decided(client)["forecasts"]) == 2 and "equal parts" in decided(client)["reason"]


async def test_capacity_is_chosen_with_the_time_and_reaches_the_pods() -> None:
    spot = {"cpuHour": 0.01, "interruptionsPerHour": 0.1, "nodeSelector": {"pool": "spot"}}
    said = {SLACK: "6h", DURATION: "1h"}
    for more, kind in (({INTERRUPTIBLE: "true"}, "spot"), ({}, "on-demand")):
        async with running(*SETUPS, objects=(priced(spot=spot), job(**said, **more))) as (client, clock):
            await until(clock, lambda client=client: suspended(client) is False)
            assert decided(client)["capacity"] == kind
            template = client.objects(scheme.WORK)[0]["spec"]["manifests"][0]["spec"]["template"]
            assert (template["spec"].get("nodeSelector") == {"pool": "spot"}) == (kind == "spot")
    reserved = {"cpu": "1"}
    second = job(**said)
    second["metadata"] = {**second["metadata"], "name": "y", "uid": ""}
    async with running(*SETUPS, objects=(priced(reserved=reserved), job(**said))) as (client, clock):
        await until(clock, lambda: suspended(client) is False)
        assert decided(client)["capacity"] == "reserved"
        client.seed(second)
        find = lambda: client.find(scheme.PLACEMENT, "job-y", "shop") or {}  # noqa: E731
        await until(clock, lambda: (find().get("status") or {}).get("deferral"))
        other = find()["status"]["deferral"]
        assert other["capacity"] == "on-demand" and "0 of 1 CPUs free" in other["capacityReason"]


async def test_an_elastic_job_is_wide_in_the_clean_hour_and_its_width_is_its_parallelism() -> None:
    elastic = job(**{SLACK: "6h", DURATION: "4h", SUSPENDABLE: "true", LEAST: "1"})
    elastic["spec"]["parallelism"] = 4
    async with running(*SETUPS, objects=(site(300, 300, 50, *[400] * 20), elastic)) as (client, clock):
        await until(clock, lambda: decided(client))
        assert suspended(client) is True
        await clock.advance(2 * 3600 + 30)
        await until(clock, lambda: suspended(client) is False)
        assert decided(client)["width"] == 4
        assert client.objects(scheme.WORK)[0]["spec"]["manifests"][0]["spec"]["parallelism"] == 4
        await clock.advance(3600)
        # Four hours' work at the least width are done in one; it is counted every quarter of an hour.
        assert decided(client)["ranSeconds"] >= 3 * 3600 - 60


async def test_a_clock_that_is_set_back_pauses_nothing_for_longer_and_one_set_forward_starts_what_is_late() -> None:
    said = {SLACK: "6h", DURATION: "2h", SUSPENDABLE: "true"}
    async with running(*SETUPS, objects=(site(100, 400, 400, *[400] * 30), job(**said))) as (client, clock):
        await until(clock, lambda: suspended(client) is False)
        # It began "tomorrow": the clock went back a day; the site is dirty now and clean in an hour.
        found = client.find(scheme.PLACEMENT, "job-x", "shop") or {}
        later = format_time(clock.now() + 86400, micro=True)
        found["status"]["deferral"] |= {"sinceTime": later, "countedTime": later}
        client.seed(found, site(400, 50, 50, 50, *[400] * 30, made=clock.now()))
        await until(clock, lambda: suspended(client) is True, 1200)
        await clock.advance(7 * 3600)
        await until(clock, lambda: suspended(client) is False)


def two(noon: list[float], even: list[float], made: float = START) -> list[Obj]:
    found = []
    for word, hours in (("noon", noon), ("even", even)):
        carbon = {"intensity": hours[0], "forecast": hours, "time": format_time(made), "source": "test"}
        found.append(cluster(word, status={"carbon": carbon}, **POWER))
    return found


async def test_the_site_is_chosen_with_the_hour_and_what_has_not_started_follows_new_forecasts() -> None:
    objects = [*two([500, 500, 500, 20, 500, 500, 500, 500], [150] * 8), job(**{SLACK: "6h", DURATION: "1h"})]
    async with running(*SETUPS, migration.setup, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        found = decided(client)
        assert found["cluster"] == "noon" and abs(parse_time(found["startTime"]) - (START + 3 * 3600)) < 60
        # No sun at noon after all: it goes where that is of no account, before it has begun.
        await clock.advance(3600)
        for each in two([500] * 7, [150] * 7, clock.now()):
            client.seed(each)
        await until(clock, lambda: decided(client).get("cluster") == "even")
        await clock.advance(7 * 3600)
        # Where it was held it stays so until the new site answers: it never runs twice.
        held = {
            w["metadata"]["namespace"]: bool(w["spec"]["manifests"][0]["spec"].get("suspend"))
            for w in client.objects(scheme.WORK)
        }
        assert held == {"nemo-cluster-even": False, "nemo-cluster-noon": True}
        # What has started stays, whatever comes.
        for each in two([1] * 7, [900] * 7, clock.now()):
            client.seed(each)
        await clock.advance(3600)
        assert decided(client)["cluster"] == "even"


async def test_without_time_to_wait_the_present_hour_chooses_the_site() -> None:
    objects = [*two([500, 20, 20, 20], [150] * 4), job(**{SLACK: "0s", DURATION: "1h"})]
    async with running(*SETUPS, objects=objects) as (client, clock):
        await until(clock, lambda: decided(client))
        assert decided(client)["cluster"] == "even"
