"""Which namespaces of the cluster may be written in: those that this membership made, and those that their owner opened."""

from __future__ import annotations

from collections.abc import Callable

from metaos.clock import Clock
from metaos.http import HttpClient
from metaos.members.manifests import FIELD_MANAGER, MEMBER_LABEL, TRACKING, tracking
from metaos.members.ownership import closed
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef
from metaos.resources.scheme import NAMESPACE

#: So long a namespace counts as open after it was looked at.
OPEN_SECONDS = 15.0


class Spaces:
    """``wanted`` says whether a Work has a namespace. Bound: the namespaces that were looked at within ``OPEN_SECONDS``."""

    def __init__(self, client: HttpClient, clock: Clock, membership: str, wanted: Callable[[ObjectRef], bool]) -> None:
        self._client, self._clock, self._id, self._wanted = client, clock, membership, wanted
        self._open: dict[str, float] = {}

    def doubt(self, where: str) -> None:
        """Look at it again before anything is written there."""
        self._open.pop(where, None)

    async def closed(self, where: str) -> str:
        """Why nothing may be written in a namespace; empty where it may. Makes the namespace where it is not there and no Work
        does. It stays when its objects go: others may have put things there."""
        now = self._clock.monotonic()
        if not where or now - self._open.get(where, float("-inf")) < OPEN_SECONDS:
            return ""
        about = ObjectRef("", "Namespace", "", where)
        space = await self._get(where)
        if space is None and self._wanted(about):
            return ""
        if space is None:
            space = {**NAMESPACE.empty(where)}
            space["metadata"]["labels"] = {MEMBER_LABEL: self._id}
            space["metadata"]["annotations"] = {TRACKING: tracking(self._id, about)}
            try:
                await self._client.create(space, field_manager=FIELD_MANAGER)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                space = await self._client.get(NAMESPACE, where)  # Somebody was faster, perhaps another worker.
        why = closed(space, self._id)
        if not why:
            self._open = {k: v for k, v in self._open.items() if now - v < OPEN_SECONDS} | {where: now}
        return why

    async def _get(self, where: str) -> Obj | None:
        try:
            return await self._client.get(NAMESPACE, where)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
