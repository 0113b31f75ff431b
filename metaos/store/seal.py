"""Encryption at rest: a ``Store`` around a ``Store`` that seals the values of some keys.

AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces, good for 2^32 values under one key. The store key is bound in as
associated data, so a sealed value cannot be moved to another object. A sealed value is ``MAGIC``, one byte with the length
of the key id, the key id, nonce, ciphertext and tag. Values without ``MAGIC`` (JSON never begins with a zero byte) pass
as they are: they were written before their kind was sealed.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from metaos.files import make_private, write_private
from metaos.store.keyfiles import KEY as KEY_FILES
from metaos.store.keyfiles import KeyFiles
from metaos.store.log import Conflict, Entry, Listing, LogEvent, Store, StoreFailed

MAGIC = b"\x00nemo1\x00"
_KEY_BYTES = 32
_NONCE_BYTES = 12
#: Key ids are small numbers.
MOST_NAME = 20

Entropy = Callable[[int], bytes]


class Keyring:
    """The keys of one data directory. The current one seals; all of them open, so that keys can be rotated."""

    def __init__(self, path: Path, keys: Mapping[str, bytes], current: str, entropy: Entropy = os.urandom) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.path = path
        self._keys = dict(keys)
        self._entropy = entropy
        self._ciphers: dict[str, Any] = {name: AESGCM(key) for name, key in keys.items()}
        self.current = current

    @classmethod
    def open(cls, path: Path | str, entropy: Entropy = os.urandom) -> Keyring:
        """Read the key file, or make one with mode 0600. Raises ``StoreFailed`` where others may read it."""
        file = Path(path)
        try:
            with file.open(encoding="utf-8") as stream:
                mode = os.fstat(stream.fileno()).st_mode & 0o077
                text = stream.read()
        except FileNotFoundError:
            ring = cls(file, {"1": entropy(_KEY_BYTES)}, "1", entropy)
            ring._save()
            return ring
        if mode:
            raise StoreFailed(
                f"{file} can be read by others than its owner: run chmod 600 {file}, and consider rotating its keys"
            )
        try:
            content = json.loads(text)
            keys = {str(name): base64.b64decode(key) for name, key in content["keys"].items()}
            if content["current"] not in keys or any(len(key) != _KEY_BYTES for key in keys.values()):
                raise ValueError("the current key is missing, or a key has not 32 bytes")
            return cls(file, keys, content["current"], entropy)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreFailed(f"{file} is not a key file, restore it from a backup: {error}") from error

    def rotate(self) -> str:
        """Add a key, and seal with it from now on. Returns its id."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        name = self._next()
        self._keys[name] = self._entropy(_KEY_BYTES)
        self._ciphers[name] = AESGCM(self._keys[name])
        self.current = name
        self._save()
        return name

    def reload(self) -> None:
        """Take the keys of the file as it is now."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        content = json.loads(self.path.read_bytes())
        self._keys = {str(name): base64.b64decode(key) for name, key in content["keys"].items()}
        self._ciphers = {name: AESGCM(key) for name, key in self._keys.items()}
        self.current = content["current"]

    def rotated(self) -> bytes:
        """What the key file would be with a further key, which seals; nothing is changed."""
        name = self._next()
        return _file({**self._keys, name: self._entropy(_KEY_BYTES)}, name)

    def _next(self) -> str:
        return str(max(int(n) for n in self._keys) + 1)

    def drop(self, names: Iterable[str]) -> None:
        """Forget keys that nothing is sealed with any more; the current one stays."""
        for name in [name for name in names if name in self._keys and name != self.current]:
            del self._keys[name], self._ciphers[name]
        self._save()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def seal(self, key: str, value: bytes) -> bytes:
        """``value`` for store key ``key``, encrypted."""
        nonce = self._entropy(_NONCE_BYTES)
        name = self.current.encode()
        sealed: bytes = self._ciphers[self.current].encrypt(nonce, value, key.encode())
        return MAGIC + bytes([len(name)]) + name + nonce + sealed

    def unseal(self, key: str, value: bytes) -> bytes:
        """The plain value. Raises ``StoreFailed`` where its key is missing or it was tampered with."""
        from cryptography.exceptions import InvalidTag

        if not value.startswith(MAGIC):
            return value
        name_end = len(MAGIC) + 1 + value[len(MAGIC)]
        name = key_id(value)
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise StoreFailed(f"{key} is sealed with key {name!r}, which {self.path} does not hold: restore it from a backup")
        nonce_end = name_end + _NONCE_BYTES
        try:
            plain: bytes = cipher.decrypt(value[name_end:nonce_end], value[nonce_end:], key.encode())
        except InvalidTag as error:
            raise StoreFailed(f"{key} cannot be decrypted: it was damaged or moved") from error
        return plain

    def _save(self) -> None:
        make_private(self.path.parent)
        write_private(self.path, _file(self._keys, self.current))


def _file(keys: Mapping[str, bytes], current: str) -> bytes:
    content = {"current": current, "keys": {name: base64.b64encode(key).decode() for name, key in keys.items()}}
    return json.dumps(content).encode()


def key_id(sealed: bytes) -> str:
    """The id of the key that sealed a value (its beginning will do)."""
    start = len(MAGIC) + 1
    return sealed[start : start + sealed[start - 1]].decode("ascii", "replace")


class SealedStore:
    """A ``Store`` whose values are sealed where ``sealed(key)`` says so. What is already sealed opens in any case.

    ``shared``: the key files of several hubs. Then keys are never dropped: a hub that was suspended may still write with one.
    """

    def __init__(self, inner: Store, keyring: Keyring, sealed: Callable[[str], bool], shared: KeyFiles | None = None) -> None:
        self._inner = inner
        self._ring = keyring
        self._sealed = sealed
        self._shared = shared
        if shared is not None:
            shared.on_change(keyring.reload)

    async def revision(self) -> int:
        return await self._inner.revision()

    async def get(self, key: str) -> Entry | None:
        return await self._open(await self._inner.get(key))

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        found = await self._inner.list(prefix, revision=revision, limit=limit, after=after)
        if self._shared is not None and KEY_FILES.startswith(prefix):
            # Who lists instead of following the log must not miss them.
            for entry in found.entries:
                if entry.key == KEY_FILES:
                    self._shared.see(entry.revision, entry.value)
        if not any(entry.value.startswith(MAGIC) for entry in found.entries):
            return found
        await self._know(*(entry.value for entry in found.entries))
        return Listing(tuple(self._opened(entry) for entry in found.entries), found.revision, found.more)

    async def create(self, key: str, value: bytes) -> int:
        try:
            return await self._inner.create(key, self._seal(key, value))
        except Conflict as conflict:
            raise Conflict(key, await self._open(conflict.current)) from None

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        try:
            return await self._inner.update(key, self._seal(key, value), expected=expected)
        except Conflict as conflict:
            raise Conflict(key, await self._open(conflict.current)) from None

    async def delete(self, key: str, *, expected: int) -> int:
        try:
            return await self._inner.delete(key, expected=expected)
        except Conflict as conflict:
            raise Conflict(key, await self._open(conflict.current)) from None

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        events = self._inner.watch(prefix, after=after)
        try:
            async for event in events:
                if self._shared is not None and event.key == KEY_FILES:
                    self._shared.follow(event)
                value = self._ring.unseal(event.key, event.value)
                previous = None if event.previous is None else self._ring.unseal(event.key, event.previous)
                yield LogEvent(event.type, event.revision, event.key, value, previous)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def compact(self, revision: int) -> None:
        await self._inner.compact(revision)

    async def close(self) -> None:
        await self._inner.close()

    async def reseal(self, prefix: str = "") -> int:
        """Write again whatever is not sealed with the current key though it should be; afterwards, and after a compaction,
        older keys are no longer needed. Returns how many were written."""
        count, after, more = 0, "", True
        while more:
            page = await self._inner.list(prefix, limit=500, after=after)
            for entry in page.entries:
                if self._sealed(entry.key) and not self._is_current(entry.value):
                    plain = self._ring.unseal(entry.key, entry.value)
                    try:
                        await self._inner.update(entry.key, self._seal(entry.key, plain), expected=entry.revision)
                        count += 1
                    except Conflict:
                        continue  # Written anew meanwhile, and thereby with the current key, or deleted.
            more = page.more
            after = page.entries[-1].key if page.entries else after
        return count

    @property
    def keys(self) -> tuple[str, ...]:
        """The ids of all keys; :attr:`current_key` seals."""
        return self._ring.names

    @property
    def current_key(self) -> str:
        return self._ring.current

    async def rotate(self) -> str:
        """Seal with a new key from now on. Returns its id. Older values stay readable; :meth:`reseal` writes them again. Raises
        ``StoreFailed`` where another hub does it at the same time."""
        if self._shared is None:
            return self._ring.rotate()
        await self._shared.replace(self._ring.path.name, self._ring.rotated())
        self._ring.reload()
        return self._ring.current

    async def keys_in_use(self) -> dict[str, bool]:
        """Every key, and whether a kept value is sealed with it, in history too."""
        names = self._ring.names
        heads = await self._inner.heads(MAGIC, len(MAGIC) + 1 + MOST_NAME)
        used = {key_id(head) for head in heads}
        return {name: name in used for name in names}

    async def drop_unused_keys(self) -> tuple[str, ...]:
        """Forgets keys that no value needs any more. Returns their ids."""
        unused = tuple(name for name, used in (await self.keys_in_use()).items() if not used and name != self.current_key)
        if not unused or self._shared is not None:
            return ()
        self._ring.drop(unused)
        return unused

    async def heads(self, start: bytes, size: int) -> set[bytes]:
        return await self._inner.heads(start, size)

    def _is_current(self, value: bytes) -> bool:
        name = self._ring.current.encode()
        return value.startswith(MAGIC + bytes([len(name)]) + name)

    def _seal(self, key: str, value: bytes) -> bytes:
        return self._ring.seal(key, value) if self._sealed(key) else value

    def _opened(self, entry: Entry) -> Entry:
        return Entry(entry.key, self._ring.unseal(entry.key, entry.value), entry.revision, entry.create_revision)

    async def _open(self, entry: Entry | None) -> Entry | None:
        if entry is None:
            return None
        await self._know(entry.value)
        return self._opened(entry)

    async def _know(self, *values: bytes) -> None:
        """Asks for the key files where a value is sealed with a key that another hub has just made."""
        if self._shared is not None and any(v.startswith(MAGIC) and key_id(v) not in self._ring.names for v in values):
            await self._shared.pull()
            self._ring.reload()
