"""Makes what a site's server keeps, before devices come, and its streams, and ends: ``python -m metaos.messaging.sitestreams``.

At the site a stream keeps what devices of a tenant measure; at the hub one of the tenant's fills itself from it, from where it
was, whenever the link is there. Both lose the oldest beyond their bounds. Settings come as JSON in one line of standard input.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from metaos.clock import SystemClock
from metaos.messaging.bus import BusError, Stream
from metaos.messaging.leaf import KEPT_BYTES
from metaos.messaging.nats import NatsBus
from metaos.messaging.opening import opened


def kept(namespace: str) -> Stream:
    """At the site."""
    return Stream("telemetry", (f"nemo.{namespace}.*.telemetry.>",), most_bytes=KEPT_BYTES)


def gathered(site: str) -> Stream:
    """At the hub, in the tenant's account."""
    return Stream(f"telemetry-{site}", (), most_bytes=KEPT_BYTES)


async def make(told: dict[str, Any]) -> None:
    """Raises ``BusError``."""
    server, site, folder = f"nats://127.0.0.1:{told['port']}", str(told["site"]), Path(told["folder"])
    host, port, secure = told["mqtt"]
    for token in told["openers"]:
        # The site's own server, on this machine: its certificate is for those who come from elsewhere.
        await opened(host, port, token, unchecked() if secure else None, SystemClock())
    for namespace in told["tenants"]:
        bus = await NatsBus.with_file([server], folder / f"{namespace}.creds", f"site-{site}")
        try:
            await bus.keep(kept(namespace))
            await bus.gather(gathered(site), "telemetry", f"site-{site}", "hub")
        finally:
            await bus.close()


def unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def main() -> int:
    try:
        asyncio.run(make(json.loads(sys.stdin.buffer.readline())))
    except BusError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
