"""Which of several hubs runs the controllers: the holder of a Lease, as client-go elects leaders.

The record is a Lease of coordination.k8s.io. Whoever holds it renews it every ``RETRY_SECONDS``; others take it once they have
seen it unchanged for ``LEASE_SECONDS`` by their own monotonic clock, so clocks need not agree. A leader that could not renew for
``DEADLINE_SECONDS`` stops by itself before anybody else begins, if it runs; one that was suspended does not know better. So a
lease alone proves nothing: each leader's writes carry a fencing token (``store.log.Guard``) that ends with its term. Therefore
nobody need wait for the lease of one whose process has ended.
Source: client-go, tools/leaderelection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time
from metaos.resources.scheme import LEASE

log = logging.getLogger(__name__)

NAME = "nemo-controllers"
LEASE_SECONDS, DEADLINE_SECONDS, RETRY_SECONDS = 3.0, 2.0, 0.5


class Token(Protocol):
    """The fencing token."""

    async def look(self) -> int:
        """At which revision it is."""
        ...

    async def take(self, seen: int) -> None:
        """Ends every earlier term: guards the writes of this task, and those that it begins, from now on. Raises ``Taken`` where
        it is not at ``seen`` any more."""
        ...


class Taken(Exception):
    """Another hub has begun to lead meanwhile."""


class Election:
    """``identity``: this hub's, as the Lease names it. ``gone`` says whether another's process has ended, as far as is known.
    ``leading`` says whether this one's controllers run."""

    def __init__(
        self, client: Client, clock: Clock, identity: str, token: Token, gone: Callable[[str], bool] = lambda identity: False
    ) -> None:
        self._gone = gone
        self._client, self._clock, self.identity, self._token = client, clock, identity, token
        self.leading = False
        #: Who leads, as far as is known here.
        self.leader = ""
        self._seen: tuple[Any, float] = (None, 0.0)

    async def run(self, term: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled; ``term`` is run, until it is cancelled, whenever this hub leads."""
        while True:
            try:
                seen = await self._token.look()
                if await self._hold():
                    # In a task of its own: what guards its writes ends with it.
                    await asyncio.create_task(self._lead(seen, term), name="leader")
                    continue
            except Taken:
                log.info("another hub leads")
            except Exception as error:
                log.log(
                    logging.DEBUG if isinstance(error, ApiError) else logging.WARNING, "the lease cannot be looked at: %s", error
                )
            await self._clock.sleep(RETRY_SECONDS)

    async def _lead(self, seen: int, term: Callable[[], Awaitable[None]]) -> None:
        renewed = self._clock.monotonic()
        await self._token.take(seen)
        self.leading = True
        log.info("this hub, %s, runs the controllers", self.identity)
        work = asyncio.ensure_future(term())
        try:
            while True:
                await asyncio.wait(
                    (work, sleep := asyncio.ensure_future(self._clock.sleep(RETRY_SECONDS))), return_when="FIRST_COMPLETED"
                )
                sleep.cancel()
                if work.done():
                    work.result()
                    raise RuntimeError("the controllers ended by themselves")
                started = self._clock.monotonic()
                held = None
                with suppress(ApiError, TimeoutError):
                    async with asyncio.timeout(max(0.1, DEADLINE_SECONDS - (started - renewed))):
                        held = await self._hold()
                if held:
                    renewed = started
                elif held is False or self._clock.monotonic() - renewed >= DEADLINE_SECONDS:
                    log.error("this hub has lost the lease %s: its controllers stop", NAME)
                    return
        except asyncio.CancelledError:
            await _ended(work)
            await self._release()
            raise
        finally:
            self.leading = False
            await _ended(work)

    async def _hold(self) -> bool:
        """Takes or renews the lease where that is possible. Raises ``ApiError``."""
        try:
            lease = await self._client.get(LEASE, NAME, SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code != 404:
                raise
            lease = LEASE.empty(NAME, SYSTEM_NAMESPACE)
        now = self._clock.monotonic()
        spec = lease.get("spec") or {}
        self.leader = str(spec.get("holderIdentity") or "")
        if spec != self._seen[0]:
            self._seen = spec, now
        if not may_hold(spec, self.identity, now - self._seen[1], self._gone(self.leader)):
            return False
        wanted = {**lease, "spec": record(spec, self.identity, self._clock.now())}
        try:
            held = await (self._client.update(wanted) if lease["metadata"].get("uid") else self._client.create(wanted))
        except ApiError as error:
            if error.code != 409:
                raise
            return False
        self._seen, self.leader = (held["spec"], now), self.identity
        return True

    async def _release(self) -> None:
        """So that another hub need not wait."""
        with suppress(Exception):
            async with asyncio.timeout(1):
                lease = await self._client.get(LEASE, NAME, SYSTEM_NAMESPACE)
                if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                    await self._client.update(
                        {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
                    )


def may_hold(spec: Obj, identity: str, unchanged: float, gone: bool = False) -> bool:
    """Whether a hub may take or keep a lease, seen unchanged for so many seconds; ``gone``: its holder's process has ended."""
    holder = str(spec.get("holderIdentity") or "")
    return holder in ("", identity) or gone or unchanged >= float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)


def record(spec: Obj, identity: str, now: float) -> Obj:
    """What a lease says once a hub has taken or renewed it."""
    time, mine = format_time(now, micro=True), spec.get("holderIdentity") == identity
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": round(LEASE_SECONDS),
        "acquireTime": spec.get("acquireTime") or time if mine else time,
        "renewTime": time,
        "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if mine else 1),
    }


async def _ended(work: asyncio.Future[None]) -> None:
    work.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await work
