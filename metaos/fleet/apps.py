"""Applications of devices: taken from ConfigMaps and OCI artifacts, signed, and handed out in parts as devices ask for them.

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
from metaos.fleet.images import Images, Place
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


def signed_text(namespace: str, sha256: str, size: int, version: str) -> bytes:
    """What the signature is over. It counts in one namespace: what another tenant had signed runs on no device of this one."""
    return f"nemo-app\n{namespace}\n{sha256}\n{size}\n{version}".encode()


class Apps:
    """``key``: Ed25519, the hubs' for applications."""

    def __init__(self, client: Client, key: Callable[[], Awaitable[Key]], images: Images) -> None:
        self._client, self._key, self._public, self.images = client, key, "", images
        #: By namespace, source, key, Secrets, version and SHA-256 as they are asked for; those that were asked for last at the
        #: end.
        self._held: OrderedDict[tuple[str, str, str, tuple[str, ...], str, str], App] = OrderedDict()

    async def public_key(self) -> str:
        """In hexadecimal, for devices. Raises ``ApiError``."""
        if self._public:
            return self._public
        text = (await self._key()).public
        # As NATS writes it: what it is for, 32 bytes, and their sum.
        self._public = base64.b32decode(text + "=" * (-len(text) % 8))[1:33].hex()
        return self._public

    async def wanted(self, namespace: str, app: Mapping[str, Any]) -> App:
        """What a Device's ``spec.app`` names, read anew where it is not held any more. Raises :class:`Unfit`, ``ApiError``."""
        named, key, version = source(app), app.get("key") or USUAL_KEY, str(app.get("version") or "")
        secrets = tuple(str(each) for each in app.get("imagePullSecrets") or ())
        place = namespace, named, key, secrets, version, str(app.get("sha256") or "")
        if (held := self._held.get(place)) is not None:
            self._held.move_to_end(place)
            return held
        if app.get("image"):
            try:
                code, what = self.images.take(Place(namespace, named, key, secrets)), f"{key} of image {named}"
            except ValueError as error:
                raise Unfit(str(error)) from None
        else:
            code, what = await self._of_config_map(namespace, named, key), f"{key} of ConfigMap {named}"
        if not 0 < len(code) <= MOST_BYTES:
            raise Unfit(f"{what} has {len(code)} bytes: a device's application may have 1 to {MOST_BYTES}")
        sha = hashlib.sha256(code).hexdigest()
        if app.get("sha256") and app["sha256"] != sha:
            raise Unfit(f"{what} hashes to {sha}, and {app['sha256']} is wanted")
        made = App(code, sha, version, (await self._key()).sign(signed_text(namespace, sha, len(code), version)).hex())
        self._held[place] = made
        if len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        return made

    async def _of_config_map(self, namespace: str, named: str, key: str) -> bytes:
        try:
            found = await self._client.get(scheme.CONFIG_MAP, named, namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            raise Unfit(f"there is no ConfigMap {named} in namespace {namespace}") from None
        text, binary = (found.get("data") or {}).get(key), (found.get("binaryData") or {}).get(key)
        if text is None and binary is None:
            raise Unfit(f"ConfigMap {named} has no key {key}")
        return text.encode() if text is not None else base64.b64decode(str(binary))

    def forget(self, namespace: str, config_map: str) -> None:
        """It changed: it is read again."""
        for place in [place for place in self._held if place[:2] == (namespace, config_map)]:
            del self._held[place]


def source(app: Mapping[str, Any]) -> str:
    """What a ``spec.app`` takes its code from: a ConfigMap's name, or an image's, which a ConfigMap cannot have."""
    return str(app.get("image") or app.get("configMap") or "")


def manifest(app: App) -> dict[str, Any]:
    """What a device is told of an application."""
    return {"sha256": app.sha256, "size": len(app.code), "version": app.version, "signature": app.signature}


def chunk(app: App, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The part that a device asks for of the application that it shall have. Raises :class:`Malformed`."""
    sha, offset, length = str(asked.get("sha256") or ""), asked.get("offset"), asked.get("length", MOST_PART)
    if sha != app.sha256:
        raise Malformed(f"sha256: {sha[:80]!r} is not the application that it shall have, {app.sha256}")
    if not isinstance(offset, int) or not 0 <= offset < len(app.code):
        raise Malformed(f"offset: must be from 0 to {len(app.code) - 1}, not {str(offset)[:80]!r}")
    if not isinstance(length, int) or not 0 < length <= MOST_PART:
        raise Malformed(f"length: must be from 1 to {MOST_PART}, not {str(length)[:80]!r}")
    part = app.code[offset : offset + length]
    return {"sha256": app.sha256, "offset": offset, "data": base64.b64encode(part).decode()}
