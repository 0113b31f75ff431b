"""The bus of a site as its agent knows it: where there is none, nothing of the bus is loaded."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from metaos.clock import Clock
from metaos.config import Address


def site_server(
    file: Path | None, folder: Path, clock: Clock, mqtt: Address, pair: Path | None
) -> AbstractAsyncContextManager[None]:
    """The time in which the server runs that an agent was told to run with ``file``. Raises ``ValueError``."""
    if file is None:
        return nullcontext()
    from metaos.messaging.leaf import Leaf, LeafServer, running

    return running(LeafServer(Leaf.read(file), folder, clock, mqtt, pair), clock)
