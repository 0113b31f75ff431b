"""Applications of devices: taken from ConfigMaps, signed, and handed out in parts as devices ask for them.

A device fetches by itself, one part after another, and goes on where it was when it lost its connection. What it is sent is
signed with Ed25519 (RFC 8032): only the hub's key can make a device run something, whatever becomes of a server on the way.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metaos.client import Client
from metaos.devices.twin import Malformed
from metaos.messaging.keys import Key
from metaos.resources import scheme
from metaos.resources.errors import ApiError

#: Of one application; of a part; and how many of them are held.
MOST_BYTES, MOST_PART, MOST_HELD = 128 * 1024, 2048, 64
USUAL_KEY = "main.py"


class Unfit(ValueError):
    """There is no such application, or it is not what it should be. Says what is wrong with what."""


@dataclass(frozen=True, slots=True)
class App:
    """``version``: its name for people."""

    code: bytes
    sha256: str
    version: str
    signature: str


def signed_text(sha256: str, size: int, version: str) -> bytes:
    """What the signature is over."""
    return f"nemo-app\n{sha256}\n{size}\n{version}".encode()


class Apps:
    """``key``: Ed25519, the hubs' for applications."""

    def __init__(self, client: Client, key: Callable[[], Awaitable[Key]]) -> None:
        self._client, self._key, self._public = client, key, ""
        self._by_hash: OrderedDict[str, App] = OrderedDict()
        self._found: dict[tuple[str, str, str, str, str], App] = {}
        #: ConfigMaps that were asked for, also those that were not there.
        self._named: set[tuple[str, str]] = set()

    async def public_key(self) -> str:
        """In hexadecimal, for devices. Raises ``ApiError``."""
        if self._public:
            return self._public
        text = (await self._key()).public
        # As NATS writes it: what it is for, 32 bytes, and their sum.
        self._public = base64.b32decode(text + "=" * (-len(text) % 8))[1:33].hex()
        return self._public

    async def wanted(self, namespace: str, app: Mapping[str, Any]) -> App:
        """What a Device's ``spec.app`` names. Raises :class:`Unfit`, ``ApiError``."""
        named, key, version = app["configMap"], app.get("key") or USUAL_KEY, str(app.get("version") or "")
        place = namespace, named, key, version, str(app.get("sha256") or "")
        self._named.add((namespace, named))
        if place in self._found and self._found[place].sha256 in self._by_hash:
            return self._found[place]
        try:
            found = await self._client.get(scheme.CONFIG_MAP, named, namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            raise Unfit(f"there is no ConfigMap {named} in namespace {namespace}") from None
        text, binary = (found.get("data") or {}).get(key), (found.get("binaryData") or {}).get(key)
        if text is None and binary is None:
            raise Unfit(f"ConfigMap {named} has no key {key}")
        code = text.encode() if text is not None else base64.b64decode(str(binary))
        if not 0 < len(code) <= MOST_BYTES:
            raise Unfit(f"{key} of ConfigMap {named} has {len(code)} bytes: a device's application may have 1 to {MOST_BYTES}")
        sha = hashlib.sha256(code).hexdigest()
        if app.get("sha256") and app["sha256"] != sha:
            raise Unfit(f"{key} of ConfigMap {named} hashes to {sha}, and {app['sha256']} is wanted")
        made = App(code, sha, version, (await self._key()).sign(signed_text(sha, len(code), version)).hex())
        self._by_hash[sha] = made
        self._by_hash.move_to_end(sha)
        if len(self._by_hash) > MOST_HELD:
            self._by_hash.popitem(last=False)
        if len(self._found) > 2 * MOST_HELD:
            self._found.clear()
        self._found[place] = made
        return made

    def known(self, namespace: str, config_map: str) -> bool:
        """Whether a Device named it, as far as is remembered."""
        return (namespace, config_map) in self._named

    def forget(self, namespace: str, config_map: str) -> None:
        """It changed: it is read again."""
        self._found = {place: app for place, app in self._found.items() if place[:2] != (namespace, config_map)}

    def manifest(self, sha256: str) -> dict[str, Any]:
        """What a device is told of an application. Raises :class:`Malformed` where it is not held."""
        app = self._held(sha256)
        return {"sha256": sha256, "size": len(app.code), "version": app.version, "signature": app.signature}

    def chunk(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The part that a device asks for. Raises :class:`Malformed`."""
        app = self._held(str(asked.get("sha256") or ""))
        offset, length = asked.get("offset"), asked.get("length", MOST_PART)
        if not isinstance(offset, int) or not 0 <= offset < len(app.code):
            raise Malformed(f"offset: must be from 0 to {len(app.code) - 1}, not {str(offset)[:80]!r}")
        if not isinstance(length, int) or not 0 < length <= MOST_PART:
            raise Malformed(f"length: must be from 1 to {MOST_PART}, not {str(length)[:80]!r}")
        part = app.code[offset : offset + length]
        return {"sha256": app.sha256, "offset": offset, "data": base64.b64encode(part).decode()}

    def _held(self, sha256: str) -> App:
        found = self._by_hash.get(sha256)
        if found is None:
            raise Malformed(f"sha256: {sha256[:80]!r} is no application that the hub has for it")
        self._by_hash.move_to_end(sha256)
        return found
