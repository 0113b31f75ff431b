"""MQTT 5 as a translation: decided without a socket, then with a client of another make through a real gateway and server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import queue
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mqtt5
import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from metaos.clock import SystemClock
from metaos.config import Address
from metaos.messaging import mqtt3
from metaos.messaging.accounts import DeviceUser
from metaos.messaging.exchange import Exchange, ExchangeConfig, revoked
from metaos.messaging.mqtt import ALIASES, FILTERS, FOREVER, IN_FLIGHT, Out, Sessions, Translator, covers
from metaos.messaging.subjects import to_device
from tests.messaging.conftest import root
from tests.messaging.test_exchange import SHOP, Device

LOOPBACK = Address("127.0.0.1", 0)
CLAIMS = {
    "iss": "shop",
    "name": "lamp",
    "nats": {"pub": {"allow": ["nemo.shop.lamp.status"]}, "sub": {"allow": ["nemo.shop.lamp.command.*"]}},
}
TOKEN = b"x." + base64.urlsafe_b64encode(json.dumps(CLAIMS).encode()) + b".x"
MINE = "nemo/shop/lamp/status"


def connected(sessions: Sessions | None = None, *, now: float = 0.0, resumed: bool = False, **options: Any) -> Translator:
    options = {"clean_start": True, "password": TOKEN, "username": "lamp", **options}
    found = Translator(sessions or Sessions(), lambda: "made-up")
    found.said(mqtt5.ConnectPacket("lamp", **options), now)
    out = found.heard(mqtt3.Frame(mqtt3.CONNACK, 0, bytes([resumed, 0])))
    assert one(out).reason_code == 0
    return found


def one(out: Out) -> Any:
    """The only packet for the client."""
    packet, used = mqtt5.read(memoryview(bytes(out.client)))
    assert used == len(out.client)
    return packet


def frame(out: Out) -> mqtt3.Frame:
    """The only packet for the server."""
    assert mqtt3.size(out.server) == len(out.server)
    return mqtt3.read(bytes(out.server))


# -- packets of 3.1.1 ------------------------------------------------------------------------------------------


@given(st.text(max_size=5), st.binary(max_size=300), st.integers(0, 2), st.booleans(), st.booleans(), st.integers(1, 65535))
def test_a_message_is_read_as_it_was_written(
    topic: str, payload: bytes, qos: int, retain: bool, again: bool, number: int
) -> None:
    message = mqtt3.Publish(topic, payload, qos, retain, number if qos else 0, again)
    raw = message.write()
    assert mqtt3.size(raw) == len(raw)
    assert mqtt3.Publish.read(mqtt3.read(raw)) == message


@given(st.binary(max_size=40))
def test_any_bytes_are_packets_or_refused(data: bytes) -> None:
    try:
        length = mqtt3.size(data)
        if 0 < length <= len(data):
            found = mqtt3.read(data[:length])
            mqtt3.level(data[:length])
            mqtt3.Publish.read(found)
    except ValueError:  # UnicodeDecodeError is one.
        pass


def test_a_length_of_more_than_four_bytes_is_none() -> None:
    with pytest.raises(ValueError, match="more than four bytes"):
        mqtt3.size(b"\x30\xff\xff\xff\xff\x01")
    assert mqtt3.size(b"\x30\xff\xff\xff\x7f") == 5 + (1 << 28) - 1
    assert mqtt3.size(b"\x30\xff") == 0


# -- the translation -------------------------------------------------------------------------------------------


def test_connecting_is_translated_with_its_will() -> None:
    found = Translator(Sessions(), lambda: "made-up")
    will = mqtt5.Will(MINE, payload=b"offline", qos=mqtt5.QoS.AT_LEAST_ONCE, retain=True)
    packet = mqtt5.ConnectPacket("lamp", username="lamp", password=TOKEN, clean_start=True, keep_alive=30, will=will)
    out = found.said(packet, 0.0)
    assert not out.reset
    assert bytes(out.server) == mqtt3.connect("lamp", "lamp", TOKEN, True, 30, mqtt3.Publish(MINE, b"offline", 1, True))
    answer = one(found.heard(mqtt3.Frame(mqtt3.CONNACK, 0, b"\x00\x00")))
    assert (answer.session_present, answer.receive_max, answer.topic_alias_max) == (False, IN_FLIGHT, ALIASES)
    assert not answer.shared_subscription_available and not answer.subscription_id_available


def test_whoever_has_no_name_gets_one_of_its_own() -> None:
    found = Translator(Sessions(), lambda: "made-up")
    found.said(mqtt5.ConnectPacket("", username="lamp", password=TOKEN, clean_start=True), 0.0)
    assert one(found.heard(mqtt3.Frame(mqtt3.CONNACK, 0, b"\x00\x00"))).assigned_client_id == "lamp:made-up"


def test_a_device_cannot_come_as_another() -> None:
    out = Translator(Sessions(), str).said(mqtt5.ConnectPacket("door", username="lamp", password=TOKEN), 0.0)
    assert out.close and one(out).reason_code == mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID
    assert "must be lamp, or begin with lamp:" in one(out).reason_str


@pytest.mark.parametrize(("code", "reason"), [(1, 132), (2, 133), (3, 136), (4, 134), (5, 135), (77, 128)])
def test_refusals_have_the_reasons_of_version_5(code: int, reason: int) -> None:
    found = Translator(Sessions(), str)
    found.said(mqtt5.ConnectPacket("lamp", password=TOKEN), 0.0)
    out = found.heard(mqtt3.Frame(mqtt3.CONNACK, 0, bytes([0, code])))
    assert (one(out).reason_code, out.close) == (reason, True)


def test_a_connection_has_so_many_filters_and_no_more() -> None:
    found = connected()
    for number in range(1, FILTERS + 1):
        found.said(mqtt5.SubscribePacket(number, [mqtt5.TopicFilter(f"a/{number}")]), 0.0)
        found.heard(mqtt3.Frame(mqtt3.SUBACK, 0, number.to_bytes(2, "big") + b"\0"))
    out = found.said(mqtt5.SubscribePacket(1000, [mqtt5.TopicFilter("more")]), 0.0)
    assert not out.server and one(out).reason_codes == [mqtt5.SubAckReasonCode.QUOTA_EXCEEDED]
    # One that it has already may be asked for again, and what is given back leaves room.
    assert found.said(mqtt5.SubscribePacket(1001, [mqtt5.TopicFilter("a/1")]), 0.0).server
    found.said(mqtt5.UnsubscribePacket(1002, ["a/2"]), 0.0)
    found.heard(mqtt3.Frame(mqtt3.UNSUBACK, 0, (1002).to_bytes(2, "big")))
    assert found.said(mqtt5.SubscribePacket(1003, [mqtt5.TopicFilter("more")]), 0.0).server


def test_sessions_end_after_their_time() -> None:
    sessions = Sessions()
    found = connected(sessions, session_expiry_interval=60)
    assert not found.gone(100.0)
    key = found.key
    assert (sessions.over(key, 159.0), sessions.over(key, 160.0)) == (False, True)
    again = Translator(sessions, str)
    packet = mqtt5.ConnectPacket("lamp", password=TOKEN, session_expiry_interval=60)
    assert not Translator(sessions, str).said(packet, 159.0).reset
    assert again.said(packet, 160.0).reset
    again.heard(mqtt3.Frame(mqtt3.CONNACK, 0, b"\x00\x00"))
    assert not sessions.over(key, 1e9)


def test_a_session_that_ends_at_once_is_forgotten_at_the_server_and_a_new_one_begins_empty() -> None:
    assert connected(clean_start=False).gone(0.0)
    assert not connected(clean_start=True).gone(0.0)
    found = Translator(Sessions(), str)
    out = found.said(mqtt5.ConnectPacket("lamp", password=TOKEN, clean_start=True, session_expiry_interval=FOREVER), 0.0)
    assert out.reset
    assert not mqtt3.read(bytes(out.server)).body[7] & 2
    assert mqtt3.read(found.reset()).body[7] & 2


def test_who_never_ends_is_not_remembered_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.messaging.mqtt.SESSIONS", 2)
    sessions = Sessions()
    sessions.left(("a", "forever"), 0.0, FOREVER)
    for name in ("one", "two", "three"):
        sessions.left(("a", name), 0.0, 1)
    assert [sessions.over(("a", name), 9.0) for name in ("forever", "one", "two", "three")] == [False, False, True, True]


def test_leaving_may_change_when_the_session_ends_and_whether_the_will_is_said() -> None:
    sessions = Sessions()
    found = connected(sessions, session_expiry_interval=60)
    out = found.said(mqtt5.DisconnectPacket(session_expiry_interval=5), 0.0)
    assert (frame(out).type, out.close) == (mqtt3.DISCONNECT, True)
    found.gone(0.0)
    assert sessions.over(found.key, 5.0)
    out = connected().said(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE), 0.0)
    assert (out.server, out.close) == (b"", True)
    out = connected().said(mqtt5.DisconnectPacket(session_expiry_interval=5), 0.0)
    assert one(out).reason_code == mqtt5.DisconnectReasonCode.PROTOCOL_ERROR


def test_topic_aliases() -> None:
    found = connected()
    found.said(mqtt5.PublishPacket(MINE, b"1", topic_alias=3), 0.0)
    out = found.said(mqtt5.PublishPacket("", b"2", topic_alias=3), 0.0)
    assert mqtt3.Publish.read(frame(out)) == mqtt3.Publish(MINE, b"2", 0, False)
    assert one(found.said(mqtt5.PublishPacket("", b"3", topic_alias=4), 0.0)).reason_code == 130
    assert one(connected().said(mqtt5.PublishPacket(MINE, b"3", topic_alias=ALIASES + 1), 0.0)).reason_code == 148


def test_what_may_not_be_published_is_said_so() -> None:
    found = connected()
    for qos, code in ((mqtt5.QoS.AT_LEAST_ONCE, 135), (mqtt5.QoS.EXACTLY_ONCE, 135)):
        out = found.said(mqtt5.PublishPacket("nemo/shop/door/status", b"x", qos=qos, packet_id=7), 0.0)
        assert (one(out).reason_code, one(out).packet_id, out.server) == (code, 7, b"")
        assert "may not publish on nemo/shop/door/status" in one(out).reason_str
    out = found.said(mqtt5.PublishPacket("nemo/shop/door/status", b"x"), 0.0)
    assert (out.server, out.client, out.close) == (b"", b"", False)
    raw = mqtt5.PublishPacket("nemo/x/door", b"x").write().replace(b"/x/", b"/+/")
    assert one(found.said(mqtt5.read(memoryview(raw))[0], 0.0)).reason_code == 144


def test_who_wants_no_reasons_gets_codes_alone() -> None:
    found = connected(request_problem_info=False)
    out = found.said(mqtt5.PublishPacket("nemo/x", b"x", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7), 0.0)
    assert (one(out).reason_code, one(out).reason_str) == (135, None)


def test_more_in_flight_than_was_agreed_ends_the_connection() -> None:
    found = connected()
    for number in range(1, IN_FLIGHT + 1):
        assert frame(found.said(mqtt5.PublishPacket(MINE, b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=number), 0.0)).type == 3
    # What is sent again is not one more; what was acknowledged is one less.
    again = mqtt5.PublishPacket(MINE, b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1, duplicate=True)
    assert found.said(again, 0.0).server
    found.heard(mqtt3.read(mqtt3.answer(mqtt3.PUBACK, 2)))
    more = mqtt5.PublishPacket(MINE, b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=100)
    assert found.said(more, 0.0).server
    more = mqtt5.PublishPacket(MINE, b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=101)
    assert one(found.said(more, 0.0)).reason_code == 147


def test_a_client_gets_no_more_than_it_takes() -> None:
    found = connected(receive_max=2)
    sent = []
    for number in range(1, 5):
        out = found.heard(mqtt3.read(mqtt3.Publish("a", b"x", 1, False, number).write()))
        sent.append(bool(out.client))
    assert (sent, found.full) == ([True, True, False, False], True)
    out = found.said(mqtt5.PubAckPacket(1), 0.0)
    assert (frame(out).number(), one(out).packet_id, found.full) == (1, 3, True)
    found.said(mqtt5.PubAckPacket(2), 0.0)
    assert not found.full


def test_what_is_too_long_for_a_client_is_taken_for_it() -> None:
    found = connected(max_packet_size=50)
    out = found.heard(mqtt3.read(mqtt3.Publish("a", b"x" * 60, 1, False, 9).write()))
    assert (out.client, frame(out).type, frame(out).number()) == (b"", mqtt3.PUBACK, 9)
    out = found.heard(mqtt3.read(mqtt3.Publish("a", b"x" * 60, 2, False, 10).write()))
    assert frame(out).type == mqtt3.PUBREC
    out = found.heard(mqtt3.read(mqtt3.answer(mqtt3.PUBREL, 10)))
    assert (out.client, frame(out).type) == (b"", mqtt3.PUBCOMP)


def test_exactly_once_goes_both_ways() -> None:
    found = connected()
    assert frame(found.said(mqtt5.PublishPacket(MINE, b"", qos=mqtt5.QoS.EXACTLY_ONCE, packet_id=5), 0.0)).type == mqtt3.PUBLISH
    assert isinstance(one(found.heard(mqtt3.read(mqtt3.answer(mqtt3.PUBREC, 5)))), mqtt5.PubRecPacket)
    assert frame(found.said(mqtt5.PubRelPacket(5), 0.0)) == mqtt3.read(mqtt3.answer(mqtt3.PUBREL, 5))
    assert isinstance(one(found.heard(mqtt3.read(mqtt3.answer(mqtt3.PUBCOMP, 5)))), mqtt5.PubCompPacket)
    assert one(found.heard(mqtt3.read(mqtt3.Publish("a", b"", 2, False, 6).write()))).qos == 2
    assert frame(found.said(mqtt5.PubRecPacket(6), 0.0)).type == mqtt3.PUBREC
    assert isinstance(one(found.heard(mqtt3.read(mqtt3.answer(mqtt3.PUBREL, 6)))), mqtt5.PubRelPacket)
    assert frame(found.said(mqtt5.PubCompPacket(6), 0.0)).type == mqtt3.PUBCOMP


def test_subscriptions_get_a_reason_each() -> None:
    found = connected()
    filters = [
        mqtt5.TopicFilter("nemo/shop/lamp/command/+", max_qos=mqtt5.QoS.AT_LEAST_ONCE),
        mqtt5.TopicFilter("$share/g/nemo/shop/lamp/command/+"),
        mqtt5.TopicFilter("nemo/shop/door/#"),
        mqtt5.TopicFilter("nemo/shop/lamp/command/1", no_local=True),
        mqtt5.TopicFilter("nemo/shop/lamp/command/1"),
    ]
    out = found.said(mqtt5.SubscribePacket(4, filters), 0.0)
    wanted = [("nemo/shop/lamp/command/+", 1), ("nemo/shop/door/#", 2), ("nemo/shop/lamp/command/1", 2)]
    assert bytes(out.server) == mqtt3.subscribe(4, wanted)
    answer = one(found.heard(mqtt3.Frame(mqtt3.SUBACK, 0, b"\x00\x04\x01\x80\x80")))
    assert answer.reason_codes == [1, 158, 135, 131, 128]
    out = found.said(mqtt5.SubscribePacket(5, [mqtt5.TopicFilter("$share/g/a")]), 0.0)
    assert (one(out).reason_codes, out.server) == ([158], b"")
    out = found.said(mqtt5.UnsubscribePacket(6, ["nemo/shop/lamp/command/+", "never"]), 0.0)
    assert bytes(out.server) == mqtt3.unsubscribe(6, ["nemo/shop/lamp/command/+", "never"])
    assert one(found.heard(mqtt3.Frame(mqtt3.UNSUBACK, 0, b"\x00\x06"))).reason_codes == [0, 17]
    assert one(found.said(mqtt5.SubscribePacket(7, [mqtt5.TopicFilter("a")], subscription_id=1), 0.0)).reason_code == 161
    for raw in (b"\x82\x03\x00\x01\x00", b"\xa2\x03\x00\x01\x00"):
        assert one(connected().said(mqtt5.read(memoryview(raw))[0], 0.0)).reason_code == 130


def test_retained_messages_come_as_a_subscription_wants_them() -> None:
    found = connected()
    never = mqtt5.TopicFilter("a", retain_handling=mqtt5.RetainHandling.SEND_NEVER)
    found.said(mqtt5.SubscribePacket(1, [never]), 0.0)
    found.heard(mqtt3.Frame(mqtt3.SUBACK, 0, b"\x00\x01\x01"))
    out = found.heard(mqtt3.read(mqtt3.Publish("a", b"old", 1, True, 1).write()))
    assert (out.client, frame(out).type) == (b"", mqtt3.PUBACK)
    assert one(found.heard(mqtt3.read(mqtt3.Publish("a", b"new", 1, False, 2).write()))).payload == b"new"
    first = mqtt5.TopicFilter("b", retain_handling=mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS)
    found.said(mqtt5.SubscribePacket(2, [first]), 0.0)
    assert one(found.heard(mqtt3.read(mqtt3.Publish("b", b"old", 0, True).write()))).retain
    found.said(mqtt5.SubscribePacket(3, [first]), 0.0)
    assert not found.heard(mqtt3.read(mqtt3.Publish("b", b"old", 0, True).write())).client


def test_what_is_not_expected_ends_the_connection() -> None:
    assert Translator(Sessions(), str).said(mqtt5.PingReqPacket(), 0.0) == Out(close=True)
    for packet in (mqtt5.ConnectPacket("lamp"), mqtt5.AuthPacket(), mqtt5.PingRespPacket()):
        out = connected().said(packet, 0.0)
        assert out.close and one(out).reason_code == mqtt5.DisconnectReasonCode.PROTOCOL_ERROR
    out = Translator(Sessions(), str).said(mqtt5.ConnectPacket("lamp", authentication_method="other"), 0.0)
    assert one(out).reason_code == mqtt5.ConnAckReasonCode.BAD_AUTHENTICATION_METHOD
    assert one(connected().lost(taken_over=True)).reason_code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
    with pytest.raises(ValueError, match="packet of type 15"):
        connected().heard(mqtt3.Frame(15, 0, b""))


WORD = st.sampled_from(["a", "b"])


@given(st.lists(WORD | st.just("+"), min_size=1, max_size=3), st.booleans(), st.lists(WORD, min_size=1, max_size=4))
def test_a_filter_covers_what_it_stands_for(pattern: list[str], rest: bool, topic: list[str]) -> None:
    fits = all(p in ("+", t) for p, t in zip(pattern, topic, strict=False))
    expected = fits and (len(topic) >= len(pattern) if rest else len(topic) == len(pattern))
    assert covers("/".join([*pattern, "#"] if rest else pattern), "/".join(topic)) == expected


def test_a_filter_does_not_cover_a_wider_one() -> None:
    assert not covers("a/+", "a/#") and not covers("a/b", "a/+") and covers("a/#", "a/+/b") and covers("a/+", "a/+")


# -- through a gateway, with a client of another make ----------------------------------------------------------


class Five:
    """A client of MQTT 5 (Eclipse Paho), in a thread of its own."""

    def __init__(self, user: DeviceUser, address: Address, name: str = "lamp", *, clean: bool = True, keep: int = 0) -> None:
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
        self.client.username_pw_set(user.name, user.token)
        put = self.answers.put
        self.client.on_connect = lambda c, u, flags, reason, p: put(("connect", (reason.value, flags.session_present)))
        self.client.on_disconnect = lambda c, u, flags, reason, p: put(("disconnect", reason.value))
        self.client.on_subscribe = lambda c, u, mid, reasons, p: put(("subscribe", [r.value for r in reasons]))
        self.client.on_publish = lambda c, u, mid, reason, p: put(("publish", reason.value))
        self.client.on_message = lambda c, u, m: put(("heard", (m.topic, m.payload, m.qos, m.retain)))
        self.client.will_set(MINE, b"offline", qos=1, retain=True)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = keep
        self.client.connect(address.host, address.port, clean_start=clean, properties=properties)
        self.client.loop_start()

    async def answer(self, kind: str) -> Any:
        while True:
            found = await asyncio.to_thread(self.answers.get, timeout=30)
            if found[0] == kind:
                return found[1]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Exchange]:
    found = Exchange(ExchangeConfig(tmp_path / "bus", mqtt=LOOPBACK, mqtt5=LOOPBACK), SystemClock(), root)
    try:
        await found.hold([SHOP])
        yield found
    finally:
        await found.stop()


async def test_a_device_of_version_5_lives_beside_those_of_3_1_1(both: Exchange) -> None:
    bus, five, three = await both.bus(), both.mqtt5, both.mqtt
    assert five is not None and three is not None
    heard = await bus.subscribe("up.>")
    user = await both.device(SHOP, "lamp", "uid-lamp")
    device = Five(user, five)
    # The other version at the same port.
    old = Device(await both.device(SHOP, "old", "uid-old"), five, "old")
    try:
        assert await device.answer("connect") == (0, False)
        assert await old.answer("connect") == "Success"
        device.client.subscribe(
            [("nemo/shop/lamp/command/+", SubscribeOptions(qos=1)), ("nemo/shop/old/#", SubscribeOptions(qos=1))]
        )
        assert await device.answer("subscribe") == [1, 135]
        await bus.publish(to_device("shop", "lamp", "command.1"), b"blink")
        assert await device.answer("heard") == ("nemo/shop/lamp/command/1", b"blink", 0, False)
        device.client.publish(MINE, b"online", qos=1, retain=True)
        assert await device.answer("publish") == 0
        assert [(m.subject, m.data) for m in [await anext(heard)]] == [("up.shop.lamp.status", b"online")]
        device.client.publish("nemo/shop/old/status", b"forged", qos=1)
        assert await device.answer("publish") == 135
        # The same client again: the first is told why it has to go.
        taking = Five(user, five)
        assert await taking.answer("connect") == (0, False)
        assert await device.answer("disconnect") == 142
        device.client.loop_stop()
        # Cut off at once, and not let in again.
        await both.hold([revoked(SHOP, user.key)])
        assert await taking.answer("disconnect") == 128
        assert (await taking.answer("connect"))[0] == 135
        taking.close()
        assert (await asyncio.wait_for(anext(heard), 10)).data == b"offline"
    finally:
        device.close()
        old.close()


async def test_a_session_is_kept_and_one_that_is_not_wanted_is_not(both: Exchange) -> None:
    five = both.mqtt5
    assert five is not None
    user, sender = await both.device(SHOP, "lamp", "uid-lamp"), await both.device(SHOP, "sender", "uid-sender")
    del sender
    for keep, present in ((3600, True), (0, False)):
        first = Five(user, five, clean=True, keep=keep)
        assert await first.answer("connect") == (0, False)
        first.client.subscribe("nemo/shop/lamp/command/+", qos=1)
        assert await first.answer("subscribe") == [1]
        first.close()
        await first.answer("disconnect")
        second = Five(user, five, clean=False, keep=keep)
        assert await second.answer("connect") == (0, present)
        second.close()
        await second.answer("disconnect")


async def test_a_gateway_that_dies_comes_back_and_nothing_else_goes(both: Exchange) -> None:
    five = both.mqtt5
    assert five is not None and both._gateway is not None and both.server is not None
    device = Five(await both.device(SHOP, "lamp", "uid-lamp"), five)
    device.client.reconnect_delay_set(0.05, 0.2)
    server = both.server.pid
    try:
        assert (await device.answer("connect"))[0] == 0
        os.kill(both._gateway.pid, signal.SIGKILL)
        assert await device.answer("disconnect")
        assert (await device.answer("connect"))[0] == 0
        assert both.server.pid == server
    finally:
        device.close()


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\x30\xff\xff\xff\xff", b"\x10\x7f", b"\x10\x00", b"\x16\x03\x01\x02\x00"]
)
async def test_who_speaks_something_else_is_sent_away(both: Exchange, raw: bytes) -> None:
    five = both.mqtt5
    assert five is not None
    reader, writer = await asyncio.open_connection(five.host, five.port)
    writer.write(raw)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
