"""The first connection of a tenant's over MQTT, made by us: with it a server makes what it keeps of the tenant's devices.

NATS' server does so while the first client waits, in several steps of up to four seconds each; who comes meanwhile, or first
while the disk is slow, may be refused. So devices are let in when it is done.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

from metaos.clock import Clock
from metaos.messaging import mqtt3
from metaos.messaging.accounts import OPENER
from metaos.messaging.bus import Unavailable

#: Tries, the seconds for each, and the wait before the next.
TRIES, PATIENCE_SECONDS, AGAIN_SECONDS = 5, 20.0, 0.5


async def opened(host: str, port: int, token: str, tls: ssl.SSLContext | None, clock: Clock) -> None:
    """Comes and goes, with a token that opens nothing else. Raises ``Unavailable``."""
    said = "it gave no answer"
    for left in reversed(range(TRIES)):
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                code = await _once(host, port, token, tls)
            if code == 0:
                return
            said = f"it answered {code}"
        except (OSError, EOFError, TimeoutError) as error:
            said = str(error) or type(error).__name__
        if left:
            await clock.sleep(AGAIN_SECONDS)
    raise Unavailable(f"the server of the bus does not make what it keeps of a namespace's devices, {TRIES} times: {said}")


async def _once(host: str, port: int, token: str, tls: ssl.SSLContext | None) -> int:
    """The answer's code."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname="localhost" if tls else None)
    try:
        writer.write(mqtt3.connect(OPENER, OPENER, token.encode(), True, 0, None))
        answer = await reader.readexactly(4)
        if answer[0] >> 4 == mqtt3.CONNACK and not answer[3]:
            writer.write(mqtt3.disconnect())
            # Until it is gone at the server, too.
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readexactly(1)
        return answer[3]
    finally:
        writer.close()
