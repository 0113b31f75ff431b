"""Metering: every CPU second is in one period, whenever the agent ends, and what waits is bounded."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.accounting.booking import problems
from metaos.accounting.metering import PowerModel
from metaos.agent.cache import Cache
from metaos.agent.meter import Energy, Look, Meter
from metaos.agent.rapl import Rapl

START = 1_700_000_100


def model() -> Energy:
    return Energy("model", "the site file's power model", "stated", "0.2", PowerModel(40, 180, 4).millijoules)


def look(counters: dict[str, float], uid: str = "u1", memory: float = 64 * 2**20) -> Look:
    return Look(uid, "shop", f"web-{uid}", "Deployment", "web", counters, memory, 500, 128)


def new(path: Path, **settings: Any) -> tuple[Cache, Meter]:
    cache = Cache(path / "records.db")
    return cache, Meter(cache, model(), 4000, **settings)


def test_a_period_is_closed_at_its_multiple_and_can_be_booked(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    for second in range(0, 301, 10):
        meter.look(START + second, [look({"c": second * 0.5})], 0.01)
    (period,) = meter.waiting(10)
    assert not list(problems(period, START + 301))
    assert (period["start"], period["end"], period["sequence"]) == (START, START + 300, 1)
    (pod,) = period["pods"]
    assert pod["cpuMicroseconds"] == 150_000_000 and pod["presentMilliseconds"] == 300_000
    assert pod["memoryMiBSeconds"] == 64 * 300 and period["estimatedSeconds"] == 0
    assert pod["energyMillijoules"] + period["energy"]["systemMillijoules"] == period["energy"]["millijoules"]
    meter.booked(1)
    assert not meter.waiting(10)
    cache.close()


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 50), st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_cpu_second_is_lost_or_counted_twice_however_often_the_agent_is_killed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float, bool, bool]]
) -> None:
    """``killed``: all that is not on disk is forgotten. ``renewed``: the container starts again, its counter at 0."""
    path = tmp_path_factory.mktemp("meter")
    cache, meter = new(path)
    now, total, counter, attempt = float(START), 0.0, 0.0, 0
    meter.look(now, [look({"0": 0.0})])
    for seconds, used, killed, renewed in steps:
        now += seconds
        if renewed and not killed:
            attempt, counter = attempt + 1, 0.0
        counter, total = counter + used, total + used
        if killed:
            cache.close()
            cache, meter = new(path)
        meter.look(now, [look({str(attempt): counter})])
    meter.look(now + 301, [look({str(attempt): counter})])
    periods = meter.waiting(1000)
    cache.close()
    assert sum(pod["cpuMicroseconds"] for p in periods for pod in p["pods"]) == pytest.approx(_known(steps) * 1e6, abs=len(steps))
    assert all(a["end"] == b["start"] and a["sequence"] + 1 == b["sequence"] for a, b in pairwise(periods))
    assert not [text for p in periods for text in problems(p, now + 301)]


def _known(steps: list[tuple[int, float, bool, bool]]) -> float:
    """What can be known: a container that was renewed before a kill takes with it what it used since the last close."""
    now, closed, lost, counter, noted, total = START, START, 0.0, 0.0, 0.0, 0.0
    dead = 0.0  # used since the last close by containers that are gone
    for seconds, used, killed, renewed in steps:
        now += seconds
        total += used
        if renewed and not killed:
            dead += counter - noted
            counter = noted = 0.0
        if killed:
            lost, dead = lost + dead, 0.0
        counter += used
        if now // 300 * 300 > closed:
            closed, noted, dead = now, counter, 0.0
    return total - lost


def test_what_lies_before_a_restart_is_marked_as_estimated(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0})])
    meter.look(START + 300, [look({"c": 1})])
    cache.close()
    cache, meter = new(tmp_path)
    meter.look(START + 700, [look({"c": 2})])
    assert [p["estimatedSeconds"] for p in meter.waiting(9)] == [0, 400]
    cache.close()


def test_what_waits_is_bounded_and_only_gets_coarser(tmp_path: Path) -> None:
    cache, meter = new(tmp_path, max_waiting=4)
    for n in range(40):
        meter.look(START + n * 300, [look({"c": n * 10.0}), look({"c": n * 1.0}, "u2")])
    found = meter.waiting(100)
    assert len(found) == 4 and found[0]["start"] == START and found[-1]["sequence"] == 39
    assert sum(pod["cpuMicroseconds"] for p in found for pod in p["pods"]) == 39 * 11_000_000
    assert all(not list(problems(p, START + 40 * 300)) for p in found)
    cache.close()


def test_a_clock_that_was_put_back_makes_no_period_and_loses_nothing(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0})])
    meter.look(START + 300, [look({"c": 5})])
    meter.look(START - 5000, [look({"c": 6})])
    assert len(meter.waiting(9)) == 1
    meter.look(START + 600, [look({"c": 7})])
    first, second = meter.waiting(9)
    assert second["start"] == first["end"] and second["pods"][0]["cpuMicroseconds"] == 2_000_000
    assert not list(problems(second, START + 600))
    cache.close()


def test_three_days_without_an_agent_are_three_periods_that_add_up(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0})])
    cache.close()
    cache, meter = new(tmp_path)
    now = START + 3 * 86_400 - 100
    meter.look(now, [look({"c": 1000.001}, memory=2**30)])
    found = meter.waiting(9)
    assert len(found) == 3 and all(not list(problems(p, now)) for p in found)
    assert sum(p["pods"][0]["cpuMicroseconds"] for p in found) == 1_000_001_000
    assert sum(p["estimatedSeconds"] for p in found) == now - START and found[0]["pods"][0]["requestedMillis"] == 500
    assert [p["sequence"] for p in found] == [1, 2, 3] and found[-1]["end"] == now
    meter.look(now + 400, [look({"c": 1001})])
    assert meter.waiting(9)[-1]["sequence"] == 4
    cache.close()


def test_a_clock_that_is_set_from_1970_makes_no_energy(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(1000, [look({"c": 0})])
    meter.look(1100, [look({"c": 10})])
    meter.look(START + 200, [look({"c": 20})])
    meter.look(START + 300, [look({"c": 30})])
    (period,) = meter.waiting(9)
    assert not list(problems(period, START + 300)) and period["end"] - period["start"] == 200
    assert period["pods"][0]["cpuMicroseconds"] == 30_000_000
    cache.close()


_METERING = """
import sys
from pathlib import Path
from tests.agent.test_meter import START, look, new
now = int(sys.argv[2])
cache, meter = new(Path(sys.argv[1]))
while True:
    meter.look(now, [look({"c": (now - START) * 0.5}), look({"c": (now - START) * 0.25}, "u2")], 0.1)
    print(now, flush=True)
    now += 20
