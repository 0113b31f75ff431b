"""Commands by which people come in: log-in at an OpenID provider, and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from metaos.cli.options import default_data, hub_options


@click.command()
@click.option("--issuer", required=True, help="The OpenID provider's address, as the hub's configuration names it.")
@click.option("--client-id", required=True, help="The client at the provider: one without a secret, for the device flow.")
@click.option("--scope", default="openid offline_access", show_default=True, help="What to ask the provider for.")
@click.option("--issuer-ca", type=click.Path(path_type=Path), help="PEM of the authority of the provider's certificate.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="nemo.kubeconfig", show_default=True, help="The kubeconfig to write."
)
@hub_options
def login(
    issuer: str,
    client_id: str,
    scope: str,
    issuer_ca: Path | None,
    out: Path,
    kubeconfig: Path | None,
    data: Path | None,
) -> None:
    """Log in as a person, at an OpenID provider.

    Shows an address and a code to enter there, on any device, and waits. Then the kubeconfig in --out is yours: kubectl and nemo
    get tokens by 'nemo token get', which renews them. The hub's address and authority come from --kubeconfig; its user, if it
    names one, does not matter. What the log-in came to lies beside the kubeconfig (FILE.session) and is secret.

    \b
    Example: nemo login --issuer https://id.example.org --client-id nemo --kubeconfig hub.kubeconfig --out ann.kubeconfig
    """
    from metaos.cli.login import login as act

    def show(text: str) -> None:
        click.echo(text, err=True)

    act(issuer, client_id, scope, issuer_ca, out, kubeconfig, data or default_data("hub"), show)
    click.echo(f"You are logged in: export KUBECONFIG={out.absolute()}")


@click.group()
def token() -> None:
    """Tokens of people."""


@token.command()
@click.option("--session", type=click.Path(path_type=Path), required=True, help="The file that 'nemo login' wrote.")
def get(session: Path) -> None:
    """Print a token of a log-in, renewed where it is about to end, for kubectl.

    Kubeconfigs that 'nemo login' writes call it (a client-go credential plugin): it prints an ExecCredential.

    \b
    Example: nemo token get --session ann.session
    """
    import json

    from metaos.cli.login import credential

    found: dict[str, Any] = credential(session)
    click.echo(json.dumps(found))
