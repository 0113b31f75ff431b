"""Accounting: books what sites have metered, with the carbon, the owner and the price that held then.

Each waiting period of a Usage is checked, made an entry and sent to the ledger, which takes each number of a site once; then
``Usage.status`` says up to which number that was done, and the site drops those. Whatever is killed in between is done again and
booked once. A period that makes no sense is refused for good, with an Event and in ``status.refused``: the others go on.

A pod is charged to whom its namespace belongs to (annotation ``meta-os.eu/owner``, otherwise the namespace's own name). What
the hub has not given a site (it may be lying, or the hub did not see it) is booked and charged to nobody: ``given`` is false.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from metaos.accounting.booking import Owner, Site, book, problems
from metaos.accounting.footprint import Factor, decimal, embodied_rate, factor
from metaos.accounting.intensities import covers, held
from metaos.accounting.money import agreed
from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.recorder import Recorder
from metaos.controllers.settings import Settings
from metaos.plugins.points import LOCATION, MARGINAL
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import OWNER, Obj, ObjectRef, cluster_namespace, deleting, format_time, name, ref
from metaos.resources.meta import annotations as annotations_of
from metaos.resources.reading import concerns
from metaos.resources.workload import work_name

NAME = "accounting"
#: Of the refused periods, as many are told, the latest.
MOST_REFUSED = 12
#: Problems of one period that are told.
MOST_PROBLEMS = 5
#: How long a period waits for the hub to have looked at the carbon intensity of its time, and how often that is asked.
PATIENCE_SECONDS, LOOK_SECONDS = 3600.0, 2.0
#: What was given to sites and taken away again is remembered: a period is reported after its end.
MOST_REMEMBERED = 20_000
STATED = "stated by the site"


class AccountingReconciler:
    """Keys are Usages."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._recorder = Recorder(client, clock, NAME)
        self._usages = manager.informer(scheme.USAGE)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._tariffs = manager.informer(scheme.TARIFF)
        self._namespaces = manager.informer(scheme.NAMESPACE)
        self._intents = manager.informer(scheme.INTENT)
        self._works = manager.informer(scheme.WORK)
        #: Site's namespace and Work → the manifest that it carried.
        self._taken: OrderedDict[tuple[str, str], Obj] = OrderedDict()
        self._works.on_change(self._note)

    def _note(self, old: Obj | None, new: Obj | None) -> None:
        if old is not None and new is None and (manifests := (old.get("spec") or {}).get("manifests")):
            where, about = str(old["metadata"].get("namespace")), manifests[0]
            metadata = {key: about.get("metadata", {}).get(key) for key in ("name", "namespace", "labels")}
            self._taken[where, name(old)] = {"kind": about.get("kind"), "metadata": metadata}
            while len(self._taken) > MOST_REMEMBERED:
                self._taken.popitem(last=False)

    async def reconcile(self, about: ObjectRef) -> Result:
        usage = self._usages.get(about.name)
        if usage is None or deleting(usage):
            return DONE
        status = usage.get("status") or {}
        booked, refused = int(status.get("booked") or 0), list(status.get("refused") or ())
        waiting = [p for p in (usage.get("spec") or {}).get("periods") or () if p["sequence"] > booked]
        if not waiting:
            return DONE
        cluster = await self._cluster(about.name)
        before, result = booked, DONE
        for period in waiting:
            found = list(problems(period, self._clock.now()))[:MOST_PROBLEMS]
            if not found and not self._known(cluster, period):
                result = Result(requeue_after=LOOK_SECONDS)
                break
            message, last = ("; ".join(found), 0) if found else await self._book(usage, cluster, period)
            booked = max(booked, last, period["sequence"])
            if message:
                refused.append({key: period[key] for key in ("sequence", "start", "end")} | {"message": message[:1000]})
                told = f"period {period['sequence']}: {message}"
                await self._recorder.event(usage, "PeriodRefused", told, warning=True)
        if booked != before:
            now = format_time(self._clock.now())
            patch = {"status": {"booked": booked, "bookedTime": now, "refused": refused[-MOST_REFUSED:]}}
            await self._client.patch(scheme.USAGE, about.name, "", patch, subresource="status")
        return result

    async def _cluster(self, site: str) -> Obj:
        """The site; what was used at one that is gone by now is owed all the same."""
        found = self._clusters.get(site)
        if found is None:
            try:
                found = await self._client.get(scheme.CLUSTER, site)
            except ApiError as error:
                if error.code != 404:
                    raise
        return found or scheme.CLUSTER.empty(site)

    def _known(self, cluster: Obj, period: Mapping[str, Any]) -> bool:
        """Whether the hub has looked at the carbon intensity of a period's time, or will not."""
        now, end = self._clock.now(), float(period["end"])
        if self._settings.carbon is None or not cluster.get("spec") or now - end > PATIENCE_SECONDS:
            return True
        return covers(_carbon(cluster).get("past"), min(end, now) - 1)

    async def _book(self, usage: Obj, cluster: Obj, period: Mapping[str, Any]) -> tuple[str, int]:
        """Why it was refused, empty where it is in the ledger; and up to which number the ledger has this site's."""
        unknown: list[str] = []
        middle = (period["start"] + period["end"]) / 2

        def owner_of(pod: Mapping[str, Any]) -> Owner:
            consumer = self._consumer(pod["namespace"])
            manifest = self._given(name(cluster), pod)
            if manifest is None:
                unknown.append(f"{pod['namespace']}/{pod['name']}")
            price = agreed(self._tariffs.list(), cluster, consumer, middle)
            return Owner(consumer, price, self._intents_of(manifest), manifest is not None)

        try:
            header, lines = book(period, site_of(cluster, period, self._clock.now()), owner_of)
            booking: Obj = {**scheme.BOOKING.empty(""), "spec": {"header": header, "lines": lines}}
            status = (await self._client.create(booking))["status"]
        except ValueError as error:
            return str(error), 0
        except ApiError as error:
            if error.code != 422:
                raise
            return error.message, 0
        if not status["fresh"] and period["start"] >= status["end"]:
            # Its Usage was removed, and it began anew: told what is booked, the site counts on from there.
            why = f"sequence: {period['sequence']} was booked for another period: count on from {status['sequence']}"
            return why, int(status["sequence"])
        if unknown and status["fresh"]:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            told = f"period {period['sequence']}: not given to this site, so charged to nobody: {', '.join(unknown[:3])}{more}"
            await self._recorder.event(usage, "NotGiven", told, warning=True)
        return "", int(status["sequence"])

    def _consumer(self, where: str) -> str:
        return annotations_of(self._namespaces.get(where) or {}).get(OWNER) or where

    def _given(self, site: str, pod: Mapping[str, Any]) -> Obj | None:
        """The workload as the site was given it; a CronJob's for the Jobs that the site makes of it."""
        kind, named, where = pod["workload"]["kind"], pod["workload"]["name"], cluster_namespace(site)
        names = [work_name(ObjectRef("", kind, pod["namespace"], named))]
        if kind == "Job" and "-" in named:
            names.append(work_name(ObjectRef("", "CronJob", pod["namespace"], named.rpartition("-")[0])))
        for each in names:
            work = self._works.get(each, where)
            manifests = ((work or {}).get("spec") or {}).get("manifests")
            if manifests:
                return dict(manifests[0])
            if (where, each) in self._taken:
                return self._taken[where, each]
        return None

    def _intents_of(self, manifest: Obj | None) -> list[str]:
        if manifest is None:
            return []
        where = str(manifest["metadata"].get("namespace") or "")
        return sorted(name(intent) for intent in self._intents.list(where) if concerns(intent, manifest))


