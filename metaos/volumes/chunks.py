"""Stores of chunks, and the form in which a block is stored: compressed, and sealed where it leaves the trust domain."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from metaos.files import sync_directory
from metaos.volumes.manifest import MAX_BLOCK_BYTES

#: The level of Zstandard: 1 is four times as fast as zlib's fastest on what does not compress, and smaller on what does.
LEVEL = 1
#: What a chunk may be longer than its block: the header, the tag, what compression adds to noise.
MAX_CHUNK_BYTES = MAX_BLOCK_BYTES + (MAX_BLOCK_BYTES >> 8) + 1024
KEY_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{64}")
_PLAIN, _SEALED = b"\x01", b"\x02"
_NONCE_BYTES = 12


class MissingChunk(LookupError):
    """The store has no chunk of this name."""


class DamagedChunk(ValueError):
    """What is stored is not what its digest says: a byte has changed, or the key is another one."""


class Chunks(Protocol):
    """A store of chunks. A name has 64 hexadecimal digits and always means the same content. Blocking; every method may raise
    ``OSError`` where the store cannot be reached, and ``ValueError`` for something that is no name."""

    def has(self, names: Collection[str]) -> set[str]:
        """Those of these that are stored."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Durable on return, and whole or not at all. One that is there already stays, or is replaced by the same."""
        ...

    def get(self, name: str) -> bytes:
        """Raises :class:`MissingChunk`. At most :data:`MAX_CHUNK_BYTES` are read: more is damage."""
        ...

    def list(self) -> Iterator[str]:
        """The names of all that are stored, in any order; those that come or go meanwhile may be missing."""
        ...

    def delete(self, name: str) -> None:
        """One that is not there is fine."""
        ...


def checked(name: str) -> str:
    """Raises ``ValueError`` for what is no chunk's name, such as a path."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no chunk's name: it must be 64 hexadecimal digits")
    return name


class DirectoryChunks:
    """``AB/ABCD…`` below a directory, each a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, name: str) -> Path:
        return self._directory / checked(name)[:2] / name

    def has(self, names: Collection[str]) -> set[str]:
        return {name for name in names if self._path(name).exists()}

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of this process alone; what a crash leaves, the next one of this number replaces.
        temporary = path.with_name(f".{name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
        sync_directory(self._directory)

    def get(self, name: str) -> bytes:
        try:
            with self._path(name).open("rb") as file:
                return file.read(MAX_CHUNK_BYTES + 1)
        except FileNotFoundError:
            raise MissingChunk(f"chunk {name} is not stored in {self._directory}") from None

    def list(self) -> Iterator[str]:
        for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
            if _NAME.fullmatch(path.name):
                yield path.name

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)


class Form(Protocol):
    """How blocks are stored."""

    def name(self, digest: bytes) -> str:
        """Of the chunk that holds the block with this SHA-256 digest."""
        ...

    def wrap(self, digest: bytes, data: bytes) -> bytes:
        """What is stored. The same for the same block."""
        ...

    def unwrap(self, digest: bytes, stored: bytes) -> bytes:
        """The block. Raises :class:`DamagedChunk` for whatever has another digest."""
        ...


class Plain:
    """Compressed; the name is the digest. For stores within the trust domain."""

    def name(self, digest: bytes) -> str:
        return digest.hex()

    def wrap(self, digest: bytes, data: bytes) -> bytes:
        return _PLAIN + _compress(data)

    def unwrap(self, digest: bytes, stored: bytes) -> bytes:
        if stored[:1] != _PLAIN:
            raise DamagedChunk(f"chunk {digest.hex()} is no plain chunk")
        return _verified(digest, stored[1:])


class Sealed:
    """Compressed, then encrypted with AES-256-GCM. ``key``: 32 random bytes; who has it can read all, who has not can neither
    read nor make a chunk.

    The name is an HMAC of the digest, so that nobody without the key can tell that a known file is stored. Each block has a key
    of its own, an HMAC of its digest; the nonce is an HMAC of what is encrypted (as SIV, RFC 5297, has it): the same gives the
    same, two contents never share key and nonce, and no chance is needed."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes: it must have {KEY_BYTES}")
        self._key = key

    def _derived(self, purpose: bytes, about: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + about, "sha256")

    def name(self, digest: bytes) -> str:
        return self._derived(b"name", digest).hex()

    def wrap(self, digest: bytes, data: bytes) -> bytes:
        return self._encrypt(b"chunk", digest, _compress(data))

    def unwrap(self, digest: bytes, stored: bytes) -> bytes:
        return _verified(digest, self._decrypt(b"chunk", digest, stored))

    def seal(self, label: str, data: bytes) -> bytes:
        """Something that is no block, such as a manifest; ``label`` says what it is, and has to be said again to open it."""
        return self._encrypt(b"seal", label.encode(), _compress(data))

    def open(self, label: str, sealed: bytes, limit: int) -> bytes:
        """``limit``: bytes that it may have. Raises :class:`DamagedChunk`."""
        data = decompress(self._decrypt(b"seal", label.encode(), sealed), limit)
        if data is None:
            raise DamagedChunk(f"{label!r} is not what was sealed, or has more than {limit} bytes")
        return data

    def _encrypt(self, purpose: bytes, about: bytes, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = hmac.digest(self._derived(purpose + b" nonce", about), data, "sha256")[:_NONCE_BYTES]
        return _SEALED + nonce + AESGCM(self._derived(purpose, about)).encrypt(nonce, data, purpose)

    def _decrypt(self, purpose: bytes, about: bytes, stored: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce, data = stored[1 : 1 + _NONCE_BYTES], stored[1 + _NONCE_BYTES :]
        try:
            if stored[:1] != _SEALED or len(nonce) < _NONCE_BYTES:
                raise InvalidTag
            return AESGCM(self._derived(purpose, about)).decrypt(nonce, data, purpose)
        except InvalidTag:
            raise DamagedChunk("a chunk was changed, or sealed with another key or for something else") from None


def fetcher(chunks: Chunks, form: Form) -> Callable[[bytes], bytes]:
    """Gives the block of a digest from a store, verified. Raises :class:`MissingChunk`, :class:`DamagedChunk`, ``OSError``."""
    return lambda digest: form.unwrap(digest, chunks.get(form.name(digest)))


def _compress(data: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(data, LEVEL)


def decompress(compressed: bytes, limit: int) -> bytes | None:
    """Never more than ``limit`` bytes, whatever it claims to become; ``None`` for what is no whole frame of at most so many."""
    from backports import zstd

    decompressor = zstd.ZstdDecompressor()
    try:
        data = decompressor.decompress(compressed, limit + 1)
    except zstd.ZstdError:
        return None
    return data if decompressor.eof and not decompressor.unused_data and len(data) <= limit else None


def _verified(digest: bytes, compressed: bytes) -> bytes:
    data = decompress(compressed, MAX_BLOCK_BYTES)
    if data is None or hashlib.sha256(data).digest() != digest:
        raise DamagedChunk(f"the block {digest.hex()} was damaged: what is stored for it is not what was written")
    return data
