"""Where and when together: what each site would come to for work that may wait, begun there at its best time. Pure.

For every site and each capacity that it offers the start is planned along its own forecast, as
:mod:`metaos.scheduler.deferral` does for one site. Scores then compare what the work would emit and cost in its own hours, so a
site that is dirty now and clean at noon may be the best one. What a forecast says of later hours counts as more, by how wrong
such forecasts were (:func:`metaos.scheduler.along.cautious`). Sites with the same forecasts and prices are worked out once.

Units: gCO2eq/kWh; money per core and hour, in EUR where several sites are compared; hours of a site's forecast, from now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metaos.resources.measures import embodied_intensity, grams_each, licensed, stretch
from metaos.resources.snapshot import GIB, ClusterInfo, Series, Waits, WorkloadInfo
from metaos.scheduler.along import LEAST_HOURS, MOST_HOURS, Work, cautious, extended, plans
from metaos.scheduler.capacity import ON_DEMAND, RESERVED, SPOT
from metaos.scheduler.slack import CARBON, COST, HOUR_SECONDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from metaos.scheduler.world import World

    Floats = NDArray[np.float64]


class Option(NamedTuple):
    """A capacity of a site: ``prices`` by the hour, ``None`` where none is stated; ``times``: as much work, with what
    interruptions have done again."""

    kind: str
    prices: Floats | None
    times: float = 1.0


class Timed(NamedTuple):
    """Work at a site on one of its capacities. ``start``: hours from now, of the site's forecast; ``hours``: the same of 3600 s.
    ``carbon`` and ``price``: means over the hours of the work, the price with what is done again; ``None``: not known.
    ``values``: what was to be low, by the hour."""

    option: Option
    start: float
    hours: float
    carbon: float | None
    price: float | None
    values: Floats


def _asked(workload: WorkloadInfo) -> tuple[Waits, float]:
    """With its CPUs."""
    assert workload.waits is not None
    return workload.waits, workload.cpu * workload.replicas / 1000


def _left(site: ClusterInfo, waits: Waits) -> float:
    """CPUs that are left of what it reserves."""
    return max(0.0, site.reserved - dict(waits.taken).get(site.name, 0.0)) if site.reserved else 0.0


def _options(site: ClusterInfo, workload: WorkloadInfo, hours: int) -> list[Option]:
    """What it offers. On-demand prices follow their forecast where there is one; others hold as the site states them."""
    (waits, cpus), found = _asked(workload), []
    if site.reserved and _left(site, waits) >= cpus - 1e-9:
        found.append(Option(RESERVED, np.zeros(hours)))
    if workload.interruptible is not None and site.spot is not None:
        times = stretch(site.spot.rate, site.spot.restart, workload.interruptible)
        found.append(Option(SPOT, np.full(hours, site.spot.cpu_hour), times))
    ahead, _ = site.prices.after(waits.now)
    if ahead or site.cpu_hour is not None:
        found.append(Option(ON_DEMAND, _ahead(site.prices, ahead, hours) if ahead else np.full(hours, site.cpu_hour)))
    return found or [Option("", None)]


def _ahead(series: Series, values: Sequence[float], hours: int) -> Floats:
    """As a decision takes a forecast: later hours at a quantile of how wrong such ones were."""
    return cautious(extended(values, hours), series.error)


def options(workload: WorkloadInfo, site: ClusterInfo) -> list[Timed]:
    """One site's, the best one first: the cheapest along its own plan, or where carbon and cost are waited for the one with the
    least of both."""
    return _alike((site,), workload, _hour(site))[0]


def told(workload: WorkloadInfo, site: ClusterInfo, found: Sequence[Timed]) -> str:
    """In people's words what each capacity would come to, and why others were none."""
    waits, cpus = _asked(workload)
    said = []
    if site.reserved and all(timed.option.kind != RESERVED for timed in found):
        said.append(f"{RESERVED} 0: {_left(site, waits):.4g} of {cpus:.4g} CPUs free")
    if site.spot is not None and workload.interruptible is None:
        said.append(f"{SPOT} {site.spot.cpu_hour:.4g}: it does not stand interruptions")
    for kind, price, times in ((t.option.kind, t.price, t.option.times) for t in found if t.price is not None):
        again = f" ({price:.4g} with what is done again)" if times > 1.001 else ""
        said.append(f"{kind} {price / times:.4g}{again}")
    return "; ".join(said)


def at_sites(workload: WorkloadInfo, sites: Sequence[ClusterInfo]) -> list[Timed]:
    """The best of each site's."""
    waits, cpus = _asked(workload)

    def key(site: ClusterInfo) -> tuple[object, ...]:
        fits = bool(site.reserved) and _left(site, waits) >= cpus - 1e-9
        return site.intensities, site.carbon, site.prices, site.cpu_hour, site.spot, fits

    keys, distinct = [key(site) for site in sites], dict[tuple[object, ...], ClusterInfo]()
    for word, site in zip(keys, sites, strict=True):
        distinct.setdefault(word, site)
    found: dict[tuple[object, ...], Timed] = {}
    for hour in dict.fromkeys(map(_hour, distinct.values())):
        here = {word: site for word, site in distinct.items() if _hour(site) == hour}
        found.update(zip(here, (best[0] for best in _alike(list(here.values()), workload, hour)), strict=True))
    return [found[word] for word in keys]


