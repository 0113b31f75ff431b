"""Keys and claims as NATS knows them: Ed25519 with a textual form of its own (nkeys), and JSON Web Tokens signed by them.

An operator's key signs accounts, an account's key signs its users; a server needs to know the operator alone, so that none of
them is ever written into its configuration (https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt).
Keys are derived from one secret, so there is only that to keep, and every hub that has it comes to the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What signs is loaded with the first key: the gateway only reads tokens.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: What keys are for, and the first letter of their public form.
KINDS: Mapping[str, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_SEED = 18 << 3
SECRET_BYTES = 32


@dataclass(frozen=True)
class Key:
    """A key pair of a kind. ``secret``: 32 bytes."""

    kind: str
    secret: bytes

    @classmethod
    def derive(cls, kind: str, root: bytes, *path: str) -> Key:
        """The key that belongs to ``path`` below a root secret, always the same (HKDF, RFC 5869). Raises ``ValueError`` for
        a root of another length."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if len(root) != SECRET_BYTES:
            raise ValueError(f"the secret of the bus has {len(root)} bytes: it must have {SECRET_BYTES}")
        # Lengths in front: no two paths are the same text.
        info = b"nemo bus" + b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in (kind, *path))
        return cls(kind, HKDF(SHA256(), SECRET_BYTES, None, info).derive(root))

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.secret)

    @cached_property
    def public(self) -> str:
        """As NATS writes it: 56 characters."""
        raw = self._private.public_key().public_bytes_raw()
        return _text(bytes([KINDS[self.kind]]) + raw)

    @property
    def seed(self) -> str:
        """The private key as NATS writes it: secret."""
        kind = KINDS[self.kind]
        return _text(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + self.secret)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def token(self, subject: str, name: str, claims: Mapping[str, Any], issued: float, expires: float | None = None) -> str:
        """A token that says ``claims`` of the key ``subject``; times in seconds since the epoch."""
        body: dict[str, Any] = {"iat": int(issued), "iss": self.public, "name": name, "sub": subject, "nats": dict(claims)}
        if expires is not None:
            body["exp"] = int(expires)
        body["jti"] = base64.b32encode(hashlib.sha256(_json(body)).digest()).decode().rstrip("=")
        signed = f"{_url(_json({'typ': 'JWT', 'alg': 'ed25519-nkey'}))}.{_url(_json(body))}"
        return f"{signed}.{_url(self.sign(signed.encode()))}"


def credentials_text(token: str, key: Key) -> str:
    """What NATS' own clients and leaf nodes read as a credentials file: secret."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )


def read_credentials(file: Path) -> tuple[str, Key]:
    """A user's token and key from a file of NATS' own form. Raises ``ValueError``."""
    lines = [line.strip() for line in file.read_text().splitlines()]
    found = [line for line in lines if line and not line.startswith("-")]
    try:
        token, seed = found
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except (ValueError, TypeError):
        raise ValueError(f"{file} holds no credentials of the bus: a token and a key between lines of dashes") from None
    return token, Key("user", raw[2 : 2 + SECRET_BYTES])


def signed_by(token: str, public: str) -> bool:
    """Whether the key with this public form signed a token; not whether that has expired."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, _, signature = token.rpartition(".")
    try:
        raw = base64.b32decode(public + "=" * (-len(public) % 8))[1 : 1 + SECRET_BYTES]
        shown = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        Ed25519PublicKey.from_public_bytes(raw).verify(shown, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def read_token(token: str) -> dict[str, Any]:
    """What a token says, without looking at who signed it. Raises ``ValueError``."""
    try:
        body = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError) as error:
        raise ValueError("this is no token of the bus: it has not three parts of base64, the second of them JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("nats"), dict):
        raise ValueError("this is no token of the bus: it says nothing under 'nats'")
    return found


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _text(data: bytes) -> str:
    # CRC-16/XMODEM.
    return base64.b32encode(data + binascii.crc_hqx(data, 0).to_bytes(2, "little")).decode().rstrip("=")
