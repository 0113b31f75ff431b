"""Devices over the bus in memory, with the API server's real rules."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from metaos.cli.devices import _added
from metaos.clock import SystemClock
from metaos.fleet import apps
from metaos.fleet import fleet as fleets
from metaos.fleet.gate import Address, Connection
from metaos.messaging.bus import BusError
from metaos.resources import errors, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo
from tests.apiserver.serving import served
from tests.fleet.site import ADMIN, Station, Thing, station


async def test_a_device_comes_is_told_all_once_and_then_what_is_left_to_do() -> None:
    async with station() as hub:
        await hub.make("lamp", desired={"led": True, "colour": {"r": 1, "g": 2}})
        await hub.settle(2)
        assert await hub.condition("lamp", "InSync") == ("Unknown", "it has not reported yet")
        lamp = Thing(hub, "lamp")
        ((end, told),) = await lamp.connect("a", firmware="1.2")
        assert end == "twin.desired" and told["desired"] == {"led": True, "colour": {"r": 1, "g": 2}} and told["version"] == 1
        await lamp.report(1, led=True, colour={"r": 1, "g": 2}, up=3)
        await hub.settle(6)
        status = (await hub.device("lamp"))["status"]
        assert status["online"] and status["firmware"] == "1.2" and status["reportedVersion"] == 1
        assert status["reported"] == {"led": True, "colour": {"r": 1, "g": 2}, "up": 3}
        assert (await hub.condition("lamp", "InSync"))[0] == "True"
        await hub.patch("lamp", {"desired": {"colour": {"g": 5}}})
        await hub.settle()
        ((_, told),) = await lamp.told()
        assert told["delta"] == {"colour": {"g": 5}} and told["version"] == 2 and "desired" not in told
        # Not reported: told again, with more and more time between.
        await hub.settle(16)
        assert [said["version"] for _, said in await lamp.told()] == [2, 2]
        await lamp.report(2, led=True, colour={"r": 1, "g": 5})
        await hub.settle(60)
        assert await lamp.told() == []
        assert (await hub.condition("lamp", "InSync"))[0] == "True"


async def test_a_will_silence_and_a_late_will() -> None:
    async with station() as hub:
        await hub.make("lamp")
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a", heartbeat=10)
        await lamp.connect("b", heartbeat=10)
        await lamp.say("status", {"online": False, "session": "a"})
        await hub.settle(7)
        assert (await hub.device("lamp"))["status"]["online"] is True
        await hub.settle(40)
        assert (await hub.device("lamp"))["status"]["online"] is False
        await lamp.say("telemetry.temperature", b"21.5")
        await hub.settle(10)
        assert (await hub.device("lamp"))["status"]["online"] is True
        await lamp.say("status", {"online": False, "session": "b"})
        await hub.settle(10)
        assert (await hub.device("lamp"))["status"]["online"] is False


async def test_what_is_said_often_is_written_seldom_and_read_live() -> None:
    async with station() as hub:
        await hub.make("lamp", messagesPerSecond=100)
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        before = int((await hub.device("lamp"))["metadata"]["resourceVersion"])
        for n in range(200):
            await lamp.report(1, n=n)
            await lamp.say("telemetry.temperature", json.dumps(n).encode())
            await hub.settle()
        live = await hub.registry.get(ADMIN, scheme.DEVICE, "lamp", "shop", subresource="live")
        assert live["status"]["reported"] == {"n": 199} and live["status"]["telemetry"]["temperature"]["value"] == 199
        await hub.settle(6)
        found = await hub.device("lamp")
        assert found["status"]["reported"] == {"n": 199}
        assert int(found["metadata"]["resourceVersion"]) - before <= 3
        with pytest.raises(ApiError, match="forbidden"):
            await hub.registry.get(UserInfo("nobody", ()), scheme.DEVICE, "lamp", "shop", subresource="live")


async def test_writes_of_all_are_bounded_and_the_longest_waiting_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as hub:
        for n in range(30):
            await hub.make(f"d{n:02}")
        await hub.settle(2)
        hub.fleet._dirty.clear()
        for n in range(30):
            await Thing(hub, f"d{n:02}").say("status", {"session": "a"})
        await hub.clock.settle(200)
        hub.clock.elapse(10)
        done = [await hub.fleet.flush(hub.clock.now(), 12) for _ in range(3)]
        assert done == [12, 12, 6]


async def command(hub: Station, name: str, **spec: Any) -> Any:
    body = {"spec": {"action": "blink", **spec}}
    return await hub.registry.create_subresource(ADMIN, scheme.DEVICE, name, "shop", "command", body)


async def test_a_command_is_answered_with_what_the_device_says() -> None:
    async with station() as hub:
        await hub.make("lamp")
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        asked = asyncio.create_task(command(hub, "lamp", arguments={"times": 3}))
        await hub.settle()
        ((end, told),) = await lamp.told()
        assert end.startswith("command.") and told == {"action": "blink", "arguments": {"times": 3}}
        await lamp.say(end.replace("command", "result"), {"ok": True, "result": "done"})
        await hub.settle()
        answer = await asked
        assert answer["status"]["state"] == "Done" and answer["status"]["result"] == "done"
        asked = asyncio.create_task(command(hub, "lamp", timeoutSeconds=2))
        await hub.settle()
        (((end, _)),) = await lamp.told()
        await lamp.say(end.replace("command", "result"), {"ok": False, "result": "no such action"})
        await hub.settle()
        assert (await asked)["status"]["state"] == "Failed"


async def test_a_command_to_who_is_away_says_so_or_waits_within_bounds() -> None:
    async with station() as hub:
        await hub.make("lamp")
        await hub.settle()
        with pytest.raises(ApiError, match="lamp is offline, it was never heard: say queueSeconds") as refused:
            await command(hub, "lamp")
        assert refused.value.code == 504
        for n in range(16):
            answer = await command(hub, "lamp", queueSeconds=100 if n else 5, arguments=n)
            assert answer["status"]["state"] == "Queued" and answer["status"]["waiting"] == n + 1
        with pytest.raises(ApiError, match="16 commands wait for this device, the most there may be") as full:
            await command(hub, "lamp", queueSeconds=100)
        assert full.value.code == 429
        assert len((await hub.device("lamp"))["status"]["commands"]) == 16
        await hub.settle(20)
        status = (await hub.device("lamp"))["status"]
        assert len(status["commands"]) == 15 and status["lastCommand"]["state"] == "Expired"
        lamp = Thing(hub, "lamp")
        told = await lamp.connect("a")
        assert [said.get("arguments") for end, said in told if end.startswith("command.")] == list(range(1, 16))
        first = next(end for end, _ in told if end.startswith("command."))
        await lamp.say(first.replace("command", "result"), {"ok": True, "result": 42})
        await hub.settle(7)
        status = (await hub.device("lamp"))["status"]
        assert len(status["commands"]) == 14 and status["lastCommand"]["result"] == 42


async def test_a_command_is_kept_before_it_is_acknowledged_and_otherwise_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as hub:
        await hub.make("lamp")
        await hub.settle(6)
        usual, first, slow = hub.client.update, asyncio.Event(), asyncio.Event()

        async def late(obj: Obj, *, subresource: str = "") -> Obj:
            if not first.is_set():
                first.set()
                await slow.wait()
            return await usual(obj, subresource=subresource)

        monkeypatch.setattr(hub.client, "update", late)
        live = hub.fleet.live[Address("shop", "lamp")]
        live.flooding = "it is"
        writing = asyncio.create_task(hub.fleet.write(live))
        await first.wait()
        asked = asyncio.create_task(command(hub, "lamp", queueSeconds=100))
        await hub.settle()
        slow.set()
        assert (await asked)["status"]["state"] == "Queued" and await writing
        assert len((await hub.device("lamp"))["status"]["commands"]) == 1, "not undone by what began before"

        for failure, code in ((errors.unavailable("no store"), 503), (errors.not_found("meta-os.eu", "devices", "lamp"), 404)):

            async def fails(obj: Obj, *, subresource: str = "", failure: ApiError = failure) -> Obj:
                raise failure

            monkeypatch.setattr(hub.client, "update", fails)
            with pytest.raises(ApiError) as refused:
                await command(hub, "lamp", queueSeconds=100)
            assert refused.value.code == code and len(live.commands) == 1


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"action": ""}, "spec.action"),
        ({"timeoutSeconds": 500}, "spec.timeoutSeconds"),
        ({"queueSeconds": -1}, "spec.queueSeconds"),
        ({"arguments": "x" * 5000}, "spec.arguments"),
        ({"wait": True}, "spec.wait"),
    ],
)
async def test_a_command_that_makes_no_sense_is_refused_by_field(spec: dict[str, Any], field: str) -> None:
    async with station() as hub:
        await hub.make("lamp")
        await hub.settle()
        with pytest.raises(ApiError, match=field) as refused:
            await command(hub, "lamp", **spec)
        assert refused.value.code == 422


async def test_a_device_that_floods_is_cut_off_and_its_neighbours_are_not_harmed() -> None:
    async with station() as hub:
        for name in ("lamp", "bell"):
            await hub.registry.create_subresource(ADMIN, *await made(hub, name), "credential", {})
        await hub.settle()
        lamp, bell = Thing(hub, "lamp"), Thing(hub, "bell")
        await lamp.connect("a")
        await bell.connect("a")
        for n in range(1000):
            await lamp.say("telemetry.noise", str(n).encode())
        await bell.report(2, n=1)
        await hub.settle(6)
        status, message = await hub.condition("lamp", "Flooding")
        assert status == "True" and "it is refused until" in message
        assert [(each[0].name, each[2]) for each in hub.gate.barred] == [("lamp", 1)]
        assert (await hub.device("bell"))["status"]["reported"] == {"n": 1}
        assert (await hub.condition("bell", "Flooding"))[0] != "True"
        await hub.settle(40)
        assert hub.gate.barred == set()
        assert (await hub.condition("lamp", "Flooding"))[0] == "False"
        await lamp.connect("b")
        await hub.settle(7)
        assert (await hub.device("lamp"))["status"]["online"] is True


async def made(hub: Station, name: str) -> tuple[Any, str, str]:
    await hub.make(name, credential=None)
    await hub.settle()
    return scheme.DEVICE, name, "shop"


async def test_quarantine_a_new_credential_and_removal() -> None:
    async with station() as hub:
        first = await hub.registry.create_subresource(ADMIN, *await made(hub, "lamp"), "credential", {})
        uid = (await hub.device("lamp"))["metadata"]["uid"]
        assert first["status"]["password"] == f"{uid}.1" and first["status"]["username"] == "lamp"
        assert "password" not in json.dumps(await hub.device("lamp"))
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        await hub.patch("lamp", {"quarantined": True, "quarantineReason": "stolen"})
        await hub.settle(7)
        assert {each[2] for each in hub.gate.barred} == {1}
        found = await hub.device("lamp")
        assert found["status"]["online"] is False and (await hub.condition("lamp", "Quarantined"))[1].endswith("stolen")
        with pytest.raises(ApiError, match="cut off"):
            await command(hub, "lamp")
        await hub.registry.patch(ADMIN, scheme.DEVICE, "lamp", "shop", {"spec": {"quarantined": None, "quarantineReason": None}})
        await hub.settle(7)
        assert hub.gate.barred == set() and (await hub.condition("lamp", "Quarantined"))[0] == "False"
        again = await hub.registry.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
        assert again["status"]["password"] == f"{uid}.2" and {each[2] for each in hub.gate.barred} == {1}
        await hub.settle()
        await hub.registry.delete(ADMIN, scheme.DEVICE, "lamp", "shop")
        await hub.settle(2)
        assert {each[2] for each in hub.gate.barred} == {1, 2}
        with pytest.raises(ApiError, match="not found"):
            await hub.device("lamp")
        assert hub.fleet.live == {}


async def test_what_makes_no_sense_is_dropped_and_shown() -> None:
    async with station() as hub:
        await hub.make("lamp")
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        for end, data in (
            ("status", b"{"),
            ("status", b"[]"),
            ("twin.reported", b'{"epoch": "x"}'),
            ("twin.reported", b"[" * 5000),
            ("twin.reported", b" " * 20000),
            ("twin.reported", b'{"epoch": 9999999999999, "reported": {"half a character": "\\ud800"}}'),
            ("twin.reported", b'{"epoch": 9999999999999, "reported": {"deep": ' + b"[" * 300 + b"]" * 300 + b"}}"),
            ("telemetry." + "x" * 300, b"1"),
            ("app.want", b'{"sha256": "0"}'),
            ("other", b"{}"),
            ("result", b"{}"),
        ):
            await lamp.say(end, data)
            await hub.settle(1)
        await hub.bus.publish("up.shop.nobody.status", b"{}")
        await hub.settle()
        live = await hub.registry.get(ADMIN, scheme.DEVICE, "lamp", "shop", subresource="live")
        assert live["status"]["messages"]["dropped"] >= 10 and live["status"]["telemetry"] == {}
        assert live["status"]["online"] is True


async def test_many_in_one_request() -> None:
    async with station() as hub:
        rows = [{"name": f"d{n}", "labels": {"line": "3"}} for n in range(300)]
        rows += [{"name": "d1"}, {"name": "No"}, {"name": "far", "location": {"latitude": 91}}]
        body = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "DeviceBatch", "metadata": {"namespace": "shop"}}
        answer = (await hub.registry.create(ADMIN, {**body, "spec": {"devices": rows}}, namespace="shop"))["status"]
        assert answer["made"] == 300 and len({each["password"] for each in answer["credentials"]}) == 300
        assert [(each["row"], each["reason"]) for each in answer["refused"]] == [
            (300, "AlreadyExists"),
            (301, "Invalid"),
            (302, "Invalid"),
        ]
        assert "latitude" in answer["refused"][2]["message"]
        assert answer["servers"] == ["mqtt://127.0.0.1:1883"]
        named = {**body, "spec": {"devices": [{"name": "n1"}, {"name": "d1"}], "id": "once"}}
        first = (await hub.registry.create(ADMIN, named, namespace="shop"))["status"]
        again = (await hub.registry.create(ADMIN, named, namespace="shop"))["status"]
        assert first == again and first["made"] == 1 and first["refused"][0]["reason"] == "AlreadyExists"
        with pytest.raises(ApiError, match="dryRun"):
            await hub.registry.create(ADMIN, {**body, "spec": {"devices": []}}, namespace="shop", dry_run=True)
        with pytest.raises(ApiError, match="forbidden"):
            await hub.registry.create(UserInfo("nobody", ()), {**body, "spec": {"devices": []}}, namespace="shop")


async def test_a_claim_makes_so_many_devices_and_no_more() -> None:
    from metaos.apiserver.claimants import Claimants
    from metaos.devices.credentials import ClaimToken, hashed

    async with station() as hub:
        secret = "ab" * 24
        spec = {"sha256": hashed(secret), "count": 2, "expirationTime": "2023-12-31T00:00:00Z", "namePrefix": "s-"}
        await hub.registry.create(ADMIN, {**scheme.DEVICE_CLAIM.empty("line", "shop"), "spec": spec})
        tokens = Claimants(hub.registry)
        assert await tokens.user_of(str(ClaimToken("shop", "line", "cd" * 24))) is None
        assert await tokens.user_of(str(ClaimToken("shop", "other", secret))) is None
        user = await tokens.user_of(str(ClaimToken("shop", "line", secret)))
        assert user is not None

        async def enrol(name: str, who: UserInfo = user, claim: str = "line") -> Any:
            body = {"spec": {"name": name}}
            return await hub.registry.create_subresource(who, scheme.DEVICE_CLAIM, claim, "shop", "enrolment", body)

        made = await asyncio.gather(*(enrol(f"s-{n}") for n in range(4)), return_exceptions=True)
        assert sorted(type(each).__name__ for each in made) == ["ApiError", "ApiError", "dict", "dict"]
        assert all("2 devices are all made" in str(each) for each in made if isinstance(each, ApiError))
        names = [each["metadata"]["name"] for each in made if isinstance(each, dict)]
        assert (await hub.device(names[0]))["metadata"]["labels"] == {"meta-os.eu/claim": "line"}
        await hub.registry.patch(ADMIN, scheme.DEVICE_CLAIM, "line", "shop", {"spec": {"count": 5}})
        with pytest.raises(ApiError, match=r"begins with 's-'"):
            await enrol("x-1")
        # One that is there already is not made again, and counts nothing.
        with pytest.raises(ApiError, match="already exists"):
            await enrol(names[0])
        found = await hub.registry.get(ADMIN, scheme.DEVICE_CLAIM, "line", "shop")
        assert found["status"]["used"] == 2
        with pytest.raises(ApiError, match="forbidden"):
            await enrol("s-9", ADMIN)
        with pytest.raises(ApiError, match="forbidden"):
            await hub.registry.get(user, scheme.DEVICE, names[0], "shop")


async def test_a_hub_that_begins_again_knows_what_was_written() -> None:
    async with station() as hub:
        await hub.make("lamp", desired={"a": 1})
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        await lamp.report(1, a=1)
        await hub.settle(7)
        await hub.fleet.stop()
        await hub.settle()
        for live in (await hub.device("lamp"),):
            await hub.fleet.changed(fleets.address_of(live), live)
        await hub.settle(3)
        found = next(iter(hub.fleet.live.values()))
        assert found.twin.online and found.twin.reported == {"a": 1} and found.twin.epoch == lamp.epoch
        told = await lamp.connect("a")
        assert told[0][1]["desired"] == {"a": 1} and told[0][1]["epoch"] > found.twin.sequence


async def test_an_application_is_told_handed_out_in_parts_and_seen_to_run() -> None:
    import base64
    import hashlib

    async with station() as hub:
        code = "print('hello')\n" * 300
        sha = hashlib.sha256(code.encode()).hexdigest()
        config: Any = {**scheme.CONFIG_MAP.empty("blink", "shop"), "data": {"main.py": code}}
        await hub.make("lamp", app={"configMap": "blink", "version": "7"}, messagesPerSecond=100)
        await hub.settle(7)
        assert await hub.condition("lamp", "UpToDate") == ("False", "there is no ConfigMap blink in namespace shop")
        await hub.registry.create(ADMIN, config)
        await hub.settle(7)
        lamp = Thing(hub, "lamp")
        told = dict(await lamp.connect("a"))
        manifest = told["app.desired"]
        assert manifest["sha256"] == sha and manifest["size"] == len(code) and manifest["version"] == "7"
        got = b""
        while len(got) < len(code):
            await lamp.say("app.want", {"sha256": sha, "offset": len(got), "length": 2048})
            await hub.settle(1)
            ((_, part),) = await lamp.told()
            assert part["offset"] == len(got)
            got += base64.b64decode(part["data"])
        assert got.decode() == code
        lamp.sequence += 1
        running = {"sha256": sha, "version": "7", "state": "Running"}
        said = {"epoch": lamp.epoch, "sequence": lamp.sequence, "version": 1, "reported": {}, "app": running}
        await lamp.say("twin.reported", said)
        await hub.settle(7)
        assert (await hub.condition("lamp", "UpToDate"))[0] == "True"
        await hub.registry.patch(ADMIN, scheme.CONFIG_MAP, "blink", "shop", {"data": {"main.py": "1/0"}})
        await hub.settle()
        ((end, manifest),) = await lamp.told()
        assert end == "app.desired" and manifest["size"] == 3
        lamp.sequence += 1
        back = running | {"state": "RolledBack", "tried": manifest["sha256"], "message": "division by zero"}
        await lamp.say("twin.reported", said | {"sequence": lamp.sequence, "app": back})
        await hub.settle(7)
        status, message = await hub.condition("lamp", "UpToDate")
        assert status == "False" and message.endswith("division by zero")


async def test_who_takes_anothers_client_id_is_quarantined_and_nobody_else_is() -> None:
    async with station() as hub:
        for name in ("lamp", "thief"):
            await hub.make(name)
        await hub.settle()
        for name, called in (("lamp", "lamp"), ("lamp", "of its own"), ("thief", "thief"), ("nobody", "lamp")):
            hub.gate.seen.put_nowait(Connection(Address("shop", name), called))
        await hub.settle()
        for name in ("lamp", "thief"):
            assert not (await hub.device(name))["spec"].get("quarantined")
        hub.gate.seen.put_nowait(Connection(Address("shop", "thief"), "lamp"))
        await hub.settle(2)
        spec = (await hub.device("thief"))["spec"]
        assert spec["quarantined"] and "client ID lamp" in spec["quarantineReason"]
        assert {device.name for device, *_ in hub.gate.barred} == {"thief"}
        assert not (await hub.device("lamp"))["spec"].get("quarantined")


async def test_one_device_does_not_hold_the_connections_of_its_namespace() -> None:
    async with station() as hub:
        for name in ("lamp", "greedy"):
            await hub.make(name)
        await hub.settle()
        where = Address("shop", "greedy")

        def seen(id_: str, number: str, there: bool = True) -> None:
            hub.gate.seen.put_nowait(Connection(where, id_, number, there))

        # The same ID again, and IDs that went, are not more; what is late of one that was replaced takes nothing away.
        for n in range(3 * fleets.MOST_CONNECTIONS):
            seen("again", f"s/{n}")
            seen(f"short-{n}", f"t/{n}")
            seen(f"short-{n}", f"t/{n}", there=False)
            seen("again", "s/0", there=False)
        for n in range(fleets.MOST_CONNECTIONS - 1):
            seen(f"other-{n}", f"u/{n}")
        await hub.settle(2)
        assert hub.gate.barred == set()
        seen("one more", "v/1")
        await hub.settle(7)
        assert {device.name for device, *_ in hub.gate.barred} == {"greedy"}
        status, message = await hub.condition("greedy", "Flooding")
        assert status == "True" and f"more than {fleets.MOST_CONNECTIONS} connections at once: it is refused until" in message
        await hub.settle(40)
        assert hub.gate.barred == set() and (await hub.condition("greedy", "Flooding"))[0] == "False"
        seen("one more", "v/2")
        await hub.settle(2)
        assert hub.gate.barred == set()


async def test_a_new_credential_bars_the_old_one_only_when_there_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as hub:
        await hub.registry.create_subresource(ADMIN, *await made(hub, "lamp"), "credential", {})
        await hub.settle()
        usual = hub.client.patch

        async def conflict(*arguments: Any, **options: Any) -> Obj:
            raise errors.conflict("meta-os.eu", "devices", "lamp", "it was changed")

        monkeypatch.setattr(hub.client, "patch", conflict)
        with pytest.raises(ApiError, match="others change it at the same time"):
            await hub.registry.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
        assert hub.gate.barred == set()
        monkeypatch.setattr(hub.client, "patch", usual)
        # A hub that ends between the two: whoever looks next bars the old one.
        bar = hub.gate.bar

        async def ends(*_: Any) -> None:
            raise BusError("gone")

        monkeypatch.setattr(hub.gate, "bar", ends)
        with pytest.raises(ApiError, match="the bus is away"):
            await hub.registry.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
        monkeypatch.setattr(hub.gate, "bar", bar)
        await hub.settle(3)
        assert {each[2] for each in hub.gate.barred} == {1}


async def test_a_credential_is_given_though_the_device_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with station() as hub:
        await hub.make("lamp")
        issue = hub.gate.issue

        async def slowly(*given: Any) -> Any:
            monkeypatch.setattr(hub.gate, "issue", issue)
            await hub.client.patch(scheme.DEVICE, "lamp", "shop", {"metadata": {"labels": {"floor": "2"}}})
            return await issue(*given)

        monkeypatch.setattr(hub.gate, "issue", slowly)
        made = await hub.registry.create_subresource(ADMIN, scheme.DEVICE, "lamp", "shop", "credential", {})
        assert made["status"]["password"].endswith(".2")
        assert {each[2] for each in hub.gate.barred} == {1}


async def test_a_device_gets_its_credentials_when_the_bus_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``nemo device add`` is said again: it made the Device, and nobody was given anything yet."""
    async with served(tmp_path, SystemClock()) as hub, station() as other:
        hub.registry.desk.fleet = fleets.Fleet(hub.registry.client(ADMIN), other.clock, other.connect, other.gate, other.apps)
        hub.registry.desk.fleet.leading = True
        issue = other.gate.issue

        async def away(*_: Any) -> Any:
            raise BusError("gone")

        client = hub.client()
        try:
            body: Obj = {**scheme.DEVICE.empty("lamp", "default"), "spec": {"owner": "ann"}}
            body["metadata"]["labels"] = {"floor": "2"}
            monkeypatch.setattr(other.gate, "issue", away)
            for _ in range(2):
                with pytest.raises(ApiError, match="the bus is away"):
                    await _added(client, body)
            monkeypatch.setattr(other.gate, "issue", issue)
            assert (await _added(client, body))["status"]["password"].endswith(".1")
            with pytest.raises(
                ApiError, match="already exists: for new credentials say 'nemo device credentials lamp -n default'"
            ):
                await _added(client, body)
        finally:
            await client.close()


