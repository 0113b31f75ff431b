"""Bad input, kind by kind: what a user hands in, and what is said or done. One row for each way in; more of each in the tests
of the module that takes it (a million hours of carbon in bounded memory: ``tests/accounting/test_carbon.py``).

A row is (kind, way in, what is handed in, what is told: file and line or field, then the remedy). Where something is taken
nevertheless, what then holds is stated and tested below the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from metaos.accounting.carbon import TraceCarbonSource
from metaos.accounting.feeds import FeedCarbonSource
from metaos.agent.sitefile import read_site
from metaos.apiserver.bodies import decoded
from metaos.apiserver.shaping import shape, validate
from metaos.cli.main import nemo
from metaos.network.intents import validate_intent
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.reading import cluster_info, workload_info
from metaos.resources.snapshot import Target, Users
from metaos.scheduler.framework import decide
from metaos.twin.play import play
from metaos.twin.report import summary
from metaos.twin.scenario import scenario
from metaos.twin.story import Scenario
from metaos.twin.text import parse
from tests.accounting.test_feeds import NOW, answer
from tests.controllers.continuum import cluster, deployment
from tests.scheduler.worlds import site, workload, world

KINDS = (
    "NaN", "negative", "mixed units", "cyclic affinities", "contradictory intents", "traces with gaps", "clocks that jump",
    "forecasts that end early", "sites with zero or absurd capacity", "a million-row trace", "a malformed scenario",
)  # fmt: skip
SMALL: dict[str, Any] = {"title": "Small", "duration": "10m", "agents": "light", "sites": [{"name": "a"}, {"name": "b"}]}


# -- the ways in -------------------------------------------------------------------------------------------


def run(text: Any, folder: Path) -> str:
    """nemo twin run: a change of the small scenario, or a whole text."""
    file = folder / "mine.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump({**SMALL, **text}))
    done = CliRunner().invoke(nemo, ["twin", "run", str(file)])
    assert done.exit_code == 1, done.output
    return done.output


def replay(text: str, folder: Path) -> str:
    """nemo twin replay: a trace of jobs."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    (folder / "jobs.csv").write_text("arrival_time,length,cpus\n" + text)
    done = CliRunner().invoke(nemo, ["twin", "replay", str(folder / "jobs.csv"), "--on", str(folder / "mine.yaml")])
    assert done.exit_code == 1, done.output
    return done.output


def carbon(rows: str, folder: Path) -> str:
    """A carbon trace, as 'nemo up --carbon-trace' reads it."""
    with pytest.raises(ValueError) as found:
        TraceCarbonSource("hour_utc,DE\n" + rows, start_time=0.0, name="carbon.csv")
    return str(found.value)


def file_of_a_site(spec: str, folder: Path) -> str:
    """nemo agent --site."""
    file = folder / "site.yaml"
    file.write_text(f"apiVersion: meta-os.eu/v1alpha1\nkind: Cluster\nmetadata: {{name: edge}}\nspec: {spec}\n")
    with pytest.raises(ValueError) as found:
        read_site(file)
    return str(found.value)


def api(spec: dict[str, Any], folder: Path) -> str:
    """kubectl apply of a Cluster."""
    with pytest.raises(ApiError) as found:
        validate(scheme.CLUSTER, shape(scheme.CLUSTER, {**scheme.CLUSTER.empty("edge"), "spec": spec}, None, "Strict", []), None)
    return found.value.message


def body(text: str, folder: Path) -> str:
    """kubectl, or any client: JSON."""
    with pytest.raises(ApiError) as found:
        decoded(text.encode(), "application/json")
    return found.value.message


def intent(targets: list[dict[str, Any]], folder: Path) -> str:
    """kubectl apply of an Intent."""
    obj = {**scheme.INTENT.empty("wish", "shop"), "spec": {"expectations": [{"targets": targets}]}}
    return "\n".join(f"{cause.field}: {cause.message}" for cause in validate_intent(obj))