def _hour(site: ClusterInfo) -> float:
    """Seconds that an hour of its forecasts takes."""
    return (site.intensities if site.intensities.values else site.prices).hour


def _alike(sites: Sequence[ClusterInfo], workload: WorkloadInfo, hour: float) -> list[list[Timed]]:
    """Of sites whose hours are as long: each one's options, the best first."""
    waits, _ = _asked(workload)
    lengths = tuple(max(LEAST_HOURS, length / hour) for length in waits.lengths) or (1.0,)
    slack = max(0.0, waits.slack) / hour
    count = int(min(MOST_HOURS, np.ceil(slack + 2 * max(lengths)) + 2))
    of, carbons, rows, passed = list[tuple[int, Option]](), [], [], []
    for number, site in enumerate(sites):
        ahead, over = site.intensities.after(waits.now)
        coming, since = site.prices.after(waits.now)
        carbon = _ahead(site.intensities, ahead, count) if ahead else None
        usual = float(extended(coming, count).mean()) if coming else None
        for option in _options(site, workload, count):
            of.append((number, option))
            passed.append(over if ahead else since if coming else 0.0)
            rows.append(_series(waits.aims, carbon, option, usual, count))
            carbons.append(carbon if ahead or site.carbon is None else np.full(count, site.carbon))
    widest = waits.widths[1] / max(1, waits.widths[0])
    plan = plans(np.array(rows), np.array(passed), Work(lengths, slack, waits.suspendable, widest))
    found: list[list[tuple[tuple[float, ...], Timed]]] = [[] for _ in sites]
    guessed = waits.suspendable and len(lengths) > 1 and len(waits.aims) == 1
    for row, (number, option) in enumerate(of):
        hours, mean, carbon = plan.hours[row], float(plan.mean[row]), carbons[row]
        emitted = None if carbon is None else float((hours * carbon).sum())
        price = None if option.prices is None else float((hours * option.prices).sum())
        # What pauses does better than the hours after its start say.
        if guessed and carbon is not None and rows[row] is carbon:
            emitted = mean
        if guessed and option.prices is not None and rows[row] is option.prices:
            price = mean
        price = None if price is None else price * option.times
        timed = Timed(option, float(plan.start[row]), float(plan.start[row]) * hour / HOUR_SECONDS, emitted, price, rows[row])
        rank = mean if len(waits.aims) > 1 else 0.0, np.inf if price is None else price, float(row)
        found[number].append((rank, timed))
    return [[timed for _, timed in sorted(each, key=lambda pair: pair[0])] for each in found]


def _series(aims: Sequence[str], carbon: Floats | None, option: Option, usual: float | None, count: int) -> Floats:
    """What is to be low. ``usual``: the mean price of on-demand capacity, where its hours are known. Without any forecast of what
    is waited for every hour is alike, so it starts at once."""
    priced = option.prices if usual is not None else None
    wanted = {CARBON: carbon, COST: priced}
    known = [found for aim in aims if (found := wanted[aim]) is not None]
    if len(known) == 2 and carbon is not None and priced is not None:
        # Both in equal parts, each against its own mean: 100 is an hour like any.
        clean = carbon / carbon.mean() if carbon.mean() > 0 else np.ones(count)
        return 50.0 * (clean + (priced * option.times / usual if usual else np.zeros(count)))
    return known[0] if known else np.ones(count)


# -- as scores measure it ----------------------------------------------------------------------------------


def carbon(workload: WorkloadInfo, cluster: ClusterInfo, timed: Timed) -> float | None:
    """gCO2eq/kWh of its hours, and of the hardware."""
    return None if timed.carbon is None else timed.carbon + embodied_intensity(cluster)


def emissions(workload: WorkloadInfo, cluster: ClusterInfo, timed: Timed) -> float | None:
    """gCO2eq per hour of work."""
    each = grams_each(cluster, timed.carbon)
    return None if each is None else each * workload.cpu * workload.replicas * timed.option.times


def cost(workload: WorkloadInfo, cluster: ClusterInfo, timed: Timed) -> float | None:
    """EUR per hour of work."""
    licences = licensed(cluster, workload, workload.replicas)
    if timed.price is None or licences is None:
        return None
    memory = cluster.memory_gib_hour * timed.option.times * workload.memory * workload.replicas / GIB
    return timed.price * workload.cpu * workload.replicas / 1000 + memory + licences


Reading = Callable[[WorkloadInfo, ClusterInfo, Timed], float | None]


def at_site(read: Reading, workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
    """One of the above at one site."""
    return read(workload, cluster, at_sites(workload, (cluster,))[0])


def column(read: Reading, workload: WorkloadInfo, world: World) -> Floats:
    """The same at all of them; NaN where it is not known."""
    timed = world.timed(workload, at_sites)
    each = (read(workload, c, t) for c, t in zip(world, timed, strict=True))
    return np.fromiter((np.nan if v is None else v for v in each), np.float64, len(world))
