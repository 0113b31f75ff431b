"""The twin's network: one line from each site to the hub, in memory. It delays, loses, repeats, and is cut in either direction.

A call is a request on the way up and an answer on the way down. A lost request is never done; a lost answer belongs to a call
that was done, and whose caller does not know. Both look alike to the caller: no answer within ``TIMEOUT_SECONDS``. Calls of
one site overtake each other by their delays; a watch is one connection, so its events keep their order, and it breaks
where the way down is cut. It also breaks where an event gets lost, which is then to come in the next watch; and the first that
a watch brings may be the last of the one before it, once more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.client import ObjList, PatchType, WatchEvent
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS, UserInfo
from metaos.twin.hub import Hub

TIMEOUT_SECONDS = 10.0
#: A watch over a way down that is cut is given up after so long, as by TCP's keep-alive.
SILENCE_SECONDS = 20.0


@dataclass(slots=True)
class Quality:
    """Of a line: one way in seconds, more of it by chance, and the share of messages that get lost or come twice."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0


class Line:
    """What a site's agent has for a client."""

    def __init__(self, hub: Hub, site: str, clock: Clock, random: Random, quality: Quality | None = None) -> None:
        self._hub, self._clock, self._random = hub, clock, random
        self.user = UserInfo(CLUSTER_USER_PREFIX + site, (CLUSTERS,))
        self.quality = quality or Quality()
        self.up_cut = self.down_cut = False
        #: Whether watches are told every minute how far they have come, as over HTTPS. In a world of a thousand sites that is
        #: most of what happens; without, a watch that breaks may have to list again.
        self.bookmarks = True
        #: Set anew whenever something about it changes: who waits on it looks again.
        self._changed = asyncio.Event()
        self.calls = 0
        #: Of each watch, by what it asks for: the last event.
        self._last: dict[tuple[str, ...], WatchEvent] = {}

    @property
    def cut(self) -> bool:
        """Whether nothing gets through in either direction or in one of them: then no call succeeds."""
        return self.up_cut or self.down_cut

    def set(self, *, up: bool, down: bool) -> None:
        """Cut (True) or mend each direction."""
        self.up_cut, self.down_cut = up, down
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _delay(self) -> float:
        quality = self.quality
        return quality.delay + (quality.jitter * self._random.random() if quality.jitter else 0.0)

    def _chance(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    async def call(self, verb: str, *arguments: Any, **more: Any) -> Any:
        """Raises ``ApiError``: the hub's own, or 503 where no answer came."""
        self.calls += 1
        began = self._clock.monotonic()
        await self._clock.sleep(self._delay())
        if self.up_cut or self._chance(self.quality.loss):
            await self._give_up(began)
        if self._chance(self.quality.duplicates):
            # The copy is done first, and its answer thrown away.
            with contextlib.suppress(ApiError):
                await self._ask(verb, *arguments, **more)
        answer: Any = None
        refused: ApiError | None = None
        try:
            answer = await self._ask(verb, *arguments, **more)
        except ApiError as error:
            refused = error
        await self._clock.sleep(self._delay())
        if self.down_cut or self._chance(self.quality.loss):
            await self._give_up(began)
        if refused is not None:
            raise refused
        return answer

    async def _give_up(self, began: float) -> None:
        await self._clock.sleep(max(0.0, began + TIMEOUT_SECONDS - self._clock.monotonic()))
        raise errors.unavailable("the hub cannot be reached: no answer in time")

    async def _ask(self, verb: str, *arguments: Any, **more: Any) -> Any:
        """At the hub. A call that a dying hub never answers fails when it is gone, as a broken connection does."""
        hub = self._hub
        if not hub.up or hub.registry is None:
            raise errors.unavailable("the hub cannot be reached: nobody listens")
        asked: asyncio.Task[Any] = asyncio.ensure_future(getattr(hub.registry.client(self.user), verb)(*arguments, **more))
        hub.asked[asked] = None
        try:
            await asyncio.wait((asked,))
            if asked.cancelled():
                raise errors.unavailable("the hub went away before it answered")
            return asked.result()
        finally:
            hub.asked.pop(asked, None)
            if not asked.done():
                asked.cancel()
                with contextlib.suppress(BaseException):
                    await asked

    async def watch(
        self, kind: Kind, namespace: str = "", *, resource_version: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        began = self._clock.monotonic()
        await self._clock.sleep(self._delay())
        if self.up_cut or not self._hub.up or self._hub.registry is None:
            await self._give_up(began)
        registry, downed = self._hub.registry, self._hub.downed
        assert registry is not None
        events = registry.watch(
            self.user, kind, namespace, resource_version=resource_version, labels=labels, fields=fields, bookmarks=self.bookmarks
        )
        asked = (kind.resource, namespace, labels, fields)
        if asked in self._last and self._chance(self.quality.duplicates):
            yield self._last[asked]
        gone = asyncio.ensure_future(downed.wait())
        taking: asyncio.Future[WatchEvent | None] | None = None
        try:
            while True:
                taking = taking or asyncio.ensure_future(anext(events, None))
                if not taking.done():
                    changed = asyncio.ensure_future(self._changed.wait())
                    await asyncio.wait((taking, gone, changed), return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                if self.down_cut:
                    await self._silence()
                if gone.done():
                    raise errors.unavailable("the hub went away")
                if not taking.done():
                    continue
                event = taking.result()
                taking = None
                if event is None:
                    return
                await self._clock.sleep(self._delay())
                if self.down_cut:
                    await self._silence()
                if self._chance(self.quality.loss):
                    raise errors.unavailable("the watch broke: an event got lost")
                if event.type != "BOOKMARK":
                    self._last[asked] = event
                yield event
        finally:
            gone.cancel()
            if taking is not None:
                taking.cancel()
                with contextlib.suppress(BaseException):
                    await taking
            await events.aclose()

    async def _silence(self) -> None:
        """What is sent again arrives if the cut is short; otherwise the connection breaks."""
        until = self._clock.monotonic() + SILENCE_SECONDS
        while self.down_cut:
            if self._clock.monotonic() >= until:
                raise errors.unavailable("the watch broke: nothing came for a while")
            await self._clock.sleep(1.0)

    # -- ``Client`` ------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Obj:
        found: Obj = await self.call("get", kind, name, namespace)
        return found

    async def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = 0, continue_token: str = ""
    ) -> ObjList:
        found: ObjList = await self.call(
            "list", kind, namespace, labels=labels, fields=fields, limit=limit, continue_token=continue_token
        )
        return found

    async def create(self, obj: Obj, *, field_manager: str = "", dry_run: bool = False) -> Obj:
        found: Obj = await self.call("create", obj, field_manager=field_manager, dry_run=dry_run)
        return found

    async def update(self, obj: Obj, *, subresource: str = "", field_manager: str = "", dry_run: bool = False) -> Obj:
        found: Obj = await self.call("update", obj, subresource=subresource, field_manager=field_manager, dry_run=dry_run)
        return found

    async def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        patch: Any,
        *,
        type: PatchType = PatchType.MERGE,
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
        dry_run: bool = False,
    ) -> Obj:
        more = {"type": type, "subresource": subresource, "field_manager": field_manager, "force": force, "dry_run": dry_run}
        found: Obj = await self.call("patch", kind, name, namespace, patch, **more)
        return found

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_period_seconds: int | None = None,
        dry_run: bool = False,
    ) -> Obj:
        more: dict[str, Any] = {"uid": uid, "resource_version": resource_version, "propagation": propagation}
        more |= {"grace_period_seconds": grace_period_seconds, "dry_run": dry_run}
        found: Obj = await self.call("delete", kind, name, namespace, **more)
        return found

    async def delete_collection(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> None:
        await self.call("delete_collection", kind, namespace, labels=labels, fields=fields)
