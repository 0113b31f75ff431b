"""The probability that enough of a workload is up, over sites that share causes of failure. Pure.

A site is up with its stated availability, whatever is placed on it. Sites of one region share part of what takes them down: of a
site's unavailability the share ``SHARED`` has a cause that takes down its whole region (the beta-factor model of common cause
failures, IEC 61508-6 annex D, which gives 1 to 10 %), the rest is its own. Regions fail independently, and so do sites that state
no region.
"""

from __future__ import annotations

from collections.abc import Iterable

from metaos.resources.snapshot import ClusterInfo

SHARED = 0.1


def up(places: Iterable[tuple[ClusterInfo, int]], needed: int = 1) -> float:
    """The probability that at least ``needed`` replicas are on sites that are up. Exact: it counts the replicas that are up, site
    by site within a region, region by region; O(sites x needed)."""
    groups: dict[str, list[tuple[float, int]]] = {}
    for number, (site, count) in enumerate(places):
        if count > 0:
            groups.setdefault(site.region or f" {number}", []).append((min(1.0, max(0.0, site.availability)), count))
    # The probability of so many, the last entry of that many or more.
    total = [1.0] + [0.0] * needed
    for sites in groups.values():
        down = SHARED * min(1.0 - available for available, _ in sites) if len(sites) > 1 else 0.0
        inside = [1.0] + [0.0] * needed
        for available, count in sites:
            inside = _add(inside, available / (1.0 - down), count)
        mixed = [0.0] * (needed + 1)
        for had, chance in enumerate(total):
            mixed[had] += chance * down
            for more, likely in enumerate(inside):
                mixed[min(needed, had + more)] += chance * (1.0 - down) * likely
        total = mixed
    return min(1.0, total[needed])


def _add(counts: list[float], available: float, count: int) -> list[float]:
    most = len(counts) - 1
    found = [chance * (1.0 - available) for chance in counts]
    for had, chance in enumerate(counts):
        found[min(most, had + count)] += chance * available
    return found
