"""The way to a PostgreSQL database: its address with its secrets, and connections that are made again when they break.

What is asked on one that broke is asked again until a deadline: it must bear being done twice.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg

from metaos.clock import Clock
from metaos.store.log import StoreClosed, StoreFailed, StoreFull, StoreUnreachable

log = logging.getLogger(__name__)

#: A connection is made within this time, and each call on it answered, or it counts as broken.
CONNECT_SECONDS, CALL_SECONDS = 3.0, 30.0
#: What is asked is tried again for so long; the pauses grow from the first to the second.
PATIENCE_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.05, 1.0
#: Of each connection. A plan made while the tables were small must stay good when they are large; nothing is acknowledged before
#: it is on disk, whatever the server's default; an end that is dead is noticed, and its locks are free, within half a minute.
SETTINGS = {
    "application_name": "nemo",
    "enable_seqscan": "off",
    "jit": "off",
    "synchronous_commit": "on",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
#: Connection lost, server starting, ending or crashed, too many connections, no longer the primary, deadlock.
_LOST = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,
    asyncpg.TargetServerAttributeNotMatched,
    OSError,
    EOFError,
)
T = TypeVar("T")
Connection = Any


@dataclass(frozen=True, slots=True)
class Database:
    """Where a database is. ``url`` may hold its password and is never shown; ``shown`` is without."""

    url: str = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, text: str, *, secret: bool = True) -> Database:
        """Of a ``postgresql://`` URL. ``secret``: it may hold a password. Raises ``ValueError`` naming the remedy."""
        try:
            parts = urlsplit(text)
            query = {key: values[-1] for key, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
        except ValueError:
            raise ValueError("the database's address must be a URL such as postgresql://nemo@db.example.org/nemo") from None
        if parts.scheme not in ("postgresql", "postgres"):
            # What has no scheme may be a password alone: it is not told again.
            said = f", not {parts.scheme}://" if "://" in text else ""
            raise ValueError(f"the database's address must begin with postgresql://{said}")
        spot, _, hosts = parts.netloc.rpartition("@")
        user, _, password = spot.partition(":")
        if (password or "password" in query) and not secret:
            raise ValueError(
                "the address holds a password, which everybody on this machine could read: put the URL into a file of mode 0600 "
                "and give the file's name, or name a password file in the URL with ?passfile=FILE"
            )
        named = query.get("host") or hosts
        remote = [host for host in named.split(",") if host and not _here(host)]
        if remote and "sslmode" not in query and "service" not in query:
            raise ValueError(
                f"{remote[0]} is another machine: say ?sslmode=verify-full&sslrootcert=FILE (or sslmode=disable, where nobody "
                "else is on the network between)"
            )
        where = f"{user}@{named or 'localhost'}" if user else named or "localhost"
        return cls(text, f"postgresql://{where}{parts.path}")

    @classmethod
    def read(cls, text: str) -> Database:
        """Of a URL without a password, or of a file that holds a URL. Raises ``ValueError``."""
        if "://" in text:
            return cls.parse(text, secret=False)
        file = Path(text)
        try:
            if file.stat().st_mode & 0o007:
                raise ValueError(f"{file} can be read by everybody on this machine: run chmod 600 {file}")
            return cls.parse(file.read_text().strip())
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}; it must hold a postgresql:// URL") from None

    async def connect(self) -> Connection:
        """A connection to the primary. Raises what :data:`_LOST` names, ``asyncpg.PostgresError``, ``ValueError``."""
        return await asyncpg.connect(
            self.url,
            server_settings=SETTINGS,
            timeout=CONNECT_SECONDS,
            target_session_attrs="read-write",
            statement_cache_size=64,
        )


def _here(host: str) -> bool:
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.startswith(("/", "%2F", "%2f")):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def failure(error: Exception, database: Database) -> Exception:
    """What an error of the driver means to whoever uses a store."""
    if isinstance(error, _LOST) and not isinstance(error, ssl.SSLCertVerificationError):
        return StoreUnreachable(f"the database {database.shown} cannot be reached: {said(error)}")
    if isinstance(error, asyncpg.DiskFullError):
        return StoreFull("no space is left for the database: nothing was changed; free some on its disk, or delete something")
    if isinstance(error, asyncpg.PostgresError | asyncpg.ClientConfigurationError | ssl.SSLError):
        return StoreFailed(f"the database {database.shown}: {said(error)}")
    return error


def said(error: BaseException) -> str:
    """An error's first line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return (str(error) or type(error).__name__).partition("\n")[0]


class Link:
    """One connection, made when it is needed and made again when it broke. One call at a time, others wait in turn.

    ``begin`` is done on each new connection first.
    """

    def __init__(self, database: Database, clock: Clock, begin: Callable[[Connection], Awaitable[None]] | None = None) -> None:
        self._database, self._clock, self._begin = database, clock, begin
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def call(
        self, work: Callable[[Connection], Awaitable[T]], *, until: float | None = None, begun: Callable[[], None] = lambda: None
    ) -> T:
        """What ``work`` returns, tried until a (monotonic) moment. ``begun`` is called once something may have been sent. Raises
        ``StoreUnreachable``, ``StoreFull``, ``StoreFailed``."""
        until = self._clock.monotonic() + PATIENCE_SECONDS if until is None else until
        pause = FIRST_PAUSE_SECONDS
        async with self._turn:
            while True:
                if self._closed:
                    raise StoreClosed("the store was closed")
                try:
                    connection = await self._opened()
                    begun()
                    async with asyncio.timeout(CALL_SECONDS):
                        return await work(connection)
                except _LOST as error:
                    self._drop()
                    if self._closed:
                        raise StoreClosed("the store was closed") from None
                    if self._clock.monotonic() + pause > until or isinstance(error, ssl.SSLCertVerificationError):
                        raise failure(error, self._database) from None
                except (asyncpg.PostgresError, asyncpg.ClientConfigurationError) as error:
                    raise failure(error, self._database) from None
                except BaseException:
                    # Cut off in the middle of an answer.
                    self._drop()
                    raise
                await self._clock.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)

    async def _opened(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await self._database.connect()
            try:
                if self._begin is not None:
                    await self._begin(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Ends what is under way, too."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._turn.locked():
                connection.terminate()
            else:
                try:
                    await connection.close(timeout=CONNECT_SECONDS)
                except (*_LOST, asyncpg.PostgresError):
                    connection.terminate()
