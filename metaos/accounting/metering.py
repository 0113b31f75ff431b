"""Whose energy it was: a machine's energy in a period, divided over its pods and the system. Pure, in whole numbers.

Units: energy in millijoules, CPU in microseconds of one core, presence in milliseconds, requests in thousandths of a core. One
core-microsecond is one thousandth of a core during one millisecond, so both shares below have the same unit.

The rules, stated with every figure: what the machine used above idle is shared by CPU time, the system's own included. Idle
power is shared by ``reserved`` (what each pod requested or used, whichever is more, of the whole machine; the rest is the
system's, which the site's owner bears), ``used`` (by CPU time, as the rest), or ``present`` (equally, by the time there).
Shares are rounded by largest remainder, so that they add up to the whole exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

#: How long a period of metering takes, where a site's owner says nothing else.
PERIOD_SECONDS = 300
IDLE_RULES = ("reserved", "used", "present")
DEFAULT_IDLE_RULE = "reserved"
#: Watts per core where a site states no power model: averages over the processors in the Cloud Carbon Footprint's coefficients
#: (ccf-coefficients, Apache-2.0): idle 0.74, full load 3.5. What no owner has stated may be wrong by half.
CCF_IDLE_WATTS, CCF_MAX_WATTS = 0.74, 3.5
ASSUMED_UNCERTAINTY = "0.5"
#: A stated linear model of a machine against a meter: what is assumed where its owner states nothing better.
STATED_UNCERTAINTY = "0.2"
#: RAPL against a meter at the same parts (Khan et al., "RAPL in Action", ACM TOMPECS 2018). It sees processors and, where the
#: machine has that counter, memory; power supplies, disks and cards are not in it.
RAPL_UNCERTAINTY = "0.05"
#: No machine is larger: what is above is a mistake, not a measurement.
MAX_WATTS, MAX_CORES = 1_000_000, 4096


@dataclass(frozen=True, slots=True)
class PodUse:
    """What one pod did in a period."""

    cpu_microseconds: int
    present_milliseconds: int
    requested_millis: int

    @property
    def reserved(self) -> int:
        """Thousandths of a core times milliseconds that were kept for it or used by it."""
        return max(self.cpu_microseconds, self.requested_millis * self.present_milliseconds)


@dataclass(frozen=True, slots=True)
class Share:
    """Millijoules of one pod, or of the system: above idle, and of idle."""

    dynamic: int
    idle: int

    @property
    def total(self) -> int:
        return self.dynamic + self.idle


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of a machine with ``cores`` between idle and full load; between them it is taken as linear."""

    idle_watts: float
    max_watts: float
    cores: float

    def millijoules(self, seconds: float, cpu_seconds: float) -> tuple[int, int]:
        """(all, of it idle) for a period in which so many CPU seconds were used."""
        idle = self.idle_watts * seconds
        per_core = max(0.0, self.max_watts - self.idle_watts) / self.cores if self.cores > 0 else 0.0
        used = min(max(0.0, cpu_seconds), self.cores * seconds)
        return round((idle + per_core * used) * 1000), round(idle * 1000)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts by weight; they add up to it exactly. Without any weight all of it goes to the last one."""
    if total < 0 or any(weight < 0 for weight in weights):
        raise ValueError("what is shared out, and the weights, must not be negative")
    whole = sum(weights)
    if not weights:
        return []
    if not whole:
        return [0] * (len(weights) - 1) + [total]
    parts = [total * weight // whole for weight in weights]
    rest = [(-(total * weight % whole), index) for index, weight in enumerate(weights)]
    for _, index in sorted(rest)[: total - sum(parts)]:
        parts[index] += 1
    return parts


def attribute(
    millijoules: int,
    idle_millijoules: int,
    pods: Mapping[str, PodUse],
    *,
    system_cpu_microseconds: int,
    capacity_millis: int,
    milliseconds: int,
    rule: str = DEFAULT_IDLE_RULE,
) -> tuple[dict[str, Share], Share]:
    """The pods' shares and the system's, which add up to ``millijoules`` exactly. Raises ``ValueError``."""
    if rule not in IDLE_RULES:
        raise ValueError(f"idle rule {rule!r} must be one of {', '.join(IDLE_RULES)}")
    names = sorted(pods)
    idle = min(idle_millijoules, millijoules)
    used = [pods[name].cpu_microseconds for name in names]
    dynamic = apportion(millijoules - idle, [*used, max(0, system_cpu_microseconds)])
    if rule == "reserved":
        weights = [pods[name].reserved for name in names]
        weights.append(max(0, capacity_millis * milliseconds - sum(weights)))
    elif rule == "used":
        weights = [*used, max(0, system_cpu_microseconds)]
    else:
        weights = [*(pods[name].present_milliseconds for name in names), 0]
    shared = apportion(idle, weights)
    shares = {name: Share(dynamic[i], shared[i]) for i, name in enumerate(names)}
    return shares, Share(dynamic[-1], shared[-1])


class Counter:
    """A meter's counter that only grows, until it wraps around at ``span`` (RAPL's ``max_energy_range_uj``)."""

    def __init__(self, span: int, last: int | None = None) -> None:
        self.span, self.last = span, last

    def advance(self, value: int) -> int:
        """What was added since the last look. Where it wrapped more than once in between, the whole turns are lost: it has to be
        looked at more often than it wraps."""
        before, self.last = self.last, value
        if before is None:
            return 0
        return value - before if value >= before else value + max(0, self.span - before)


def integrated(before: float | None, now: float, seconds: float) -> Fraction:
    """A level over time by the trapezoid rule; what was before is taken as what is now where it is not known."""
    return (Fraction(now if before is None else before) + Fraction(now)) / 2 * Fraction(seconds)
