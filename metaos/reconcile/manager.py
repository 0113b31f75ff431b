"""Runs reconcilers: shares informers between them, maps what changed to what is to be looked at, and retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.client import Client
from metaos.clock import Clock
from metaos.reconcile.informer import Informer, Keep, metadata_only
from metaos.reconcile.precedence import Precedence, Turn
from metaos.reconcile.reconciler import Reconciler, TerminalError
from metaos.reconcile.workqueue import Closed, WorkQueue
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef
from metaos.resources.scheme import CONFIG_MAP, SECRET, Kind, by_kind

log = logging.getLogger(__name__)

Mapper = Callable[[Obj], Iterable[ObjectRef]]

#: Of these, and of users' kinds, there are many, they are large, and few are ever needed: an informer of all namespaces keeps
#: their metadata only.
#: Who needs the content of one asks the server for it.
CONTENT_LEFT_OUT = frozenset({CONFIG_MAP, SECRET})
_CONFLICT = 409


@dataclass(slots=True)
class _Controller:
    reconciler: Reconciler
    queue: WorkQueue[ObjectRef]
    workers: int
    turn: Turn


class Manager:
    """Owns informers and workers. Use: ``informer`` and ``add`` as needed, then ``await start()``, ``await stop()``.
    ``precedence``: whom those whose turn is last wait for; without it nobody waits.

    Both may also be called after ``start``. ``metrics`` counts per reconciler, ready for ``/metrics``: ``reconciles``,
    ``errors``, ``depth``.
    """

    def __init__(self, client: Client, clock: Clock, random: Random, precedence: Precedence | None = None) -> None:
        self.client = client
        self.clock = clock
        self._random = random
        self._precedence = precedence
        self._informers: dict[tuple[str, str, str, str, Keep | None], Informer] = {}
        self._controllers: dict[str, _Controller] = {}
        #: In the order in which they began, so that they end in one order.
        self._tasks: list[asyncio.Task[None]] = []
        self._following: dict[Informer, asyncio.Task[None]] = {}
        self._started = False
        self._counts: dict[str, dict[str, int]] = {}

    def informer(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "", keep: Keep | None = None) -> Informer:
        """The shared informer for exactly these arguments. Asked for after ``start``, await its ``synced()``. ``keep``: what is
        kept of each object, where not all of it is needed."""
        key = (kind.resource, namespace, labels, fields, keep)
        found = self._informers.get(key)
        if found is None:
            left_out = kind in CONTENT_LEFT_OUT or by_kind(kind.api_version, kind.kind) is None
            kept = keep or (metadata_only if left_out and not namespace else None)
            found = Informer(self.client, self.clock, self._random, kind, namespace, labels, fields, kept)
            self._informers[key] = found
            if self._started:
                self._run_informer(found)
        return found

    def forget(self, informer: Informer) -> None:
        """Ends an informer whose kind is served no more. Who asks for it again gets another."""
        self._informers = {key: each for key, each in self._informers.items() if each is not informer}
        task = self._following.pop(informer, None)
        if task is not None:
            task.cancel()
            self._tasks.remove(task)

    def add(
        self,
        reconciler: Reconciler,
        watches: Sequence[tuple[Kind, Mapper]],
        workers: int = 1,
        turn: Turn = Turn.ANY,
    ) -> None:
        """Run ``reconciler`` for whatever the mappers yield. A mapper is called for the old and the new object of every
        change, also on the first list, so every existing object is looked at after a start."""
        if reconciler.name in self._controllers:
            raise ValueError(f"there is a reconciler {reconciler.name!r} already")
        queue: WorkQueue[ObjectRef] = WorkQueue(self.clock, self._random)
        controller = _Controller(reconciler, queue, workers, turn)
        self._controllers[reconciler.name] = controller
        self._counts[reconciler.name] = {"reconciles": 0, "errors": 0}
        for kind, mapper in watches:
            self.informer(kind).on_change(_enqueue_mapped(queue, mapper))
        if self._started:
            self._run_workers(controller)

    def enqueue(self, reconciler_name: str, ref: ObjectRef, after: float = 0.0) -> None:
        """Have ``ref`` looked at, now or in ``after`` seconds."""
        self._controllers[reconciler_name].queue.add_after(ref, after)

    @property
    def metrics(self) -> dict[str, dict[str, int]]:
        """Reconciler name → ``reconciles`` and ``errors`` since the start, ``depth`` of its queue now."""
        return {name: counts | {"depth": len(self._controllers[name].queue)} for name, counts in self._counts.items()}

    async def start(self) -> None:
        """Returns when all informers are synced and the workers run. Waits as long as the server cannot be reached."""
        self._started = True
        for informer in self._informers.values():
            self._run_informer(informer)
        for informer in list(self._informers.values()):
            await informer.synced()
        for controller in self._controllers.values():
            self._run_workers(controller)

    async def stop(self) -> None:
        """Cancel workers and watches, and wait until they have ended. A reconcile in flight is cut off where it is: the
        next start looks at its object again."""
        self._started = False
        for controller in self._controllers.values():
            await controller.queue.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._following.clear()

    def _run_informer(self, informer: Informer) -> None:
        task = asyncio.create_task(informer.run(), name=f"informer {informer.kind.resource}")
        self._following[informer] = task
        self._tasks.append(task)

    def _run_workers(self, controller: _Controller) -> None:
        for number in range(controller.workers):
            self._tasks.append(asyncio.create_task(self._work(controller), name=f"{controller.reconciler.name} {number}"))

    async def _work(self, controller: _Controller) -> None:
        precedence = self._precedence
        while True:
            try:
                if precedence is not None and controller.turn is Turn.LAST:
                    await controller.queue.wait()
                    await precedence.after()
                ref = await controller.queue.get()
            except Closed:
                return
            try:
                with precedence.ahead() if precedence is not None and controller.turn is Turn.FIRST else nullcontext():
                    await self._reconcile(controller, ref)
            finally:
                controller.queue.done(ref)

    async def _reconcile(self, controller: _Controller, ref: ObjectRef) -> None:
        name, queue = controller.reconciler.name, controller.queue
        counts = self._counts[name]
        counts["reconciles"] += 1
        try:
            result = await controller.reconciler.reconcile(ref)
        except TerminalError as error:
            counts["errors"] += 1
            queue.forget(ref)
            log.error("%s: %s: giving up until it changes: %s", name, _text(ref), error)
        except Exception as error:
            seconds = queue.retry(ref)
            if isinstance(error, ApiError) and error.code == _CONFLICT:
                # The cache was a moment behind: ordinary, and the retry sees the newer object.
                log.debug("%s: %s: again in %.3f s: %s", name, _text(ref), seconds, error)
                return
            counts["errors"] += 1
            known = isinstance(error, ApiError)
            log.error("%s: %s: failed, again in %.3f s: %s", name, _text(ref), seconds, error, exc_info=None if known else error)
        else:
            queue.forget(ref)
            if result.requeue_after is not None:
                queue.add_after(ref, result.requeue_after)


def _enqueue_mapped(queue: WorkQueue[ObjectRef], mapper: Mapper) -> Callable[[Obj | None, Obj | None], None]:
    def enqueue(old: Obj | None, new: Obj | None) -> None:
        for obj in (old, new):
            if obj is not None:
                for ref in mapper(obj):
                    queue.add(ref)

    return enqueue


def _text(ref: ObjectRef) -> str:
    return f"{ref.kind} {ref.namespace}/{ref.name}" if ref.namespace else f"{ref.kind} {ref.name}"
