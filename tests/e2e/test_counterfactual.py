"""What a real hub has booked of real pods, replayed in the twin under another policy, by the commands that people use."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]
PERIOD = 5


@pytest.fixture
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    directory = tmp_path_factory.mktemp("counterfactual") / "c"
    directory.mkdir()
    found = Continuum(directory, isolated=True, metering_seconds=PERIOD)
    try:
        found.start_hub()
        found.add_sites("edge-paris", "cloud-frankfurt")
        yield found
    finally:
        found.stop()


def test_what_was_booked_is_replayed_against_a_policy(continuum: Continuum) -> None:
    continuum.kubectl("create", "deployment", "web", "--image=python:3", "--replicas=2", "--", "sleep", "3600")
    continuum.kubectl("rollout", "status", "deployment/web", "--timeout=30s")

    def booked() -> bool:
        groups = json.loads(continuum.nemo("carbon", "--by", "workload", "-o", "json"))["groups"]
        return any(float(group["podHours"]) * 3600 > 2 * 4 * PERIOD for group in groups)

    wait_for("several periods to be booked", booked, 90, 1.0)
    told = json.loads(continuum.nemo("cost", "--against", "twin:cheapest", "--workload", "Deployment/web", "-o", "json"))
    rows = {row["figure"]: row for row in told["figures"]}
    assert told["policy"] == "cheapest" and not told["leftOut"] and len(told["assumed"]) == 4
    assert float(rows["energyKWh"]["booked"]) > 0 and float(rows["cost EUR"]["booked"]) > 0
    # Pods begin within a period, and where they wait for their site in the replay is a second or two of half a minute.
    assert abs(float(rows["energyKWh"]["replayError"])) < 0.25, told
    assert float(rows["cost EUR"]["policy"]) <= float(rows["cost EUR"]["nemo"]) * 1.001
    text = continuum.nemo("carbon", "--against", "twin:no-intents")
    assert "NEMO replayed" in text and "saved by NEMO" in text and "assumed: " in text
