"""Made-up cases are the same in every run, so that green stays green; ``HYPOTHESIS_PROFILE=thorough`` looks at more of them (as
continuous integration does), and ``HYPOTHESIS_PROFILE=explore`` makes up new ones.
How long a case takes is the machine's business, which may have other things to do.

Directories of tests lie in memory where there is plenty: processes are killed here and machines are not (power fails in
``tests/store/power.py`` alone, which writes down every step), so that nothing is gained by waiting for a disk at each write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("steady", max_examples=40, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

MEMORY, PLENTY = Path("/dev/shm"), 8 * 2**30
#: Their tests have nothing in common: each may run by another worker than its neighbours.
APART = ("tests/failing/", "tests/scenarios/", "tests/store/test_kill.py", "tests/store/test_power.py", "tests/twin/")


def _in_memory() -> bool:
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK | os.X_OK):
        return False
    found = os.statvfs(MEMORY)
    return found.f_bavail * found.f_frsize >= PLENTY and not found.f_flag & os.ST_NOEXEC


if _in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with files that start processes, which take longest: what is left at the end is short, and ends everywhere
    at about the same time."""
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("system")}
        items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One file's tests run by one worker, as they share what was set up for them; but for those that are ``APART``."""
    if config.getoption("dist") != "load":
        return None  # Somebody has asked for another way.
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(APART) else str(super()._split_scope(nodeid))

    config.option.loadscopereorder = False
    return Files(config, log)
