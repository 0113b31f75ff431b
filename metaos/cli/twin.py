"""``nemo twin``: try things before they happen, on a simulated continuum with the real hub and agents."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from metaos.cli.options import OUTPUT, default_data, hub_options

SCENARIO = click.argument("scenario", type=click.Path(path_type=Path))


@click.group()
def twin() -> None:
    """Try things before they happen, in virtual time.

    The hub and its controllers are the real ones; so are agents, up to 20 sites.

    \b
    Example: nemo twin run examples/scenarios/lost-site.yaml --html report.html
    """


@twin.command("run")
@SCENARIO
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than the scenario's.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="So many seeds, one after another.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Play many seeds in so many processes.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report with plots to this file.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Write every event, one a line, to this file.")
@click.option(
    "--minimise",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it fails, write the smallest story that still does.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what hub and sites log.")
@OUTPUT
def run(
    scenario: Path,
    seed: int | None,
    seeds: int,
    jobs: int,
    html: Path | None,
    log: Path | None,
    minimise: Path | None,
    verbose: bool,
    output: str,
) -> None:
    """Play SCENARIO: exit code 0 where all expected held.

    \b
    Example: nemo twin run examples/scenarios/small-chaos.yaml --seeds 1000 --jobs 2
    """
    from metaos.cli.output import emit
    from metaos.twin.report import again, summary, write_html
    from metaos.twin.scenario import load
    from metaos.twin.text import ScenarioError

    _logging(verbose)
    try:
        found = load(scenario)
    except ScenarioError as error:
        raise click.ClickException(str(error)) from None
    first = found.seed if seed is None else seed
    if seeds > 1 and (html is not None or log is not None):
        raise click.UsageError("a report or log is of one seed: leave --html and --log out, or --seeds and say --seed N")
    failed = 0
    for report in _reports(found, range(first, first + seeds), jobs, log):
        failed += not report["passed"]
        if seeds == 1 or not report["passed"]:
            emit(report, output, text=summary(report))
        if not report["passed"]:
            click.echo(f"to see it again: {again(report)}", err=True)
            if minimise is not None:
                _minimise(found.with_seed(report["seed"]), minimise)
                minimise = None
        if html is not None:
            _html(write_html, report, html)
    if seeds > 1:
        click.echo(f"{seeds} seeds from {first}: {seeds - failed} held, {failed} did not", err=output != "text")
    sys.exit(1 if failed else 0)


@twin.command("from-live")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--hours", type=click.FloatRange(min=0.1, max=8760), default=24.0, show_default=True, help="How long it lasts.")
@hub_options
def from_live(file: Path, hours: float, kubeconfig: Path | None, data: Path | None) -> None:
    """Write the running continuum to FILE, as a scenario.

    It says what is not copied, such as where things run now. Add faults and expectations, then play it.

    \b
    Example: nemo twin from-live mine.yaml && nemo twin run mine.yaml
    """
    import yaml

    from metaos.cli.connection import with_client
    from metaos.twin.live import scenario_of

    found = with_client(kubeconfig, data or default_data("hub"), lambda client: scenario_of(client, hours))
    if not found.text["sites"]:
        raise click.ClickException("the hub has no sites: there is nothing to simulate yet")
    if found.trace:
        trace = file.with_suffix(".carbon.csv")
        trace.write_text(found.trace)
        found.text["carbon"] = {"trace": trace.name}
        click.echo(f"wrote {trace}", err=True)
    head = "".join(f"# {line}\n" for line in found.told)
    file.write_text(head + yaml.safe_dump(found.text, sort_keys=False, width=120))
    click.echo(f"wrote {file}: {len(found.text['sites'])} sites, {len(found.text['objects'])} objects", err=True)
    for line in found.told:
        click.echo(f"  {line}", err=True)


@twin.command("replay")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--on", "base", type=click.Path(path_type=Path), required=True, help="The scenario whose sites take the jobs.")
@click.option("--rows", type=click.IntRange(min=1), help="The first so many jobs only.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than the scenario's.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report with plots to this file.")
@OUTPUT
def replay(trace: Path, base: Path, rows: int | None, seed: int | None, html: Path | None, output: str) -> None:
    """Play the jobs of TRACE on a scenario's sites.

    TRACE is a CSV file: arrival_time,length,cpus in seconds and processors.

    \b
    Example: nemo twin replay jobs.csv --on examples/scenarios/lost-site.yaml --rows 100
    """
    from metaos.cli.output import emit
    from metaos.twin.replay import replayed
    from metaos.twin.report import summary, write_html
    from metaos.twin.scenario import load
    from metaos.twin.text import ScenarioError

    _logging(False)
    try:
        found = replayed(load(base).with_seed(seed), trace, rows or 0)
    except ScenarioError as error:
        raise click.ClickException(str(error)) from None
    report = _play(found, None)
    emit(report, output, text=summary(report))
    if html is not None:
        _html(write_html, report, html)
    sys.exit(0 if report["passed"] else 1)


@twin.command("calibrate")
@SCENARIO
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report with plots to this file.")
@click.option(
    "--write",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the scenario to this file, with the timing and link that were measured.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the twin's hub and sites log.")
@OUTPUT
def calibrate(scenario: Path, html: Path | None, write: Path | None, verbose: bool, output: str) -> None:
    """Play SCENARIO on real processes of this machine, and in the twin, and set both side by side.

    It takes as long as the scenario says, and less than a minute more. The twin's timing is fitted to what was measured:
    exit code 0 where it then agrees.

    \b
    Example: nemo twin calibrate examples/scenarios/calibration.yaml --html report.html --write calibrated.yaml
    """
    from metaos.cli.calibration import calibrated, written
    from metaos.cli.output import emit
    from metaos.twin.sidebyside import summary, write_html
    from metaos.twin.text import ScenarioError

    _logging(verbose)
    # Whoever is ended ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = calibrated(scenario, lambda text: click.echo(text, err=True))
    except ScenarioError as error:
        raise click.ClickException(str(error)) from None
    emit(report, output, text=summary(report))
    if html is not None:
        _html(write_html, report, html)
    if write is not None:
        written(scenario, report, write)
        click.echo(f"wrote {write}", err=True)
    sys.exit(0 if report["held"] else 1)


def _html(write: Any, report: dict[str, Any], file: Path) -> None:
    try:
        write(report, file)
    except ImportError:
        raise click.ClickException("plots need matplotlib: pip install 'nemo-metaos[pictures]'") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}; choose another file") from None
    click.echo(f"wrote {file}", err=True)


def _play(scenario: Any, log: Path | None) -> dict[str, Any]:
    import time

    from metaos.twin.play import play

    shown = sys.stderr.isatty()

    def progress(share: float, text: str) -> None:
        if shown:
            click.echo(f"\r{share:4.0%}  {text}\033[K", err=True, nl=False)

    began = time.monotonic()
    try:
        if log is None:
            report = play(scenario, progress=progress)
        else:
            with log.open("w") as file:
                report = play(scenario, progress=progress, log=file)
    except OSError as error:
        raise click.ClickException(f"{error.filename or log} cannot be written: {error.strerror}") from None
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)
    click.echo(f"simulated {report['simulated']['seconds']:.0f} s in {time.monotonic() - began:.1f} s", err=True)
    return report


def _reports(scenario: Any, numbers: range, jobs: int, log: Path | None) -> Iterator[dict[str, Any]]:
    """Of every seed; with several ``jobs`` of those that did not hold."""
    if jobs == 1:
        for number in numbers:
            yield _play(scenario.with_seed(number), log)
        return
    from metaos.twin.seeds import failing

    def played(done: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {len(numbers)} seeds\033[K", err=True, nl=False)

    yield from failing(scenario, numbers, jobs, played)


def _minimise(scenario: Any, file: Path) -> None:
    from metaos.twin.minimise import minimise, text_of

    smallest, tries = minimise(scenario, lambda text: click.echo(text, err=True))
    file.write_text(text_of(smallest))
    click.echo(f"wrote {file} after {tries} tries: {len(smallest.faults)} faults, {len(smallest.workloads)} workloads", err=True)


def _logging(verbose: bool) -> None:
    import logging

    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, format="%(levelname)s %(name)s: %(message)s")
