"""Client libraries for the API of Kubernetes, unmodified: each runs a program of its own make against a real hub and site."""

import subprocess
from pathlib import Path

import pytest

from tests.ecosystem.conftest import PROGRAMS, Up
from tests.ecosystem.tools import Tools

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.mark.parametrize("program", ["official", "asynchronous", "kr8s_client", "lightkube_client"])
def test_python(up: Up, tools: Tools, namespace: str, program: str) -> None:
    assert "all passed" in up.run(tools.python, PROGRAMS / f"{program}.py", namespace)


def test_javascript(up: Up, tools: Tools, namespace: str) -> None:
    assert "all passed" in up.run("node", PROGRAMS / "client.mjs", namespace, tools.folder)


def test_kopf(up: Up, tools: Tools, namespace: str) -> None:
    """An operator with handlers, a timer, children and a finalizer; what its users see of that."""
    up.kubectl("apply", "-f", str(Path(__file__).parent / "chart/crds"))
    up.kubectl("wait", "--for=condition=Established", "crd/visits.ecosystem.example", "--timeout=30s")
    with (up.folder / "kopf.log").open("wb") as log:
        command = [str(tools.kopf), "run", "-n", namespace, str(PROGRAMS / "visits.py")]
        operator = subprocess.Popen(command, stdout=log, stderr=log, env=up.environment, cwd=up.folder)
    try:
        assert "all passed" in up.run(tools.python, PROGRAMS / "operated.py", namespace)
    except BaseException:
        print((up.folder / "kopf.log").read_text()[-4000:])
        raise
    finally:
        operator.terminate()
        operator.wait(20)
