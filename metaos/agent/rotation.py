"""Keeping this site's certificate fresh: renewed before it ends, when the hub's authority is replaced, and when the hub asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any, NoReturn

from metaos.agent.contact import Contact
from metaos.agent.join import Identity, JoinError, Membership
from metaos.clock import Clock, sleep_or
from metaos.http import HttpClient
from metaos.resources.errors import ApiError
from metaos.resources.meta import format_time

log = logging.getLogger(__name__)

#: Certificates and authorities are looked at so often, at least.
CHECK_SECONDS = 3600.0
#: When the hub asks all sites at once, they come spread over this time.
SPREAD_SECONDS = 3.0


class Rotation:
    """``on_renewed`` is called with each new identity, which is on disk by then."""

    def __init__(
        self,
        membership: Membership,
        identity: Identity,
        client: HttpClient,
        contact: Contact,
        clock: Clock,
        random: Random,
        on_renewed: Callable[[Identity], None],
    ) -> None:
        self._membership, self._client, self._contact = membership, client, contact
        self._clock, self._random, self._on_renewed = clock, random, on_renewed
        self.identity = identity
        self._look, self._asked = asyncio.Event(), False
        contact.on_return(self._look.set)

    def ask(self) -> None:
        """The hub wants this site to have a new certificate."""
        self._asked = True
        self._look.set()

    def status(self) -> dict[str, Any]:
        """The part of ``Cluster.status`` that says which certificate this site has."""
        return {"authority": self.identity.issuer, "expirationTime": format_time(self.identity.not_after)}

    async def run(self) -> NoReturn:
        failures = 0
        while True:
            # Spread by a hundredth of the lifetime, so that sites that joined together do not renew together.
            lifetime = self.identity.not_after - self.identity.not_before
            due = self.identity.renew_time + lifetime / 100 * self._random.random()
            await sleep_or(self._clock, min(max(due - self._clock.now(), 0.0), CHECK_SECONDS), self._look)
            self._look.clear()
            if self._asked:
                await self._clock.sleep(SPREAD_SECONDS * self._random.random())
            try:
                if (
                    self._asked
                    or self._clock.now() >= due
                    or await self._membership.authorities(self._client) != self.identity.ca
                ):
                    self._asked = False
                    self.identity = await self._membership.renew(self._client, self.identity)
                    self._asked = False
                    self._on_renewed(self.identity)
                    log.info("the certificate of site %s was renewed", self.identity.name)
                failures = 0
            except (ApiError, JoinError) as error:
                failures += 1
                if isinstance(error, ApiError):
                    self._contact.missed(error)
                if failures in (3, 30) or isinstance(error, JoinError):
                    log.warning("the certificate of site %s could not be renewed yet: %s", self.identity.name, error)
                await self._contact.pause(failures)
                if isinstance(error, JoinError):
                    await self._clock.sleep(CHECK_SECONDS / 60)
                self._look.set()

    async def _outdated(self) -> bool:
        """Whether the hub has other authorities by now than this site knows."""
        return await self._membership.authorities(self._client) != self.identity.ca
