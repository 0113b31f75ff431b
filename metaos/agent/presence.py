"""Being there: the Lease that says so, the Cluster's measured status, and noticing that this site was removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from metaos.agent.contact import Contact
from metaos.agent.inventory import worth_telling
from metaos.agent.join import declare, differences
from metaos.agent.report import merge_patch
from metaos.client import Client
from metaos.clock import Clock
from metaos.resources.errors import ApiError, unavailable
from metaos.resources.meta import Obj, cluster_namespace, format_time
from metaos.resources.scheme import CLUSTER, LEASE

log = logging.getLogger(__name__)

#: A status is written again after this long, also where nothing changed.
STATUS_SECONDS = 300.0
#: The machine is not measured more often than this.
MEASURE_SECONDS = 5.0
#: A Cluster that is not found must be missing so often in a row: one wrong answer shall not stop a site.
MISSING_TIMES = 3
#: A heartbeat that takes longer has failed; the next one may find a better way.
LEAST_TIMEOUT_SECONDS = 3.0
MOST_TIMEOUT_SECONDS = 10.0
#: Fields of a site file that are named where they differ.
DIFFERENCES_TOLD = 8
_OTHERS_COUNT = (
    "the hub has something else than the site file says, which was set there or is for the hub alone to say: %s%s; "
    "change the Cluster at the hub: kubectl edit cluster %s"
)
_THE_FILE_COUNTS = (
    "what the machine allows is for the site file to say, and the hub shows something else: %s%s; "
    "show the same there: kubectl edit cluster %s"
)


class Removed(Exception):
    """This site is no member any more. The message says how the hub put it."""


class Presence:
    """``measure`` gives the agent's part of ``Cluster.status``; no heartbeat is sent while ``able`` says that the site cannot
    do what it is told. ``declared``: the site file, which the hub is told once."""

    def __init__(
        self,
        client: Client,
        contact: Contact,
        clock: Clock,
        site: str,
        heartbeat_seconds: float,
        measure: Callable[[], Awaitable[dict[str, Any]]],
        able: Callable[[], bool] = lambda: True,
        *,
        declared: Obj | None = None,
    ) -> None:
        self._client, self._contact, self._clock = client, contact, clock
        self._site, self._heartbeat, self._measure = site, heartbeat_seconds, measure
        self._namespace, self._able = cluster_namespace(site), able
        self._reported: dict[str, Any] = {}
        self._reported_time = float("-inf")
        self._missing = 0
        self._declared = declared

    async def keep_lease(self) -> None:
        """Never returns. Raises ``Removed``."""
        while True:
            started = self._clock.monotonic()
            if not self._able():
                await self._clock.sleep(min(self._heartbeat, LEAST_TIMEOUT_SECONDS))
                continue
            try:
                async with asyncio.timeout(min(max(self._heartbeat, LEAST_TIMEOUT_SECONDS), MOST_TIMEOUT_SECONDS)):
                    await self._renew()
                self._contact.renewed(started)
                self._missing = 0
            except TimeoutError:
                self._contact.missed(unavailable("the hub does not answer heartbeats"))
            except ApiError as error:
                self._contact.missed(error)
                if error.code in (401, 403, 404):
                    await self._check_membership(error)
            took = self._clock.monotonic() - started
            await self._clock.sleep(max(self._heartbeat - took, self._heartbeat / 4))

    async def _renew(self) -> None:
        spec = {
            "holderIdentity": self._site,
            "renewTime": format_time(self._clock.now(), micro=True),
            "leaseDurationSeconds": max(1, round(self._heartbeat * 4)),
        }
        try:
            await self._client.patch(LEASE, self._site, self._namespace, {"spec": spec}, field_manager="nemo-agent")
        except ApiError as error:
            if error.code != 404:
                raise
            lease: dict[str, Any] = LEASE.empty(self._site, self._namespace)
            await self._client.create(lease | {"spec": spec}, field_manager="nemo-agent")

    async def _check_membership(self, error: ApiError) -> None:
        """After a refused heartbeat: is this site still wanted? Raises ``Removed``."""
        try:
            await self._client.get(CLUSTER, self._site)
            self._missing = 0
            if error.code != 404:  # 404: the namespace is still being made
                log.warning("the hub refuses the heartbeat of site %s: %s", self._site, error.message)
        except ApiError as answer:
            if answer.code == 401 and "revoked" in answer.message:
                raise Removed(answer.message) from answer
            if answer.code == 404:
                self._missing += 1
                if self._missing >= MISSING_TIMES:
                    raise Removed(f"the hub knows no Cluster {self._site!r} any more") from answer
            elif answer.code != 503:
                log.warning("the hub refuses site %s: %s", self._site, answer.message)

    async def keep_status(self) -> None:
        """Never returns. Measures, and tells the hub where it is news."""
        failures = 0
        while True:
            try:
                await self._report()
                await self._declare()
                failures = 0
                await self._clock.sleep(max(MEASURE_SECONDS, self._heartbeat))
            except ApiError as error:
                failures += 1
                self._contact.missed(error)
                if error.code not in (401, 404, 503):
                    log.warning("the status of site %s cannot be reported: %s", self._site, error.message)
                await self._contact.pause(failures)

    async def _declare(self) -> None:
        """Once: what the site file says arrives at the hub, but for what others own there. Says where the two differ then."""
        if self._declared is None:
            return
        declared, cluster = self._declared, await self._client.get(CLUSTER, self._site)
        try:
            cluster = await declare(self._client, declared, cluster)
        except ApiError as error:
            if error.code not in (400, 403, 409, 415, 422):
                raise
            log.warning("the hub does not take what the site file says: %s", error.message)
        self._declared = None
        for machine, text in ((False, _OTHERS_COUNT), (True, _THE_FILE_COUNTS)):
            found = differences(declared, cluster, machine=machine)
            more = f", and {len(found) - DIFFERENCES_TOLD} more" if len(found) > DIFFERENCES_TOLD else ""
            if found:
                log.warning(text, "; ".join(found[:DIFFERENCES_TOLD]), more, self._site)

    async def _report(self) -> None:
        status = await self._measure()
        due = self._clock.monotonic() - self._reported_time >= STATUS_SECONDS
        if not due and not worth_telling(self._reported, status):
            return
        # Whole parts after a while: the hub may have lost what it was told (a restored backup).
        patch = {"status": status if due else merge_patch(self._reported, status)}
        await self._client.patch(CLUSTER, self._site, "", patch, subresource="status", field_manager="nemo-agent")
        self._contact.reached()
        self._reported, self._reported_time = status, self._clock.monotonic()
