"""Large decisions in a process of their own: the same answers, a new one for one that died, none that outlives the hub."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metaos.controllers.worker import WorkerProcess, at_once
from metaos.resources.errors import ApiError
from metaos.resources.meta import label_selector

pytestmark = pytest.mark.system


def wrong(value: int) -> int:
    raise ValueError(f"{value} makes no sense")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def selected(selector: object, found: dict[str, str]) -> tuple[bool, int]:
    assert callable(selector)
    return bool(selector(found)), os.getpid()


async def test_what_is_asked_is_answered_elsewhere_and_errors_come_back() -> None:
    worker = WorkerProcess()
    try:
        assert worker.pid is None
        rule = label_selector({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}]})
        answer, where = await worker.decide(selected, rule, {"a": "b", "c": "d"})
        assert answer and where != os.getpid() and where == worker.pid
        with pytest.raises(ValueError, match="7 makes no sense"):
            await worker.decide(wrong, 7)
        # What cannot be sent is decided here.
        assert (await worker.decide(selected, lambda found: False, {}))[1] == os.getpid()
        # One that has died is replaced.
        os.kill(where, signal.SIGKILL)
        assert (await worker.decide(selected, rule, {}))[0] is False
        assert worker.pid not in (where, None)
        with pytest.raises(ApiError, match="died twice"):
            await worker.decide(die)
        assert await worker.decide(len, "abc") == 3
    finally:
        worker.close()


async def test_in_the_twin_it_is_here_and_now() -> None:
    assert await at_once(selected, label_selector(None), {}) == (False, os.getpid())


HUB = """
import asyncio, os, sys
from metaos.controllers.worker import WorkerProcess

async def main():
    worker = WorkerProcess()
    await worker.decide(len, "abc")
    print(worker.pid, flush=True)
    await worker.decide(__import__("time").sleep, 600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_it_ends_with_a_hub_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "hub.py"
    file.write_text(HUB)
    hub = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert hub.stdout is not None
    pid = int(await asyncio.to_thread(hub.stdout.readline))
    hub.kill()
    hub.wait()
    hub.stdout.close()
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.05)
