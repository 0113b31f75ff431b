"""Runs reconcilers: shares informers between them, maps what changed to what is to be looked at, and retries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.client import Client
from metaos.clock import Clock
from metaos.reconcile.informer import Informer
from metaos.reconcile.reconciler import Reconciler
from metaos.resources.meta import Obj, ObjectRef
from metaos.resources.scheme import Kind

Mapper = Callable[[Obj], Iterable[ObjectRef]]


class Manager:
    """Owns informers and workers. Use: ``informer`` and ``add`` as needed, then ``await start()``, ``await stop()``."""

    def __init__(self, client: Client, clock: Clock, random: Random) -> None:
        self.client = client
        self.clock = clock

    def informer(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> Informer:
        """The shared informer for exactly these arguments."""
        raise NotImplementedError

    def add(self, reconciler: Reconciler, watches: Sequence[tuple[Kind, Mapper]], workers: int = 1) -> None:
        """Run ``reconciler`` for whatever the mappers yield. A mapper is called for the old and the new object of every
        change, also on the first list, so every existing object is looked at after a start."""
        raise NotImplementedError

    def enqueue(self, reconciler_name: str, ref: ObjectRef, after: float = 0.0) -> None:
        """Have ``ref`` looked at, now or in ``after`` seconds."""
        raise NotImplementedError

    async def start(self) -> None:
        """Returns when all informers are synced and the workers run."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Cancel workers and watches, and wait until they have ended."""
        raise NotImplementedError
