"""The sandbox runtime's watchdog itself: killed, doubled, without its file, on a full disk, in another run of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.runtimes import fencing, process, records, watchdog
from metaos.runtimes.sandbox import SandboxRuntime
from metaos.runtimes.watchdog import Fences
from tests.clock import FakeClock
from tests.runtimes.conformance import DEADLINE, container, pod, state, until_ended, until_logged, uptime
from tests.runtimes.test_sandbox import place

__all__ = ["place"]
pytestmark = pytest.mark.system


def make(place: str) -> SandboxRuntime:
    return SandboxRuntime(place, clock=SystemClock(suspended=True), isolation="none")


def command(place: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-E", watchdog.__file__, place]


def watchdogs(place: str) -> list[int]:
    found = []
    for each in process.everyone():
        with_words = Path(f"/proc/{each.pid}/cmdline")
        try:
            if each.state not in "ZX" and f"watchdog.py\0{place}\0".encode() in with_words.read_bytes():
                found.append(each.pid)
        except OSError:
            continue
    return found


async def until_watched(place: str, *, other_than: int = 0) -> int:
    async with asyncio.timeout(DEADLINE):
        while True:
            found = watchdogs(place)
            if len(found) == 1 and found[0] != other_than:
                return found[0]
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Nothing that this process writes finds room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
async def running(place: str):  # type: ignore[no-untyped-def]
    """A pod ``once`` that must not run twice."""
    made = make(place)
    await made.start_pod(pod("once"))
    await made.fence(uptime(), {"once": 60.0})
    await made.start_container("once", container("sleep", "1000"))
    yield made
    await made.fence(uptime(), {})
    await made.stop_pod("once")
    await made.close()


async def test_one_that_is_killed_is_started_again(place: str, running: SandboxRuntime) -> None:
    first = await until_watched(place)
    os.kill(first, signal.SIGKILL)
    await until_watched(place, other_than=first)
    for attempt in (1, 2):
        await running.fence(uptime(), {"once": 0.0})
        assert (await until_ended(running, "once")).reason == "Fenced"
        async with asyncio.timeout(DEADLINE):
            while watchdogs(place):  # until then it ends whatever is started in that pod
                await asyncio.sleep(0.02)
        await running.fence(uptime(), {"once": 60.0})
        await running.start_container("once", container("sleep", "1000", attempt=attempt))


async def test_one_that_is_killed_finds_its_file_whole_however_it_was_damaged(place: str, running: SandboxRuntime) -> None:
    first = await until_watched(place)
    whole = Path(place, "fences").read_bytes()
    Path(place, "fences").write_bytes(b"\xff half of it")
    starts: list[float] = []
    running._fencing._start = counted(running._fencing._start, starts)  # type: ignore[method-assign]
    os.kill(first, signal.SIGKILL)
    second = await until_watched(place, other_than=first)
    assert Path(place, "fences").read_bytes() == whole
    os.kill(second, signal.SIGKILL)
    await until_watched(place, other_than=second)
    assert len(starts) == 2 and starts[1] - starts[0] > fencing.AGAIN_SECONDS - 0.1


def counted(function: Callable[[], Awaitable[None]], times: list[float]) -> Callable[[], Awaitable[None]]:
    async def told() -> None:
        times.append(uptime())
        await function()

    return told


async def test_there_is_one_and_the_next_agents_takes_its_place(place: str, running: SandboxRuntime) -> None:
    first = await until_watched(place)
    await running.fence(uptime(), {"once": 60.0})
    assert watchdogs(place) == [first]
    await running.close()
    other = make(place)
    await other.fence(uptime(), {"once": 60.0})
    await other.fence(uptime(), {"once": 60.0})
    second = await until_watched(place, other_than=first)
    await other.close()
    started = [process.spawn(command(place), env={}) for _ in range(3)]
    third = await until_watched(place, other_than=second)
    assert third in [each.pid for each in started], "of some that begin at once, one stays"
    for each in started:
        each.kill()
        await process.ended(each)


@pytest.mark.parametrize("damage", ["missing", "half", "touched"])
async def test_without_its_file_the_last_word_holds(damage: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog's own loop, at a real pod, by a clock of the test's: the file is damaged once it has been read."""
    made = make(place)
    await made.start_pod(pod("once"))
    await made.start_container("once", container("sleep", "1000"))
    file, told = Path(place, "fences"), uptime()
    Fences(process.boot_id(), made._cgroups.places(), told, {"once": 1.2}).save(str(file))
    elapsed, ended, pause = 0.0, list[float](), time.sleep

    def damaged() -> None:
        if damage == "missing":
            file.unlink()
        elif damage == "half":
            file.write_text(file.read_text()[:-4])
        else:
            file.touch()
        assert make(place).renewed() == float("-inf")

    def sleep(seconds: float) -> None:
        nonlocal elapsed
        if not elapsed:
            damaged()
        if Path(place, "pods/once/containers/main/0", watchdog.MARK).exists():
            ended.append(elapsed)
            pause(seconds)  # whoever was killed needs it
        elapsed += seconds

    monkeypatch.setattr(watchdog, "now", lambda: told + elapsed)
    monkeypatch.setattr(watchdog, "_sleep", sleep)
    own = Path(place, "fences.lock")
    own.write_text("own")
    lock = os.open(own, os.O_RDONLY)
    try:
        await asyncio.to_thread(watchdog.watch, place, lock, "own")
    finally:
        os.close(lock)
    assert ended[0] == pytest.approx(1.2) and (await until_ended(made, "once")).reason == "Fenced"
    await made.stop_pod("once")
    await made.close()


