"""Which names a kind has in a namespace of the cluster, asked for at once where many objects come at the same time.

What is not there is made without a look at each name. That is as good as a look: what makes an object still finds out where
somebody was faster. Bound: the kinds and namespaces that were asked about within ``KEEP_SECONDS``, with at most ``MAX_NAMES``
names each.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from metaos.clock import Clock
from metaos.http import HttpClient, json_of, path_of
from metaos.resources.errors import ApiError
from metaos.resources.meta import ObjectRef
from metaos.resources.scheme import Kind

#: So long an answer counts, and so long those who ask are counted.
KEEP_SECONDS = 3.0
#: The first few are looked up one by one.
FEW = 4
#: Where there are more, each is looked up by itself.
MAX_NAMES = 1000
_NAMES_ALONE = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


@dataclass
class _Asked:
    since: float
    count: int = 0
    listed: bool = False
    #: ``None``: not known.
    names: frozenset[str] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Names:
    """See the module."""

    def __init__(self, client: HttpClient, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._asked: dict[tuple[str, str, str], _Asked] = {}

    async def lack(self, kind: Kind, each: ObjectRef) -> bool:
        """Whether nothing had this name a short time ago. ``False`` where that is not known: look."""
        now = self._clock.monotonic()
        key = kind.group, kind.kind, each.namespace
        asked = self._asked.get(key)
        if asked is None or now - asked.since > KEEP_SECONDS:
            self._asked = {k: a for k, a in self._asked.items() if now - a.since <= KEEP_SECONDS}
            asked = self._asked[key] = _Asked(now)
        asked.count += 1
        if asked.count <= FEW:
            return False
        async with asked.turn:
            if not asked.listed:
                asked.names, asked.listed = await self._list(kind, each.namespace), True
        return asked.names is not None and each.name not in asked.names

    async def _list(self, kind: Kind, namespace: str) -> frozenset[str] | None:
        path = path_of(kind, namespace)
        try:
            answer = await self._client.request("GET", path, query={"limit": str(MAX_NAMES)}, accept=_NAMES_ALONE)
            found = json_of(answer, f"GET {path}")
        except ApiError:
            return None  # Who looks at each name is told what is wrong.
        if (found.get("metadata") or {}).get("continue"):
            return None
        return frozenset(str(item["metadata"]["name"]) for item in found.get("items") or ())