def _carbon(cluster: Obj) -> dict[str, Any]:
    found: dict[str, Any] = (cluster.get("status") or {}).get("carbon") or {}
    return found


def site_of(cluster: Obj, period: Mapping[str, Any], now: float) -> Site:
    """A site as it was in a period. Raises ``ValueError`` naming what its owner states wrongly."""
    spec = cluster.get("spec") or {}
    electricity, power, carbon = spec.get("electricity") or {}, spec.get("power") or {}, _carbon(cluster)
    # A clock that is ahead must not make it wait for what is yet to come.
    seen = held(carbon.get("past"), min(period["start"], now - 1), min(period["end"], now))
    factors: dict[str, Factor | None] = {
        LOCATION: factor(electricity.get("carbonIntensity"), STATED),
        "market": factor(electricity.get("marketIntensity"), STATED),
        MARGINAL: factor(electricity.get("marginalIntensity"), STATED),
    }
    basis = carbon.get("basis") or LOCATION
    if seen is not None:
        factors[basis] = seen
    elif basis == LOCATION and carbon.get("past"):
        # What the site states is in there already, for the hours in which nothing better was known.
        factors[LOCATION] = None
    watts = (power.get("idleWatts"), power.get("maxWatts"))
    return Site(
        name(cluster),
        str(spec.get("owner") or ""),
        decimal(electricity.get("pue") or 1, "spec.electricity.pue"),
        factors,
        embodied_rate(power),
        None if None in watts else (decimal(watts[0], "spec.power.idleWatts"), decimal(watts[1], "spec.power.maxWatts")),
    )


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it."""
    manager.add(AccountingReconciler(manager, client, clock, settings), [(scheme.USAGE, lambda usage: [ref(usage)])])