GRAMS = {"name": "carbonIntensity", "condition": "IsLessThan", "value": 200, "unit": "gCO2eq/kWh"}
QUICK = {"name": "latency", "condition": "IsLessThan", "value": 10, "unit": "ms", "contexts": [{"name": "usersIn", "value": "x"}]}
TABLE: list[tuple[str, Callable[[Any, Path], str], Any, tuple[str, ...]]] = [
    ("NaN", run, {"settle": float("nan")}, ("mine.yaml:3", "settle", "for example 90s")),
    (
        "NaN",
        run,
        {"sites": [{"name": "a", "spec": {"electricity": {"carbonIntensity": float("nan")}}}]},
        ("mine.yaml:7", "sites[0].spec.electricity.carbonIntensity", "must be a finite number"),
    ),
    ("NaN", replay, "0,nan,1\n", ("jobs.csv:2", "length", "'nan'", "mend or leave out")),
    ("NaN", carbon, "0,nan\n", ("carbon.csv", "line 2, zone DE", "'nan'", "remove the line, or mend")),
    ("NaN", file_of_a_site, "{availability: .nan}", ("site.yaml", "availability", "nan")),
    ("NaN", body, '{"spec": {"availability": NaN}}', ("JSON",)),
    ("NaN", intent, [{**GRAMS, "value": float("nan")}], ("targets[0].value", "finite number of at least 0")),
    ("negative", run, {"duration": "-5m"}, ("mine.yaml", "duration", "is negative", "for example 90s")),
    ("negative", run, {"workloads": [{"name": "w", "cpu": "-1"}]}, ("mine.yaml", "workloads[0].cpu", "for example 250m")),
    ("negative", replay, "-1,5,1\n", ("jobs.csv:2", "arrival_time", "at least 0")),
    ("negative", carbon, "0,-1\n", ("line 2, zone DE", "'-1'", "at least 0")),
    ("negative", file_of_a_site, "{capacity: {cpu: '-4'}}", ("site.yaml", "capacity.cpu", "-4")),
    ("negative", api, {"capacity": {"memory": "-1"}}, ("spec.capacity.memory", "-1")),
    ("negative", intent, [{**QUICK, "value": -1}], ("targets[0].value", "-1")),
    ("mixed units", run, {"link": {"delay": "20 parsec"}}, ("mine.yaml", "link.delay", "ms, s, m, h or d")),
    ("mixed units", run, {"workloads": [{"name": "w", "memory": "64MiB"}]}, ("workloads[0].memory", "for example 250m or 64Mi")),
    ("mixed units", replay, "0,5 min,1\n", ("jobs.csv:2", "length", "'5 min'", "mend or leave out")),
    ("mixed units", carbon, "0,300\n1,90000\n", ("line 3, zone DE", "is it in another unit")),
    ("mixed units", carbon, "0,120 g\n", ("line 2, zone DE", "finite number of gCO2eq/kWh")),
    ("mixed units", api, {"capacity": {"memory": "8GB"}}, ("spec.capacity.memory", "8GB")),
    ("mixed units", intent, [{**GRAMS, "unit": "ms"}], ("targets[0].unit", "must be one of gCO2eq/kWh")),
    ("contradictory intents", intent, [GRAMS, {**GRAMS, "condition": "IsGreaterThan", "value": 300}], ("remove one",)),
    ("traces with gaps", carbon, "0,1\n9,2\n", ("line 3, hour_utc", "8 hours are missing", "at most 3 in a row")),
    ("traces with gaps", carbon, "5,1\n3,2\n", ("line 3, hour_utc", "sort the lines")),
    ("traces with gaps", replay, "0,5,1\n\n9,5,1\n", ("jobs.csv:3", "arrival_time", "mend or leave out")),
    ("sites with zero or absurd capacity", api, {"capacity": {"cpu": "1e30"}}, ("spec.capacity.cpu", "1e30")),
    ("sites with zero or absurd capacity", run, {"sites": []}, ("mine.yaml", "sites", "write 1 to 10000")),
    ("sites with zero or absurd capacity", run, {"sites": [{"name": "a", "count": 10**7}]}, ("sites", "write 1 to 10000")),
    ("a million-row trace", replay, "0,1,1\n" * 1_000_000, ("jobs.csv:100002", "more than 100000 jobs", "--rows")),
    ("a malformed scenario", run, "title: [", ("mine.yaml:1", "mend the YAML")),
    ("a malformed scenario", run, "", ("mine.yaml:1", "write at least 'title', 'duration' and 'sites'")),
    ("a malformed scenario", run, {"foults": []}, ("mine.yaml", "foults", "the fields are title")),
    ("a malformed scenario", run, {"faults": [{"at": "1h", "cut": ["a"]}]}, ("faults[0].at", "before the scenario's")),
]


@pytest.mark.parametrize(("kind", "way", "given", "told"), TABLE, ids=[f"{k}, {w.__name__}" for k, w, _, _ in TABLE])
def test_it_is_refused_naming_place_and_remedy(
    kind: str, way: Callable[[Any, Path], str], given: Any, told: tuple[str, ...], tmp_path: Path
) -> None:
    said = way(given, tmp_path)
    assert not [part for part in told if part not in said] and "Traceback" not in said, said


# -- what is taken, and what then holds --------------------------------------------------------------------


def small(**changed: Any) -> Scenario:
    return scenario(parse(yaml.safe_dump(SMALL | changed), "small.yaml"), Path())


