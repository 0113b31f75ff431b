"""Writing to the hub in turns: each key is looked at by one worker at a time, failures later and later, and all of them
at once when the hub is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import nullcontext
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Generic, TypeVar

from metaos.agent.contact import Contact
from metaos.clock import Clock
from metaos.reconcile.precedence import Precedence, Turn
from metaos.reconcile.workqueue import Closed, WorkQueue
from metaos.resources.errors import ApiError

log = logging.getLogger(__name__)

#: While the hub is away nothing is tried sooner: heartbeats notice its return, and then everything is looked at again.
UNREACHABLE_SECONDS = 10.0

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """``step`` brings one key forward; ``what`` names the keys for the log. At most ``workers`` steps at a time. Where there is
    a ``precedence``, steps whose ``turn`` is last wait for those whose turn is first."""

    def __init__(
        self,
        contact: Contact,
        clock: Clock,
        random: Random,
        step: Callable[[K], Awaitable[None]],
        what: str,
        workers: int = 4,
        precedence: Precedence | None = None,
        turn: Turn = Turn.LAST,
    ) -> None:
        self._contact, self._step, self._what, self._workers = contact, step, what, workers
        self._precedence, self._turn = precedence, turn
        self._queue: WorkQueue[K] = WorkQueue(clock, random)
        #: Who waits for a step, by key.
        self._waiting: dict[K, list[asyncio.Future[None]]] = {}

    def add(self, key: K, seconds: float) -> None:
        """Look at ``key`` after ``seconds`` at the latest."""
        self._queue.add_after(key, seconds)

    async def once(self, key: K) -> None:
        """Look at ``key`` now; returns when a step that began after this call has ended, however it went."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(waiting)
        self._queue.add(key)
        await waiting

    async def run(self) -> None:
        """Never returns."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        finally:
            await self._queue.close()

    async def _work(self) -> None:
        precedence, first = self._precedence, self._turn is Turn.FIRST
        while True:
            try:
                if precedence is not None and self._turn is Turn.LAST:
                    await self._queue.wait()
                    await precedence.after()
                key = await self._queue.get()
            except Closed:
                return
            waiting = self._waiting.pop(key, ())
            try:
                with precedence.ahead() if precedence is not None and first else nullcontext():
                    await self._step(key)
                self._queue.forget(key)
            except ApiError as error:
                self._contact.missed(error)
                if error.code == 503:
                    self._queue.add_after(key, UNREACHABLE_SECONDS)
                else:
                    self._queue.retry(key, error.retry_after_seconds)
                # The first failures of a kind are often a race with someone else; only lasting ones are news.
                if error.code != 503 and self._queue.failures(key) in (8, 16):
                    log.warning("%s %s fails again and again: %s", self._what, key, error.message)
            finally:
                self._queue.done(key)
                for each in waiting:
                    if not each.done():
                        each.set_result(None)
