"""A local copy of one kind, kept up to date by list and watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind

OnChange = Callable[[Obj | None, Obj | None], None]
IndexFunction = Callable[[Obj], Iterable[str]]


class Informer:
    """Objects of ``kind`` (in ``namespace``, matching the selectors), as of a moment ago.

    Objects handed out are the cache's own: **never change them**, copy first (``copy.deepcopy``).
    """

    def __init__(
        self, client: Client, clock: Clock, random: Random, kind: Kind, namespace: str = "", labels: str = "", fields: str = ""
    ) -> None:
        self.kind = kind

    def get(self, name: str, namespace: str = "") -> Obj | None:
        """The cached object, or ``None``."""
        raise NotImplementedError

    def list(self, namespace: str = "") -> list[Obj]:
        """All cached objects, or those of one namespace, ordered by (namespace, name)."""
        raise NotImplementedError

    def by_index(self, index_name: str, value: str) -> list[Obj]:
        """The objects for which the index function yielded ``value``, ordered by (namespace, name)."""
        raise NotImplementedError

    def add_index(self, name: str, fn: IndexFunction) -> None:
        """Keep an index; adding the same name again does nothing."""
        raise NotImplementedError

    def on_change(self, callback: OnChange) -> None:
        """Call ``callback(old, new)`` after every change (``old`` None: added; ``new`` None: gone). Must not block."""
        raise NotImplementedError

    async def synced(self) -> None:
        """Returns once the first list is in the cache."""
        raise NotImplementedError
