"""The bus by NATS: :class:`metaos.messaging.bus.Bus` over the official client, loaded with the first connection."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js import errors as refused
from nats.js.client import JetStreamContext

from metaos.messaging.bus import KEYS_SECONDS, WAITING, BusError, Full, Inbox, Message, NoAnswer, Stored, Stream, Unavailable
from metaos.messaging.keys import Key, read_credentials

log = logging.getLogger("nemo.bus")

#: What waits here to be sent while no server is there, in bytes; and what waits here to be handled, of one subscription.
PENDING_BYTES = 8 << 20
#: Between two tries to come back.
RECONNECT_SECONDS = 0.25
#: How long a server may take to answer about streams; to have written something; and until a silent one counts as gone.
API_SECONDS = 5.0
PING_SECONDS = 10
#: Servers' own codes: no room in a stream, by messages, bytes and of the account.
_NO_ROOM = frozenset({10047, 10077, 10023, 10002})
_NAME_IN_USE = 10058
#: A cluster whose servers have not found each other, or not agreed who leads: it will.
_NOT_YET = frozenset({10004, 10005, 10008, 10009})


class NatsBus:
    """One connection, as the user that ``token`` names; ``key`` is that user's."""

    def __init__(self, client: Client, copies: int = 1) -> None:
        self._client, self._copies = client, copies
        self._streams: JetStreamContext = client.jetstream(timeout=API_SECONDS)

    @classmethod
    async def connect(
        cls,
        servers: Sequence[str],
        key: Key,
        token: Callable[[], str],
        name: str,
        tls: ssl.SSLContext | None = None,
        patience: float = 2.0,
        copies: int = 1,
    ) -> NatsBus:
        """Raises ``Unavailable`` where none of the servers takes this user. ``patience``: seconds for all tries; ``copies``: of
        streams that do not say how many."""
        client = Client()

        def sign(nonce: str) -> bytes:
            return base64.b64encode(key.sign(nonce.encode()))

        async def failed(error: Exception) -> None:
            log.debug("%s: %s", name, error)

        async def lost() -> None:
            if not client.is_closed:
                log.warning("the connection to the bus is lost; it is tried again")

        async def back() -> None:
            log.info("the bus is back, at %s", client.connected_url.netloc if client.connected_url else "")

        options: dict[str, Any] = {"tls": tls} if tls else {}
        try:
            async with asyncio.timeout(patience):
                await client.connect(
                    list(servers),
                    name=name,
                    user_jwt_cb=lambda: bytearray(token().encode()),
                    signature_cb=sign,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]
                    connect_timeout=2,
                    ping_interval=PING_SECONDS,
                    pending_size=PENDING_BYTES,
                    error_cb=failed,
                    disconnected_cb=lost,
                    reconnected_cb=back,
                    **options,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            with suppress(Exception):
                await client.close()
            shown = ", ".join(servers)
            raise Unavailable(f"the bus at {shown} does not answer, or does not take this user: {_text(error)}") from error
        return cls(client, copies)

    @classmethod
    async def with_file(cls, servers: Sequence[str], credentials: Path, name: str) -> NatsBus:
        """A connection with credentials in NATS' own form. Raises ``Unavailable``, ``BusError`` where the file holds none."""
        token, key = read_credentials(credentials)
        return await cls.connect(servers, key, lambda: token, name)

    @property
    def connected(self) -> bool:
        return bool(self._client.is_connected)

    @property
    def at(self) -> str:
        """The server: ``HOST:PORT``; empty while there is none."""
        return self._client.connected_url.netloc if self._client.connected_url else ""

    async def publish(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        with _told(subject):
            await self._client.publish(subject, data, reply=reply, headers=dict(headers) if headers else None)

    async def request(self, subject: str, data: bytes, *, seconds: float = 5.0) -> Message:
        with _told(subject, seconds):
            return _message(await self._client.request(subject, data, timeout=seconds))

    async def subscribe(self, subject: str, *, group: str = "", waiting: int = WAITING) -> Inbox:
        with _told(subject):

            async def heard(message: Msg) -> None:
                inbox.put(_message(message))

            found = await self._client.subscribe(subject, queue=group, cb=heard)

            async def close() -> None:
                with suppress(nats.errors.Error):
                    await found.unsubscribe()

            inbox = Inbox(waiting, close)
            # What is said from now on is heard: the server has the subscription.
            await self._client.flush(timeout=int(API_SECONDS))
            return inbox

    async def keep(self, stream: Stream) -> None:
        wanted = api.StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            retention=api.RetentionPolicy.LIMITS,
            max_bytes=stream.most_bytes,
            max_msgs=stream.most_messages,
            max_msgs_per_subject=stream.most_of_subject,
            max_age=stream.most_seconds,
            discard=api.DiscardPolicy.NEW if stream.refuses else api.DiscardPolicy.OLD,
            duplicate_window=min(KEYS_SECONDS, stream.most_seconds or KEYS_SECONDS),
            num_replicas=stream.copies or self._copies,
            storage=api.StorageType.FILE,
        )
        with _told(stream.name, API_SECONDS):
            try:
                await self._streams.add_stream(wanted)
            except refused.BadRequestError as error:
                if error.err_code != _NAME_IN_USE:
                    raise
                await self._streams.update_stream(wanted)

    async def gather(self, stream: Stream, source: str, source_domain: str, domain: str) -> None:
        """Makes a stream in a domain (the servers that keep streams together) that fills itself from one in another domain,
        whenever that can be reached."""
        there = self._client.jetstream(domain=domain, timeout=API_SECONDS)
        wanted = api.StreamConfig(
            name=stream.name,
            sources=[api.StreamSource(name=source, external=api.ExternalStream(api=f"$JS.{source_domain}.API", deliver=""))],
            max_bytes=stream.most_bytes,
            discard=api.DiscardPolicy.OLD,
            storage=api.StorageType.FILE,
        )
        with _told(stream.name, API_SECONDS):
            try:
                await there.add_stream(wanted)
            except refused.BadRequestError as error:
                if error.err_code != _NAME_IN_USE:
                    raise

    async def append(self, subject: str, data: bytes, *, key: str = "") -> Stored:
        with _told(subject, API_SECONDS):
            try:
                done = await self._streams.publish(
                    subject, data, timeout=API_SECONDS, headers={api.Header.MSG_ID.value: key} if key else None
                )
            except refused.NoStreamResponseError:
                # Or one does, and its servers have not agreed who leads it.
                try:
                    await self._streams.find_stream_name_by_subject(subject)
                except refused.NotFoundError:
                    raise BusError(f"no stream keeps {subject}") from None
                raise Unavailable(f"{subject}: its stream has no leader at this moment") from None
            return Stored(done.seq, bool(done.duplicate))

    async def consume(self, stream: str, name: str, *, subject: str = ">", again_seconds: float = 30.0) -> NatsConsumer:
        wanted = api.ConsumerConfig(
            durable_name=name,
            deliver_policy=api.DeliverPolicy.ALL,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=again_seconds,
            filter_subject=None if subject == ">" else subject,
        )
        with _told(stream, API_SECONDS):
            await self._streams.add_consumer(stream, wanted)
            return NatsConsumer(await self._streams.pull_subscribe_bind(name, stream), stream)

    async def close(self) -> None:
        with suppress(nats.errors.Error, OSError):
            await self._client.close()


