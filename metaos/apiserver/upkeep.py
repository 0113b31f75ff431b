"""What operators ask of a hub beside objects: a backup, and new encryption keys. For ``system:masters`` and their like alone.

``POST /backup`` streams a backup (``store.backup``); its body may hold a stretched passphrase, under which the keys go in: the
passphrase itself stays with whoever asks. ``POST /keys/rotate`` adds a key, ``GET /keys`` says which there are.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from metaos import __version__
from metaos.apiserver.restored import mark
from metaos.apiserver.watch import STALLED_SECONDS
from metaos.clock import Clock
from metaos.resources import errors
from metaos.resources.meta import format_time
from metaos.store.backup import Stretched, describe, open_files, read_manifest, restore, sealed_with, snapshot
from metaos.store.log import StoreFailed
from metaos.store.seal import SealedStore

log = logging.getLogger(__name__)

PATHS = ("/backup", "/keys", "/keys/rotate")
#: What a hub needs beside its state: without ``keys.json`` nobody reads its Secrets, without ``pki/`` no site knows it.
KEY_FILES = ("keys.json", "version", "pki/*")
SALT_BYTES = 16
#: History is kept this long for watches that reconnect.
HISTORY_SECONDS, COMPACT_SECONDS = 300.0, 60.0
#: How often a full disk is looked at, and its history compacted.
FULL_SECONDS = 5.0
__all__ = ["PATHS", "Stretched", "Upkeep", "backup_directory", "describe_backup", "restore_hub", "stretched"]
_CHUNK = 256 * 1024
Copy = Callable[[Path], Awaitable[None]]
#: Where the copy is made that is sent; open, it needs no name any more.
COPY = "state.backup"


def key_files(data: Path) -> dict[str, bytes]:
    """The key files of a hub's data directory, by name."""
    found = [path for pattern in KEY_FILES for path in sorted(data.glob(pattern))]
    return {str(path.relative_to(data)): path.read_bytes() for path in found if path.suffix != ".new"}


def make_backup(data: Path, target: Path, now: float, secret: Stretched | None) -> None:
    """A backup of a data directory, also while a hub runs on it. Raises ``StoreFailed``."""
    keys = key_files(data)
    snapshot(data / "state.db", target)
    _describe(target, keys, now, secret)


def _describe(target: Path, keys: dict[str, bytes], now: float, secret: Stretched | None) -> None:
    describe(target, {"version": __version__, "creationTime": format_time(now)}, keys, secret)


