"""What a move costs, to be held against what it gains: bytes that are fetched, time that work runs twice, grams, money. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from metaos.resources.measures import cost, grams
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.resources.traffic import NETWORK_KWH_PER_GB, haul
from metaos.scheduler.filters import bytes_text

HOUR_SECONDS = 3600.0
#: A move that saves carbon has earned its own within so long, or is not made: as far as the score looks ahead.
EARNED_BACK_HOURS = 4.0


@dataclass(frozen=True, slots=True)
class Churn:
    """``fetched``: bytes of images that the new sites do not hold, as far as any site tells their size; ``unknown``: images of
    which none does. ``twice``: seconds that old and new run side by side. ``interrupted``: it stops before it starts anew.
    ``saves``: gCO2eq per hour from then on. ``None``: not known."""

    fetched: int
    unknown: int
    twice: float
    interrupted: bool
    grams: float | None
    money: float | None
    saves: float | None
    #: Bytes that its claims ask for, which go along.
    volumes: int = 0

    @property
    def earned_back(self) -> float | None:
        """Hours after which the grams of the move are saved; ``None`` where none are saved or it is not known."""
        return self.grams / self.saves if self.grams is not None and self.saves is not None and self.saves > 0 else None

    @property
    def text(self) -> str:
        parts = [f"fetches {bytes_text(self.fetched)}" if self.fetched or not self.unknown else "fetches images of unknown size"]
        parts += [f"takes up to {bytes_text(self.volumes)} of volumes along"] if self.volumes else []
        parts.append("interrupts it until it runs there" if self.interrupted else f"runs it twice for {self.twice:g} s")
        costs = [f"{self.grams:.3g} gCO2eq"] if self.grams is not None else []
        costs += [f"{self.money:.3g} EUR"] if self.money is not None else []
        known = f" and costs {' and '.join(costs)}" if costs else ""
        back = "" if self.earned_back is None else f", earned back in {self.earned_back:.2g} h"
        return f"moving {', '.join(parts)}{known}{back}"


def churn(sites: Iterable[ClusterInfo], workload: WorkloadInfo, places: Mapping[str, int]) -> Churn:
    """Of moving a workload from where it is to ``places``. Looks at all sites once."""
    known = {site.name: site for site in sites}
    sizes: dict[str, int] = {}
    for site in known.values():
        for image in workload.images:
            sizes[image] = max(sizes.get(image, 0), site.images.get(image, 0))
    fetched, moved, paid, stays = 0, 0.0, 0.0, workload.ref.kind == "StatefulSet"
    twice = 0.0 if stays else workload.policy.drain_seconds or 0.0
    complete = priced = True
    for name in sorted(places.keys() - workload.current.keys()):
        each = sum(sizes[image] for image in workload.images if image not in known[name].images)
        fetched += each
        intensity = known[name].carbon
        complete &= intensity is not None
        moved += each / 1e9 * NETWORK_KWH_PER_GB * (intensity or 0.0)
    volumes = 0
    if workload.claimed and len(workload.current) == len(places) == 1 and places.keys() != workload.current.keys():
        home, target = known.get(next(iter(workload.current))), known[next(iter(places))]
        if home is not None:
            brought = haul(workload.claimed, home, target)
            volumes, stays = workload.claimed, True
            complete &= brought.grams is not None
            moved += brought.grams or 0.0
            paid += brought.money or 0.0
    for name in sorted(workload.current.keys() - places.keys() & known.keys()):
        count = workload.current[name]
        hourly = grams(known[name], workload.cpu * count)
        price = cost(known[name], workload, count)
        complete, priced = complete and hourly is not None, priced and price is not None
        moved += (hourly or 0.0) * twice / HOUR_SECONDS
        paid += (price or 0.0) * twice / HOUR_SECONDS
    before, after = (_hourly(known, workload, at) for at in (workload.current, places))
    return Churn(
        fetched,
        sum(1 for image in workload.images if not sizes.get(image)),
        twice,
        stays,
        moved if complete else None,
        paid if priced else None,
        None if before is None or after is None else before - after,
        volumes,
    )


def _hourly(known: Mapping[str, ClusterInfo], workload: WorkloadInfo, places: Mapping[str, int]) -> float | None:
    found = [grams(known[name], workload.cpu * count) if name in known else None for name, count in places.items()]
    return None if None in found else sum(g for g in found if g is not None)
