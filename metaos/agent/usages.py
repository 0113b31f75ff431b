"""Sending closed periods to the hub: the oldest that wait go into this site's Usage; what its status says is booked is dropped.

Periods bear numbers, so sending one again, or being killed anywhere here, books none twice and loses none.
"""

from __future__ import annotations

import logging
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Contact
from metaos.agent.meter import Meter
from metaos.client import Client
from metaos.clock import Clock
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.resources.scheme import USAGE

log = logging.getLogger(__name__)

#: In one Usage.
MAX_PERIODS = 12
#: How often it is looked whether something waits: half to one and a half times so long, as all sites' periods end together.
SEND_SECONDS = 30.0
#: After something was sent or booked it is looked sooner, then less and less often: a site that was cut off catches up.
FIRST_SECONDS = 2.0


class Usages:
    """``site``: its name, and that of its Usage."""

    def __init__(self, client: Client, contact: Contact, clock: Clock, random: Random, meter: Meter, site: str) -> None:
        self._client, self._contact, self._clock, self._random = client, contact, clock, random
        self._meter, self._site = meter, site
        #: Where periods are short, they are sent as often.
        self._usual = min(SEND_SECONDS, float(meter.period_seconds))
        self._said = ""

    async def run(self) -> None:
        """Never returns."""
        failures, pause = 0, self._usual
        while True:
            try:
                if len(self._meter) and await self._exchange():
                    pause = FIRST_SECONDS
                failures = 0
            except ApiError as error:
                failures += 1
                self._contact.missed(error)
                if error.code != 503 and error.message != self._said:
                    self._said = error.message
                    log.warning("what pods used cannot be reported: %s", error.message)
                await self._contact.pause(failures)
                continue
            pause = pause if len(self._meter) else self._usual
            await self._clock.sleep(pause * (0.5 + self._random.random()))
            pause = min(2 * pause, self._usual)

    async def _exchange(self) -> bool:
        """Whether anything was new."""
        try:
            held: Obj | None = await self._client.get(USAGE, self._site)
        except ApiError as error:
            if error.code != 404:
                raise
            held = None
        sent: list[dict[str, Any]] = ((held or {}).get("spec") or {}).get("periods") or []
        booked = int(((held or {}).get("status") or {}).get("booked") or 0)
        highest = max((int(period["sequence"]) for period in sent), default=0)
        before = len(self._meter)
        self._meter.settle(booked, highest)
        news = len(self._meter) < before
        if booked < highest <= self._meter.offset:
            # What a site of this name sent before it lost its disk is booked first.
            return news
        periods = self._meter.next(MAX_PERIODS)
        if not periods or [_mark(p) for p in periods] == [_mark(p) for p in sent]:
            return news
        if held is None:
            await self._client.create({**USAGE.empty(self._site), "spec": {"periods": periods}}, field_manager="nemo-agent")
        else:
            await self._client.patch(USAGE, self._site, "", {"spec": {"periods": periods}}, field_manager="nemo-agent")
        self._said = ""
        return True


def _mark(period: dict[str, Any]) -> tuple[int, int, int]:
    return int(period["sequence"]), int(period["start"]), int(period["end"])
