"""The bus of a site as its agent and the hub know it: where there is none, nothing of the bus is loaded."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from metaos.clock import Clock
from metaos.config import Address

#: The ConfigMap of ``nemo-system`` that says of each site which of its credentials count (:class:`Given`).
LEAVES = "nemo-leaves"


@dataclass(frozen=True, slots=True)
class Given:
    """The ``generation`` of a site's credentials that counts, and the namespaces that it was ever given some for."""

    generation: int
    namespaces: frozenset[str]

    @classmethod
    def read(cls, text: str) -> Given:
        """Raises ``ValueError``."""
        generation, *namespaces = text.split()
        return cls(int(generation), frozenset(namespaces))

    def text(self) -> str:
        return " ".join((str(self.generation), *sorted(self.namespaces)))


def site_server(
    file: Path | None, folder: Path, clock: Clock, mqtt: Address, pair: Path | None
) -> AbstractAsyncContextManager[None]:
    """The time in which the server runs that an agent was told to run with ``file``. Raises ``ValueError``."""
    if file is None:
        return nullcontext()
    from metaos.messaging.leaf import Leaf, LeafServer, running

    return running(LeafServer(Leaf.read(file), folder, clock, mqtt, pair), clock)
