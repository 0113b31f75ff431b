"""Commands by which people come in: log-in at an OpenID provider, and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from metaos.cli.options import OUTPUT, default_data, hub_options


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

    Shows an address and a code to enter there, on any device, and waits. Then the kubeconfig in --out is yours. Programs that
    use it get tokens by 'nemo token get', which renews them. The hub's address and authority come from --kubeconfig; its user,
    if it names one, does not matter. What the log-in came to lies beside the kubeconfig (FILE.session) and is secret.

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
    """Tokens of people.

    \b
    Example: nemo token create --name ci --scopes read > ci.token
    """


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


@token.command()
@click.option("--name", "named", required=True, help="What it is for.")
@click.option("--scopes", required=True, help="What it may do, comma-separated: ACCESS[:RESOURCE][@NAMESPACE].")
@click.option("--expires", default="30d", show_default=True, help="How long it counts, for example 12h or 90d; a year at most.")
@OUTPUT
@hub_options
def create(named: str, scopes: str, expires: str, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Make a personal token, and print it: the only time that it is shown.

    It is a bearer token of yours, for what your roles allow and its scopes say. ACCESS is read, write (and read), connect (exec,
    attach, port-forward, proxy) or all. Without RESOURCE it leaves out Secrets, roles and certificates, but for all.

    \b
    Example: nemo token create --name ci --scopes read,write:deployments.apps@shop --expires 90d > ci.token
    """
    from metaos.cli.output import emit
    from metaos.cli.tokens import create as act

    made = act(named, [scope.strip() for scope in scopes.split(",")], expires, kubeconfig, data or default_data("hub"))
    emit(made, output, text=made["token"])


@token.command("list")
@OUTPUT
@hub_options
def list_(output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """List your personal tokens: what they may do, until when, and when they were last used.

    \b
    Example: nemo token list
    """
    from metaos.cli.output import emit
    from metaos.cli.tokens import listed, text

    found = listed(kubeconfig, data or default_data("hub"))
    emit(found, output, text=text(found))


@token.command()
@click.argument("id")
@hub_options
def revoke(id: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Revoke a personal token; what goes on with it is cut off.

    \b
    Example: nemo token revoke 0123456789ab
    """
    from metaos.cli.tokens import revoke as act

    act(id, kubeconfig, data or default_data("hub"))
    click.echo(f"token {id} is revoked")
