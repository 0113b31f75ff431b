"""All devices at this moment: hears them, tells them what is wanted, and writes what is worth keeping into their Devices.

What devices say goes into twins in memory. A Device's status is written when something of it changed, each at most every
:data:`WRITE_SECONDS` and :data:`WRITES_A_TICK` of all in a second, the longest waiting first: what comes between is coalesced.
That it was heard alone is written every :data:`SEEN_SECONDS`. What is newer than the status is read at ``devices/NAME/live``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.devices import rate, twin, waiting
from metaos.devices.status import Known, of_status, status
from metaos.devices.twin import Malformed, Twin
from metaos.fleet.apps import App, Apps, Unfit, chunk, manifest, source
from metaos.fleet.gate import Address, Connection, Gate
from metaos.messaging.bus import Bus, BusError, Message, Subscription
from metaos.messaging.subjects import said_by, to_device
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, deleting, format_time, generation, name, namespace, uid

log = logging.getLogger("nemo.fleet")

#: Between two writes of one Device's status, and of when it was heard where nothing else changed, in seconds.
WRITE_SECONDS, SEEN_SECONDS = 5.0, 300.0
#: Writes of all in one tick, and the seconds of a tick.
WRITES_A_TICK, TICK_SECONDS = 100, 1.0
#: So many messages, and so many writes, are worked on in one turn of the event loop.
TURN_MESSAGES, TURN_WRITES = 32, 4
#: Messages of all devices that wait for the hub; of more the oldest are lost, and counted.
WAITING = 50_000
#: Of one message; of a measurement that is shown, and its name; and how many kinds of them of one device are kept.
MOST_BYTES, MEASUREMENT_BYTES, NAME_BYTES, MEASUREMENTS = 16 * 1024, 1024, 256, 16
#: Connections of one device at a time under client IDs other than its name.
MOST_CONNECTIONS = 8
#: Until the servers are asked again for the connections of devices, where they were away.
WATCH_SECONDS = 5.0
#: On a Device that has been given a credential: it goes only when that counts no more.
FINALIZER = "meta-os.eu/credential"


@dataclass(slots=True)
class Live:
    """One device. Times are the wall clock's."""

    address: Address
    device: Obj
    twin: Twin
    commands: list[dict[str, Any]] = field(default_factory=list)
    last_command: dict[str, Any] | None = None
    rate: rate.Rate = field(default_factory=rate.Rate)
    flooding: str = ""
    dropped: int = 0
    malformed: str = ""
    #: Which generation it was told last, how often, and when it is told again if it does not report it; 0: not.
    told: int = 0
    tries: int = 0
    again: float = 0.0
    written: float = 0.0
    seen_written: float = 0.0
    #: What its application's code is taken from.
    source: str = ""
    wanted: str = ""
    problem: str = ""
    barred: str = ""
    #: By client ID, where that is not its name: the connection's number.
    connections: dict[str, str] = field(default_factory=dict)
    #: Credentials before this one are barred.
    ended: int = 1
    measured: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    asked: dict[str, asyncio.Future[Mapping[str, Any]]] = field(default_factory=dict)
    #: Its status is written by one at a time, so that no earlier one is the last.
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.device.get("spec") or {}

    @property
    def credential(self) -> int:
        """Which of its credentials counts; 0: it was given none."""
        return int((self.spec.get("credential") or {}).get("generation") or 0)

    @property
    def settled(self) -> bool:
        """Whether it has what it was told, or said that it will not."""
        app = self.twin.app
        has = self.wanted in (app.get("sha256"), app.get("tried")) if self.wanted else not self.surplus
        return has and twin.in_sync(self.twin, self.spec.get("desired") or {}, self.told)

    @property
    def surplus(self) -> bool:
        """Whether it runs an application though none is wanted any more."""
        return not self.spec.get("app") and bool(self.twin.app.get("sha256"))

    def known(self) -> Known:
        return Known(self.twin, self.commands, self.last_command, self.flooding, self.wanted, self.problem)


