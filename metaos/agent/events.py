"""Events of this site at the hub: the same news counts up, instead of being told again.

Source: client-go ``tools/record`` (aggregation by object, reason and message). At most ``MAX_KNOWN`` different ones wait to be
told, and of as many that were told it is remembered how often; what is older is forgotten.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Contact
from metaos.agent.turns import Turns
from metaos.client import Client
from metaos.clock import Clock
from metaos.reconcile.precedence import Precedence
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time, name, namespace, uid
from metaos.resources.scheme import EVENT

MAX_KNOWN = 512
MAX_MESSAGE = 1024
#: The same event within this time becomes one write.
COALESCE_SECONDS = 1.0
#: A pod's event waits so long for its mirror, so that ``kubectl describe`` finds it.
MIRROR_SECONDS = 3.0


class SiteEvents:
    """``mirror_uid`` gives the hub's uid of a local pod, empty while there is none."""

    def __init__(
        self,
        client: Client,
        contact: Contact,
        clock: Clock,
        random: Random,
        site: str,
        mirror_uid: Callable[[str, str], str],
        precedence: Precedence | None = None,
    ) -> None:
        self._client, self._clock, self._site, self._mirror_uid = client, clock, site, mirror_uid
        #: Those with news that the hub has not.
        self._waiting: OrderedDict[str, Obj] = OrderedDict()
        #: Of those that were told: how often, and since when. Not whole: a day's would be a megabyte.
        self._told: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._turns: Turns[str] = Turns(contact, clock, random, self._tell, "event", 1, precedence)
        contact.on_return(self._retry)

    def record(self, regarding: Obj, kind: str, reason: str, message: str) -> None:
        """``kind`` is ``Normal`` or ``Warning``. Returns at once."""
        now = format_time(self._clock.now())
        message = message[:MAX_MESSAGE]
        text = "\n".join(
            (self._site, str(regarding.get("kind")), namespace(regarding), name(regarding), uid(regarding), reason, message)
        )
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        event = self._waiting.get(key)
        if event is None:
            event = self._waiting[key] = self._new(key, regarding, kind, reason, message, now)
            event["count"], event["firstTimestamp"] = self._told.get(key, (0, now))
        event["count"] += 1
        event["lastTimestamp"] = now
        _keep(self._waiting, key)
        self._turns.add(key, COALESCE_SECONDS)

    async def run(self) -> None:
        """Never returns."""
        await self._turns.run()

    def _new(self, key: str, regarding: Obj, kind: str, reason: str, message: str, now: str) -> Obj:
        involved = {
            "apiVersion": regarding.get("apiVersion", "v1"),
            "kind": regarding.get("kind", ""),
            "namespace": namespace(regarding),
            "name": name(regarding),
            "uid": uid(regarding),
        }
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{name(regarding)[:200]}.{key}", "namespace": namespace(regarding)},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "nemo-agent", "host": self._site},
            "reportingComponent": "nemo-agent",
            "reportingInstance": self._site,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    async def _tell(self, key: str) -> None:
        event = self._waiting.get(key)
        if event is None:
            return
        involved: dict[str, Any] = event["involvedObject"]
        if involved["kind"] == "Pod":
            found = self._mirror_uid(involved["namespace"], involved["name"])
            if not found and not event.get("_waited"):
                event["_waited"] = True
                self._turns.add(key, MIRROR_SECONDS)
                return
            involved = involved | {"uid": found or involved["uid"]}
        count = event["count"]
        body = {k: v for k, v in event.items() if k != "_waited"} | {"involvedObject": involved}
        where, this = namespace(event), name(event)
        try:
            if key in self._told:
                news = {"count": count, "lastTimestamp": event["lastTimestamp"]}
                await self._client.patch(EVENT, this, where, news, field_manager="nemo-agent")
            else:
                await self._client.create(body, field_manager="nemo-agent")
        except ApiError as error:
            if error.reason == "AlreadyExists":  # told before this agent was restarted
                self._remember(key, 0, event)
                self._turns.add(key, COALESCE_SECONDS)
                return
            if error.code == 404:  # aged out at the hub, or its namespace is gone
                if self._told.pop(key, None) is not None:
                    self._turns.add(key, COALESCE_SECONDS)
                else:
                    self._waiting.pop(key, None)
                return
            if error.code not in (400, 403, 422):  # telling it again would not help
                raise
        self._remember(key, count, event)

    def _remember(self, key: str, count: int, event: Obj) -> None:
        self._told[key] = count, event["firstTimestamp"]
        _keep(self._told, key)
        if event["count"] == count and self._waiting.get(key) is event:
            del self._waiting[key]

    def _retry(self) -> None:
        for key in self._waiting:
            self._turns.add(key, COALESCE_SECONDS)


def _keep(known: OrderedDict[str, Any], key: str) -> None:
    """As the newest; of more than ``MAX_KNOWN`` the oldest goes."""
    known.move_to_end(key)
    while len(known) > MAX_KNOWN:
        known.popitem(last=False)
