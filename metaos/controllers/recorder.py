"""Events on objects: what happened to them, for ``kubectl describe`` and ``kubectl events``."""

from __future__ import annotations

import hashlib

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time, name, namespace, uid

MESSAGE_LIMIT = 1024


class Recorder:
    """Writes Events for one component. The same event again raises its count. A failure to record is not an error of
    what is recorded: it is dropped."""

    def __init__(self, client: Client, clock: Clock, component: str) -> None:
        self._client, self._clock, self._component = client, clock, component

    async def event(self, about: Obj, reason: str, message: str, *, warning: bool = False) -> None:
        """Records that ``reason`` happened to ``about``."""
        message = message[:MESSAGE_LIMIT]
        digest = hashlib.sha1(f"{uid(about)}/{reason}/{message}".encode(), usedforsecurity=False).hexdigest()[:10]
        where = namespace(about) or "default"
        event_name = f"{name(about)[:200]}.{digest}"
        now = format_time(self._clock.now())
        event: Obj = {
            **scheme.EVENT.empty(event_name, where),
            "involvedObject": {
                "apiVersion": about.get("apiVersion"),
                "kind": about.get("kind"),
                "name": name(about),
                "namespace": namespace(about),
                "uid": uid(about),
            },
            "reason": reason,
            "message": message,
            "type": "Warning" if warning else "Normal",
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._client.create(event)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                await self._again(event_name, where, now)

    async def _again(self, event_name: str, where: str, now: str) -> None:
        try:
            found = await self._client.get(scheme.EVENT, event_name, where)
            patch = {"count": int(found.get("count") or 1) + 1, "lastTimestamp": now}
            await self._client.patch(scheme.EVENT, event_name, where, patch)
        except ApiError:
            return