class NatsDelivery:
    def __init__(self, found: Msg) -> None:
        self._found = found
        self.message, self.number = replace(_message(found), reply=""), found.metadata.sequence.stream

    async def take(self) -> None:
        with _told(self.message.subject, API_SECONDS):
            await self._found.ack_sync(timeout=API_SECONDS)

    async def refuse(self) -> None:
        with _told(self.message.subject):
            await self._found.nak()


class NatsConsumer:
    def __init__(self, found: JetStreamContext.PullSubscription, stream: str) -> None:
        self._found, self._stream = found, stream

    async def fetch(self, most: int, seconds: float) -> Sequence[NatsDelivery]:
        try:
            with _told(self._stream, seconds):
                return [NatsDelivery(message) for message in await self._found.fetch(most, timeout=seconds)]
        except Unavailable as error:
            # The client has one word for "nothing there" and "no server there".
            if isinstance(error.__cause__, TimeoutError) and self._found._nc.is_connected:
                return []
            raise


def _message(found: Msg) -> Message:
    return Message(found.subject, found.data, found.reply, found.headers or {})


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _told(what: str, seconds: float = 0.0) -> Iterator[None]:
    """Errors of the client as the bus names them."""
    try:
        yield
    except BusError:
        raise
    except nats.errors.NoRespondersError:
        raise NoAnswer(f"nobody listens on {what}") from None
    except nats.errors.MaxPayloadError as error:
        raise BusError(f"{what}: the message is longer than the bus takes") from error
    except (nats.errors.BadSubjectError, nats.errors.BadHeaderError, ValueError) as error:
        raise BusError(f"{what!r} cannot be said on the bus: {_text(error)}") from error
    except refused.APIError as error:
        if error.err_code in _NO_ROOM:
            raise Full(f"{what}: {error.description}") from error
        if isinstance(error, refused.ServiceUnavailableError) or error.err_code in _NOT_YET:
            raise Unavailable(f"{what}: {error.description or 'the bus is not ready'}") from error
        raise BusError(f"{what}: {error.description or _text(error)}") from error
    except (nats.errors.TimeoutError, TimeoutError) as error:
        raise Unavailable(f"{what}: no answer of the bus" + (f" within {seconds:g} s" if seconds else "")) from error
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"{what}: the bus is away: {_text(error)}") from error
