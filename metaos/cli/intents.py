"""Intents on the command line: listing them, and their form of 3GPP TS 28.312."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from metaos.cli.options import NAMESPACE, OUTPUT, default_data, hub_options


@click.group()
def intent() -> None:
    """List intents, exchange them in the form of 3GPP TS 28.312.

    \b
    Example: nemo intent list -A
    """


@intent.command("list")
@NAMESPACE
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@OUTPUT
@hub_options
def intent_list(namespace: str, all_namespaces: bool, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """List intents with their fulfilment.

    \b
    Example: nemo intent list -n shop
    """
    from metaos.cli.objects import list_intents

    list_intents("" if all_namespaces else namespace or "default", output, kubeconfig, data or default_data("hub"))


@intent.command("export")
@click.argument("name")
@NAMESPACE
@hub_options
def intent_export(name: str, namespace: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Print an intent as 3GPP TS 28.312 JSON.

    \b
    Example: nemo intent export fast-front -n shop > intent.json
    """
    from metaos.cli.objects import export_intent

    export_intent(name, namespace or "default", kubeconfig, data or default_data("hub"))


@intent.command("import")
@click.argument("file", type=click.File("rb"))
def intent_import(file: Any) -> None:
    """Turn 3GPP TS 28.312 JSON into a manifest, ready for kubectl.

    \b
    Example: nemo intent import intent.json | kubectl apply -f -
    """
    from metaos.cli.objects import import_intent

    import_intent(file.read())