"""


@pytest.mark.system
def test_a_killed_process_loses_no_cpu_second_and_counts_none_twice(tmp_path: Path) -> None:
    """SIGKILL wherever it is, twelve times, often in the middle of a transaction; the counters go on meanwhile."""
    now = START
    for turn in range(12):
        arguments = [sys.executable, "-c", _METERING, str(tmp_path), str(now)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(20 + turn * 7)]
            process.kill()
            said += process.stdout.read().splitlines()
        now = max(int(line) for line in said if len(line.strip()) == 10) + 20
    cache, meter = new(tmp_path)
    end = (now // 300 + 1) * 300
    meter.look(end, [look({"c": (end - START) * 0.5}), look({"c": (end - START) * 0.25}, "u2")])
    periods = meter.waiting(100_000)
    cache.close()
    assert sum(pod["cpuMicroseconds"] for p in periods for pod in p["pods"]) == (end - START) * 750_000
    assert [p["sequence"] for p in periods] == list(range(1, len(periods) + 1)) and len(periods) > 12
    assert all(a["end"] == b["start"] for a, b in pairwise(periods))


def domain(root: Path, folder: str, name: str, energy: int, most: int = 1_000_000) -> Path:
    place = root / "sys/class/powercap" / folder
    place.mkdir(parents=True)
    (place / "name").write_text(name + "\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    (place / "energy_uj").write_text(f"{energy}\n")
    return place


def test_rapl_adds_packages_and_memory_and_wraps_around(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 5)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    rapl = Rapl(tmp_path)
    assert not rapl.problem and rapl.source == "RAPL, dram and package" and rapl.millijoules() == 0
    (package / "energy_uj").write_text("100000")
    (memory / "energy_uj").write_text("50000")
    assert rapl.millijoules() == 250
    assert "state spec.power in the site file" in Rapl(tmp_path / "none").problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rapl_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (domain(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").chmod(0)
    assert "run the agent as root" in Rapl(tmp_path).problem