def test_what_starts_while_its_pod_is_ended_is_marked_as_well(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat is confirmed and the agent starts a container again, while the watchdog is still at the ones before."""
    name = os.path.basename(place)  # nobody else's on this machine: processes are found by it
    containers = Path(place, "pods", name, "containers/main")
    started: list[process.Identity] = []
    pause = time.sleep

    def start(attempt: int) -> None:
        (containers / str(attempt)).mkdir(parents=True)
        started.append(process.spawn(["/bin/sleep", "1000"], env={"NEMO_POD_UID": name}))
        until = time.monotonic() + DEADLINE
        while ("NEMO_POD_UID", name) not in process.environ(started[-1].pid) and time.monotonic() < until:
            pause(0.01)  # its program has not begun

    def sleep(seconds: float) -> None:
        if len(started) == 1:
            start(1)
        pause(seconds)

    monkeypatch.setattr(watchdog, "_sleep", sleep)
    try:
        start(0)
        assert watchdog.Pod(place, name, []).end()
        assert [(containers / str(attempt) / watchdog.MARK).exists() for attempt in (0, 1)] == [True, True]
    finally:
        for each in started:
            each.end()


async def test_what_it_costs(place: str, running: SandboxRuntime) -> None:
    """Memory of its own, and time; a heartbeat writes no file anew."""
    pid = await until_watched(place)
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    table = {row[0]: int(row[1]) for row in rows}
    assert table["Private_Dirty:"] + table["Private_Clean:"] < 5000, table
    before = os.stat(os.path.join(place, "fences"))
    told = uptime()
    await running.fence(told, {"once": 60.0})
    after = os.stat(os.path.join(place, "fences"))
    assert before.st_ino == after.st_ino and after.st_mtime == pytest.approx(told, abs=0.01)


async def test_a_heartbeat_needs_no_room_and_a_start_that_has_none_is_refused(place: str, running: SandboxRuntime) -> None:
    with full_disk():
        told = uptime()
        await running.fence(told, {"once": 60.0})
        with pytest.raises(OSError, match="large"):
            await running.fence(uptime(), {"once": 60.0, "new": 60.0})
    assert make(place).renewed() == pytest.approx(told, abs=0.01)


async def test_an_end_that_cannot_be_written_is_known_and_cleaned_up(place: str) -> None:
    made = make(place)
    await made.start_pod(pod())
    await made.start_container(pod().uid, container("sh", "-c", "setsid sleep 1000 & echo ready; exec sleep 2000"))
    await until_logged(made, pod().uid, b"ready")
    (directory,) = Path(place, "pods", pod().uid, "containers/main").iterdir()
    (main,) = process.children(records.read(str(directory))["monitor"][0])
    with full_disk():
        os.kill(main, signal.SIGKILL)
        assert (await until_ended(made, pod().uid)).exit_code == 137
        async with asyncio.timeout(DEADLINE):
            while any(dict(process.environ(each.pid)).get("NEMO_POD_UID") == pod().uid for each in process.everyone()):
                await asyncio.sleep(0.02)
    await made.close()
    again = make(place)
    assert (await until_ended(again, pod().uid)).exit_code == 137
    await again.stop_pod(pod().uid)
    await again.close()


async def test_another_run_of_the_machine(place: str) -> None:
    Fences("another", [], uptime(), {"once": 0.0}).save(os.path.join(place, "fences"))
    assert make(place).renewed() == float("-inf"), "no pod has outlived that"
    began = time.monotonic()
    started = process.spawn(command(place), env={})
    await process.ended(started)
    assert time.monotonic() - began < DEADLINE


def test_times_are_those_of_the_clock_that_is_handed_in(tmp_path: Path) -> None:
    clock = FakeClock()
    Fences(process.boot_id(), [], uptime() - 5.0, {"once": 7.0, "gone": 4.0}).save(str(tmp_path / "fences"))
    made = SandboxRuntime(str(tmp_path), clock=clock, isolation="none")
    assert made.renewed() == pytest.approx(clock.monotonic() - 5.0, abs=0.5)


async def test_it_hits_nobody_else(place: str, running: SandboxRuntime) -> None:
    """A number that is another process's by now."""
    other = process.spawn(["sleep", "1000"], env={})
    (found,) = Path(place, "pods", "once", "containers", "main").iterdir()
    said = (found / "record").read_text()
    at = said.index('"monitor": [') + len('"monitor": [')
    try:
        (found / "record").write_text(f"{said[:at]}{other.pid}, {other.start - 1}{said[said.index(']', at) :]}")
        async with asyncio.timeout(DEADLINE):
            # By its environment, which a container has once its program runs.
            while not watchdog.Pod(place, "once", []).running():
                await asyncio.sleep(0.02)
        watchdog.Pod(place, "once", []).end()
        assert other.alive() and (await until_ended(running, "once")).exit_code == 137
        found_state = await state(running, "once")
        assert found_state is not None and not found_state.running
    finally:
        other.kill()
        await process.ended(other)
