"""The form of ``--carbon-source``, ``--price-source`` and ``--authenticator``."""

from __future__ import annotations

from typing import Any

import click


class Source(click.ParamType):  # type: ignore[type-arg]  # (generic in stubs only)
    """(name, what it is made of) of a plugin of a group."""

    name = "source"

    def __init__(self, group: str) -> None:
        self._group = group

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        from metaos.plugins.registry import names

        if isinstance(value, tuple):
            return value
        name, _, text = str(value).partition("=")
        if name not in (known := names(self._group)):
            self.fail(f"{name!r} in {value!r} is not installed: NAME in NAME=TEXT is one of {', '.join(known)}", param, ctx)
        return name, text


CARBON_SOURCE, PRICE_SOURCE = Source("metaos.carbon_source"), Source("metaos.price_source")
AUTHENTICATOR = Source("metaos.authenticator")
