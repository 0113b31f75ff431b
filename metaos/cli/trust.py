"""What the hub trusts and what it seals with: its authorities, and the keys of Secrets at rest."""

from __future__ import annotations

from pathlib import Path

import click

from metaos.cli.options import OUTPUT, default_data, hub_options


@click.group()
def ca() -> None:
    """The hub's certificate authority: see it, replace it.

    \b
    Example: nemo ca rotate; nemo ca status; nemo ca retire
    """


@ca.command("status")
@OUTPUT
@hub_options
def ca_status(output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Show which authorities count, and which sites lag behind.

    \b
    Example: nemo ca status
    """
    from metaos.cli.credentials import authority_status, status_text
    from metaos.cli.output import emit

    found = authority_status(kubeconfig, data or default_data("hub"))
    emit(found, output, text=status_text(found))


@ca.command("rotate")
@OUTPUT
@hub_options
def ca_rotate(output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Let a new authority sign from now on. The older one still counts, and connected sites get new certificates by themselves.

    \b
    Example: nemo ca rotate
    """
    from metaos.cli.credentials import rotate, status_text
    from metaos.cli.output import emit

    found = rotate(kubeconfig, data or default_data("hub"))
    emit(found, output, text=status_text(found))


@ca.command("retire")
@click.option("--force", is_flag=True, help="Also where sites are locked out by it: they must join again.")
@OUTPUT
@hub_options
def ca_retire(force: bool, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """End the trust in older authorities. Kubeconfigs and unused join tokens that were made before the rotation end too.

    \b
    Example: nemo ca retire
    """
    from metaos.cli.credentials import retire, status_text
    from metaos.cli.output import emit

    found = retire(kubeconfig, data or default_data("hub"), force=force)
    text = status_text(found)
    if found.get("locked"):
        text = "done. This kubeconfig was made by the old authority: get another with 'nemo kubeconfig' at the hub"
    emit(found, output, text=text)


@click.group("keys")
def keys_group() -> None:
    """Keys with which the hub encrypts Secrets at rest.

    \b
    Example: nemo keys rotate
    """


@keys_group.command("list")
@OUTPUT
@hub_options
def keys_list(output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Say which keys there are, and which are still needed.

    \b
    Example: nemo keys list
    """
    from metaos.cli.upkeep import show_keys

    show_keys(kubeconfig, data or default_data("hub"), output, rotate=False)


@keys_group.command("rotate")
@OUTPUT
@hub_options
def keys_rotate(output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Encrypt with a new key from now on; what older keys encrypted is written again, then they are dropped.

    \b
    Example: nemo keys rotate
    """
    from metaos.cli.upkeep import show_keys

    show_keys(kubeconfig, data or default_data("hub"), output, rotate=True)
