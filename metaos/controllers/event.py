"""Events and other things that only pass through: removed when old, and the oldest ones when there are too many."""

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


def event_time(event: Obj) -> float:
    """When it last happened."""
    stated = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return parse_time(str(stated)) if stated else 0.0


class EventReconciler:
    """Sweeps once a minute."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._requests = manager.informer(scheme.CERTIFICATE_SIGNING_REQUEST)

    async def reconcile(self, about: ObjectRef) -> Result:
        now = self._clock.now()
        events = sorted((await self._client.list(scheme.EVENT)).items, key=event_time)
        surplus = max(0, len(events) - self._settings.event_limit)
        for index, event in enumerate(events):
            if index < surplus or event_time(event) < now - self._settings.event_lifetime:
                await self._delete(scheme.EVENT, event)
        for request in self._requests.list():
            created = request["metadata"].get("creationTimestamp") or format_time(now)
            if is_finished(request) and parse_time(created) < now - self._settings.event_lifetime:
                await self._delete(scheme.CERTIFICATE_SIGNING_REQUEST, request)
        for token in (await self._client.list(scheme.SECRET, SYSTEM_NAMESPACE, fields=f"type={TOKEN_TYPE}")).items:
            expiration = secret_text(token, "expiration")
            if expiration and parse_time(expiration) < now:
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
