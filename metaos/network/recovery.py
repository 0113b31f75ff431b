"""Whether what intents say of the loss of a site (``rpo``, ``rto``) would hold if it happened now. Pure.

Measured: the age of the oldest of a workload's newest backups, and how long it would take until it runs elsewhere: until the loss
is certain and the old site has stopped by itself, and until its volumes are brought back as quickly as that went last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaos.resources.meta import Obj
from metaos.resources.reading import targets_of
from metaos.resources.targets import RECOVERY, distance, meets, wanted_text

MEASUREMENTS = {
    "rpo": "age of the oldest of its volumes' newest backups",
    "rto": "until the loss is certain, and bringing back its volumes as quickly as the last restore or backup went",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is known of one workload's volumes. ``point``: the moment to which all can be brought back, seconds since the epoch;
    ``best``: the shortest recovery point that can be kept, by how long a backup takes; ``loss``: seconds until the loss of a site
    is certain; ``restore``: seconds to bring the volumes back; ``None``: not known, ``problem`` says why. ``stateless``: it keeps
    nothing that could be lost."""

    workload: str
    point: float | None = None
    best: float | None = None
    loss: float | None = None
    restore: float | None = None
    problem: str = ""
    stateless: bool = False


def judge_recovery(intent: Obj, found: Sequence[Recovery], now: float) -> list[tuple[str, dict[str, Any], str]]:
    """Of each such target and workload: its fulfilment, its row in ``Intent.status.targets``, and what there is to say where it
    does not hold, with the nearest that could be had."""
    rows = []
    for target in targets_of(intent):
        if target.name not in RECOVERY:
            continue
        for each in found:
            value, offer = _value(target.name, each, now)
            good = meets(target, value)
            fulfilment = "Fulfilled" if good else "NotFulfilled" if target.hard else "Degraded"
            row: dict[str, Any] = {
                "name": target.name,
                "workload": each.workload,
                "fulfilment": fulfilment,
                "measurement": MEASUREMENTS[target.name],
                "wanted": wanted_text(target),
                "unit": "s",
            }
            if value is not None:
                row["value"] = round(value, 3)
            text = ""
            if not good:
                said = "it is not known" if value is None else f"it is {value:.4g} s"
                text = f"{each.workload}: {target.name} shall be {wanted_text(target)}, and {said}"
                text += f" ({each.problem})" if each.problem else ""
                if offer is not None and not meets(target, offer):
                    text += f"; nearest offer: {offer:.4g} s, {distance(target, offer):.4g} s short"
            rows.append((fulfilment, row, text))
    return rows


def holds_until(intent: Obj, found: Sequence[Recovery], now: float) -> float | None:
    """When the first ``rpo`` that holds now does not any more, if nothing is backed up until then; ``None``: none does."""
    ends = [
        each.point + target.value
        for target in targets_of(intent)
        if target.name == "rpo"
        for each in found
        if each.point is not None and not each.stateless and meets(target, now - each.point)
    ]
    return min(ends, default=None)


def _value(name: str, found: Recovery, now: float) -> tuple[float | None, float | None]:
    """(Measured, the best that could be had)."""
    if name == "rpo":
        if found.stateless:
            return 0.0, None
        return (None if found.point is None else max(0.0, now - found.point)), found.best
    restore = 0.0 if found.stateless else found.restore
    if found.loss is None or restore is None:
        return None, None
    whole = found.loss + restore
    return whole, whole
