"""The secret that all keys of the bus are derived from: a Secret of the hubs', made by the first one that needs it."""

from __future__ import annotations

import base64
import binascii

from metaos.client import Client
from metaos.messaging.keys import SECRET_BYTES
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj
from metaos.security.identity import Random

NAME = "bus"
_KEY = "root"


async def root_secret(client: Client, random: Random) -> bytes:
    """32 bytes, the same for all hubs of a store. Raises ``ApiError``, and ``ValueError`` where somebody has changed it."""
    while True:
        try:
            return _read(await client.get(scheme.SECRET, NAME, SYSTEM_NAMESPACE))
        except ApiError as error:
            if error.code != 404:
                raise
        value = base64.b64encode(random.randbytes(SECRET_BYTES)).decode()
        secret: Obj = {
            **scheme.SECRET.empty(NAME, SYSTEM_NAMESPACE),
            "type": "meta-os.eu/bus",
            # Another one would shut out every device.
            "immutable": True,
            "data": {_KEY: value},
        }
        try:
            await client.create(secret)
        except ApiError as error:
            if error.code != 409:  # 409: another hub was first.
                raise


def _read(secret: Obj) -> bytes:
    try:
        found = base64.b64decode((secret.get("data") or {}).get(_KEY) or "", validate=True)
    except binascii.Error:
        found = b""
    if len(found) != SECRET_BYTES:
        raise ValueError(
            f"the Secret {NAME} in {SYSTEM_NAMESPACE} has {len(found)} bytes under {_KEY}, not {SECRET_BYTES}: restore it, or "
            "delete it, and give every device new credentials"
        )
    return found
