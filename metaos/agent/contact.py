"""Whether the hub can be reached, since when the lease holds, and following what happens there.

Every part of the agent reports what it learns here, so that one success wakes all that wait, and one line is logged
per change and not per attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)

from metaos.client import Client, ObjList, WatchEvent
from metaos.clock import Clock, sleep_or
from metaos.http import DROPPED
from metaos.reconcile.workqueue import backoff_seconds
from metaos.resources.errors import ApiError
from metaos.resources.meta import resource_version
from metaos.resources.scheme import Kind

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 15.0
#: A retry is not sooner than this after the last one, also when the hub is back for others.
LEAST_RETRY_SECONDS = 0.2
#: A watch that lasted so long was good: the next one is not delayed as after a failure.
STEADY_SECONDS = 30.0


class Contact:
    """``renewed``: when (monotonic) a heartbeat was begun that was confirmed to an agent before this one. ``peer``: what the log
    calls the other side."""

    def __init__(self, clock: Clock, random: Random, renewed: float = float("-inf"), peer: str = "the hub") -> None:
        self._clock, self._random, self._peer = clock, random, peer
        self._reachable: bool | None = None
        #: When (monotonic) the hub was last found to be away.
        self.lost = float("-inf")
        self._news = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._loss_listeners: list[Callable[[], None]] = []
        self._renewal_listeners: list[Callable[[float], None]] = []
        #: When (monotonic) the last confirmed heartbeat was begun.
        self.last_renewal = renewed

    @property
    def reachable(self) -> bool:
        return self._reachable is True

    @property
    def silent_seconds(self) -> float:
        """Since the start of the last heartbeat that the hub confirmed; infinite where there was none."""
        return self._clock.monotonic() - self.last_renewal

    def on_return(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever the hub answers again."""
        self._listeners.append(listener)

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever the hub is found to be away."""
        self._loss_listeners.append(listener)

    def on_renewal(self, listener: Callable[[float], None]) -> None:
        """Call ``listener`` at every confirmed heartbeat, with how many seconds none was confirmed before it."""
        self._renewal_listeners.append(listener)

    def reached(self) -> None:
        """The hub has answered something."""
        if self._reachable:
            return
        if self._reachable is False:
            log.info("%s answers again", self._peer)
        self._reachable = True
        news, self._news = self._news, asyncio.Event()
        news.set()
        for listener in self._listeners:
            listener()

    def missed(self, error: ApiError) -> None:
        """An exchange failed. Only an unreachable hub counts; other errors are answers, and what we gave up says nothing."""
        if error.reason == DROPPED:
            return
        if error.code != 503:
            self.reached()
        elif self._reachable is not False:
            log.warning("%s; this site goes on with what it has", error.message)
            self._reachable = False
            self.lost = self._clock.monotonic()
            for listener in self._loss_listeners:
                listener()

    def renewed(self, started: float) -> None:
        """A heartbeat that was begun at ``started`` (monotonic) was confirmed."""
        silent = self.silent_seconds
        self.last_renewal = max(self.last_renewal, started)
        for listener in self._renewal_listeners:
            listener(silent)
        self.reached()

    async def pause(self, failures: int, retry_after_seconds: float = 0.0) -> None:
        """Wait before the next attempt after ``failures`` in a row; cut short when the hub answers someone else."""
        seconds = backoff_seconds(max(1, failures), self._random.random(), FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        news = self._news if self._reachable is False else None
        await self._clock.sleep(LEAST_RETRY_SECONDS)
        seconds = max(seconds, retry_after_seconds) - LEAST_RETRY_SECONDS
        if news is None:
            await self._clock.sleep(seconds)
        elif not news.is_set():
            await sleep_or(self._clock, seconds, news)


class Follower:
    """List, then watch, for ever: ``on_list`` gets everything there is, ``on_event`` each change after it. An ``ApiError`` that
    ``on_list`` raises is as one of the hub's: it is listed again."""

    def __init__(
        self,
        client: Client,
        contact: Contact,
        clock: Clock,
        kind: Kind,
        namespace: str = "",
        *,
        fields: str = "",
        labels: str = "",
        on_list: Callable[[ObjList], None],
        on_event: Callable[[WatchEvent], None],
        on_error: Callable[[ApiError], None] = lambda error: None,
    ) -> None:
        self._client, self._contact, self._clock = client, contact, clock
        self._kind, self._namespace, self._fields, self._labels = kind, namespace, fields, labels
        self._on_list, self._on_event, self._on_error = on_list, on_event, on_error
        self._version = ""

    async def run(self) -> None:
        """Never returns; errors only slow it down."""
        failures, said = 0, ""
        while True:
            started = self._clock.monotonic()
            try:
                if not self._version:
                    found = await self._client.list(self._kind, self._namespace, fields=self._fields, labels=self._labels)
                    self._on_list(found)
                    self._version = found.resource_version
                    self._contact.reached()
                async for event in self._client.watch(
                    self._kind, self._namespace, resource_version=self._version, fields=self._fields, labels=self._labels
                ):
                    failures, said = 0, ""
                    self._version = resource_version(event.object) or self._version
                    if event.type != "BOOKMARK":
                        self._on_event(event)
            except ApiError as error:
                self._contact.missed(error)
                self._on_error(error)
                if error.code != 503:
                    self._version = ""  # 410 above all: what happened since is not known any more
                if error.code not in (404, 410, 503) and error.message != said:
                    said = error.message
                    log.warning("%s cannot be followed: %s", self._kind.resource, said)
            # Servers end watches as a matter of course; one that always ends at once shall not make us spin.
            failures = 1 if self._clock.monotonic() - started > STEADY_SECONDS else failures + 1
            await self._contact.pause(failures)
