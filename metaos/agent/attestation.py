"""What this site says of its own software, signed with its certificate's key: made anew now and then, and with a new certificate.

See ``metaos.security.attestation`` for what that proves, and what not.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, NoReturn

from metaos.agent.join import Identity, JoinError, identity_process
from metaos.clock import Clock, sleep_or

log = logging.getLogger(__name__)

#: Until the first statement: what a site starts with has the machine until then.
FIRST_SECONDS = 5.0
#: Between two statements.
EVERY_SECONDS = 6 * 3600.0
#: After one that could not be made.
AGAIN_SECONDS = 600.0


class Attestor:
    """``identity``: the one that counts now."""

    def __init__(self, identity: Callable[[], Identity], clock: Clock) -> None:
        self._identity, self._clock = identity, clock
        self._new = asyncio.Event()
        #: ``statement``, ``signature`` and ``certificate``; empty until there is one.
        self.evidence: dict[str, Any] = {}

    def renewed(self) -> None:
        """There is a new certificate."""
        self._new.set()

    async def run(self) -> NoReturn:
        await self._clock.sleep(FIRST_SECONDS)
        while True:
            self._new.clear()
            wait = EVERY_SECONDS
            identity = self._identity()
            secret = json.dumps({"key": identity.key, "certificate": identity.certificate}).encode()
            try:
                made = await identity_process("attest", identity.name, repr(self._clock.now()), stdin=secret)
                self.evidence = json.loads(made)
            except (JoinError, OSError, ValueError) as error:
                log.warning("no statement about this site's software can be made: %s", error)
                wait = AGAIN_SECONDS
            await sleep_or(self._clock, wait, self._new)
