"""Finds plugins by entry point. What ships with NEMO is found exactly as a third party's.

Life of a plugin: the class is loaded, called with its settings (provision), its ``validate()`` is called where it has one,
and ``close()`` at the end, which is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


class UnknownPlugin(LookupError):
    """No plugin of that name is installed; the message lists those that are."""


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda p: p.name)}


def names(group: str) -> list[str]:
    """The names of all plugins of a group, sorted."""
    return list(_group(group))


def load(group: str, name: str) -> Any:
    """A plugin's class or function. Raises :class:`UnknownPlugin`."""
    point = _group(group).get(name)
    if point is None:
        raise UnknownPlugin(f"no plugin {name!r} in {group}: installed are {', '.join(names(group)) or 'none'}")
    return point.load()


def load_all(group: str, first: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """All plugins of a group by name: those in ``first`` in that order, then the others, sorted."""
    rank = {name: index for index, name in enumerate(first)}
    return [(name, load(group, name)) for name in sorted(names(group), key=lambda n: (rank.get(n, len(rank)), n))]


def provision(group: str, name: str, *arguments: Any, **settings: Any) -> Any:
    """A ready instance: made, and validated where it can validate itself."""
    found = load(group, name)(*arguments, **settings)
    validate = getattr(found, "validate", None)
    if validate is not None:
        validate()
    return found
