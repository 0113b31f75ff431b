"""Metering: every CPU second is in one period, whenever the agent ends, and what waits is bounded."""

import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.accounting.booking import POD_FIGURES, problems
from metaos.agent.cache import Cache
from metaos.agent.energy import Energy, Modelled, Reading
from metaos.agent.meter import MAX_BYTES, Look, Meter, joinable, merged, parted

START = 1_700_000_100


def model() -> Energy:
    return Modelled({"idleWatts": 40, "maxWatts": 180}, 4000)


def look(counters: dict[str, float], uid: str = "u1", memory: float = 64 * 2**20) -> Look:
    return Look(uid, "shop", f"web-{uid}", "Deployment", "web", counters, memory, 500, 128)


def new(path: Path, **settings: Any) -> tuple[Cache, Meter]:
    cache = Cache(path / "records.db")
    return cache, Meter(cache, model(), 4000, **settings)


def test_a_period_is_closed_at_its_multiple_and_can_be_booked(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    for second in range(0, 301, 10):
        meter.look(START + second, [look({"c": second * 0.5})], 0.01)
    (period,) = waiting(cache)
    assert not list(problems(period, START + 301))
    assert (period["start"], period["end"], period["sequence"]) == (START, START + 300, 1)
    (pod,) = period["pods"]
    assert pod["cpuMicroseconds"] == 150_000_000 and pod["presentMilliseconds"] == 300_000
    assert pod["memoryMiBSeconds"] == 64 * 300 and period["estimatedSeconds"] == 0
    assert pod["energyMillijoules"] + period["energy"]["systemMillijoules"] == period["energy"]["millijoules"]
    meter.settle(0)
    assert [p["sequence"] for p in meter.next(10)] == [1] and len(meter) == 1
    meter.settle(1)
    assert not waiting(cache) and not len(meter)
    cache.close()


def waiting(cache: Cache) -> list[dict[str, Any]]:
    return [period for _, period in cache.items("period")]


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 50), st.booleans(), st.booleans()), min_size=1, max_size=30))
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
    periods = waiting(cache)
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
    assert [p["estimatedSeconds"] for p in waiting(cache)] == [0, 400]
    cache.close()


def test_what_waits_is_bounded_and_only_gets_coarser(tmp_path: Path) -> None:
    cache, meter = new(tmp_path, max_waiting=4)
    for n in range(40):
        meter.look(START + n * 300, [look({"c": n * 10.0}), look({"c": n * 1.0}, "u2")])
    found = waiting(cache)
    assert len(found) == 4 and found[0]["start"] == START and found[-1]["sequence"] == 39
    assert sum(pod["cpuMicroseconds"] for p in found for pod in p["pods"]) == 39 * 11_000_000
    assert all(not list(problems(p, START + 40 * 300)) for p in found)
    cache.close()


def test_a_clock_that_was_put_back_makes_no_period_and_loses_nothing(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0})])
    meter.look(START + 300, [look({"c": 5})])
    meter.look(START - 5000, [look({"c": 6})])
    assert len(waiting(cache)) == 1
    meter.look(START + 600, [look({"c": 7})])
    first, second = waiting(cache)
    assert second["start"] == first["end"] and second["pods"][0]["cpuMicroseconds"] == 2_000_000
    assert not list(problems(second, START + 600))
    cache.close()


def test_a_clock_that_was_far_ahead_holds_no_period_open(tmp_path: Path) -> None:
    """Set back by a year, it would be a year until it has caught up."""
    cache, meter = new(tmp_path)
    ahead = START + 365 * 86_400
    meter.look(ahead, [look({"c": 0})])
    meter.look(ahead + 300, [look({"c": 5})])
    meter.look(START, [look({"c": 6})])
    meter.look(START + 300, [look({"c": 7})])
    wrong, right = waiting(cache)
    assert (right["start"], right["end"], right["sequence"]) == (START, START + 300, 2)
    assert right["pods"][0]["cpuMicroseconds"] == 2_000_000
    assert not list(problems(right, START + 300)) and list(problems(wrong, START + 300))
    assert not joinable(wrong, right), "the one that is refused takes no other with it"
    cache.close()


