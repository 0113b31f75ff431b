"""Faults drawn from a seed, so that a number names a whole story: ``chaos: {faults: 8, until: 2h}`` in a scenario."""

from __future__ import annotations

from random import Random  # noqa: TID251  (seeded by the scenario)
from typing import Any

from metaos.resources.meta import name
from metaos.twin.story import Fault, Scenario

_WEIGHTS = {
    "cut": 6,
    "link": 3,
    "killHub": 3,
    "killHubAfterWrites": 4,
    "restoreHub": 1,
    "hubClock": 1,
    "siteClock": 1,
    "slowDisk": 2,
    "stopAgent": 2,
    "stopAgentAfterWrites": 2,
    "powerOff": 2,
    "flap": 1,
    "lie": 1,
    "scale": 2,
    "residency": 3,
    "change": 2,
}


def drawn(scenario: Scenario) -> tuple[Fault, ...]:
    """So many as the scenario asks for; all of them end before ``chaos.until``."""
    random = Random(f"{scenario.seed}/chaos")  # noqa: S311
    sites = [name(s.obj) for s in scenario.sites]
    scalable = [w.name for w in scenario.workloads if w.kind.kind == "Deployment"]
    laws = sorted({law for s in scenario.sites for law in (s.obj.get("spec") or {}).get("jurisdictions") or ()})
    ruled = [w.name for w in scenario.workloads] if laws else []
    return tuple(_fault(random, sites, scalable, ruled, laws, scenario.chaos_until) for _ in range(scenario.chaos))


def _fault(random: Random, sites: list[str], scalable: list[str], ruled: list[str], laws: list[str], until: float) -> Fault:
    kinds = [k for k in _WEIGHTS if (k != "scale" or scalable) and (k != "residency" or ruled)]
    what = random.choices(kinds, [_WEIGHTS[k] for k in kinds])[0]
    at = round(random.uniform(0, until * 0.8), 3)
    seconds: float | None = round(min(random.choice((2.0, 15.0, 60.0, 300.0, 1800.0)) * random.uniform(0.5, 2), until - at), 3)
    some = random.sample(sites, min(len(sites), random.choice((1, 1, 1, 2, 3))))
    value: Any = some
    more: dict[str, Any] = {}
    if what == "cut":
        more["direction"] = random.choice(("both", "both", "up", "down"))
    elif what == "link":
        value = {"loss": round(random.uniform(0, 0.3), 3), "jitter": round(random.uniform(0, 2), 3)}
        value["duplicates"] = round(random.uniform(0, 0.2), 3)
        value["delay"] = round(random.choice((0.01, 0.2, 1.5)), 3)
        more["sites"] = some
    elif what == "killHub":
        value, seconds = seconds, None
    elif what == "restoreHub":
        value, seconds = round(random.uniform(0, at), 3), round(random.uniform(1, 60), 3)
    elif what == "stopAgentAfterWrites":
        value, seconds = {some[0]: random.randrange(12)}, round(random.uniform(1, 60), 3)
    elif what == "killHubAfterWrites":
        value, seconds = random.randrange(40), round(random.uniform(1, 60), 3)
    elif what == "hubClock":
        value, seconds = round(random.uniform(-3600, 3600), 3), None
    elif what == "siteClock":
        value, seconds = {some[0]: round(random.uniform(-3600, 3600), 3)}, None
    elif what == "slowDisk":
        value = round(random.uniform(0.01, 0.5), 3)
        if random.random() < 0.5:
            more["sites"] = some
    elif what == "flap":
        more["every"] = round(random.uniform(5, 60), 3)
    elif what == "lie":
        value = {some[0]: {"cpu": random.choice(("0", "100000")), "memory": "1Ti", "pods": "100000"}}
    elif what == "scale":
        value, seconds = {random.choice(scalable): random.randrange(1, 5)}, None
    elif what == "residency":
        value, seconds = {random.choice(ruled): random.choice([*([law] for law in laws), laws, []])}, None
    elif what == "change":
        value, seconds = {some[0]: {"electricity": {"carbonIntensity": round(random.uniform(1, 900), 1)}}}, None
    return Fault(at, what, value, seconds, more)
