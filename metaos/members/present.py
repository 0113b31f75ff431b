"""What is ours at a cluster, from a watch of what carries our label, a kind at a time.

Bound: what is ours at the cluster, and ``MAX_KINDS`` kinds, each a watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from metaos.agent.contact import Contact, Follower
from metaos.client import ObjList, WatchEvent
from metaos.clock import Clock
from metaos.http import HttpClient
from metaos.members.discovery import Discovery
from metaos.members.manifests import MEMBER_LABEL
from metaos.members.member import MAX_KINDS
from metaos.members.ownership import Live, is_ours
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, ref
from metaos.resources.scheme import Kind

log = logging.getLogger(__name__)

#: What earlier agents left is looked for again so soon, where that failed.
SWEEP_SECONDS = 5.0


class Listener(Protocol):
    """Who is told of it."""

    def listed(self, group: str, kind: str) -> None:
        """All objects of a kind are known now."""

    def seen(self, each: ObjectRef, obj: Obj) -> None:
        """One of ours is as it is here; it says by :meth:`Present.keep` what is to be remembered."""

    def lost(self, each: ObjectRef, live: Live | None) -> None:
        """One of ours is gone, or nobody's any more."""

    def unlisted(self, group: str, kind: str, error: ApiError) -> None:
        """A kind cannot be read."""


class Present:
    """See the module."""

    def __init__(
        self,
        client: HttpClient,
        contact: Contact,
        clock: Clock,
        membership: str,
        discovery: Discovery,
        listener: Listener,
    ) -> None:
        self._client, self._contact, self._clock, self._id = client, contact, clock, membership
        self._discovery, self._listener = discovery, listener
        self._live: dict[ObjectRef, Live] = {}
        #: The uid under which each was ours when it was seen last, whatever became of its labels.
        self._known: dict[ObjectRef, str] = {}
        self._followed: dict[tuple[str, str], Kind] = {}
        self._listed: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept = False

    def get(self, each: ObjectRef) -> Live | None:
        return self._live.get(each)

    def keep(self, each: ObjectRef, live: Live) -> None:
        """It is ours, and is like this."""
        self._live[each] = live
        self._known[each] = live.uid

    def know(self, each: ObjectRef, uid: str) -> None:
        """It is ours under this uid, and what is known of it may be younger."""
        self._known[each] = uid

    def known(self, each: ObjectRef) -> str:
        """The uid under which it was ours last; empty: it never was."""
        return self._known.get(each, "")

    def forget(self, each: ObjectRef) -> None:
        self._known.pop(each, None)

    def refs(self) -> list[ObjectRef]:
        return list(self._live)

    def kind(self, each: ObjectRef) -> Kind | None:
        """As the cluster serves it, where it is followed."""
        return self._followed.get((each.group, each.kind))

    def is_listed(self, kind: Kind) -> bool:
        """Whether all of ours of this kind are known."""
        return (kind.group, kind.kind) in self._listed

    @property
    def complete(self) -> bool:
        """Whether everything of ours is known, also what an agent before this one has made of kinds that no Work names now."""
        return self._swept and self._followed.keys() <= self._listed

    def follow(self, kind: Kind) -> None:
        """From now on, where it is not yet. Raises ``ApiError`` 507 where there are too many."""
        key = kind.group, kind.kind
        if key in self._followed:
            return
        if len(self._followed) >= MAX_KINDS:
            raise ApiError(507, "TooManyKinds", f"at most {MAX_KINDS} kinds of objects are followed at one cluster")
        self._followed[key] = kind

        def on_list(found: ObjList) -> None:
            fresh = {ref(item) for item in found.items}
            self._listed.add(key)
            for gone in [r for r in self._live if (r.group, r.kind) == key and r not in fresh]:
                self.lose(gone)
            for item in found.items:
                self._see(item)
            self._listener.listed(*key)

        def on_event(event: WatchEvent) -> None:
            if event.type == "DELETED":
                self.lose(ref(event.object))
            else:
                self._see(event.object)

        def on_error(error: ApiError) -> None:
            if key not in self._listed and error.code not in (404, 410, 503):
                self._listener.unlisted(*key, error)

        follower = Follower(
            self._client,
            self._contact,
            self._clock,
            kind,
            labels=f"{MEMBER_LABEL}={self._id}",
            on_list=on_list,
            on_event=on_event,
            on_error=on_error,
        )
        self._tasks.add(asyncio.create_task(follower.run()))

    def _see(self, obj: Obj) -> None:
        each = ref(obj)
        if is_ours(obj, self._id):
            self._listener.seen(each, obj)
        elif each in self._live:
            self.lose(each)  # The label alone is left: it is looked at by its uid.

    def lose(self, each: ObjectRef) -> None:
        """It is gone."""
        self._listener.lost(each, self._live.pop(each, None))

    async def sweep(self, ready: Callable[[], bool]) -> None:
        """Finds what an agent before this one has left, of kinds that no Work names any more, once it is ``ready``; then ends."""
        while not self._swept:
            if ready():
                try:
                    for kind in await self._discovery.everything():
                        if await self._has_ours(kind):
                            self.follow(kind)
                    self._swept = True
                    return
                except ApiError as error:
                    self._contact.missed(error)
                    log.debug("what was left is looked for again: %s", error.message)
            await self._clock.sleep(SWEEP_SECONDS)

    async def _has_ours(self, kind: Kind) -> bool:
        try:
            found = await self._client.list(kind, labels=f"{MEMBER_LABEL}={self._id}")
        except ApiError as error:
            if error.code in (403, 404, 405, 406):
                return False  # What we may not list we have not made.
            raise
        return any(is_ours(item, self._id) for item in found.items)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