def test_three_days_without_an_agent_are_three_periods_that_add_up(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0})])
    cache.close()
    cache, meter = new(tmp_path)
    now = START + 3 * 86_400 - 100
    meter.look(now, [look({"c": 1000.001}, memory=2**30)])
    found = waiting(cache)
    assert len(found) == 3 and all(not list(problems(p, now)) for p in found)
    assert sum(p["pods"][0]["cpuMicroseconds"] for p in found) == 1_000_001_000
    assert sum(p["estimatedSeconds"] for p in found) == now - START and found[0]["pods"][0]["requestedMillis"] == 500
    assert [p["sequence"] for p in found] == [1, 2, 3] and found[-1]["end"] == now
    meter.look(now + 400, [look({"c": 1001})])
    assert waiting(cache)[-1]["sequence"] == 4
    cache.close()


def test_a_clock_that_is_set_from_1970_makes_no_energy(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(1000, [look({"c": 0})])
    meter.look(1100, [look({"c": 10})])
    meter.look(START + 200, [look({"c": 20})])
    meter.look(START + 300, [look({"c": 30})])
    (period,) = waiting(cache)
    assert not list(problems(period, START + 300)) and period["end"] - period["start"] == 200
    assert period["pods"][0]["cpuMicroseconds"] == 30_000_000
    cache.close()


def closed(meter: Meter, number: int, first: int = 0, **more: Any) -> None:
    for n in range(first, first + number + 1):
        meter.look(START + n * 300, [look({"c": n * 10.0}, **more)])


def test_numbers_go_on_where_a_spool_that_was_lost_ended(tmp_path: Path) -> None:
    """The hub has booked 40 periods of this site and holds two more; then its disk was lost."""
    cache, meter = new(tmp_path)
    closed(meter, 3)
    meter.settle(40, held=42)
    assert meter.offset == 42 and [p["sequence"] for p in meter.next(12)] == [43, 44, 45]
    meter.settle(44)
    cache.close()
    cache, meter = new(tmp_path)
    assert meter.offset == 42 and [p["sequence"] for p in meter.next(12)] == [45] and len(meter) == 1
    cache.close()


def test_a_spool_that_was_put_back_from_a_copy_books_nothing_twice(tmp_path: Path) -> None:
    """The copy has periods 1 and 2; the site went on to 7 before it was put back. What it meters from now on is new."""
    cache, meter = new(tmp_path)
    closed(meter, 2)
    meter.settle(0)
    meter.next(12)
    meter.settle(7)
    assert not len(meter)
    closed(meter, 1, first=3)
    assert [p["sequence"] for p in meter.next(12)] == [8, 9]
    cache.close()


def test_what_was_handed_out_is_never_changed(tmp_path: Path) -> None:
    cache, meter = new(tmp_path, max_waiting=3)
    closed(meter, 3)
    meter.settle(0)
    sent = meter.next(2)
    closed(meter, 30, first=4)
    assert meter.next(2) == sent and len(meter) == 3 == len(waiting(cache))
    cache.close()
    cache, meter = new(tmp_path, max_waiting=3)
    assert meter.next(2) == sent
    meter.settle(2)
    assert [(p["sequence"], p["end"] - p["start"]) for p in meter.next(9)] == [(34, 32 * 300)]
    cache.close()


def test_days_that_cannot_be_joined_any_more_are_given_up_and_the_gap_is_said(tmp_path: Path) -> None:
    cache, meter = new(tmp_path, max_waiting=3)
    meter.look(START, [look({"c": 0.0})])
    for day in range(1, 8):
        meter.look(START + day * 86_400, [look({"c": day * 10.0})])
    found = waiting(cache)
    assert len(found) == 3 and [p["sequence"] for p in found] == [5, 6, 7]
    assert [p.get("lostSeconds", 0) for p in found] == [4 * 86_400, 0, 0]
    assert not [text for p in found for text in problems(p, START + 8 * 86_400)]
    cache.close()


def test_what_waits_is_bounded_in_size_too(tmp_path: Path) -> None:
    cache, meter = new(tmp_path, max_bytes=5000)
    for n in range(300):
        meter.look(START + n * 300, [look({"c": n * 1.0}, f"u{pod}") for pod in range(3)])
        assert cache.size("period")[1] <= 5000
    assert sum(pod["cpuMicroseconds"] for p in waiting(cache) for pod in p["pods"]) == 299 * 3_000_000
    assert MAX_BYTES == 32 << 20
    cache.close()


def test_a_restart_knows_how_much_waits(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    closed(meter, 5)
    cache.close()
    cache, meter = new(tmp_path)
    assert len(meter) == 5
    cache.close()


def test_a_disk_that_takes_nothing_holds_the_period_open(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    meter.look(START, [look({"c": 0.0})])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "put", full)
        for second in (300, 310):
            with pytest.raises(sqlite3.OperationalError):
                meter.look(START + second, [look({"c": 5.0})])
    meter.look(START + 320, [look({"c": 6.0})])
    (period,) = waiting(cache)
    assert period["end"] == START + 320 and period["pods"][0]["cpuMicroseconds"] == 6_000_000
    assert not list(problems(period, START + 320))
    cache.close()


def full(*arguments: Any) -> int:
    raise sqlite3.OperationalError("database or disk is full")


def test_what_has_ended_keeps_its_counters_and_has_no_more_time(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    ended = replace(look({"c": 4.0}), memory=0.0, running=False)
    meter.look(START, [look({"c": 0.0})])
    for second in range(10, 910, 10):
        meter.look(START + second, [look({"c": 2.0}) if second < 100 else ended])
    first, *later = waiting(cache)
    assert first["pods"][0]["cpuMicroseconds"] == 4_000_000 and first["pods"][0]["presentMilliseconds"] == 90_000
    assert len(later) == 2 and not any(p["pods"] for p in later), "it is not told of again, nor counted again"
    cache.close()


def test_bytes_that_left_are_added_up_and_missing_where_none_are_counted(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    for second in range(0, 301, 100):
        meter.look(START + second, [replace(look({"c": 0.0}), sent=7), look({"c": 0.0}, "u2")])
    (period,) = waiting(cache)
    assert period["pods"][0]["networkBytes"] == 28 and "networkBytes" not in period["pods"][1]
    assert "for other sites" in period["networkSource"] and not list(problems(period, START + 300))
    cache.close()


class Boards:
    """Two devices, 10 J each at every look, and a machine that takes 100 J."""

    name, source, basis, uncertainty, measured = "test", "test", "measured", "0.05", True
    whole = 100_000

    def read(self, seconds: float, cpu_seconds: float) -> Reading:
        return Reading(self.whole, 40_000, {"a": 10_000, "b": 10_000})

    def estimate(self, seconds: float, cpu_seconds: float) -> Reading:
        return Reading(0, 0)


@pytest.mark.parametrize("whole", [100_000, 7_000])
def test_the_energy_of_accelerators_goes_by_what_is_asked_for_of_them(tmp_path: Path, whole: int) -> None:
    """Of two boards one pod asks for a whole one, one for a fifth; nobody asks for the rest."""
    boards = Boards()
    boards.whole = whole
    cache = Cache(tmp_path / "records.db")
    meter = Meter(cache, boards, 4000)
    for second in range(0, 301, 100):
        counters = {"c": second * 0.1}
        pods = [replace(look(counters), accelerators=1000), replace(look(counters, "u2"), accelerators=200), look(counters, "u3")]
        ended = replace(look({"c": 0.0}, "u4"), accelerators=1000, running=False)
        meter.look(START + second, [*pods, ended])
    (period,) = waiting(cache)
    one, fifth, none = period["pods"]
    assert period["energy"]["millijoules"] == 3 * whole and not list(problems(period, START + 300))
    assert "acceleratorMillijoules" not in none
    if whole > 20_000:
        assert (one["acceleratorMillijoules"], fifth["acceleratorMillijoules"]) == (30_000, 6_000)
        assert one["energyMillijoules"] == none["energyMillijoules"] + 30_000
    else:
        assert one["acceleratorMillijoules"] == 3 * whole // 2, "the machine's meter saw less than the boards say"
    cache.close()


def test_more_pods_than_a_period_may_have_are_the_systems(tmp_path: Path) -> None:
    cache, meter = new(tmp_path)
    for second in (0, 300):
        meter.look(START + second, [look({"c": second * 0.001 * (n + 1)}, f"u{n:04d}") for n in range(2010)])
    (period,) = waiting(cache)
    assert len(period["pods"]) == 2000 and not list(problems(period, START + 300))
    assert min(pod["cpuMicroseconds"] for pod in period["pods"]) == 11 * 300_000, "those that did least"
    cache.close()


_numbers = st.integers(0, 10**9)
_pods = st.lists(
    st.builds(
        lambda name, numbers, more: {
            "namespace": "shop",
            "name": name,
            "workload": {"kind": "Deployment", "name": "web"},
            **dict(zip(POD_FIGURES, numbers, strict=True)),
            **more,
        },
        st.sampled_from("abc"),
        st.lists(_numbers, min_size=len(POD_FIGURES), max_size=len(POD_FIGURES)),
        st.fixed_dictionaries({}, optional={"networkBytes": _numbers, "acceleratorMillijoules": _numbers}),
    ),
    max_size=3,
    unique_by=lambda pod: str(pod["name"]),
)


def reported(start: int, length: int, system: int, pods: list[dict[str, Any]]) -> dict[str, Any]:
    whole = system + sum(pod["energyMillijoules"] for pod in pods)
    return {
        "sequence": 1,
        "start": start,
        "end": start + length,
        "estimatedSeconds": 0,
        "cpuMillis": 4000,
        "meter": {"name": "m"},
        "idleRule": "used",
        "pods": pods,
        "energy": {"millijoules": whole, "systemMillijoules": system},
    }


def sums(periods: list[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for period in periods:
        found.update(period["energy"])
        for pod in period["pods"]:
            known = {key: value for key, value in pod.items() if isinstance(value, int) and not key.startswith("requested")}
            found.update(known)
    return +found


@given(st.integers(1, 80_000), st.integers(1, 200_000), _numbers, _numbers, _pods, _pods)
def test_joining_and_parting_lose_nothing(
    one: int, other: int, idle: int, more: int, pods: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    first, second = reported(START, one, idle, pods), reported(START + one, other, more, others)
    assert sums(parted(second)) == sums([second])
    if joinable(first, second):
        whole = merged(first, second)
        assert sums([whole]) == sums([first, second]) and (whole["start"], whole["end"]) == (START, START + one + other)
        assert whole["energy"]["millijoules"] == whole["energy"]["systemMillijoules"] + sum(
            pod["energyMillijoules"] for pod in whole["pods"]
        )


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
    """SIGKILL wherever it is, six times, often in the middle of a transaction; the counters go on meanwhile."""
    now = START
    for turn in range(6):
        arguments = [sys.executable, "-c", _METERING, str(tmp_path), str(now)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(20 + turn * 14)]
            process.kill()
            said += process.stdout.read().splitlines()
        now = max(int(line) for line in said if len(line.strip()) == 10) + 20
    cache, meter = new(tmp_path)
    end = (now // 300 + 1) * 300
    meter.look(end, [look({"c": (end - START) * 0.5}), look({"c": (end - START) * 0.25}, "u2")])
    periods = waiting(cache)
    cache.close()
    assert sum(pod["cpuMicroseconds"] for p in periods for pod in p["pods"]) == (end - START) * 750_000
    assert [p["sequence"] for p in periods] == list(range(1, len(periods) + 1)) and len(periods) > 6
    assert all(a["end"] == b["start"] for a, b in pairwise(periods))
