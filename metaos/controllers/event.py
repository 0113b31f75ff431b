"""Events and other things that only pass through: removed when old, and the oldest of the loudest when there are too many."""

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.certificate import is_finished, secret_text
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, ObjectRef, format_time, name, namespace, parse_time
from metaos.security.identity import TOKEN_TYPE

NAME = "event"
PERIOD_SECONDS = 60.0
#: There is one key: the sweep.
SWEEP = ObjectRef("", "Event", "", "sweep")


def brief(event: Obj) -> Obj:
    """As much of an event as the sweep asks for. ``time``: when it last happened, by what its author says, unless that is no
    time."""
    metadata = {key: event["metadata"].get(key) for key in ("name", "namespace", "resourceVersion")}
    times = event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp")
    stated = next((found for text in times if (found := _time(text)) is not None), 0.0)
    return {"metadata": metadata, "time": stated, "source": {"host": source_of(event)}}


def event_time(kept: Obj, now: float) -> float:
    """Of what :func:`brief` keeps of an event: no time lies in the future."""
    return float(min(kept["time"], now))


def _time(stated: Any) -> float | None:
    try:
        return parse_time(str(stated)) if stated else None
    except (ValueError, OverflowError):
        return None


def source_of(event: Obj) -> str:
    """Who speaks: a site, or a component of the hub or of a user's."""
    source = event.get("source") or {}
    return str(source.get("host") or event.get("reportingInstance") or source.get("component") or "")


def surplus(events: Sequence[Obj], limit: int) -> list[Obj]:
    """Those beyond the limit, of ``events`` from the oldest on. Who has most loses first: nobody drowns the others out."""
    waiting: dict[str, deque[Obj]] = {}
    for event in events:
        waiting.setdefault(source_of(event), deque()).append(event)
    sizes = [(-len(held), source) for source, held in waiting.items()]
    heapify(sizes)
    found = []
    for _ in range(len(events) - limit):
        size, source = sizes[0]
        found.append(waiting[source].popleft())
        heapreplace(sizes, (size + 1, source))
    return found


class EventReconciler:
    """Sweeps once a minute."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._requests = manager.informer(scheme.CERTIFICATE_SIGNING_REQUEST)
        # Bounded by the limit and what comes within a period.
        self._events = manager.informer(scheme.EVENT, keep=brief)

    async def reconcile(self, about: ObjectRef) -> Result:
        now = self._clock.now()
        events = sorted(self._events.list(), key=lambda event: event_time(event, now))
        beyond = {id(event) for event in surplus(events, self._settings.event_limit)}
        for event in events:
            if id(event) in beyond or event_time(event, now) < now - self._settings.event_lifetime:
                await self._delete(scheme.EVENT, event)
        for request in self._requests.list():
            created = request["metadata"].get("creationTimestamp") or format_time(now)
            if is_finished(request) and parse_time(created) < now - self._settings.event_lifetime:
                await self._delete(scheme.CERTIFICATE_SIGNING_REQUEST, request)
        for token in (await self._client.list(scheme.SECRET, SYSTEM_NAMESPACE, fields=f"type={TOKEN_TYPE}")).items:
            expiration = _time(secret_text(token, "expiration"))
            if expiration is not None and expiration < now:
                await self._delete(scheme.SECRET, token)
        return Result(requeue_after=PERIOD_SECONDS)

    async def _delete(self, kind: scheme.Kind, obj: Obj) -> None:
        try:
            await self._client.delete(kind, name(obj), namespace(obj))
        except ApiError as error:
            if error.code != 404:
                raise


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(EventReconciler(manager, client, clock, settings), [])
    manager.enqueue(NAME, SWEEP)