async def test_an_application_is_its_own_namespaces_alone() -> None:
    """What another tenant has signed runs on no device of this one, and nobody reads it by its hash."""
    async with station() as hub:
        await hub.registry.create(ADMIN, scheme.NAMESPACE.empty("bank"))
        for where in ("shop", "bank"):
            await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("app", where), "data": {"main.py": "the same"}})
        await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("app2", "bank"), "data": {"main.py": "secret"}})
        mine, theirs = [await hub.apps.wanted(where, {"configMap": "app", "version": "1"}) for where in ("shop", "bank")]
        assert mine.sha256 == theirs.sha256 and mine.signature != theirs.signature
        secret = await hub.apps.wanted("bank", {"configMap": "app2"})
        await hub.make("lamp", app={"configMap": "app"})
        lamp = Thing(hub, "lamp")
        await hub.settle()
        await lamp.connect("a")
        await lamp.say("app.want", {"sha256": secret.sha256, "offset": 0})
        await lamp.say("app.want", {"sha256": mine.sha256, "offset": 0})
        assert [said["sha256"] for end, said in await lamp.told() if end == "app.chunk"] == [mine.sha256]


async def test_many_applications_of_others_hold_up_neither_a_device_nor_its_commands() -> None:
    async with station() as hub:
        await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("app", "shop"), "data": {"main.py": "1"}})
        await hub.make("lamp", app={"configMap": "app"}, messagesPerSecond=100)
        await hub.settle(7)
        await hub.registry.create_subresource(
            ADMIN, scheme.DEVICE, "lamp", "shop", "command", {"spec": {"action": "blink", "queueSeconds": 60}}
        )
        many = {f"k{n}": str(n) for n in range(apps.MOST_HELD + 1)}
        await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("many", "shop"), "data": many})
        for key in many:
            await hub.apps.wanted("shop", {"configMap": "many", "key": key})
        told = await Thing(hub, "lamp").connect("a")
        assert [end.partition(".")[0] for end, _ in told] == ["twin", "app", "command"]
