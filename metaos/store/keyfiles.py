"""The key files that several hubs of one store share: their authorities, what seals Secrets, what signs the ledger.

They lie in the store under one key, sealed with AES-256-GCM under the hubs' own key (``hub.key``), which every hub is given and
which is never in the store; each hub has them as files too, as a hub alone does. ``hub.key`` may hold several keys, one in each
line: the first one seals, any of them opens, so that hubs are given another key one by one. A hub that starts and finds them
sealed with a later one seals them anew. Because they are written to the log like
everything else, a hub has learned of a new key before it meets anything that was sealed with it.

They are replaced by compare and swap: of two hubs that change them at a time, one is refused and takes the other's.
Bounds: some ten files of a few KiB; ``MOST_KEYS`` keys.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from metaos.files import make_private, sync_directory, write_private
from metaos.store.log import Conflict, EventType, LogEvent, Store, StoreFailed

log = logging.getLogger(__name__)

KEY = "keyfiles//hubs"
PATTERNS = ("keys.json", "pki/ca-*.pem", "pki/ledger-*.pem")
_KEY_BYTES, _NONCE_BYTES = 32, 12
#: One that seals, one that did, and some that are still to come.
MOST_KEYS = 4

Entropy = Callable[[int], bytes]


class Changed(StoreFailed):
    """Another hub has changed the key files at the same time: its are here now."""


class KeyFiles:
    """Those of one data directory. Made by :meth:`open`."""

    def __init__(self, store: Store, data: Path, keys: Sequence[bytes], entropy: Entropy = os.urandom) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._store, self._data, self._entropy = store, data, entropy
        self._ciphers = [AESGCM(key) for key in keys]
        #: Whether the store's are sealed with another key than the first.
        self._outdated = False
        #: The revision at which the store has these files; 0: it has none.
        self._revision, self._known = 0, dict[str, bytes]()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    async def open(cls, store: Store, data: Path, key_file: Path, entropy: Entropy = os.urandom) -> KeyFiles:
        """Takes the store's files; where it has none, what is here is put there later (:meth:`push`), and ``key_file`` is made
        where it is missing. Raises ``StoreFailed``."""
        first = await store.get(KEY) is None
        if first and not (data / "keys.json").exists() and await store.revision():
            raise StoreFailed(
                f"the database holds a state without its keys, and {data} has none either: start its first hub with the data "
                "directory that was moved or restored into it"
            )
        found = cls(store, data, _read_keys(key_file, entropy if first else None), entropy)
        await found.pull()
        return found

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when another hub has changed something; the files are as it wants them by then."""
        self._listeners.append(listener)

    async def pull(self) -> None:
        """Makes the files here those of the store, where it has any. Raises ``StoreFailed``."""
        entry = await self._store.get(KEY)
        if entry is not None:
            self._learn(entry.revision, entry.value)

    async def push(self) -> None:
        """Makes the store's files those here, sealed with the first key. Raises ``Changed``, ``StoreFailed``."""
        await self._write(self._local())

    async def replace(self, name: str, content: bytes) -> None:
        """One file, in the store first. Raises as :meth:`push`."""
        await self._write({**self._local(), name: content})

    async def _write(self, files: Mapping[str, bytes]) -> None:
        if files == self._known and not self._outdated:
            return
        value = self._sealed(files)
        try:
            if self._revision:
                revision = await self._store.update(KEY, value, expected=self._revision)
            else:
                revision = await self._store.create(KEY, value)
        except Conflict:
            await self.pull()
            raise Changed("another hub has changed the keys at the same time: look how they are now, and try again") from None
        if self._outdated:
            log.info("the hubs' keys are sealed with the first key of hub.key from now on")
        self._outdated = False
        self._take(revision, files)

    def follow(self, event: LogEvent) -> None:
        """An event of the log, in its turn."""
        if event.type is not EventType.DELETE:
            self.see(event.revision, event.value)

    def see(self, revision: int, value: bytes) -> None:
        """What the store has at a revision."""
        if revision <= self._revision:
            return
        try:
            self._learn(revision, value)
        except (StoreFailed, OSError):
            log.exception("the keys that another hub has changed could not be taken")

    def _learn(self, revision: int, value: bytes) -> None:
        """However it is learned, whoever uses the files is told: no event of the log will say it again."""
        if self._take(revision, self._opened(value)):
            for listener in self._listeners:
                listener()

    def _local(self) -> dict[str, bytes]:
        found = [path for pattern in PATTERNS for path in sorted(self._data.glob(pattern))]
        return {str(path.relative_to(self._data)): path.read_bytes() for path in found}

    def _take(self, revision: int, files: Mapping[str, bytes]) -> bool:
        """Whether anything changed here."""
        self._revision, self._known = revision, dict(files)
        local = self._local()
        for name, content in files.items():
            if local.get(name) != content:
                make_private((self._data / name).parent)
                write_private(self._data / name, content)
        for name in local.keys() - files.keys():
            (self._data / name).unlink()
            sync_directory((self._data / name).parent)
        return local != files

    def _sealed(self, files: Mapping[str, bytes]) -> bytes:
        """As JSON with metadata, as all that is in the log."""
        content = json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}).encode()
        nonce = self._entropy(_NONCE_BYTES)
        sealed = base64.b64encode(nonce + self._ciphers[0].encrypt(nonce, content, KEY.encode())).decode()
        return json.dumps({"metadata": {"name": "hubs"}, "sealed": sealed}).encode()

    def _opened(self, value: bytes) -> dict[str, bytes]:
        from cryptography.exceptions import InvalidTag

        try:
            sealed = base64.b64decode(json.loads(value)["sealed"])
            for number, cipher in enumerate(self._ciphers):
                with suppress(InvalidTag):
                    content = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], KEY.encode())
                    files = {name: base64.b64decode(data) for name, data in json.loads(content).items()}
                    self._outdated = number > 0
                    return files
            raise StoreFailed(
                "the hubs of this store have another hub.key than this one: copy it from a hub that runs, or name it with "
                "--hub-key"
            )
        except (ValueError, KeyError) as error:
            raise StoreFailed(f"{KEY} in the store holds no key files: {error}") from error


def _read_keys(file: Path, entropy: Entropy | None) -> list[bytes]:
    """The hubs' keys, the one that seals first; a new one is made with ``entropy``."""
    try:
        text = file.read_text()
        if file.stat().st_mode & 0o007:
            raise StoreFailed(f"{file} can be read by everybody on this machine: run chmod 600 {file}")
    except FileNotFoundError:
        if entropy is None:
            raise StoreFailed(
                f"there is no {file}: this store has hubs already; copy hub.key from the data directory of one, or name it with "
                "--hub-key"
            ) from None
        make_private(file.parent)
        text = base64.b64encode(entropy(_KEY_BYTES)).decode()
        write_private(file, text + "\n")
    except OSError as error:
        raise StoreFailed(f"{file} cannot be read: {error.strerror}") from None
    try:
        keys = [base64.b64decode(line.strip(), validate=True) for line in text.splitlines() if line.strip()]
    except ValueError:
        keys = []
    if not keys or any(len(key) != _KEY_BYTES for key in keys):
        raise StoreFailed(f"{file} holds no hub key ({_KEY_BYTES} bytes in base64 in each line): copy it from a hub that runs")
    if len(keys) > MOST_KEYS:
        raise StoreFailed(
            f"{file} holds {len(keys)} hub keys, {MOST_KEYS} are the most: take out those that nothing is sealed with"
        )
    return keys
