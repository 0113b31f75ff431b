"""DeviceSets: which Devices are in one, what each of them still has to be given, and what the set's status is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metaos.devices import twin
from metaos.devices.status import FAILED, of_status
from metaos.devices.waves import Member, Wave, bound, chosen, wave
from metaos.resources import meta
from metaos.resources.meta import Obj, deleting, generation, is_true, label_selector, labels, name, with_condition

#: On a DeviceSet: it goes when its devices have been left.
FINALIZER = "meta-os.eu/device-set"
#: On a Device: the DeviceSet that it is in. It is in one at a time.
IN_SET = "meta-os.eu/device-set"
USUAL_BOUND = "10%"


@dataclass(frozen=True, slots=True)
class Plan:
    """``give``: patches of Devices' specs, by name; ``leave``: of those that are in it no more. ``taken``: devices that another
    set has."""

    wave: Wave
    give: Mapping[str, dict[str, Any]]
    leave: Mapping[str, dict[str, Any]]
    devices: int
    taken: tuple[str, ...] = ()


def lacking(spec: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that a Device's spec needs to be as a template wants it; empty where it is."""
    patch: dict[str, Any] = {}
    desired = twin.delta(spec.get("desired") or {}, template.get("desired") or {})
    if desired:
        patch["desired"] = desired
    if template.get("firmware") and template["firmware"] != spec.get("firmware"):
        patch["firmware"] = template["firmware"]
    if template.get("app") and template["app"] != spec.get("app"):
        patch["app"] = {**dict.fromkeys(spec.get("app") or {}), **template["app"]}
    return patch


def member(device: Obj, given: bool) -> Member:
    """How a Device does, by its status. What it was given last counts only once it has reported that version."""
    spec, status = device.get("spec") or {}, device.get("status") or {}
    held = of_status(status)
    synced = twin.in_sync(held, spec.get("desired") or {}, generation(device))
    app = status.get("app") or {}
    failed = bool(spec.get("app")) and app.get("state") in FAILED and app.get("tried") == app.get("wanted")
    ready = synced and (not spec.get("app") or is_true(device, "UpToDate"))
    return Member(name(device), held.online, given, ready, failed and not ready)


def plan(deviceset: Obj, devices: Iterable[Obj], sets: Iterable[str]) -> Plan:
    """What to do for a set, among the Devices of its namespace. ``sets``: the names of all sets there."""
    spec, mine, known = deviceset["spec"], name(deviceset), set(sets)
    fits, everything = label_selector(spec["selector"]), list(devices)
    found = {name(d): d for d in everything if fits(labels(d)) and not deleting(d)}
    held = {n: str(meta.annotations(d).get(IN_SET) or "") for n, d in found.items()}
    taken = tuple(sorted(n for n, owner in held.items() if owner not in ("", mine) and owner in known))
    free = [n for n in found if n not in taken]
    names = chosen(free, [n for n in free if held[n] == mine], spec.get("count"))
    patches = {n: lacking(found[n].get("spec") or {}, spec["template"]) for n in names}
    made = wave((member(found[n], not patches[n]) for n in names), bound(spec.get("maxUnavailable", USUAL_BOUND), len(names)))
    # Those that are as wanted already only have to be marked.
    unmarked: dict[str, dict[str, Any]] = {n: {} for n in names if not patches[n] and held[n] != mine}
    give: dict[str, dict[str, Any]] = {n: patches[n] for n in made.give}
    return Plan(made, give | unmarked, leaving(deviceset, everything, names), len(names), taken)


def leaving(deviceset: Obj, devices: Iterable[Obj], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Patches of the specs of Devices that a set marked and has no more: the application that it gave them goes."""
    app = deviceset["spec"]["template"].get("app")
    found = [d for d in devices if meta.annotations(d).get(IN_SET) == name(deviceset) and name(d) not in names]
    return {name(d): {"app": None} if app and (d.get("spec") or {}).get("app") == app else {} for d in found if not deleting(d)}


def status(deviceset: Obj, found: Plan, now: float) -> dict[str, Any]:
    """The set's status."""
    made, held = found.wave, (deviceset.get("status") or {}).get("conditions") or ()
    left = found.devices - made.updated
    if made.halted:
        progress = "False", "Halted", made.halted
    elif left:
        progress = "True", "RollingOut", f"{left} devices are still to be given what is wanted"
    else:
        progress = "True", "RolledOut", "all devices were given what is wanted"
    ready = made.ready == found.devices
    available = (
        ("True", "AllReady", f"{made.ready} devices report that they have it")
        if ready
        else ("False", "NotAllReady", f"{made.ready} of {found.devices} devices report that they have it")
    )
    overlapping = (
        ("True", "InAnotherSet", f"another DeviceSet has {', '.join(found.taken[:5])}{' and others' if found.taken[5:] else ''}")
        if found.taken
        else ("False", "Alone", "no other DeviceSet has its devices")
    )
    for type_, said in (("Progressing", progress), ("Available", available), ("Overlapping", overlapping)):
        held = with_condition(held, type_, *said, now)
    return {
        "observedGeneration": generation(deviceset),
        "devices": found.devices,
        "updated": made.updated,
        "ready": made.ready,
        "unavailable": made.unavailable,
        "failed": made.failed,
        "conditions": list(held),
    }
