"""MQTT 5 for a server that speaks 3.1.1: what a client says is translated, one packet at a time (OASIS MQTT 5.0).

NATS' server has no MQTT 5, and its makers will not add it. Both versions have the same topics, qualities of service, wills,
retained messages and sessions, so those are the server's own, and shared with clients of 3.1.1. What only version 5 has is here:
reasons, topic aliases, the end of a session after a time, bounds on what is in flight and on sizes, and saying what there is not
(shared subscriptions, subscription identifiers, ``no local``). Properties of messages are not carried on.

No input or output here: packets go in, and what to send to whom comes out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import mqtt5
from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectReasonCode,
    PubAckReasonCode,
    PublishPacket,
    PubRecReasonCode,
    SubAckReasonCode,
    UnsubAckReasonCode,
)

from metaos.messaging import mqtt3
from metaos.messaging.bus import PAYLOAD_BYTES
from metaos.messaging.keys import read_token
from metaos.messaging.subjects import topic as topic_of

#: Longest packet, in bytes: a message and what is around it.
PACKET_BYTES = PAYLOAD_BYTES + 4096
#: Messages of QoS 1 and 2 that a client may have on their way at once, and its topic aliases.
IN_FLIGHT = 64
ALIASES = 16
#: Filters of one connection: each message is held against all of them.
FILTERS = 256
#: Ends of sessions that are remembered; of more the oldest are forgotten, and last until the server forgets them.
SESSIONS = 50_000
#: A session that does not end by itself.
FOREVER = 0xFFFFFFFF

_CONNACK = {
    1: ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    2: ConnAckReasonCode.CLIENT_ID_NOT_VALID,
    3: ConnAckReasonCode.SERVER_UNAVAILABLE,
    4: ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    5: ConnAckReasonCode.NOT_AUTHORIZED,
}


class Sessions:
    """When sessions end whose clients have gone, by account and client."""

    def __init__(self) -> None:
        self._ends: OrderedDict[tuple[str, str], float] = OrderedDict()

    def left(self, key: tuple[str, str], now: float, seconds: int) -> None:
        self._ends.pop(key, None)
        if seconds != FOREVER:
            self._ends[key] = now + seconds
            if len(self._ends) > SESSIONS:
                self._ends.popitem(last=False)

    def over(self, key: tuple[str, str], now: float) -> bool:
        """Whether it has ended."""
        return self._ends.get(key, float("inf")) <= now

    def back(self, key: tuple[str, str]) -> None:
        """The client is there again."""
        self._ends.pop(key, None)


@dataclass
class Out:
    """What is to be done, in this order: ``reset`` (the session at the server is to be forgotten first), what to send to the
    server and to the client, and whether the connections are to be closed."""

    server: bytearray = field(default_factory=bytearray)
    client: bytearray = field(default_factory=bytearray)
    reset: bool = False
    close: bool = False


@dataclass(frozen=True)
class _Rights:
    """What a token says its bearer may publish. The server judges; this gives the reason to a client, which 3.1.1 cannot."""

    account: str
    name: str
    says: tuple[str, ...] | None
    hears: tuple[str, ...] | None

    @classmethod
    def of(cls, password: bytes | None) -> _Rights:
        try:
            found = read_token((password or b"").decode())
        except (ValueError, UnicodeDecodeError):
            return cls("", "", None, None)
        claims = found["nats"]

        def allowed(word: str) -> tuple[str, ...] | None:
            rights = claims.get(word)
            subjects = rights.get("allow") if isinstance(rights, dict) else None
            return tuple(topic_of(str(s)) for s in subjects) if isinstance(subjects, list) else None

        return cls(str(found.get("iss", "")), str(found.get("name", "")), allowed("pub"), allowed("sub"))


class Translator:
    """One client's connection. ``name`` gives client identifiers to those that have none."""

    def __init__(self, sessions: Sessions, name: Callable[[], str]) -> None:
        self._sessions, self._name = sessions, name
        self.client = ""
        self._rights = _Rights("", "", None, None)
        self._connect: ConnectPacket | None = None
        self._accepted, self._left = False, False
        self._expiry = 0
        self._aliases: dict[int, str] = {}
        #: Of the client's: on their way; and those of QoS 2 that were refused, or taken for it as they were too long.
        self._inbound: set[int] = set()
        #: To the client: on their way; what waits as the client takes no more.
        self._outbound: set[int] = set()
        self._waiting: deque[mqtt3.Publish] = deque()
        self._swallowed: set[int] = set()
        self._subscribing: dict[int, list[SubAckReasonCode | str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._resumed = False
        #: Filters of this connection, and whether retained messages are wanted of them.
        self._filters: dict[str, bool] = {}

    @property
    def key(self) -> tuple[str, str]:
        """Whose session it is."""
        return self._rights.account, self.client

    @property
    def full(self) -> bool:
        """Whether nothing more should be read from the server for now: the client takes no more."""
        return bool(self._waiting)

    # -- from the client -----------------------------------------------------------------------------------------

    def said(self, packet: mqtt5.Packet, now: float) -> Out:
        """A client's packet."""
        if self._connect is None:
            return self._begin(packet, now) if isinstance(packet, ConnectPacket) else Out(close=True)
        match packet:
            case PublishPacket():
                return self._published(packet)
            case mqtt5.PubAckPacket():
                return self._done(packet.packet_id, mqtt3.PUBACK)
            case mqtt5.PubRecPacket():
                if int(packet.reason_code) >= 0x80:
                    self._swallowed.add(packet.packet_id)
                return Out(server=bytearray(mqtt3.answer(mqtt3.PUBREC, packet.packet_id)))
            case mqtt5.PubRelPacket():
                return Out(server=bytearray(mqtt3.answer(mqtt3.PUBREL, packet.packet_id)))
            case mqtt5.PubCompPacket():
                return self._done(packet.packet_id, mqtt3.PUBCOMP)
            case mqtt5.SubscribePacket():
                return self._subscribed(packet)
            case mqtt5.UnsubscribePacket():
                if not packet.patterns or any(not p for p in packet.patterns):
                    return self.end(DisconnectReasonCode.PROTOCOL_ERROR, "UNSUBSCRIBE names no topic")
                self._unsubscribing[packet.packet_id] = list(packet.patterns)
                return Out(server=bytearray(mqtt3.unsubscribe(packet.packet_id, packet.patterns)))
            case mqtt5.PingReqPacket():
                return Out(server=bytearray(mqtt3.ping()))
            case mqtt5.DisconnectPacket():
                return self._leave(packet)
        return self.end(DisconnectReasonCode.PROTOCOL_ERROR, f"{type(packet).__name__} is not expected here")

    def _begin(self, packet: ConnectPacket, now: float) -> Out:
        if packet.authentication_method is not None:
            return self.refuse(ConnAckReasonCode.BAD_AUTHENTICATION_METHOD, "there is no enhanced authentication here")
        self._connect, self._expiry = packet, packet.session_expiry_interval
        rights = self._rights = _Rights.of(packet.password)
        self.client = packet.client_id or f"{rights.name}:{self._name()}"
        if rights.name and self.client != rights.name and not self.client.startswith(f"{rights.name}:"):
            # The server has one session for each identifier in a tenant's account, whoever comes with it.
            text = f"the client identifier must be {rights.name}, or begin with {rights.name}:"
            return self.refuse(ConnAckReasonCode.CLIENT_ID_NOT_VALID, text)
        will = None
        if packet.will is not None:
            w = packet.will
            will = mqtt3.Publish(w.topic, w.payload or b"", int(w.qos), w.retain)
        out = Out()
        # A session that has ended, or is not wanted, is forgotten by coming and going once without one.
        out.reset = (packet.clean_start and self._expiry > 0) or (self._sessions.over(self.key, now) and not packet.clean_start)
        try:
            clean = packet.clean_start and self._expiry == 0
            out.server += mqtt3.connect(self.client, packet.username, packet.password, clean, packet.keep_alive, will)
        except ValueError as error:
            return self.refuse(ConnAckReasonCode.MALFORMED_PACKET, str(error))
        return out

    def reset(self) -> bytes:
        """With what to come, to be accepted, and to go again, so that the session is forgotten."""
        assert self._connect is not None
        return mqtt3.connect(self.client, self._connect.username, self._connect.password, True, 0, None)

    def _published(self, packet: PublishPacket) -> Out:
        topic = packet.topic
        if packet.topic_alias is not None:
            if packet.topic_alias > ALIASES:
                return self.end(DisconnectReasonCode.TOPIC_ALIAS_INVALID, f"topic aliases go up to {ALIASES}")
            if topic:
                self._aliases[packet.topic_alias] = topic
            topic = self._aliases.get(packet.topic_alias, "")
        if not topic:
            return self.end(DisconnectReasonCode.PROTOCOL_ERROR, "the message has no topic, and its alias is not known")
        number, qos = packet.packet_id or 0, int(packet.qos)
        if qos:
            if number not in self._inbound and len(self._inbound) >= IN_FLIGHT:
                text = f"more than {IN_FLIGHT} messages are on their way at once"
                return self.end(DisconnectReasonCode.RECEIVE_MAX_EXCEEDED, text)
            self._inbound.add(number)
        if "+" in topic or "#" in topic or not _allowed(self._rights.says, topic):
            self._inbound.discard(number)
            if "+" in topic or "#" in topic:
                return self.end(DisconnectReasonCode.TOPIC_NAME_INVALID, "a message's topic has no wildcards")
            reason = f"these credentials may not publish on {topic}"[:200]
            if qos == 1:
                code = PubAckReasonCode.NOT_AUTHORIZED
                return _to_client(mqtt5.PubAckPacket(number, reason_code=code, reason_str=self._text(reason)).write())
            if qos == 2:
                refused = PubRecReasonCode.NOT_AUTHORIZED
                return _to_client(mqtt5.PubRecPacket(number, reason_code=refused, reason_str=self._text(reason)).write())
            return Out()
        return Out(server=bytearray(mqtt3.Publish(topic, packet.payload, qos, packet.retain, number, packet.duplicate).write()))

    def _done(self, number: int, type: int) -> Out:
        """The client has a message of QoS 1 or 2: another may go to it."""
        self._outbound.discard(number)
        return self._more(Out(server=bytearray(mqtt3.answer(type, number))))

    def _subscribed(self, packet: mqtt5.SubscribePacket) -> Out:
        if packet.subscription_id is not None:
            text = "there are no subscription identifiers here"
            return self.end(DisconnectReasonCode.SUBSCRIPTION_IDS_NOT_SUPPORTED, text)
        if not packet.topic_filters:
            return self.end(DisconnectReasonCode.PROTOCOL_ERROR, "SUBSCRIBE names no topic")
        asked: list[tuple[str, int]] = []
        answers: list[SubAckReasonCode | str] = []
        for wanted in packet.topic_filters:
            if wanted.pattern.startswith("$share/"):
                answers.append(SubAckReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
            elif wanted.no_local:
                answers.append(SubAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
            elif wanted.pattern not in self._filters and len(self._filters) >= FILTERS:
                answers.append(SubAckReasonCode.QUOTA_EXCEEDED)
            else:
                answers.append(wanted.pattern)
                asked.append((wanted.pattern, int(wanted.max_qos)))
                known, handling = wanted.pattern in self._filters, wanted.retain_handling
                retained = handling == mqtt5.RetainHandling.SEND_ALWAYS
                retained |= handling == mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS and not known
                self._filters[wanted.pattern] = retained
        self._subscribing[packet.packet_id] = answers
        if not asked:
            return self._suback(packet.packet_id, b"")
        return Out(server=bytearray(mqtt3.subscribe(packet.packet_id, asked)))

    def _leave(self, packet: mqtt5.DisconnectPacket) -> Out:
        if packet.session_expiry_interval is not None:
            if packet.session_expiry_interval and not self._expiry:
                return self.end(DisconnectReasonCode.PROTOCOL_ERROR, "a session that ends with the connection cannot be kept")
            self._expiry = packet.session_expiry_interval
        # With any other reason the will is to be published, as it is when a connection just ends.
        said = mqtt3.disconnect() if packet.reason_code == DisconnectReasonCode.NORMAL_DISCONNECTION else b""
        return Out(server=bytearray(said), close=True)

    # -- from the server -----------------------------------------------------------------------------------------

    def heard(self, frame: mqtt3.Frame) -> Out:
        """The server's packet. Raises ``ValueError`` where it is none."""
        match frame.type:
            case mqtt3.CONNACK:
                return self._accept(frame.body)
            case mqtt3.PUBLISH:
                self._waiting.append(mqtt3.Publish.read(frame))
                return self._more(Out())
            case mqtt3.PUBACK:
                self._inbound.discard(frame.number())
                return _to_client(mqtt5.PubAckPacket(frame.number()).write())
            case mqtt3.PUBREC:
                return _to_client(mqtt5.PubRecPacket(frame.number()).write())
            case mqtt3.PUBREL:
                if frame.number() in self._swallowed:
                    self._swallowed.discard(frame.number())
                    return self._done(frame.number(), mqtt3.PUBCOMP)
                return _to_client(mqtt5.PubRelPacket(frame.number()).write())
            case mqtt3.PUBCOMP:
                self._inbound.discard(frame.number())
                return _to_client(mqtt5.PubCompPacket(frame.number()).write())
            case mqtt3.SUBACK:
                return self._suback(frame.number(), frame.codes())
            case mqtt3.UNSUBACK:
                return self._unsuback(frame.number())
            case mqtt3.PINGRESP:
                return _to_client(mqtt5.PingRespPacket().write())
        raise ValueError(f"the server sent a packet of type {frame.type}")

    def _accept(self, body: bytes) -> Out:
        if len(body) != 2:
            raise ValueError("the server's CONNACK has not two bytes")
        if body[1]:
            return self.refuse(_CONNACK.get(body[1], ConnAckReasonCode.UNSPECIFIED_ERROR), "")
        assert self._connect is not None
        self._accepted, self._resumed = True, bool(body[0] & 1)
        self._sessions.back(self.key)
        packet = ConnAckPacket(
            session_present=self._resumed,
            assigned_client_id=None if self._connect.client_id else self.client,
            receive_max=IN_FLIGHT,
            topic_alias_max=ALIASES,
            max_packet_size=PACKET_BYTES,
            subscription_id_available=False,
            shared_subscription_available=False,
        )
        return _to_client(packet.write())

    def _more(self, out: Out) -> Out:
        """Sends what waits, as far as the client takes it."""
        assert self._connect is not None
        while self._waiting:
            message = self._waiting[0]
            if message.qos and message.number not in self._outbound and len(self._outbound) >= self._connect.receive_max:
                break
            self._waiting.popleft()
            if message.retain and not self._retained(message.topic):
                self._swallow(message, out)
                continue
            packet = PublishPacket(
                message.topic,
                message.payload,
                qos=mqtt5.QoS(message.qos),
                retain=message.retain,
                packet_id=message.number or None,
                duplicate=message.again,
            ).write()
            if self._connect.max_packet_size is not None and len(packet) > self._connect.max_packet_size:
                self._swallow(message, out)
                continue
            if message.qos:
                self._outbound.add(message.number)
            out.client += packet
        return out

    def _swallow(self, message: mqtt3.Publish, out: Out) -> None:
        """The server is told that the client has it: the client does not want it."""
        if message.qos == 1:
            out.server += mqtt3.answer(mqtt3.PUBACK, message.number)
        elif message.qos == 2:
            self._swallowed.add(message.number)
            out.server += mqtt3.answer(mqtt3.PUBREC, message.number)

    def _retained(self, topic: str) -> bool:
        found = [wanted for pattern, wanted in self._filters.items() if covers(pattern, topic)]
        return any(found) or not found

    def _suback(self, number: int, codes: bytes) -> Out:
        given = iter(codes)
        answers: list[SubAckReasonCode] = []
        for answer in self._subscribing.pop(number, []):
            if not isinstance(answer, str):
                answers.append(answer)
                continue
            code = next(given, mqtt3.REFUSED)
            if code < mqtt3.REFUSED:
                answers.append(SubAckReasonCode(code))
                continue
            self._filters.pop(answer, None)
            refused = not _allowed(self._rights.hears, answer)
            answers.append(SubAckReasonCode.NOT_AUTHORIZED if refused else SubAckReasonCode.UNSPECIFIED_ERROR)
        return _to_client(mqtt5.SubAckPacket(number, answers).write())

    def _unsuback(self, number: int) -> Out:
        answers = []
        for pattern in self._unsubscribing.pop(number, []):
            known = self._filters.pop(pattern, None) is not None or self._resumed
            answers.append(UnsubAckReasonCode.SUCCESS if known else UnsubAckReasonCode.NO_SUBSCRIPTION_EXISTED)
        return _to_client(mqtt5.UnsubAckPacket(number, answers).write())

    # -- the end -------------------------------------------------------------------------------------------------

    def lost(self, *, taken_over: bool) -> Out:
        """The server has ended its connection."""
        if not self._accepted:
            return self.refuse(ConnAckReasonCode.SERVER_UNAVAILABLE, "the bus is not there, or takes no more connections")
        if taken_over:
            return self.end(DisconnectReasonCode.SESSION_TAKEN_OVER, "another connection has the same client identifier")
        text = "the bus has ended the connection: these credentials may count no more, or it was restarted"
        return self.end(DisconnectReasonCode.UNSPECIFIED_ERROR, text)

    def gone(self, now: float) -> bool:
        """The connection is over. Whether the session ends with it and is to be forgotten at the server."""
        if not self._accepted or self._left:
            return False
        self._left = True
        assert self._connect is not None
        self._sessions.left(self.key, now, self._expiry)
        return self._expiry == 0 and not self._connect.clean_start

    def refuse(self, code: ConnAckReasonCode, text: str) -> Out:
        packet = ConnAckPacket(reason_code=code, reason_str=self._text(text))
        return Out(client=bytearray(packet.write()), close=True)

    def end(self, code: DisconnectReasonCode, text: str) -> Out:
        if not self._accepted:
            return Out(close=True)
        return Out(client=bytearray(mqtt5.DisconnectPacket(reason_code=code, reason_str=self._text(text)).write()), close=True)

    def _text(self, text: str) -> str | None:
        """Reasons in words, to those who want them."""
        return text if text and (self._connect is None or self._connect.request_problem_info) else None


def covers(pattern: str, topic: str) -> bool:
    """Whether every topic that ``topic`` stands for, itself or a filter, is one of those of a filter."""
    wanted, found = pattern.split("/"), topic.split("/")
    for at, part in enumerate(wanted):
        if part == "#":
            return True
        if at >= len(found) or found[at] == "#" or (part not in ("+", found[at])):
            return False
    return len(wanted) == len(found)


def _allowed(filters: Collection[str] | None, topic: str) -> bool:
    return filters is None or any(covers(pattern, topic) for pattern in filters)


def _to_client(packet: bytes) -> Out:
    return Out(client=bytearray(packet))
