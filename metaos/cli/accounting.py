"""``nemo carbon``, ``nemo cost`` and ``nemo ledger``: their words and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from metaos.cli.options import OUTPUT, default_data, hub_options

_GROUPINGS = ("namespace", "workload", "pod", "intent", "site", "owner")
#: Before the name of a policy that the twin replays.
TWIN = "twin:"
_POLICIES = "twin:cheapest, twin:nearest, twin:no-intents, twin:start-at-once"
_FILE = click.Path(path_type=Path, dir_okay=False)


def _selection(command: Any) -> Any:
    """Which lines of the ledger."""
    for option in reversed(
        (
            click.option(
                "--since", default="", metavar="TIME", help="Periods that end after: 2026-11-30T10:00:00Z, a day, or 24h (ago)."
            ),
            click.option("--until", default="", metavar="TIME", help="Periods that end then or before."),
            click.option(
                "-n", "--namespace", "namespaces", multiple=True, help="Only of this namespace [default: all you may see]."
            ),
            click.option("--site", "sites", multiple=True, help="Only at this site."),
            click.option(
                "--workload", default="", metavar="KIND/NAME", help="Only of this workload, for example Deployment/web."
            ),
            click.option("--pod", default="", help="Only of pods of this name."),
        )
    ):
        command = option(command)
    return command


def _printing(command: Any) -> Any:
    """How statements are asked for and printed."""
    for option in reversed(
        (
            click.option(
                "--by", type=click.Choice(_GROUPINGS), default="namespace", show_default=True, help="What the sums are by."
            ),
            click.option("--system", is_flag=True, help="Also what belonged to no pod."),
            click.option("--plot", type=_FILE, help="Draw it over time: FILE.svg or FILE.png."),
            click.option(
                "-o",
                "--output",
                type=click.Choice(["text", "json", "yaml", "csv", "focus"]),
                default="text",
                help="How to print it; focus: charges as FOCUS 1.2 has them, CSV.",
            ),
        )
    ):
        command = option(command)
    return hub_options(_selection(command))


def _replayed(options: dict[str, Any], output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Against a policy in the twin: one answer for all that is asked for."""
    from metaos.cli.replaying import show

    given = click.get_current_context().get_parameter_source
    words = {"by": "--by", "sites": "--site", "pod": "--pod", "system": "--system", "per": "--per", "plot": "--plot"}
    unfit = [option for word, option in words.items() if given(word) is ParameterSource.COMMANDLINE]
    unfit += [f"-o {output}"] if output in ("csv", "focus") else []
    if unfit:
        raise click.UsageError(f"a replay is told as a whole, of namespaces or of one workload: leave {unfit[0]} out")
    show(options, output, kubeconfig, data or default_data("hub"))


def _spec(options: dict[str, Any]) -> dict[str, Any]:
    wanted = ("by", "since", "until", "system", "workload", "pod", "against")
    lists = {word: list(options[word]) for word in ("namespaces", "sites")}
    return {word: options[word] for word in wanted if options.get(word)} | {k: v for k, v in lists.items() if v}


@click.command()
@_printing
@click.option(
    "--against",
    default="",
    metavar="SITE",
    help="Also what the same work had emitted at SITE, on 'average', or 'everything-local'; or, replayed in the twin under "
    f"another policy: {_POLICIES}.",
)
@click.option("--per", default="core-hour", show_default=True, help="SCI per core-hour, pod-hour, gib-hour, or NAME=COUNT.")
def carbon(per: str, plot: Path | None, output: str, kubeconfig: Path | None, data: Path | None, **options: Any) -> None:
    """Show energy and emissions, by the Software Carbon Intensity (ISO/IEC 21031), from the hub's ledger.

    What is not known is '-', never 0; '*' marks sums of lines some of which are not known.

    \b
    Example: nemo carbon --by workload -n shop --since 24h --plot carbon.svg
             nemo carbon --by site --against average
             nemo carbon --since 24h --against twin:no-intents
    """
    from metaos.cli.accounts import show

    if options["against"].startswith(TWIN):
        _replayed(options, output, kubeconfig, data)
        return

    show(_spec(options), money=False, per=per, plot=plot, output=output, kubeconfig=kubeconfig, data=data or default_data("hub"))


