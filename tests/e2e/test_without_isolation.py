"""Where the kernel allows no user namespaces: the agent says so and runs nothing, the demonstration falls back by itself.

For real: in a user namespace in which no further ones may be made.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FORBID = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
_CHECK = """
import asyncio, sys
from metaos.clock import SystemClock
from metaos.plugins.points import RuntimeUnavailable
from metaos.runtimes.sandbox import SandboxRuntime
try:
    asyncio.run(SandboxRuntime(sys.argv[1], clock=SystemClock()).check())
except RuntimeUnavailable as error:
    print(error)
"""


def forbidden(*command: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs a command where user namespaces are forbidden."""
    before = ["unshare", "--user", "--map-root-user", "sh", "-c", _FORBID, "sh"]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces itself: nothing can be forbidden in one")
    return subprocess.run([*before, *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT)


@pytest.mark.system
def test_the_remedy_is_said(tmp_path: Path) -> None:
    said = forbidden(sys.executable, "-c", _CHECK, str(tmp_path), timeout=60).stdout
    assert "user.max_user_namespaces=15000" in said and "isolation: none" in said
    assert not any(tmp_path.rglob("pod.json"))


@pytest.mark.system
def test_the_doctor_knows() -> None:
    done = forbidden(sys.executable, "-m", "metaos", "doctor", timeout=60)
    assert done.returncode != 0 and "user.max_user_namespaces=15000" in done.stdout.replace("\n", " ")


@pytest.mark.slow
def test_the_demonstration_falls_back(tmp_path: Path) -> None:
    done = forbidden(sys.executable, "-m", "examples.demo", "--keep-logs", str(tmp_path), timeout=300)
    text = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout[-5000:]
    notice = "This machine does not let NEMO isolate containers"
    assert text.startswith(notice) and text.count(notice) == 2 and text.rstrip().endswith("in the site file")
    assert "Every step was checked" in text