class Fleet:
    """Where the controllers run their part for Devices calls ``changed`` and ``tick``; ``stop`` when it ends. ``connect``: to the
    bus, as the hubs' account."""

    def __init__(self, client: Client, clock: Clock, connect: Callable[[], Awaitable[Bus]], gate: Gate, apps: Apps) -> None:
        self.client, self.clock, self.gate, self.apps = client, clock, gate, apps
        self._connect = connect
        self._bus: Bus | None = None
        self.live: dict[Address, Live] = {}
        #: Whether the controllers run here.
        self.leading = False
        #: Messages that were too many, made no sense or came from nobody, since the start.
        self.dropped = 0
        self._dirty: dict[Address, None] = {}
        self._unsaid: set[Address] = set()
        #: Whose application a ConfigMap or image (namespace, name) holds.
        self._users: dict[tuple[str, str], set[Address]] = {}
        self._out: set[Address] = set()
        self._listening: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._heard: Subscription | None = None
        self._swept = 0.0
        self._turn = asyncio.Lock()
        apps.images.used, apps.images.came = self.uses, self._image_came

    async def bus(self) -> Bus:
        """Begins to listen with the first device that may connect: a hub without any needs no bus. Raises ``BusError``."""
        async with self._turn:
            if self._bus is None:
                bus = await self._connect()
                self._heard = await bus.subscribe("up.>", waiting=WAITING)
                self._listening = asyncio.create_task(self._listen(self._heard), name="fleet")
                self._watching = asyncio.create_task(self._watch(), name="fleet, connections")
                self._bus = bus
            return self._bus

    async def stop(self) -> None:
        """Forgets everything: who leads next begins with what is stored."""
        self.leading, self._bus = False, None
        self.gate.close()
        await self.apps.images.stop()
        tasks = [task for task in (self._listening, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._heard is not None:
            await self._heard.close()
        self._listening = self._watching = self._heard = None
        for live in self.live.values():
            for future in live.asked.values():
                future.cancel()
        self.live.clear()
        self._dirty.clear()
        self._unsaid.clear()
        self._users.clear()
        self._out.clear()

    # -- what is wanted --------------------------------------------------------------------------------------

    async def changed(self, address: Address, device: Obj | None) -> None:
        """A Device came, changed or went. Raises ``BusError`` or ``ApiError``: then it is to be called again."""
        if device is None:
            self._forget(address)
            return
        live = self.live.get(address)
        if live is None or uid(live.device) != uid(device):
            self._forget(address)
            live = self.live[address] = _of(address, device)
            self.touch(live)
        if generation(device) >= generation(live.device):
            live.device = device
        await self._admit(live)
        if deleting(device):
            await self._release(live)
            return
        await self._find_app(live)
        if live.twin.online and live.told < generation(device):
            await self.tell(live)

    async def _admit(self, live: Live) -> None:
        """Has the gate know whether it may connect."""
        if not live.credential:
            return
        await self.bus()
        await self.gate.open(live.address.namespace)
        while live.ended < live.credential:
            await self.gate.bar(live.address, uid(live.device), live.ended)
            live.ended += 1
        why = "gone" if deleting(live.device) else "quarantined" if live.spec.get("quarantined") else ""
        why = why or ("flooding" if live.flooding and live.rate.out > self.clock.now() else "")
        if why and not live.barred:
            await self.gate.bar(live.address, uid(live.device), live.credential)
        elif not why and live.barred:
            live.connections.clear()
            await self.gate.admit(live.address, uid(live.device), live.credential)
        if bool(why) != bool(live.barred):
            self.touch(live)
        if why and live.twin.online:
            live.twin = twin.away(live.twin)
            self.touch(live)
        live.barred = why

    async def _release(self, live: Live) -> None:
        """Its credential counts no more: the Device may go."""
        left = [each for each in live.device["metadata"].get("finalizers") or () if each != FINALIZER]
        if len(left) == len(live.device["metadata"].get("finalizers") or ()):
            return
        try:
            patch = {"metadata": {"finalizers": left, "uid": uid(live.device)}}
            await self.client.patch(scheme.DEVICE, live.address.name, live.address.namespace, patch)
        except ApiError as error:
            if error.code != 404:
                raise

    def _forget(self, address: Address) -> None:
        live = self.live.pop(address, None)
        for held in (self._unsaid, self._out):
            held.discard(address)
        self._dirty.pop(address, None)
        if live is not None:
            self._uses_no_more(live)
            for future in live.asked.values():
                future.cancel()

    def _uses_no_more(self, live: Live) -> None:
        key = live.address.namespace, live.source
        users = self._users.get(key, set())
        users.discard(live.address)
        if not users:
            self._users.pop(key, None)

    async def _find_app(self, live: Live) -> None:
        before = live.wanted, live.problem
        app = live.spec.get("app")
        self._uses_no_more(live)
        live.source = source(app or {})
        live.wanted = live.problem = ""
        if app:
            self._users.setdefault((live.address.namespace, live.source), set()).add(live.address)
            try:
                live.wanted = (await self.apps.wanted(live.address.namespace, app)).sha256
            except Unfit as error:
                live.problem = str(error)
        if (live.wanted, live.problem) != before:
            self.touch(live)
            if live.twin.online:
                await self._tell_app(live)

    async def app_changed(self, where: str, config_map: str) -> None:
        """A ConfigMap changed: those whose application it holds are told."""
        self.apps.forget(where, config_map)
        await self._app_came(where, config_map)

    async def _app_came(self, where: str, named: str) -> None:
        for address in list(self._users.get((where, named), ())):
            if address in self.live:
                await self._find_app(self.live[address])

    async def _image_came(self, where: str, image: str) -> None:
        try:
            await self._app_came(where, image)
        except (BusError, ApiError) as error:
            log.warning("devices of %s were not told of image %s: %s", where, image, error)

    def uses(self, where: str, named: str) -> bool:
        """Whether this ConfigMap or image holds a device's application."""
        return (where, named) in self._users

    async def _app(self, live: Live) -> App | None:
        """What it shall run; ``None`` where there is nothing."""
        app = live.spec.get("app")
        try:
            return await self.apps.wanted(live.address.namespace, app) if app else None
        except Unfit:
            return None  # Its condition says why.

    # -- telling ---------------------------------------------------------------------------------------------

    async def say(self, address: Address, end: str, message: Mapping[str, Any]) -> None:
        """Says something to a device. Raises ``BusError``."""
        await (await self.bus()).publish(to_device(*address, end), json.dumps(message, separators=(",", ":")).encode())

    async def tell(self, live: Live, *, whole: bool = False) -> None:
        """What is wanted: the ``whole`` where it has come back, otherwise what is left to do."""
        version, desired = generation(live.device), live.spec.get("desired") or {}
        message: dict[str, Any] = {"version": version, "epoch": live.twin.epoch, "session": live.twin.session}
        if whole:
            message["desired"] = desired
        else:
            message["delta"] = twin.delta(live.twin.reported, desired)
        live.tries = live.tries + 1 if live.told == version and not whole else 0
        live.told, live.again = version, self.clock.now() + twin.pending(live.tries)
        self._unsaid.add(live.address)
        await self.say(live.address, "twin.desired", message)

    async def _tell_app(self, live: Live) -> None:
        app = await self._app(live)
        if app is not None and app.sha256 not in (live.twin.app.get("sha256"), live.twin.app.get("tried")):
            self._unsaid.add(live.address)
            await self.say(live.address, "app.desired", manifest(app))
        elif app is None and live.surplus:
            self._unsaid.add(live.address)
            await self.say(live.address, "app.desired", {"sha256": ""})

    async def _welcome(self, live: Live) -> None:
        """It has come back: it gets all that is wanted, and what waited for it."""
        await self.tell(live, whole=True)
        await self._tell_app(live)
        live.commands, expired = waiting.living(live.commands, self.clock.now())
        if expired:
            live.last_command = outcome(expired[-1], "Expired", None, self.clock.now())
        for command in live.commands:
            await self.send(live.address, command)

    async def send(self, address: Address, command: Mapping[str, Any]) -> None:
        message = {"action": command["action"], "arguments": command.get("arguments")}
        await self.say(address, f"command.{command['id']}", message)

    # -- hearing ---------------------------------------------------------------------------------------------

    async def _listen(self, heard: Subscription) -> None:
        taken = 0
        async for message in heard:
            try:
                await self.heard(message)
            except (BusError, ApiError) as error:
                log.warning("%s: %s", message.subject, error)
            except Exception:
                log.exception("a message on %s could not be taken", message.subject)
            taken += 1
            if not taken % TURN_MESSAGES:
                # However many wait, others are served meanwhile.
                await self.clock.sleep(0)

    async def heard(self, message: Message) -> None:
        """Takes one message of a device."""
        try:
            where, named, end = said_by(message.subject)
        except ValueError:
            self.dropped += 1
            return
        live, now = self.live.get(Address(where, named)), self.clock.now()
        if live is None or live.barred:
            self.dropped += 1
            return
        if not await self._within(live, now):
            return
        try:
            await self._take(live, end, message.data, now)
        except (Malformed, ValueError, RecursionError) as error:
            # What makes no sense is not answered: the device would say it again.
            self.dropped += 1
            live.dropped, live.malformed = live.dropped + 1, f"{end}: {error}"[:200]

    async def _watch(self) -> None:
        while True:
            for live in self.live.values():
                live.connections.clear()  # Who went meanwhile was not seen.
            try:
                async with aclosing(self.gate.connections()) as found:
                    taken = 0
                    async for each in found:
                        await self.called(each)
                        taken += 1
                        if not taken % TURN_MESSAGES:
                            await self.clock.sleep(0)
            except (BusError, ApiError) as error:
                log.warning("whether devices use their own client IDs is not seen at this moment: %s", error)
            await self.clock.sleep(WATCH_SECONDS)

    async def called(self, seen: Connection) -> None:
        """A device has connected, or is gone. One that gives another's client ID has cut that one off, as servers of MQTT do: it
        is quarantined, as it would do it again. One that holds more than :data:`MOST_CONNECTIONS` under IDs of its own choice,
        of those that its namespace may have, is refused for a while. Raises ``ApiError``, ``BusError``."""
        address, client_id = seen.device, seen.client_id
        live = self.live.get(address)
        if live is None or client_id == address.name:
            return
        if not seen.there:
            if live.connections.get(client_id) == seen.number:
                del live.connections[client_id]
            return
        if live.spec.get("quarantined"):
            return
        if Address(address.namespace, client_id) not in self.live:
            # Nobody's: an ID of its own choice disturbs no one.
            if len(live.connections) < MOST_CONNECTIONS or client_id in live.connections:
                live.connections[client_id] = seen.number
            elif not live.barred:
                live.rate = rate.cut(live.rate, self.clock.now())
                live.flooding = (
                    f"it held more than {MOST_CONNECTIONS} connections at once: it is refused until {format_time(live.rate.out)}"
                )
                self._out.add(address)
                await self._admit(live)
            return
        why = f"it connected with the client ID {client_id}, which is another device's, and cut that one off: its own is its name"
        patch = {"metadata": {"uid": uid(live.device)}, "spec": {"quarantined": True, "quarantineReason": why}}
        log.warning("device %s/%s is quarantined: %s", *address, why)
        try:
            await self.client.patch(scheme.DEVICE, address.name, address.namespace, patch)
        except ApiError as error:
            if error.code not in (404, 409):  # It has gone, or another has its name.
                raise

    async def _within(self, live: Live, now: float) -> bool:
        """Whether one more message is not too many."""
        allowed = float(live.spec.get("messagesPerSecond") or rate.USUAL_RATE)
        live.rate, taken, cut = rate.sent(live.rate, now, allowed)
        if taken:
            return True
        self.dropped += 1
        live.dropped += 1
        why = f"it sends more than its {allowed:g} messages a second: what is above that is dropped"
        if now < live.rate.out:
            why = f"it went on above its {allowed:g} messages a second: it is refused until {format_time(live.rate.out)}"
        if why != live.flooding:
            live.flooding = why
            self.touch(live)
        self._out.add(live.address)
        if cut:
            await self._admit(live)
        return False

    async def _take(self, live: Live, end: str, data: bytes, now: float) -> None:
        word, _, rest = end.partition(".")
        before = live.twin
        said = _object(data) if word != "telemetry" else {}
        if word == "telemetry":
            live.twin = twin.heard(before, now)
            if len(rest) > NAME_BYTES:
                raise Malformed(f"the name of a measurement may have {NAME_BYTES} bytes")
            if rest in live.measured or len(live.measured) < MEASUREMENTS:
                live.measured[rest] = now, data[:MEASUREMENT_BYTES]
        elif end == "status":
            live.twin = twin.born(before, said, now) if said.get("online", True) else twin.gone(before, said)
            if live.twin.session != before.session or (live.twin.online and not before.online):
                await self._welcome(live)
        elif end == "twin.reported":
            live.twin = twin.reported(before, said, now)
        elif end == "twin.get":
            live.twin = twin.heard(before, now)
            await self._welcome(live)
        elif word == "result":
            live.twin = twin.heard(before, now)
            self._answered(live, rest, said, now)
        elif end == "app.want":
            live.twin = twin.heard(before, now)
            if (app := await self._app(live)) is None:
                raise Malformed("sha256: there is no application that it shall have")
            await self.say(live.address, "app.chunk", chunk(app, said))
        else:
            raise Malformed(f"{end} is no word of a device")
        if _told_more(before, live.twin) or now - live.seen_written >= SEEN_SECONDS:
            self.touch(live)

    def _answered(self, live: Live, id_: str, said: Mapping[str, Any], now: float) -> None:
        future = live.asked.get(id_)
        if future is not None and not future.done():
            future.set_result(said)
        waited = next((each for each in live.commands if each["id"] == id_), None)
        if waited is not None:
            live.commands = waiting.answered(live.commands, id_)
            live.last_command = outcome(waited, "Done" if said.get("ok", True) else "Failed", said.get("result"), now)
            self.touch(live)

    # -- writing ---------------------------------------------------------------------------------------------

    def touch(self, live: Live) -> None:
        """Its status is to be written."""
        self._dirty.setdefault(live.address)

    async def tick(self) -> None:
        """Once a second: tells again, notices who is gone, lets in who was out, and writes."""
        now = self.clock.now()
        for live in self._those(self._unsaid):
            if not live.twin.online or live.settled:
                self._unsaid.discard(live.address)
            elif now >= live.again:
                await self.tell(live)
                await self._tell_app(live)
        for live in self._those(self._out):
            address = live.address
            if not rate.flooding(live.rate, now):
                self._out.discard(address)
                live.flooding = ""
                self.touch(live)
                await self._admit(live)
        if now - self._swept >= twin.SILENCE_SECONDS:
            self._swept = now
            for live in self.live.values():
                if twin.overdue(live.twin, now):
                    live.twin = twin.away(live.twin)
                    self.touch(live)
                if live.commands and waiting.living(live.commands, now)[1]:
                    live.commands, expired = waiting.living(live.commands, now)
                    live.last_command = outcome(expired[-1], "Expired", None, now)
                    self.touch(live)
        await self.flush(now)

    def _those(self, addresses: Iterable[Address]) -> list[Live]:
        return [self.live[address] for address in addresses if address in self.live]

    async def flush(self, now: float, most: int = WRITES_A_TICK) -> int:
        """Writes those that are due. How many."""
        due: list[Live] = []
        for address in self._dirty:
            live = self.live[address]
            if now - live.written >= WRITE_SECONDS:
                due.append(live)
                if len(due) >= most:
                    break
        for live in due:
            del self._dirty[live.address]
        for first in range(0, len(due), TURN_WRITES):
            part = due[first : first + TURN_WRITES]
            done = await asyncio.gather(*(self.write(live) for live in part), return_exceptions=True)
            for live, failed in zip(part, done, strict=True):
                if isinstance(failed, BaseException):
                    if live.address in self.live:
                        self.touch(live)
                    log.warning("the status of device %s/%s was not written: %s", *live.address, failed)
            # A command in between is not held up by all of them.
            await self.clock.sleep(0)
        return len(due)

    async def write(self, live: Live) -> bool:
        """Writes its status now. Whether it is kept: not where the Device has gone. Raises ``ApiError``."""
        async with live.writing:
            return await self._write(live)

    async def _write(self, live: Live) -> bool:
        now = self.clock.now()
        live.written = live.seen_written = now
        wanted = status(live.device, live.known(), now)
        held = live.device.get("status") or {}
        if wanted == held:
            return True
        metadata = {"name": live.address.name, "namespace": live.address.namespace, "uid": uid(live.device)}
        body = {"apiVersion": scheme.DEVICE.api_version, "kind": scheme.DEVICE.kind, "metadata": metadata, "status": wanted}
        try:
            await self.client.update(body, subresource="status")
        except ApiError as error:
            if error.code in (404, 409):
                return False  # It has gone, or another has its name: what is told about that comes.
            raise
        live.device = {**live.device, "status": wanted}
        return True


def _of(address: Address, device: Obj) -> Live:
    held = device.get("status") or {}
    live = Live(address, device, of_status(held), [dict(each) for each in held.get("commands") or ()], held.get("lastCommand"))
    live.seen_written = live.twin.seen
    if twin.in_sync(live.twin, live.spec.get("desired") or {}, generation(device)):
        live.told = generation(device)
    if (device.get("spec") or {}).get("quarantined") is not True and any(
        c.get("type") in ("Quarantined", "Flooding") and c.get("status") == "True" for c in held.get("conditions") or ()
    ):
        # It was out when the hub ended: the gate still refuses it.
        live.barred = "before"
    return live


def _told_more(before: Twin, after: Twin) -> bool:
    """Whether more changed than when it was heard, and how often it said the same."""
    return any(
        getattr(before, word) != getattr(after, word)
        for word in ("online", "epoch", "firmware", "reported_version", "reported", "app")
    )


def outcome(command: Mapping[str, Any], state: str, result: Any, now: float) -> dict[str, Any]:
    """As ``status.lastCommand`` has it."""
    return {"id": command["id"], "action": command["action"], "state": state, "result": result, "time": format_time(now)}


def _object(data: bytes) -> Mapping[str, Any]:
    """Raises ``ValueError``."""
    if len(data) > MOST_BYTES:
        raise Malformed(f"it has {len(data)} bytes: a message may have {MOST_BYTES}")
    found = twin.value(data)
    if not isinstance(found, dict):
        raise Malformed("a message must be a JSON object")
    return found


def address_of(device: Obj) -> Address:
    return Address(namespace(device), name(device))
