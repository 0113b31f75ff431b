"""By when what must not run twice has to be gone at this site, should no further heartbeat be confirmed: told to the runtime,
which keeps to it even where this process does not (docs/adr/0009).

Told at every confirmed heartbeat, with every change of Works and pods, and before a pod starts: there is none of them that
the runtime does not know a deadline of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from metaos.agent.contact import Contact
from metaos.agent.sync import Works
from metaos.plugins.points import Runtime
from metaos.resources.meta import Obj, controller_of, uid

log = logging.getLogger(__name__)


class Deadlines:
    """``pods`` gives those that are here, also what is ending. Bounded by their number."""

    def __init__(self, runtime: Runtime, contact: Contact, works: Works, pods: Callable[[], Iterable[Obj]]) -> None:
        self._runtime, self._contact, self._works, self._pods = runtime, contact, works, pods
        self._limits: dict[str, float] = {}
        self._stale = True
        self._news = asyncio.Event()
        self._news.set()
        contact.on_renewal(lambda silent: self._news.set())
        works.on_change(self.refresh)

    def refresh(self) -> None:
        """Works or pods have changed."""
        self._stale = True
        self._news.set()

    async def run(self) -> None:
        """Never returns. What cannot be told now is told with the next heartbeat; until then the deadline before holds."""
        said = ""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.tell()
                said = ""
            except OSError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("the watchdog cannot be told that work which must not run twice may go on: %s", error)

    async def tell(self) -> None:
        """In force on return. Raises ``OSError``."""
        if self._stale:
            self._stale = False
            self._limits = self._now()
        # Where no heartbeat was ever confirmed, nothing of it is desired.
        if self._contact.last_renewal > float("-inf") or not self._limits:
            await self._runtime.fence(self._contact.last_renewal, self._limits)

    def _now(self) -> dict[str, float]:
        agreed = self._works.limits()
        if not agreed and not self._limits:
            return {}
        found = {}
        for pod in self._pods():
            limit = agreed.get(str((controller_of(pod) or {}).get("uid") or uid(pod)), self._limits.get(uid(pod)))
            # What has left its Work behind and is ending keeps its deadline.
            if limit is not None:
                found[uid(pod)] = limit
        return found