def cyclic_affinities(folder: Path) -> None:
    """Of each other, in a ring, and one that is refused by whom it seeks: all come to rest, and who has no place says why."""
    for ring in ({"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}, {"a": "b", "b": "!a"}, {"a": "!a"}):
        objects = [deployment(name=word, namespace="default") for word in ring]
        for obj, about in zip(objects, ring.values(), strict=True):
            term = {"labelSelector": {"matchLabels": {"app": about.strip("!")}}, "topologyKey": "kubernetes.io/hostname"}
            which = "podAntiAffinity" if about.startswith("!") else "podAffinity"
            obj["spec"]["template"]["metadata"] = {"labels": {"app": obj["metadata"]["name"]}}
            obj["spec"]["selector"] = {"matchLabels": {"app": obj["metadata"]["name"]}}
            obj["spec"]["template"]["spec"]["affinity"] = {which: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        found = play(small(objects=objects))
        assert not found["violations"], summary(found)
        placed = {key.rpartition("-")[2]: sites for key, sites in found["placements"].items()}
        assert placed.keys() == ring.keys() and found["events"].get("Moved", 0) == 0, summary(found)
        assert all(sites or found["events"].get("Unplaceable") for sites in placed.values()), (placed, found["events"])


def contradictory_intents(folder: Path) -> None:
    """Each could be met: both are named, with what would help."""
    bounds = [("slow", "IsGreaterThan", 50.0), ("fast", "IsLessThan", 10.0)]
    targets = tuple(Target("latency", c, v, hard=True, users=Users(("es",)), intent=i) for i, c, v in bounds)
    sites = [site("near", latencies={"es": 5.0}), site("far", latencies={"es": 80.0})]
    plan = decide(world(*sites), workload(targets=targets))
    assert not plan.clusters and "slow" in plan.reason and "fast" in plan.reason, plan.reason


def short_gaps(folder: Path) -> None:
    """Filled between their ends, and the source says so."""
    source = TraceCarbonSource("hour_utc,DE\n0,100\n2,300\n", start_time=0.0, name="carbon.csv")
    assert list(source.intensity("DE", 0.0) or ()) == [100, 200, 300] and "1 missing hour" in source.describe()


def clocks_that_jump(folder: Path) -> None:
    """Of the hub and of a site, an hour ahead and an hour back: leases and fences go by the passing of time, nothing moves."""
    jumps: list[dict[str, Any]] = [{"at": "2m", "hubClock": "1h"}, {"at": "4m", "hubClock": "-2h"}]
    jumps += [{"at": "3m", "siteClock": {"a": "-1h"}}, {"at": "5m", "siteClock": {"a": "2h"}}]
    held = [{"at": "1m", "readyAtLeast": {"db": 1}}, {"copiesAtMost": {"db": 1}}, {"at": "9m", "lost": []}]
    found = play(small(workloads=[{"name": "db", "kind": "StatefulSet"}], faults=jumps, expect=held))
    assert found["passed"], summary(found)


def a_feed_that_ends(folder: Path) -> None:
    """It is used as far as it goes, then said to be gone."""
    source = FeedCarbonSource("electricity-maps", token=lambda: "t")
    source.take("DE", 200, answer("electricity-maps", [100, 200]), NOW)
    assert list(source.intensity("DE", NOW) or ()) == [100, 200]
    assert len(source.intensity("DE", NOW + 3600) or ()) == 1
    assert source.intensity("DE", NOW + 300 * 3600) is None and source.says("DE", NOW + 300 * 3600).startswith("not known")


def a_trace_that_ends(folder: Path) -> None:
    """It begins again, and the report says so."""
    (folder / "carbon.csv").write_text("hour_utc,DE\n0,100\n1,200\n")
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"duration": "125m", "carbon": {"trace": "carbon.csv"}}))
    done = CliRunner().invoke(nemo, ["twin", "run", str(file)])
    assert done.exit_code == 0 and "its 2 hours are not enough and are repeated" in done.output, done.output


def a_site_without_room(folder: Path) -> None:
    empty = cluster_info(cluster("a", capacity={"cpu": "0", "memory": "0", "pods": "0"}))
    plan = decide(world(empty), workload_info(deployment()))
    assert not plan.clusters and "needs 100m CPU, and 0 of 0 is free" in plan.reason


def a_site_of_absurd_size(folder: Path) -> None:
    """Much room, and no other site's figures suffer."""
    plan = decide(world(site("a", carbon=900.0), site("b", cpu=10**33)), workload())
    assert dict(plan.clusters) == {"b": 1}
    json.dumps([found.total for found in plan.scored], allow_nan=False)


TAKEN: dict[str, list[Callable[[Path], None]]] = {
    "cyclic affinities": [cyclic_affinities],
    "contradictory intents": [contradictory_intents],
    "traces with gaps": [short_gaps],
    "clocks that jump": [clocks_that_jump],
    "forecasts that end early": [a_feed_that_ends, a_trace_that_ends],
    "sites with zero or absurd capacity": [a_site_without_room, a_site_of_absurd_size],
}


@pytest.mark.parametrize("holds", [each for found in TAKEN.values() for each in found], ids=lambda each: each.__name__)
def test_it_is_taken_and_this_holds(holds: Callable[[Path], None], tmp_path: Path) -> None:
    holds(tmp_path)


def test_every_kind_is_covered() -> None:
    assert {kind for kind, *_ in TABLE} | TAKEN.keys() == set(KINDS)
