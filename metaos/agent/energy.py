"""What a site's energy is read from: one meter of the machine, and one of its accelerators where there are some.

Meters are plugins (``metaos.plugins.points.EnergyMeter``). Of the machine's, the first that works is taken, in this order:
``ipmi`` (all of the machine at its supply), ``rapl`` (processors and memory), ``model`` (a model, always there); a site file that
names one gets that one or an error. The accelerators' is added to what does not see them, and says which device used what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from metaos.accounting.metering import (
    ASSUMED_UNCERTAINTY,
    CCF_IDLE_WATTS,
    CCF_MAX_WATTS,
    STATED_UNCERTAINTY,
    PowerModel,
)
from metaos.plugins.points import EnergyMeter


@dataclass(frozen=True, slots=True)
class Reading:
    """Millijoules of the machine; of them idle; of them each device's."""

    millijoules: int
    idle_millijoules: int
    devices: Mapping[str, int] = field(default_factory=dict)


class Energy(Protocol):
    """Where a period's figures are from, as it says."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def basis(self) -> str: ...

    @property
    def uncertainty(self) -> str: ...

    @property
    def measured(self) -> bool: ...

    def read(self, seconds: float, cpu_seconds: float) -> Reading:
        """For the time since the last call. ``cpu_seconds``: used in it, by the whole machine."""
        ...

    def estimate(self, seconds: float, cpu_seconds: float) -> Reading:
        """For a time in which nobody read."""
        ...


class Modelled:
    """A linear model between idle and full load: the owner's (``spec.power``), or average coefficients. It meters nothing."""

    name, measured = "model", False

    def __init__(self, power: Mapping[str, Any], millis: int) -> None:
        cores = millis / 1000
        idle, most = power.get("idleWatts"), power.get("maxWatts")
        stated = most is not None
        self.basis = "stated" if stated else "assumed"
        self.uncertainty = STATED_UNCERTAINTY if stated else ASSUMED_UNCERTAINTY
        self.source = (
            "the site file's power model (spec.power)"
            if stated
            else f"an average server: {CCF_IDLE_WATTS} to {CCF_MAX_WATTS} W per core, idle to full load (Cloud Carbon Footprint)"
        )
        self._model = PowerModel(
            float(idle or 0.0) if stated else CCF_IDLE_WATTS * cores,
            float(most) if most is not None else CCF_MAX_WATTS * cores,
            cores,
        )

    def read(self, seconds: float, cpu_seconds: float) -> Reading:
        whole, idle = self._model.millijoules(seconds, cpu_seconds)
        return Reading(whole, idle)

    estimate = read


class Metered:
    """``machine`` and ``accelerators`` read; ``model`` says how much of the machine's is idle, and fills gaps."""

    def __init__(self, model: Modelled, machine: EnergyMeter | None, accelerators: EnergyMeter | None) -> None:
        self._model, self._machine, self._accelerators = model, machine, accelerators
        base: EnergyMeter | Modelled = machine or model
        parts = [each for each in (base, accelerators) if each is not None]
        #: Whether it is all of the machine that is measured, whatever part of it is the site's.
        self.measured = machine is not None
        self.name = "+".join(part.name for part in parts)
        self.source = "; ".join(part.source for part in parts)[:200]
        self.basis = base.basis
        # Of parts that err on their own: the larger of both is not exceeded.
        self.uncertainty = max((part.uncertainty for part in parts), key=float)

    def read(self, seconds: float, cpu_seconds: float) -> Reading:
        modelled = self._model.read(seconds, cpu_seconds)
        whole = modelled.millijoules
        if self._machine is not None:
            whole = sum(self._machine.read(seconds).values())
        devices = {} if self._accelerators is None else self._accelerators.read(seconds)
        if self._machine is None or not self._machine.whole:
            whole += sum(devices.values())
        return Reading(whole, min(modelled.idle_millijoules, max(0, whole - sum(devices.values()))), devices)

    def estimate(self, seconds: float, cpu_seconds: float) -> Reading:
        return self._model.read(seconds, cpu_seconds)


#: Of the machine: tried in this order where the site file says ``auto``.
DETECTED = ("ipmi", "rapl")
MODEL, AUTO, NONE = "model", "auto", "none"
ACCELERATORS = ("nvml",)


class NoMeter(Exception):
    """The meter that the site file names does not work here. The message says why, with the remedy."""


def detect(power: Mapping[str, Any], millis: int, meters: Mapping[str, EnergyMeter]) -> tuple[Energy, Sequence[str]]:
    """What is read here, and why other meters are not. ``meters``: those that can be tried, by name. Raises ``NoMeter``."""
    model = Modelled(power, millis)
    wanted, cards = str(power.get("meter") or AUTO), str(power.get("acceleratorMeter") or AUTO)
    why = [f"{name}: {meters[name].problem}" for name in sorted(meters) if meters[name].problem]
    for name in {wanted, cards} - {AUTO, MODEL, NONE}:
        if name not in meters:
            raise NoMeter(f"there is no meter {name!r}; installed are {', '.join(sorted({*meters, MODEL}))}")
        if meters[name].problem:
            raise NoMeter(f"the meter {name!r} does not work here: {meters[name].problem}")
    working = {name: meter for name, meter in meters.items() if not meter.problem}
    names = DETECTED if wanted == AUTO else (wanted,)
    machine = next((working[name] for name in names if name in working), None)
    accelerators = next((working[name] for name in (ACCELERATORS if cards == AUTO else (cards,)) if name in working), None)
    if machine is None and accelerators is None:
        return model, why
    return Metered(model, machine, accelerators), why
