"""What people ask about devices: commands, credentials, batches, enrolments and what is known this moment.

Answers what the API server has authorised: POST ``devices/NAME/command``, ``devices/NAME/credential``,
``deviceclaims/NAME/enrolment`` and ``devicebatches``, GET ``devices/NAME/live``. Of several hubs the one that leads answers, to
whichever it is said.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any

from metaos.devices import batch, twin, waiting
from metaos.devices.credentials import claim_refusal, enrolled
from metaos.devices.status import status
from metaos.fleet.fleet import FINALIZER, Fleet, Live, address_of
from metaos.fleet.gate import Address, Issued
from metaos.messaging.bus import BusError
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError, Cause
from metaos.resources.meta import GROUP, Obj, deleting, format_time, uid
from metaos.resources.meta import annotations as annotations_of

#: Commands that wait for an answer: of one device, and of all.
MOST_ASKED, MOST_ASKED_OF_ALL = 16, 1000
#: Devices of a batch that are made at a time: they share the store's commits.
AT_A_TIME = 16
#: On a Device: the ``id`` of the DeviceBatch that made it.
BATCH = "meta-os.eu/batch"
#: A device shows this claim's token or certificate and makes itself.
CLAIM_LABEL = "meta-os.eu/claim"
#: What a desk answers: its methods.
ASKED = ("live", "command", "credential", "batch", "enrol")
_TRIES = 20


class Desk:
    """``fleet``: where the controllers run here; nobody is served without."""

    def __init__(self) -> None:
        self.fleet: Fleet | None = None
        #: Has the hub that leads answer, as ``answer_here`` does there; ``None``: there is no other hub.
        self.leader: Callable[[str, Sequence[Any]], Awaitable[Obj]] | None = None
        self._numbers = count(1)
        self._asked = 0
        #: Claims are counted one after another.
        self._counting = asyncio.Lock()

    @property
    def _leads(self) -> bool:
        return self.fleet is not None and self.fleet.leading

    async def answer(self, asked: str, *given: Any) -> Obj:
        """``asked`` is one of :data:`ASKED`, ``given`` that method's arguments. Raises ``ApiError``."""
        if self.leader is not None and not self._leads:
            return await self.leader(asked, given)
        return await self.answer_here(asked, given)

    async def answer_here(self, asked: str, given: Sequence[Any]) -> Obj:
        """For another hub, which has authorised it. Raises ``ApiError``."""
        if asked not in ASKED:
            raise errors.bad_request(
                f"a hub may ask for one of {', '.join(ASKED)}, not for {asked[:40]!r}: is it of a later release?"
            )
        found: Obj = await getattr(self, asked)(*given)
        return found

    @property
    def _here(self) -> Fleet:
        if self.fleet is None or not self._leads:
            raise errors.unavailable(
                "devices are served by the hub that leads, where it has a bus: this one does not at this moment"
            )
        return self.fleet

    def _live(self, namespace: str, name: str) -> Live:
        found = self._here.live.get(Address(namespace, name))
        if found is None:
            raise errors.not_found(GROUP, "devices", name)
        return found

    async def live(self, namespace: str, name: str) -> Obj:
        """The Device with what is known this moment, and the last measurements."""
        live, now = self._live(namespace, name), self._here.clock.now()
        found = status(live.device, live.known(), now)
        found["telemetry"] = {key: {"time": format_time(at), "value": _value(data)} for key, (at, data) in live.measured.items()}
        found["messages"] = {"dropped": live.dropped, "lastMalformed": live.malformed}
        return {**live.device, "status": found}

    # -- commands --------------------------------------------------------------------------------------------

    async def command(self, namespace: str, name: str, body: Obj) -> Obj:
        """Has a device do something. Answers with what it said; 504 where it did not in time."""
        fleet, live = self._here, self._live(namespace, name)
        spec = _command(name, body)
        begun = fleet.clock.monotonic()
        command = {"id": f"{int(fleet.clock.now() * 1000):x}-{next(self._numbers)}", "action": spec["action"]}
        if spec.get("arguments") is not None:
            command["arguments"] = spec["arguments"]
        if live.barred:
            raise errors.conflict(GROUP, "devices", name, f"it is cut off ({live.barred}): see its conditions")
        if live.twin.online:
            said = await self._answer(fleet, live, command, spec["timeoutSeconds"])
            if said is not None:
                state = "Done" if said.get("ok", True) else "Failed"
                took = round((fleet.clock.monotonic() - begun) * 1000, 1)
                return _told(body, command["id"], state, said.get("result"), milliseconds=took)
        if not spec["queueSeconds"]:
            seen = f"it was heard last at {format_time(live.twin.seen)}" if live.twin.seen else "it was never heard"
            if live.twin.online:
                why = f"device {name} did not answer within {spec['timeoutSeconds']:g} s: whether it did it is not known"
            else:
                why = f"device {name} is offline, {seen}: say queueSeconds to have the command wait for it"
            raise ApiError(504, "Timeout", why)
        await self._queue(fleet, live, command, spec["queueSeconds"])
        return _told(body, command["id"], "Queued", None, waiting=len(live.commands))

    async def _answer(self, fleet: Fleet, live: Live, command: Obj, seconds: float) -> Mapping[str, Any] | None:
        if len(live.asked) >= MOST_ASKED or self._asked >= MOST_ASKED_OF_ALL:
            raise errors.too_many_requests(
                f"{MOST_ASKED} commands to a device, and {MOST_ASKED_OF_ALL} to all, may wait for their answers: try again", 1
            )
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        live.asked[command["id"]] = future
        self._asked += 1
        try:
            await fleet.send(live.address, command)
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if future.cancelled():
                raise errors.not_found(GROUP, "devices", live.address.name) from None
            raise
        except BusError as error:
            raise errors.unavailable(f"the bus is away: {error}") from error
        finally:
            self._asked -= 1
            live.asked.pop(command["id"], None)

    async def _queue(self, fleet: Fleet, live: Live, command: Obj, lasts: float) -> None:
        try:
            live.commands = waiting.added(live.commands, command, fleet.clock.now(), lasts)
        except waiting.Full as full:
            raise errors.too_many_requests(str(full), 30) from None
        kept = False
        try:
            # It is acknowledged when it is kept.
            kept = await fleet.write(live)
        finally:
            if not kept:
                # Who was told that it failed may say it again.
                live.commands = waiting.answered(live.commands, command["id"])
        if not kept:
            raise errors.not_found(GROUP, "devices", live.address.name)

    # -- credentials -----------------------------------------------------------------------------------------

    async def credential(self, namespace: str, name: str) -> Obj:
        """A new credential for a Device; the one before counts no more."""
        fleet, address = self._here, Address(namespace, name)
        for _ in range(_TRIES):
            device = await fleet.client.get(scheme.DEVICE, name, namespace)
            if deleting(device):
                raise errors.conflict(GROUP, "devices", name, "it is being removed")
            before = int(((device.get("spec") or {}).get("credential") or {}).get("generation") or 0)
            held = list(device["metadata"].get("finalizers") or ())
            patch = {
                "metadata": {
                    "finalizers": [*held, *([] if FINALIZER in held else [FINALIZER])],
                    "resourceVersion": device["metadata"]["resourceVersion"],
                },
                "spec": {"credential": {"generation": before + 1}},
            }
            try:
                # Where the bus is away nothing has changed.
                issued = await fleet.gate.issue(address, uid(device), before + 1)
                await fleet.client.patch(scheme.DEVICE, name, namespace, patch)
                # Not before it is known that there is a new one; where this ends here, the fleet does it.
                if before:
                    await fleet.gate.bar(address, uid(device), before)
            except BusError as error:
                raise errors.unavailable(f"the bus is away: {error}") from error
            except ApiError as error:
                if error.code == 409:  # Its status was written meanwhile.
                    continue
                raise
            return _credential(name, namespace, issued)
        raise errors.conflict(GROUP, "devices", name, "others change it at the same time: try again")

    async def make(self, namespace: str, row: Obj, id_: str = "") -> Issued:
        """A Device with its first credential; the same again for one that this batch has made before. Raises ``ApiError``."""
        fleet = self._here
        parts = batch.device(row)
        obj: Obj = {**scheme.DEVICE.empty(row["name"], namespace), "spec": parts["spec"]}
        obj["metadata"] |= {"labels": parts["labels"], "finalizers": [FINALIZER]}
        if id_:
            obj["metadata"]["annotations"] = {BATCH: id_}
        try:
            made = await fleet.client.create(obj)
        except ApiError as error:
            if error.reason != "AlreadyExists" or not id_:
                raise
            made = await fleet.client.get(scheme.DEVICE, row["name"], namespace)
            if annotations_of(made).get(BATCH) != id_ or made["spec"].get("credential") != {"generation": 1}:
                raise
        return await fleet.gate.issue(address_of(made), uid(made), 1)

    async def batch(self, obj: Obj) -> Obj:
        """Answers a DeviceBatch."""
        fleet, where = self._here, str(obj["metadata"].get("namespace") or "")
        rows, id_ = obj["spec"]["devices"], str(obj["spec"].get("id") or "")
        credentials: list[Obj] = []
        refused: list[Obj] = []
        shared: Issued | None = None

        async def one(number: int) -> Issued | ApiError:
            try:
                return await self.make(where, rows[number], id_)
            except ApiError as error:
                return error

        for first in range(0, len(rows), AT_A_TIME):
            numbers = range(first, min(first + AT_A_TIME, len(rows)))
            try:
                made = await asyncio.gather(*(one(number) for number in numbers))
            except BusError as error:
                raise errors.unavailable(f"the bus is away, {len(credentials)} devices were made: {error}") from error
            for number, result in zip(numbers, made, strict=True):
                if isinstance(result, ApiError):
                    about = {"row": number, "name": rows[number]["name"]}
                    refused.append(about | {"reason": result.reason, "message": result.message})
                else:
                    shared = result
                    credentials.append({"name": rows[number]["name"], "username": result.username, "password": result.password})
            # Others are served meanwhile.
            await fleet.clock.sleep(0)
        answer: Obj = {"made": len(credentials), "credentials": credentials, "refused": refused}
        if shared is not None:
            answer |= {key: value for key, value in shared.shown().items() if key not in ("username", "password")}
        return {**obj, "metadata": {"namespace": where}, "spec": {"devices": []}, "status": answer}

    async def enrol(self, namespace: str, claim: str, body: Obj) -> Obj:
        """A device that holds a claim's token or certificate makes itself."""
        fleet = self._here
        async with self._counting:
            for _ in range(_TRIES):
                found = await self._claim(fleet, namespace, claim)
                try:
                    row = enrolled(found, _spec(body))
                except ValueError as wrong:
                    field, _, why = str(wrong).partition(": ")
                    cause = Cause("FieldValueInvalid", field, why)
                    raise errors.invalid(GROUP, "DeviceEnrolment", claim, [cause]) from None
                used = int((found.get("status") or {}).get("used") or 0) + 1
                counted = {
                    "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                    "status": {"used": used, "lastUsedTime": format_time(fleet.clock.now())},
                }
                try:
                    # Counted first: a crash may lose one of the count, and never makes one too many.
                    await fleet.client.patch(scheme.DEVICE_CLAIM, claim, namespace, counted, subresource="status")
                except ApiError as error:
                    if error.code != 409:
                        raise
                    continue
                break
            else:
                raise errors.conflict(GROUP, "deviceclaims", claim, "others change it at the same time: try again")
            row["labels"] = {**row["labels"], CLAIM_LABEL: claim}
            try:
                return _credential(row["name"], namespace, await self.make(namespace, row))
            except ApiError:
                back = {"status": {"used": used - 1}}
                await fleet.client.patch(scheme.DEVICE_CLAIM, claim, namespace, back, subresource="status")
                raise
            except BusError as error:
                raise errors.unavailable(f"the bus is away: {error}") from error

    async def _claim(self, fleet: Fleet, namespace: str, claim: str) -> Obj:
        try:
            found: Obj | None = await fleet.client.get(scheme.DEVICE_CLAIM, claim, namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            found = None
        why = claim_refusal(found, fleet.clock.now())
        if why or found is None:
            raise errors.forbidden(GROUP, "deviceclaims", claim, why)
        return found


def _value(data: bytes) -> Any:
    """A measurement as JSON where it is, otherwise as text."""
    try:
        return twin.value(data)
    except ValueError:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return base64.b64encode(data).decode()


def _spec(body: Obj) -> dict[str, Any]:
    found = body.get("spec")
    return found if isinstance(found, dict) else {}


def _command(name: str, body: Obj) -> dict[str, Any]:
    """``spec`` of a DeviceCommand. Raises ``ApiError`` 422."""
    spec = _spec(body)
    causes = []
    unknown = sorted(set(spec) - {"action", "arguments", "timeoutSeconds", "queueSeconds"})
    if unknown:
        text = "must be action, arguments, timeoutSeconds or queueSeconds"
        causes.append(Cause("FieldValueInvalid", f"spec.{unknown[0][:80]}", f"Invalid value: {text}"))
    action = spec.get("action")
    if not isinstance(action, str) or not 0 < len(action) <= 64:
        text = f"Invalid value: {str(action)[:80]!r}: must be a text of 1 to 64 characters that the device knows"
        causes.append(Cause("FieldValueInvalid", "spec.action", text))
    if len(json.dumps(spec.get("arguments"))) > waiting.MOST_ARGUMENTS:
        text = f"Too long: may not be more than {waiting.MOST_ARGUMENTS} bytes as JSON"
        causes.append(Cause("FieldValueTooLong", "spec.arguments", text))
    found = {"action": action, "arguments": spec.get("arguments")}
    bounds = (
        ("timeoutSeconds", waiting.ANSWER_SECONDS, 0.1, waiting.MOST_ANSWER_SECONDS),
        ("queueSeconds", 0.0, 0.0, waiting.MOST_SECONDS),
    )
    for key, usual, low, most in bounds:
        value = spec.get(key, usual)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= most:
            text = f"Invalid value: {str(value)[:80]!r}: must be seconds from {low:g} to {most:g}"
            causes.append(Cause("FieldValueInvalid", f"spec.{key}", text))
        found[key] = value
    if causes:
        raise errors.invalid(GROUP, "DeviceCommand", name, causes)
    return found


def _told(body: Obj, id_: str, state: str, result: Any, **more: Any) -> Obj:
    head = {"apiVersion": scheme.DEVICE.api_version, "kind": "DeviceCommand", "metadata": {}, "spec": body.get("spec") or {}}
    return {**head, "status": {"id": id_, "state": state, "result": result, **more}}


def _credential(name: str, namespace: str, issued: Issued) -> Obj:
    head = {"apiVersion": scheme.DEVICE.api_version, "kind": "DeviceCredential"}
    return {**head, "metadata": {"name": name, "namespace": namespace}, "status": issued.shown()}
