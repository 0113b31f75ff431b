"""Calibration: what is read from a timeline, how both sides are held against each other, what fitting does, what is refused; and
one scenario on real processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from metaos.cli.main import nemo
from metaos.twin.calibration import Tolerance, Tried, as_text, calibrated, compared, fitted, with_settings
from metaos.twin.observed import Metered, Observed, observed
from metaos.twin.real import playable
from metaos.twin.scenario import load, scenario
from metaos.twin.sidebyside import summary, write_html
from metaos.twin.story import Scenario
from metaos.twin.text import ScenarioError, parse
from metaos.twin.timeline import LEGS, Timeline, first, samples
from metaos.twin.timing import Timing

SCENARIO = Path(__file__).parents[2] / "examples" / "scenarios" / "calibration.yaml"
TIMES = st.floats(0, 100, allow_nan=False)


def story(text: str) -> Timeline:
    """'12 placed web paris:2' and so on, one a line."""
    found = Timeline()
    for line in text.strip().splitlines():
        at, what, about, *values = line.split()
        if what in ("placed", "served"):
            sites = {site: int(count) for site, _, count in (v.partition(":") for v in values)}
            getattr(found, what).setdefault(about, []).append((float(at), sites))
        elif what in ("available", "pods", "ready"):
            getattr(found, what).setdefault(about, []).append((float(at), int(values[0])))
        else:
            found.deeds.append((float(at), what, about, int(values[0]) if values else 0))
    return found


LOST = """
1 applied web 2
1.5 placed web paris:2
2 available web 1
3 available web 2
3 served web paris:2
0 ready paris 1
10 failed paris
15 ready paris 0
16 placed web madrid:2
17 served web paris:2 madrid:1
18 served web madrid:2
30 started paris
34 ready paris 1
40 scaled web 3
41 available web 3
45 deleted web
45 pods web 3
46 pods web 0
47 hubKilled hub
48 applied late 1
50 hubStarted hub
51.25 hubAnswered hub
53 placed late paris:1
55 available late 1
"""


def test_times_are_read_from_what_was_seen() -> None:
    assert samples(story(LOST)) == {
        "placed": {"web": 0.5},
        "available": {"web": 2.0},
        "scaled": {"web": 1.0},
        "deleted": {"web": 1.0},
        "lost": {"paris": 5.0},
        "replaced": {"web (paris)": 8.0},
        "returned": {"paris": 4.0},
        "hub": {"hub": 1.25},
        "away": {"late": 7.0},
    }
    nothing = samples(story("1 applied web 2\n2 failed paris"))
    assert not any(nothing.values()), "what did not come about is not in it"


@given(st.lists(st.tuples(TIMES, st.booleans())).map(sorted), TIMES)
def test_the_first_time_that_something_holds(course: list[tuple[float, bool]], since: float) -> None:
    found = first(course, since, bool)
    later = [at for at, value in course if at > since and value]
    if [value for at, value in course if at <= since][-1:] == [True]:
        assert found == since
    else:
        assert found == min(later, default=None)


def side(**legs: dict[str, float]) -> Observed:
    return Observed(Timeline(), {leg: legs.get(leg, {}) for leg in LEGS})


@given(st.floats(0.01, 50), st.floats(0.01, 50))
def test_times_hold_within_the_stated_tolerance_and_only_then(real: float, twin: float) -> None:
    tolerance = Tolerance()
    found = compared(side(scaled={"a": real}), side(scaled={"a": twin}), Timing(), tolerance)["timing"][0]
    assert found["held"] == (abs(round(real, 3) - round(twin, 3)) <= max(tolerance.share * round(real, 3), tolerance.seconds))
    late = compared(side(lost={"a": real}), side(lost={"a": twin}), Timing(), tolerance)["timing"][0]
    assert late["allowed"] == pytest.approx(found["allowed"] + Timing().heartbeat, abs=0.002)


def test_what_came_about_on_one_side_only_does_not_hold() -> None:
    for one, other in ((side(placed={"a": 1, "b": 1}), side(placed={"a": 1})), (side(placed={"a": 1}), side())):
        for real, twin in ((one, other), (other, one)):
            assert not compared(real, twin, Timing(), Tolerance())["held"]
    assert compared(side(), side(), Timing(), Tolerance())["held"]


def test_placements_and_power_are_compared() -> None:
    real, twin = story("1 placed web a:2\n5 placed web b:2"), story("2 placed web a:2\n9 placed web b:1 a:1")
    meter = Metered(50, 100.0, 6.0, 0.2, ("stated",), 5.0, 0.02)
    times = side().times
    found = compared(
        Observed(real, times, {"a": meter, "b": meter}),
        Observed(twin, times, {"a": replace(meter, watts=109.0), "b": replace(meter, watts=111.0)}),
        Timing(),
        Tolerance(),
    )
    assert [row["held"] for row in found["placement"]] == [False]
    assert [row["held"] for row in found["energy"]] == [True, False] and found["energy"][0]["uncertainty"] == 0.2


REAL = st.tuples(st.floats(0, 0.5), st.floats(0, 3), st.floats(0, 3), st.floats(0, 9), st.floats(0, 9), st.integers(1, 9))


@given(REAL)
def test_fitting_arrives_at_the_settings_that_a_machine_has(machine: tuple[float, float, float, float, float, int]) -> None:
    """A twin whose times are sums of its settings, as the real one's are, with more or fewer writes in a placement."""
    write, start, stop, agent, hub, writes = machine

    def play(timing: Timing) -> Observed:
        placed = timing.write * writes
        return side(
            placed={"a": placed},
            available={"a": placed + timing.pod_start + 0.1},
            deleted={"a": timing.pod_stop + 0.2},
            returned={"s": timing.agent_start + 0.3},
            hub={"hub": timing.hub_start},
        )

    real = play(Timing(write=write, pod_start=start, pod_stop=stop, agent_start=agent, hub_start=hub))
    tried = [Tried(Timing(), play(Timing()))]
    for _ in range(4):
        timing = fitted(real, tried)
        tried.append(Tried(timing, play(timing)))
    assert compared(real, tried[-1].twin, Timing(), Tolerance())["held"]
    assert timing.pod_start == pytest.approx(start, abs=0.01) and timing.hub_start == pytest.approx(hub, abs=0.01)
    assert timing.write == pytest.approx(write, abs=0.002 + write * 0.05)