@click.command()
@_printing
@click.option(
    "--against",
    default="",
    metavar="POLICY",
    help=f"What it had cost under another policy, replayed in the twin: {_POLICIES}.",
)
def cost(plot: Path | None, output: str, kubeconfig: Path | None, data: Path | None, **options: Any) -> None:
    """Show what use of sites costs, by the tariffs that were agreed, from the hub's ledger.

    \b
    Example: nemo cost --by owner --since 2026-11-01 --until 2026-12-01 -o focus > november.csv
             nemo cost --since 24h --against twin:cheapest
    """
    from metaos.cli.accounts import show

    if options["against"]:
        if not options["against"].startswith(TWIN):
            raise click.BadParameter(f"{options['against']!r} must be one of {_POLICIES}", param_hint="--against")
        _replayed(options, output, kubeconfig, data)
        return

    show(
        _spec(options),
        money=True,
        per="core-hour",
        plot=plot,
        output=output,
        kubeconfig=kubeconfig,
        data=data or default_data("hub"),
    )


@click.group()
def ledger() -> None:
    """The hub's ledger of usage: export it, verify it without the hub, sign it.

    \b
    Example: nemo ledger export all.ndjson; nemo ledger verify all.ndjson --key ed25519:...
    """


@ledger.command("export")
@click.argument("file", type=_FILE)
@OUTPUT
@hub_options
def ledger_export(file: Path, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Write the whole ledger with its checkpoints to FILE, one JSON document a line, and verify that.

    \b
    Example: nemo ledger export ledger.ndjson
    """
    from metaos.cli import ledger as act
    from metaos.cli.output import emit

    found = act.export(file, kubeconfig, data or default_data("hub"))
    emit(act.said(found), output, text=act.text_of(found, ""))


@ledger.command("verify")
@click.argument("file", type=click.Path(exists=True, path_type=Path, dir_okay=False))
@click.option("--key", default="", help="The key that is trusted: one of those that signed; ed25519:HEX.")
@OUTPUT
def ledger_verify(file: Path, key: str, output: str) -> None:
    """Check FILE, an export or receipts, without the hub: exit code 0 where nothing was changed.

    \b
    Example: nemo ledger verify receipts.ndjson --key ed25519:1f...
    """
    from metaos.cli.ledger import check

    check(file, key, output)


@ledger.command("receipts")
@_selection
@click.option("--most", type=click.IntRange(1, 200), default=200, show_default=True, help="Of so many periods at most.")
@click.option("--file", type=_FILE, help="Write them here, and not to the standard output.")
@hub_options
def ledger_receipts(most: int, file: Path | None, kubeconfig: Path | None, data: Path | None, **options: Any) -> None:
    """Print receipts: signed proofs of lines of the ledger that show no others' lines; one JSON document a line.

    \b
    Example: nemo ledger receipts -n shop --since 1h --file receipts.ndjson
    """
    from metaos.cli.accounts import moment
    from metaos.cli.ledger import receipts
    from metaos.clock import SystemClock

    spec, now = _spec(options), SystemClock().now()
    spec |= {word: moment(spec[word], f"--{word}", now) for word in ("since", "until") if word in spec}
    receipts({**spec, "receipts": most}, file, kubeconfig, data or default_data("hub"))


def _on_keys(name: str, path: str, text: str) -> Callable[..., None]:
    @ledger.command(name, help=text)
    @OUTPUT
    @hub_options
    def command(output: str, kubeconfig: Path | None, data: Path | None) -> None:
        from metaos.cli.ledger import keys

        keys(kubeconfig, data or default_data("hub"), output, path=path)

    return command


_on_keys("keys", "/ledger/keys", "Show which keys sign and have signed the ledger.\n\n\b\nExample: nemo ledger keys -o json")
_on_keys("sign", "/ledger/checkpoint", "Sign now what is booked and not signed yet.\n\n\b\nExample: nemo ledger sign")
_on_keys(
    "rotate",
    "/ledger/rotate",
    "Sign with a new key from now on. The older one announces it, and is removed.\n\n\b\nExample: nemo ledger rotate",
)


@ledger.command("archive")
@click.argument("file", type=_FILE)
@click.option(
    "--before", required=True, metavar="TIME", help="What was signed before: 2026-11-30T10:00:00Z, a day, or 400d (ago)."
)
@OUTPUT
@hub_options
def ledger_archive(file: Path, before: str, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Move the oldest part of the ledger to FILE: it is exported, verified, and only then removed from the hub.

    \b
    Example: nemo ledger archive 2025.ndjson --before 400d
    """
    from metaos.cli.accounts import moment
    from metaos.cli.ledger import archive
    from metaos.clock import SystemClock

    archive(file, moment(before, "--before", SystemClock().now()), output, kubeconfig, data or default_data("hub"))
