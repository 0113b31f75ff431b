"""What the ledger has of a period as a scenario, and that scenario under other policies, held against NEMO's own."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.accounting.carbon import TraceCarbonSource
from metaos.accounting.metering import PowerModel
from metaos.accounting.statement import Booked, Line
from metaos.cli.replaying import render
from metaos.resources import scheme
from metaos.resources.meta import Obj, name, namespace, parse_time
from metaos.twin.clock import EPOCH, VirtualLoop, run
from metaos.twin.counterfactual import Stay, Then, against, booked, figures
from metaos.twin.live import copy_of
from metaos.twin.past import HOUR, Key, past, ran
from metaos.twin.play import scratch
from metaos.twin.scenario import scenario
from metaos.twin.text import ScenarioError, parse
from metaos.twin.timing import Timing
from metaos.twin.world import World

SINCE = EPOCH
WEB: Key = ("Deployment", "shop", "web")
OLD: Key = ("Job", "shop", "old")
SELECTOR = {"matchLabels": {"a": "b"}}


def line(present: float, pod: str = "web-1", key: Key = WEB, **more: Any) -> dict[str, Any]:
    return {
        "namespace": key[1],
        "name": pod,
        "workload": {"kind": key[0], "name": key[2]},
        "presentMilliseconds": round(present * 1000),
        "cpuMicroseconds": round(present * 0.25e6),
        "memoryMiBSeconds": round(present * 64),
        "requestedMillis": 500,
        "requestedMiB": 128,
        "consumer": "shop",
        "intents": ["green"],
        "operationalMicrograms": {"location": 1, "market": None, "marginal": None},
        "embodiedMicrograms": 0,
        "energyMillijoules": 0,
    } | more


def header(site: str, start: float, seconds: float = 300, grams: str | None = "100", **more: Any) -> dict[str, Any]:
    return {
        "site": site,
        "provider": f"{site}-inc",
        "start": int(start),
        "end": int(start + seconds),
        "cpuMillis": 4000,
        "pue": "1.5",
        "watts": {"idle": "40", "max": "120"},
        "idleRule": "reserved",
        "factors": {
            "location": None if grams is None else {"gramsPerKWh": grams, "source": "x"},
            "market": None,
            "marginal": None,
        },
        "system": {"embodiedMicrograms": 500_000},
    } | more


def copied(*objects: Obj, sites: tuple[str, ...] = ("paris",)) -> dict[str, Any]:
    return {
        "sites": [{"name": site, "spec": {"capacity": {"cpu": "4", "memory": "8Gi"}}} for site in sites],
        "objects": list(objects),
    }


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 5), st.floats(0.1, 300), st.floats(0.1, 300))
def test_a_workload_is_found_with_its_times_and_sizes(first: int, count: int, replicas: int, begun: float, ended: float) -> None:
    """Of any that was there for whole periods, with a part of one before and after."""
    entries: list[Booked] = []
    for number in range(count + 2):
        present = begun if number == 0 else ended if number == count + 1 else 300
        lines = [line(present, f"web-{replica}") for replica in range(replicas)]
        entries.append((header("paris", SINCE + (first + number) * 300), lines))
    (found,) = ran(entries)
    start = SINCE + first * 300
    assert found.key == WEB and found.begin == pytest.approx(start + 300 - begun, abs=0.01)
    assert found.end == pytest.approx(start + (count + 1) * 300 + ended, abs=0.01)
    assert found.pods == replicas and (found.cores, found.mib) == pytest.approx((0.25, 64), rel=0.01)
    assert max(n for _, n in found.course) == replicas and found.course[-1] == (start + (count + 2) * 300, 0)
    assert found.longest == pytest.approx(count * 300 + begun + ended, abs=0.01)
    assert (found.consumer, found.intents, found.requested_millis) == ("shop", ("green",), 500)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_how_many_there_were_is_asked_for_again(counts: list[int]) -> None:
    entries: list[Booked] = [
        (header("paris", SINCE + number * 300), [line(300, f"web-{each}") for each in range(count)])
        for number, count in enumerate(counts)
    ]
    until = SINCE + len(counts) * 300
    found = past(entries, copied(), {}, "nemo", SINCE, until)
    if not any(counts):
        assert not found.story.workloads
        return
    (text,) = found.story.workloads
    level, levels = text.replicas, {}
    deeds = {deed.at: deed for deed in found.deeds}
    for number in range(len(counts)):
        if (deed := deeds.get(number * 300.0)) is not None:
            level = deed.replicas or 0
        levels[number] = level
    firsts = next(number for number, count in enumerate(counts) if count)
    assert text.at == firsts * 300
    assert all(levels[number] == count for number, count in enumerate(counts) if number >= firsts)


def test_sites_are_as_they_were_booked_and_objects_as_they_are_now() -> None:
    web = {
        **scheme.DEPLOYMENT.empty("web", "shop"),
        "spec": {
            "replicas": 9,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "main"}]}},
        },
    }
    wish: Obj = {**scheme.INTENT.empty("green", "shop"), "spec": {"expectations": [{"targets": []}]}}
    entries: list[Booked] = [
        (header("paris", SINCE, grams="50"), [line(300)]),
        (header("gone", SINCE, grams=None), [line(300, "old-1", OLD)]),
        (header("paris", SINCE + HOUR, grams="70"), [line(300)]),
    ]
    found = past(entries, copied(web, wish, sites=("paris", "new")), {OLD: SINCE}, "nemo", SINCE, SINCE + 2 * HOUR)
    sites = {text.obj["metadata"]["name"]: text.obj["spec"] for text in found.story.sites}
    assert list(sites) == ["gone", "new", "paris"] and sites["gone"]["capacity"]["cpu"] == "4000m"
    assert sites["paris"]["power"] == {"idleWatts": 40.0, "maxWatts": 120.0} and sites["paris"]["electricity"]["pue"] == 1.5
    rows = found.story.carbon.splitlines()
    assert rows[:4] == ["hour_utc,paris", "0,50", "1,70", "2,70"] and rows[-1] == "49,70", "a forecast goes beyond the end"
    texts = {text.name: text for text in found.story.workloads}
    assert texts["web"].objects[0]["spec"]["replicas"] == 1 and texts["web"].objects[0]["spec"]["selector"] == {
        "matchLabels": {"a": "b"}
    }
    made = texts["old"].objects[0]["spec"]["template"]["spec"]["containers"][0]
    assert made["command"] == ["sleep", "300"] and made["resources"]["requests"] == {"cpu": "500m", "memory": "128Mi"}
    assert found.left_out == ("Job/shop/old is gone: replayed with its size alone, without labels",)
    assert found.story.objects == (wish,)
    assert past(entries, copied(web, wish), {}, "no-intents", SINCE, SINCE + 2 * HOUR).story.objects == ()
    assert [s.name for s in past(entries, copied(web), {}, "cheapest", SINCE, SINCE + HOUR).scores] == ["cheapest"]


def test_a_job_that_waited_starts_at_once_under_that_policy() -> None:
    job: Obj = {
        **scheme.JOB.empty("old", "shop"),
        "spec": {"template": {"spec": {"containers": [{"name": "main", "args": ["x"]}]}}},
    }
    waits = {"meta-os.eu/slack": "6h", "meta-os.eu/suspendable": "true", "meta-os.eu/min-parallelism": "1", "mine": "kept"}
    job["metadata"]["annotations"] = dict(waits)
    contexts = [{"name": "deferrable"}, {"name": "x"}]
    wish: Obj = {
        **scheme.INTENT.empty("late", "shop"),
        "spec": {"expectations": [{"contexts": contexts, "targets": [{"name": "carbonIntensity", "contexts": contexts}]}]},
    }
    entries: list[Booked] = [(header("paris", SINCE + HOUR), [line(120, "old-1", OLD)])]
    for policy, said in (("nemo", waits), ("start-at-once", {"mine": "kept"})):
        found = past(entries, copied(job, wish), {OLD: SINCE + 60}, policy, SINCE, SINCE + 2 * HOUR)
        (text,) = found.story.workloads
        assert text.at == 60 and text.objects[0]["metadata"]["annotations"] == said
        (expectation,) = found.story.objects[0]["spec"]["expectations"]
        for part in (expectation, expectation["targets"][0]):
            assert len(part["contexts"]) == (2 if policy == "nemo" else 1)
        assert text.objects[0]["spec"]["template"]["spec"]["containers"][0] == {"name": "main", "command": ["sleep", "120"]}
    assert job["metadata"]["annotations"] == waits, "what was given is not changed"


def test_what_is_too_much_or_unknown_is_refused_with_a_remedy() -> None:
    entries: list[Booked] = [(header("paris", SINCE), [line(300)])]
    with pytest.raises(ScenarioError, match="say a later --since"):
        past(entries, copied(), {}, "nemo", SINCE, SINCE + 200 * HOUR)
    with pytest.raises(ScenarioError, match="write twin: and one of nemo, cheapest"):
        past(entries, copied(), {}, "luck", SINCE, SINCE + HOUR)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 7000), st.integers(1, 7000)), min_size=1, max_size=6))
def test_what_stays_use_and_cost_is_booked_whole(spans: list[tuple[int, int]]) -> None:
    entries: list[Booked] = [(header("paris", SINCE), [line(300)])]
    runs = {found.key: found for found in ran(entries)}
    until = SINCE + 2 * HOUR
    stays = [Stay("paris", WEB, f"web-{n}", SINCE + at, min(until, SINCE + at + length)) for n, (at, length) in enumerate(spans)]
    tariff: Obj = {**scheme.TARIFF.empty("t"), "spec": {"provider": "paris-inc", "cpuHour": 1, "basis": "used"}}
    site: Obj = {**scheme.CLUSTER.empty("paris"), "spec": {"owner": "paris-inc"}}
    found = booked(stays, runs, Then(entries, [site], [tariff]), SINCE, until)
    seconds = sum(stay.end - stay.start for stay in stays)
    sums = figures(found, lambda _: True)
    hours = Decimal(seconds) * Decimal("0.25") / 3600
    assert float(sums["cpuHours"] or 0) == pytest.approx(float(hours), rel=1e-6)
    assert float(sums["cost EUR"] or 0) == pytest.approx(float(hours), rel=1e-5)
    assert sums["marketGrams"] is None, "what was not known stays so"
    model = PowerModel(40, 120, 4)
    full, idle = model.millijoules(1e6, seconds * 0.25)
    assert float(sums["aboveIdleGrams"] or 0) == pytest.approx((full - idle) / 3.6e9 * 1.5 * 100, abs=2e-5)
    assert all(h["end"] - h["start"] <= HOUR for h, _ in found)


# -- the whole ---------------------------------------------------------------------------------------------

STORY: dict[str, Any] = {
    "title": "Clean and dear, dirty and cheap",
    "duration": "1h",
    "timing": {"heartbeat": "60s", "lease": "240s", "metering": "5m"},
    "sites": [
        {
            "name": name,
            "spec": {
                "owner": name,
                "capacity": {"cpu": "4", "memory": "8Gi"},
                "power": {"idleWatts": 40, "maxWatts": 140},
                "electricity": {"carbonIntensity": grams},
                "price": {"cpuHour": price},
            },
        }
        for name, grams, price in (("clean", 30, 0.4), ("dirty", 600, 0.01))
    ],
    "workloads": [
        {"name": "web", "replicas": 2, "cpu": "500m", "intents": [{"name": "carbonIntensity", "condition": "Minimize"}]},
        {"name": "free", "cpu": "200m"},
    ],
}


def lived(
    text: dict[str, Any], seconds: float, timing: Timing, carbon: TraceCarbonSource | None = None
) -> tuple[list[Booked], dict[str, Any], list[Obj], dict[Key, float]]:
    """A continuum with real agents and meters for a while: its ledger, what it is at the end, and when its Jobs came."""
    story = scenario(parse(yaml.safe_dump(text), "lived.yaml"), Path())

    async def main(loop: VirtualLoop) -> tuple[list[Booked], dict[str, Any], list[Obj], dict[Key, float]]:
        with scratch() as folder:
            world = World(loop, 1, timing, folder=folder, carbon=carbon)
            await world.open()
            for site in story.sites:
                await world.join(site.obj, "agent")
            await world.until(lambda: all(map(world.is_ready, world.sites)), 120)
            await world.apply(*story.objects, *[obj for text in story.workloads for obj in text.objects])
            await world.run(seconds)
            rows = await world.hub.disk.ledger.read()
            entries: list[Booked] = [(row.entry().header, row.entry().lines) for row in rows]
            client = world.hub.client
            copy, clusters = await copy_of(client, 1.0), list((await client.list(scheme.CLUSTER)).items)
            jobs = (await client.list(scheme.JOB)).items
            created: dict[Key, float] = {
                ("Job", namespace(job), name(job)): parse_time(job["metadata"]["creationTimestamp"]) for job in jobs
            }
            await world.close()
            return entries, copy, clusters, created

    return run(main)


def test_a_ledger_is_replayed_as_it_was_and_under_other_policies() -> None:
    entries, copy, clusters, _ = lived(STORY, 1800, Timing(heartbeat=60, lease=240))
    since, until = min(h["start"] for h, _ in entries), max(h["end"] for h, _ in entries)

    def answer(policy: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
        found = against(entries, copy, clusters, [], {}, policy, since, until, lambda line: line["workload"]["name"] == "web")
        return found, {row["figure"]: row for row in found["figures"]}

    whole, cheapest = answer("cheapest")
    assert float(cheapest["energyKWh"]["booked"]) > 0 and whole["meaning"].startswith(
        "every workload goes where its sites charge"
    )
    for figure in ("energyKWh", "cpuHours", "locationGrams", "aboveIdleGrams", "cost EUR"):
        assert abs(float(cheapest[figure]["replayError"])) < 0.03, (figure, cheapest[figure])
    assert float(cheapest["locationGrams"]["policy"]) > 10 * float(cheapest["locationGrams"]["nemo"])
    assert float(cheapest["locationGrams"]["saved"]) > 0 > float(cheapest["cost EUR"]["saved"])
    assert cheapest["marginalGrams"] | {"figure": ""} == dict.fromkeys(cheapest["marginalGrams"]) | {"figure": ""}, "not known"
    text = "\n".join(render(whole | {"since": "a", "until": "b"}))
    assert "saved by NEMO" in text and "assumed: intents, policies and tariffs are those of now" in text


@pytest.mark.slow
def test_what_waiting_for_clean_electricity_saved() -> None:
    """A Job that may wait did, for the third hour; the replay of it waits as it did, and the other one does not."""
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "job",
            "namespace": "default",
            "annotations": {"meta-os.eu/slack": "3h", "meta-os.eu/expected-duration": "20m"},
        },
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {
                            "name": "main",
                            "image": "python:3",
                            "command": ["sleep", "1200"],
                            "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}},
                        }
                    ],
                }
            }
        },
    }
    site = {**STORY["sites"][0], "spec": {**STORY["sites"][0]["spec"], "electricity": {"zone": "z"}}}
    trace = TraceCarbonSource("hour_utc,z\n0,500\n1,500\n2,50\n3,60\n4,500\n", start_time=EPOCH, name="trace")
    text = STORY | {"sites": [site], "workloads": [{"name": "web"}], "objects": [job]}
    timing = Timing(heartbeat=300, lease=1200, metering=900)

    def of_jobs(line: Line) -> bool:
        return bool(line["workload"]["kind"] == "Job")

    entries, copy, clusters, created = lived(text, 3 * HOUR, timing, trace)
    since, until = min(h["start"] for h, _ in entries), max(h["end"] for h, _ in entries)
    found = against(entries, copy, clusters, [], created, "start-at-once", since, until, of_jobs)
    rows = {row["figure"]: row for row in found["figures"]}
    for figure in ("energyKWh", "locationGrams"):
        assert abs(float(rows[figure]["replayError"])) < 0.02, rows[figure]
    assert float(rows["locationGrams"]["policy"]) == pytest.approx(10 * float(rows["locationGrams"]["nemo"]), rel=0.05)
    assert abs(float(rows["energyKWh"]["saved"])) < 0.02 * float(rows["energyKWh"]["nemo"]), "the same work, at another time"