class Upkeep:
    """Serves these paths. One thing at a time: keys are not dropped while a backup reads them."""

    def __init__(
        self, data: Path, store: SealedStore, clock: Clock, full: Callable[[], bool] = bool, copy: Copy | None = None
    ) -> None:
        """``copy``: how a state that is not in ``data`` is copied; keys that it needs are in ``data`` afterwards."""
        self._copy = copy
        self._data, self._store, self._clock, self._full = data, store, clock, full
        self._turn = asyncio.Lock()
        # A hub that was killed while it made one.
        (data / COPY).unlink(missing_ok=True)

    async def serve(self, request: web.Request, path: str, headers: dict[str, str]) -> web.StreamResponse:
        if request.method != ("GET" if path == "/keys" else "POST"):
            raise errors.method_not_allowed("the server does not allow this method on the requested resource")
        if path == "/backup":
            return await self._backup(request, headers)
        if path == "/keys/rotate":
            async with self._turn:
                await self._store.rotate()
        return web.Response(body=orjson.dumps(await self._keys()), headers={**headers, "Content-Type": "application/json"})

    async def _keys(self) -> dict[str, Any]:
        used = await self._store.keys_in_use()
        return {"current": self._store.current_key, "keys": [{"id": key, "inUse": used[key]} for key in sorted(used, key=int)]}

    async def run(self) -> None:
        """Forgets history that no watch needs any more, at once where the disk is full, then keys that nothing uses any more."""
        seen: deque[tuple[float, int]] = deque()
        due, was_full = 0.0, False
        while True:
            await self._clock.sleep(FULL_SECONDS)
            now, full = self._clock.monotonic(), self._full()
            if full and not was_full:
                log.error("the store's disk is full: only deletes and heartbeats are accepted")
            elif was_full and not full:
                log.info("the store's disk has room again")
            was_full = full
            if now < due and not full:
                continue
            due = now + COMPACT_SECONDS
            try:
                seen.append((now, await self._store.revision()))
                while len(seen) > 1 and seen[1][0] <= now - HISTORY_SECONDS:
                    seen.popleft()
                if full or seen[0][0] <= now - HISTORY_SECONDS:
                    await self._store.compact(seen[-1 if full else 0][1])
                await self.freshen()
            except Exception:
                log.exception("history could not be compacted; it is tried again in %g s", COMPACT_SECONDS)

    async def freshen(self) -> None:
        """Writes again what older keys seal, and drops those that nothing uses any more."""
        if len(self._store.keys) > 1:
            async with self._turn:
                await self._store.reseal()
                await self._store.drop_unused_keys()

    async def _backup(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        secret = _secret(await request.read())
        target = self._data / COPY
        async with self._turn:
            try:
                now = self._clock.now()
                if self._copy is None:
                    await asyncio.to_thread(make_backup, self._data, target, now, secret)
                else:
                    await self._copy(target)
                    await asyncio.to_thread(_describe, target, key_files(self._data), now, secret)
                file = target.open("rb")
            finally:
                # Open, it stays readable; nothing is left behind whatever happens.
                target.unlink(missing_ok=True)
        with file:
            response = web.StreamResponse(headers={**headers, "Content-Type": "application/vnd.sqlite3"})
            response.content_length = file.seek(0, 2)
            file.seek(0)
            await response.prepare(request)
            try:
                while chunk := file.read(_CHUNK):
                    async with asyncio.timeout(STALLED_SECONDS):
                        await response.write(chunk)
                await response.write_eof()
            except TimeoutError:
                # Half a backup: the reader must see that it is not whole.
                if request.transport is not None:
                    request.transport.abort()
        return response


def _secret(body: bytes) -> Stretched | None:
    if not body:
        return None
    try:
        asked = orjson.loads(body)
        secret = Stretched(base64.b64decode(asked["key"], validate=True), base64.b64decode(asked["salt"], validate=True))
    except (ValueError, KeyError, TypeError):
        raise errors.bad_request('the body of a backup request must be empty or {"key": BASE64, "salt": BASE64}') from None
    if (len(secret.key), len(secret.salt)) != (32, SALT_BYTES):
        raise errors.bad_request(f"a backup's key must have 32 bytes and its salt {SALT_BYTES}")
    return secret


@contextmanager
def _as_mistakes() -> Iterator[None]:
    """What is wrong with files is the caller's to mend."""
    try:
        yield
    except StoreFailed as failed:
        raise ValueError(str(failed)) from failed


@_as_mistakes()
def backup_directory(data: Path, target: Path, now: float, secret: Stretched | None) -> None:
    """:func:`make_backup` without a hub. Raises ``ValueError``."""
    make_backup(data, target, now, secret)


def describe_backup(backup: Path) -> dict[str, Any]:
    """What a backup says of itself. Raises ``ValueError`` where it is damaged."""
    with _as_mistakes():
        return read_manifest(backup)


def stretched(passphrase: str) -> Stretched:
    """A key made of a passphrase and new salt."""
    return Stretched.of(passphrase, os.urandom(SALT_BYTES))


@_as_mistakes()
def restore_hub(
    backup: Path, data: Path, now: float, *, passphrase: str | None = None, keys: Path | None = None
) -> tuple[int, str]:
    """Makes a hub's data directory of a backup, ``now`` (seconds since the epoch); the keys come from it (``passphrase``) or
    from directory ``keys``. Returns the revision at which it begins, and when the backup was made. Raises ``ValueError``."""
    manifest = read_manifest(backup)
    if keys is not None:
        files = key_files(keys)
    elif passphrase is not None:
        files = open_files(backup, manifest, passphrase)
    elif manifest["files"]:
        raise StoreFailed(f"the keys in {backup} are sealed: give the passphrase with --passphrase-file, or keys with --keys")
    else:
        raise StoreFailed(
            f"{backup} holds no keys: give the data directory of the hub that it was made from, or your copy of its keys.json "
            "and pki/, with --keys"
        )
    if "keys.json" not in files or not any(name.startswith("pki/ca-") for name in files):
        raise StoreFailed(
            f"{keys} has no keys.json or no authority in pki/: it is no hub's data directory, nor a copy of its keys"
        )
    missing = sealed_with(backup) - set(orjson.loads(files["keys.json"])["keys"])
    if missing:
        named = ", ".join(sorted(missing))
        raise StoreFailed(f"values in {backup} are sealed with keys that are not given ({named}): give a newer copy of keys.json")
    made = str(manifest["creationTime"])
    return restore(backup, data, files, now, lambda revision: mark(revision, made)), made