def test_the_settings_are_those_of_a_scenario(tmp_path: Path) -> None:
    timing = Timing(1, 5, 2, metering=10, pod_start=0.25, pod_stop=0.1, agent_start=2, hub_start=1.5, write=0.004)
    timing = replace(timing, load=0.5, agent_cpu=0.02)
    text = yaml.safe_load(SCENARIO.read_text()) | as_text(timing, 0.0021)
    found = scenario(parse(yaml.safe_dump(text), "fitted.yaml"), tmp_path)
    assert found.timing == timing and found.sites[0].quality.delay == pytest.approx(0.0021)


def test_the_twin_agrees_with_itself_and_is_fitted_to_another_machine(tmp_path: Path) -> None:
    """The whole way, with a twin of other settings in the place of the real processes."""
    short = yaml.safe_load(SCENARIO.read_text()) | {"duration": "20s", "objects": [], "expect": []}
    short["sites"], short["workloads"] = short["sites"][:2], short["workloads"][:1]
    short["faults"] = [{"at": "4s", "powerOff": ["paris"], "for": "8s"}]
    asked = scenario(parse(yaml.safe_dump(short), "short.yaml"), SCENARIO.parent)
    other = replace(asked.timing, pod_start=2.5, pod_stop=0.3, agent_start=3.0, write=0.02, load=0.8, agent_cpu=0.05)
    report = calibrated(asked, replace(observed(with_settings(asked, other, 0.01)), delay=0.01), observed, Tolerance())
    legs = {row["leg"]: row for row in report["before"]["timing"]}
    assert set(legs) == {"placed", "available", "lost", "replaced", "returned"}
    assert not legs["available"]["held"] and not report["before"]["held"]
    assert report["held"], summary(report)
    assert all(row["held"] for row in report["before"]["placement"]) and len(report["after"]["energy"]) == 2
    assert "the calibrated twin agrees" in summary(report)
    write_html(report, tmp_path / "report.html")
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


