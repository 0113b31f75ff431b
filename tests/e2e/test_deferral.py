"""A real hub and site over an accelerated replay of carbon intensity: a Job waits for the clean hours, and runs in them."""

import json
from collections.abc import Iterator

import pytest

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.resources.meta import parse_time
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]
#: An hour of the trace takes two seconds; five dirty ones are followed by three clean ones, again and again.
SPEED, HOUR = 1800, 2.0
DAY = [300.0] * 5 + [50.0] * 3


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    directory = tmp_path_factory.mktemp("deferral") / "c"
    found = Continuum(directory, isolated=True)
    directory.mkdir()
    trace = directory / "trace.csv"
    trace.write_text("hour_utc,FR\n" + "".join(f"{hour},{DAY[hour % len(DAY)]}\n" for hour in range(48)))
    try:
        found.start_hub("--carbon-trace", str(trace), "--carbon-speed", str(SPEED))
        found.add_sites("edge-paris")
        yield found
    finally:
        found.stop()


@pytest.mark.slow
def test_a_job_waits_for_clean_hours_and_runs_in_them(continuum: Continuum) -> None:
    continuum.kubectl(
        *("patch", "configmap", "carbon-replay", "-n", "nemo-system", "--type=merge"),
        *("-p", json.dumps({"data": {"startHour": "0", "speed": str(SPEED)}})),
    )
    wait_for("a dirty hour", lambda: _carbon(continuum).get("intensity") == 300, 30)
    container = {
        "name": "main",
        "image": "python:3",
        "command": ["true"],
        "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "patient",
            "annotations": {"meta-os.eu/slack": "60s", "meta-os.eu/expected-duration": "2s"},
        },
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    file = continuum.directory / "job.json"
    file.write_text(json.dumps(job))
    continuum.kubectl("apply", "-f", str(file))
    continuum.kubectl("wait", "job/patient", "--for=condition=Complete", "--timeout=60s")
    done = continuum.get("job", "patient")
    waited = parse_time(done["status"]["startTime"]) - parse_time(done["metadata"]["creationTimestamp"])
    deferral = continuum.get("placement", "job-patient")["status"]["deferral"]
    events = continuum.kubectl("events", "--for", "job/patient")
    assert deferral["started"] and deferral["cluster"] == "edge-paris"
    assert "Deferred" in events and "Started" in events, events
    assert 0 <= waited <= 5 * HOUR + 5
    text = continuum.nemo("why", "job/patient")
    assert "gCO2eq/kWh then, 300 started at once" in text and "against starting at once" in text


def _carbon(continuum: Continuum) -> dict[str, float]:
    found: dict[str, float] = (continuum.get("cluster", "edge-paris").get("status") or {}).get("carbon") or {}
    return found
