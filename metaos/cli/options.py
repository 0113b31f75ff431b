"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

MOST_SECONDS = 1e9


class _Seconds(click.FloatRange):
    """A duration. One that ends when no calendar goes on is a mistake."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not found <= MOST_SECONDS:
            self.fail(f"{value} must be at most {MOST_SECONDS:g} seconds, which are 31 years.", param, ctx)
        return found


class _Period(click.IntRange):
    """A part of an hour."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if 3600 % found:
            self.fail(f"{value} must divide an hour: say for example 60, 300 or 900.", param, ctx)
        return found


SECONDS = _Seconds(min=1)
PERIOD = _Period(1, 3600)


class _Address(click.ParamType):  # type: ignore[type-arg]  # (generic in stubs only)
    """An IPv4 address at which others can reach this machine."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ipaddress import IPv4Address

        try:
            found = IPv4Address(value)
        except ValueError:
            self.fail(f"{value!r} is no IPv4 address, such as 10.0.0.7", param, ctx)
        if found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast:
            self.fail(f"{value} is not one at which pods reach this machine: name that of its card, or the pod's own", param, ctx)
        return str(found)


class _Host(click.ParamType):  # type: ignore[type-arg]  # (generic in stubs only)
    """A host name (RFC 1123, a wildcard too) or an address, as it stands in a certificate."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import re
        from ipaddress import ip_address

        label = r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
        if len(value) <= 253 and re.fullmatch(rf"(\*\.)?{label}(\.{label})*", value):
            return str(value)
        try:
            return str(ip_address(value))
        except ValueError:
            self.fail(f"{value!r} is neither a host name, such as hub.example.org, nor an address, such as 10.0.0.7", param, ctx)


class _Exposure(click.ParamType):  # type: ignore[type-arg]  # (generic in stubs only)
    """Where a site answers for Services."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from metaos.config import Exposure

        if isinstance(value, Exposure):
            return value
        try:
            return Exposure.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS = _Address()
HOST = _Host()
EXPOSE = click.option(
    "--expose",
    type=_Exposure(),
    metavar="ADDRESS[:PORTS]",
    help="An IPv4 address of this machine, and the ports, such as 80,8000-32767, on which the site answers for Services of the "
    "types LoadBalancer and NodePort [default: 80, 443 and from 1024 on]. Who reaches the address reaches these Services. "
    "Nothing listens without it.",
)
OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
NAMESPACE = click.option("-n", "--namespace", default="", help="The namespace (default: the kubeconfig's, or 'default').")


def _kubeconfig(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """The environment's counts less than a ``--data`` that is typed: its hub is meant. Options that are typed come here first."""
    by = click.core.ParameterSource
    if ctx.get_parameter_source("data") is by.COMMANDLINE and ctx.get_parameter_source(str(param.name)) is by.ENVIRONMENT:
        return None
    return value


def kubeconfig_option(flag: str = "--kubeconfig") -> Callable[[Command], Command]:
    """Which hub a command asks, by a kubeconfig."""
    return click.option(
        flag,
        type=click.Path(path_type=Path),
        envvar="KUBECONFIG",
        callback=_kubeconfig,
        help="Which hub, as whom [default: $KUBECONFIG, unless --data is given; else that of --data].",
    )


def hub_options(command: Any) -> Any:
    """``--kubeconfig`` and ``--data``: how a command finds its hub."""
    command = kubeconfig_option()(command)
    return click.option("--data", type=click.Path(path_type=Path), help="The hub's data directory [default: that of 'nemo up'].")(
        command
    )


def default_data(role: str) -> Path:
    """Where a role keeps its state unless told otherwise."""
    import os

    root = Path("/var/lib/nemo") if os.geteuid() == 0 else Path.home() / ".local/share/nemo"
    return root / role
