"""ResourceQuotas and LimitRanges at admission: what is missing is filled in, what is too much is refused.

What a namespace uses is counted from what the watch cache holds, and whoever adds to it does so alone: from the count until the
write can be seen, other writes that add to the same namespace wait. Hubs that share a store claim the namespace with the write
(``store.log.CLAIM``): where another hub has added to it since the count, nothing is written, and who asked counts again. So
nothing slips through between two writes. ``status.used`` is kept by the controller ``quota``.
Bounds: what objects count for is remembered for ``MOST_KNOWN`` quotas, for each object once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from weakref import WeakValueDictionary

from metaos.apiserver.cache import WatchCache
from metaos.apiserver.catalogue import Catalogue
from metaos.resources import errors, quotas, scheme
from metaos.resources.meta import Obj, name, namespace
from metaos.resources.quotas import Amounts, mirrored
from metaos.resources.scheme import Kind
from metaos.store.log import CLAIM, claimed

#: Quotas of which it is remembered what each object counts for: those that were asked last.
MOST_KNOWN = 256
_QUOTA, _RANGE = scheme.RESOURCE_QUOTA, scheme.LIMIT_RANGE


class Quotas:
    """Of one API server."""

    def __init__(self, cache: WatchCache, kinds: Catalogue) -> None:
        self._cache, self._kinds = cache, kinds
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: Quota and generation → its objects' keys → revision, and what that counts for.
        self._known: dict[str, dict[str, tuple[int, Amounts]]] = {}

    # -- limit ranges ------------------------------------------------------------------------------------------

    def ranged(self, kind: Kind, obj: Obj) -> Obj:
        """``obj`` with what LimitRanges give. Raises ``ApiError`` 403 where they do not allow it."""
        ranges = [version.object() for version in self._cache.range(_RANGE.resource, namespace(obj))]
        if not ranges or mirrored(kind, obj):
            return obj
        obj = _defaulted(ranges, kind, obj)
        found = quotas.problems(ranges, kind, obj)
        if found:
            text = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
            raise errors.forbidden(kind.group, kind.plural, name(obj), text)
        return obj

    # -- quotas ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def charged(self, kind: Kind, obj: Obj, old: Obj | None, *, dry_run: bool = False) -> AsyncIterator[None]:
        """The time in which ``obj`` is written. Raises ``ApiError`` 403 where that is more than a quota allows. The write raises
        ``Overtaken`` where another hub has added to the namespace meanwhile: begin again."""
        where = namespace(obj)
        if old is not None and mirrored(kind, old):
            old = None  # It was not counted: whoever takes the label away adds all of it.
        found = [version.object() for version in self._cache.range(_QUOTA.resource, where)] if where else []
        added = [quota for quota in found if not mirrored(kind, obj) and _adds(quota, kind, obj, old)]
        if not added:
            yield
            return
        turn = self._turns.setdefault(where, asyncio.Lock())
        async with turn:
            await self._cache.fresh()
            for quota in added:
                self._check(quota, kind, obj, old)
            token = CLAIM.set(claimed(self._cache.revision, f"quota/{where}"))
            try:
                yield
            finally:
                CLAIM.reset(token)
            if not dry_run:
                # It is done: nothing that happens to the store now may say otherwise.
                await self._cache.settled()

    def _check(self, quota: Obj, kind: Kind, obj: Obj, old: Obj | None) -> None:
        lacking = quotas.missing(quota, kind, obj)
        if lacking:
            why = f"failed quota: {name(quota)}: must specify {'; '.join(lacking)}"
            raise errors.forbidden(kind.group, kind.plural, name(obj), why)
        now, before = quotas.counted(quota, kind, obj), quotas.counted(quota, kind, old) if old else {}
        used, allowed = self.used(quota), quotas.hard(quota)
        over = [
            key
            for key, value in now.items()
            if value > before.get(key, 0) and used[key] - before.get(key, 0) + value > allowed[key]
        ]
        if over:

            def told(amounts: Amounts) -> str:
                return ",".join(f"{key}={quotas.shown(key, amounts[key])}" for key in sorted(over))

            asked = {key: now[key] - before.get(key, Fraction(0)) for key in over}
            why = f"exceeded quota: {name(quota)}, requested: {told(asked)}, used: {told(used)}, limited: {told(allowed)}"
            raise errors.forbidden(kind.group, kind.plural, name(obj), why)

    def used(self, quota: Obj) -> Amounts:
        """What a quota's namespace uses of what it limits."""
        names = (quota.get("spec") or {}).get("hard") or {}
        total = dict.fromkeys(names, Fraction(0))
        # One of the same name that is made anew is another.
        place = f"{quota['metadata']['uid']}/{quota['metadata'].get('generation')}"
        before = self._known.pop(place, {})
        known: dict[str, tuple[int, Amounts]] = {}
        for kind in self._counted(names):
            for version in self._cache.range(kind.resource, namespace(quota)):
                found = before.get(version.key)
                if found is None or found[0] != version.revision:
                    obj = version.object()
                    found = version.revision, {} if mirrored(kind, obj) else quotas.counted(quota, kind, obj)
                known[version.key] = found
                for key, value in found[1].items():
                    total[key] += value
        self._known[place] = known
        while len(self._known) > MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        return total

    def _counted(self, names: Obj) -> list[Kind]:
        """The kinds that a quota with these names counts, each once."""
        found: dict[str, Kind] = {}
        for kind in self._kinds.all():
            plain = not kind.group and kind.plural == "services" and any(each.startswith("services") for each in names)
            claims = kind is scheme.PERSISTENT_VOLUME_CLAIM and any("storage" in each for each in names)
            if (
                f"count/{kind.resource}" in names
                or (kind.plural in names and not kind.group)
                or plain
                or claims
                or kind in quotas.WORKLOADS
            ):
                found.setdefault(kind.resource, kind)
        return list(found.values())


def _adds(quota: Obj, kind: Kind, obj: Obj, old: Obj | None) -> bool:
    """Whether a write makes a namespace use more of what a quota limits, or might have to say what it uses."""
    now, before = quotas.counted(quota, kind, obj), quotas.counted(quota, kind, old) if old else {}
    return any(value > before.get(key, 0) for key, value in now.items()) or (
        old is None and bool(quotas.missing(quota, kind, obj))
    )


def _defaulted(ranges: list[Obj], kind: Kind, obj: Obj) -> Obj:
    """``obj`` with what its pods' containers are given."""
    way = {
        scheme.POD: ("spec",),
        scheme.CRON_JOB: ("spec", "jobTemplate", "spec", "template", "spec"),
    }.get(kind, ("spec", "template", "spec") if kind in quotas.WORKLOADS else ())
    if not way:
        return obj
    pod = obj
    for part in way:
        pod = pod.get(part) or {}
    filled = quotas.with_defaults(ranges, pod)
    if filled is pod:
        return obj
    changed = dict(obj)
    place = changed
    for part in way[:-1]:
        place[part] = dict(place[part])
        place = place[part]
    place[way[-1]] = filled
    return changed
