"""``nemo twin calibrate``: starts the processes, plays for real and in the twin, and ends them, whatever happens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any

import click

from metaos.cli.connection import with_client
from metaos.cli.doctor import isolation
from metaos.clock import SystemClock
from metaos.resources.errors import ApiError
from metaos.twin.calibration import Tolerance
from metaos.twin.calibration import calibrated as compare
from metaos.twin.observed import Observed, observed
from metaos.twin.processes import Processes, ProcessesFailed
from metaos.twin.real import RealPlay, playable
from metaos.twin.scenario import load
from metaos.twin.story import Scenario
from metaos.twin.text import read


def calibrated(file: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The report. Raises ``ScenarioError``, ``click.ClickException``."""
    story = load(file)
    playable(read(file), story, os.cpu_count() or 1)
    real = played(story, tell)

    def play(candidate: Scenario) -> Observed:
        tell(f"the twin plays it ({candidate.timing})")
        return observed(candidate)

    return compare(story, real, play, Tolerance())


def played(story: Scenario, tell: Callable[[str], None]) -> Observed:
    """For real. Raises ``click.ClickException``."""
    isolated, timing = isolation().level == "ok", story.timing
    if not isolated:
        tell("this kernel refuses user namespaces: pods run without isolation")
    with tempfile.TemporaryDirectory(prefix="nemo-calibrate-") as folder:
        directory = Path(folder) / "continuum"
        directory.mkdir()
        processes = Processes(
            directory,
            isolated=isolated,
            lease_seconds=timing.lease,
            heartbeat_seconds=timing.heartbeat,
            drain_seconds=timing.drain,
            metering_seconds=timing.metering,
        )
        play = RealPlay(story, processes, tell)
        try:
            play.boot()
            clock, random = SystemClock(), SystemRandom()
            return with_client(processes.kubeconfig, processes.data, lambda client: play.run(client, clock, random))
        except (ProcessesFailed, ApiError) as error:
            raise click.ClickException(f"it could not be played for real: {error}") from None
        finally:
            processes.stop()


def written(scenario: Path, report: dict[str, Any], file: Path) -> None:
    """The scenario with the settings that were fitted. Raises ``click.ClickException``."""
    import yaml

    text = {**read(scenario).value, **report["settings"]["after"]}
    try:
        file.write_text(yaml.safe_dump(text, sort_keys=False, width=120))
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}; choose another file") from None