BASE: dict[str, Any] = {"title": "x", "duration": "1m", "sites": [{"name": "a", "spec": {"capacity": {"cpu": "1"}}}]}


@pytest.mark.parametrize(
    ("changed", "field", "remedy"),
    [
        ({"chaos": {"faults": 2}}, "chaos", "leave it out"),
        ({"duration": "2h"}, "duration", "at most 30m"),
        ({"agents": "light"}, "agents", "agents: real"),
        ({"timing": {"fencing": "9s"}}, "timing.fencing", "leave it out"),
        ({"link": {"loss": "1%"}}, "link.loss", "leave it out"),
        ({"sites": [{"name": "a", "clock": "1h"}]}, "sites[0].clock", "leave it out"),
        ({"sites": [{"name": "a", "spec": {"capacity": {"cpu": "2"}}}]}, "sites", "below 2"),
        ({"faults": [{"at": "1s", "hubClock": "1h"}]}, "faults[0].hubClock", "write one of powerOff"),
        ({"faults": [{"at": "1s", "slowDisk": "1s"}]}, "faults[0].slowDisk", "write one of powerOff"),
        ({"faults": [{"at": "1s", "cut": ["a"], "direction": "up"}]}, "faults[0].direction", "leave it out"),
    ],
)
def test_what_cannot_be_played_for_real_is_refused_by_name_and_line(changed: dict[str, Any], field: str, remedy: str) -> None:
    text = parse(yaml.safe_dump(BASE | changed, sort_keys=False), "mine.yaml")
    with pytest.raises(ScenarioError, match=r"^mine.yaml:\d+: ") as found:
        playable(text, scenario(text, SCENARIO.parent), 2)
    assert field in str(found.value) and remedy in str(found.value)


def test_what_can_be_played_is_not_refused() -> None:
    playable(parse(SCENARIO.read_text(), "calibration.yaml"), load(SCENARIO), 2)


@pytest.mark.parametrize(
    ("timing", "remedy"),
    [("metering: 7s", "divide an hour"), ("agentCpu: -1", "for example 0.05"), ("load: 2", "from 0 to 1")],
)
def test_settings_that_make_no_sense_are_refused(timing: str, remedy: str) -> None:
    with pytest.raises(ScenarioError, match=remedy):
        scenario(parse(f"title: x\nduration: 5m\nsites: [{{name: a}}]\ntiming: {{{timing}}}\n", "mine.yaml"), SCENARIO.parent)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_scenario_on_real_processes_and_in_the_twin(tmp_path: Path) -> None:
    page, fit = tmp_path / "report.html", tmp_path / "fitted.yaml"
    done = CliRunner().invoke(
        nemo, ["twin", "calibrate", str(SCENARIO), "--html", str(page), "--write", str(fit), "-o", "json"], catch_exceptions=False
    )
    report = json.loads(done.stdout)
    told = summary(report)
    assert all(row["held"] for part in ("before", "after") for row in report[part]["placement"]), told
    assert all(row["held"] for row in report["after"]["timing"]) and len(report["after"]["timing"]) == 7, told
    assert all(row["held"] for row in report["after"]["energy"]) and len(report["after"]["energy"]) == 3, told
    assert done.exit_code == 0 and page.exists()
    found: Scenario = load(fit)
    assert found.timing != load(SCENARIO).timing and found.sites[0].quality.delay > 0
