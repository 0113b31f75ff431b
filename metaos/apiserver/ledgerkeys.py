"""The keys that sign the ledger: ``pki/ledger-N.pem``, private, in backups with the hub's other keys.

Each checkpoint names the key of the next one. A new key is written first and announced by the next checkpoint, which the older
one still signs; then the older one is removed: whoever steals a key cannot sign anew what was signed before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metaos.accounting.ledger import Checkpoint, key_text
from metaos.files import make_private, sync_directory, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Entropy = Callable[[int], bytes]


class LedgerKeys:
    """Of one hub's data directory."""

    def __init__(self, directory: Path, entropy: Entropy = os.urandom) -> None:
        make_private(directory)
        self._directory, self._entropy = directory, entropy
        if not self._files():
            self.add()

    def _files(self) -> list[Path]:
        """The newest last."""
        return sorted(self._directory.glob("ledger-*.pem"), key=lambda file: int(file.stem.removeprefix("ledger-")))

    def add(self) -> str:
        """A new key, which signs once it was announced. Its public part."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        files = self._files()
        number = int(files[-1].stem.removeprefix("ledger-")) + 1 if files else 1
        key = Ed25519PrivateKey.from_private_bytes(self._entropy(32))
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        write_private(self._directory / f"ledger-{number}.pem", pem)
        return key_text(key.public_key().public_bytes_raw())

    def signer(self, latest: Checkpoint | None) -> tuple[str, Callable[[bytes], bytes], str]:
        """(Public key, how it signs, the public key that signs after it) for the checkpoint behind ``latest``. Raises
        ``LookupError`` where the key that ``latest`` announced is not there."""
        keys = {word: key for _, word, key in self._read()}
        if not keys:
            raise LookupError(f"there is no key ledger-N.pem in {self._directory}: restore it from a backup")
        newest = list(keys)[-1]
        wanted = str(latest.body["next"]) if latest is not None else next(iter(keys))
        if wanted not in keys:
            raise LookupError(f"the key {wanted} that signs the ledger is not in {self._directory}: restore it from a backup")
        return wanted, keys[wanted].sign, newest

    def signed(self, following: str) -> None:
        """A checkpoint that announces the public key ``following`` is durable: older keys go. Another hub may have added a newer
        one meanwhile. Raises ``LookupError``."""
        files = [(file, word) for file, word, _ in self._read()]
        kept = next((place for place, (_, word) in enumerate(files) if word == following), 0)
        for file, _ in files[:kept]:
            file.unlink()
            sync_directory(self._directory)

    def _read(self) -> list[tuple[Path, str, Ed25519PrivateKey]]:
        """(File, public key, key), the newest last. Raises ``LookupError``."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        found = []
        for file in self._files():
            try:
                key = load_pem_private_key(file.read_bytes(), None)
            except ValueError:
                raise LookupError(f"{file} holds no key: restore it from a backup") from None
            if not isinstance(key, Ed25519PrivateKey):
                raise LookupError(f"{file} holds no Ed25519 key")
            found.append((file, key_text(key.public_key().public_bytes_raw()), key))
        return found
