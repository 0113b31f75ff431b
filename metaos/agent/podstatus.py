"""A pod's status as Kubernetes has it, from what is recorded and what the runtime says. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaos.plugins.points import ContainerState
from metaos.resources import workload
from metaos.resources.meta import Obj, format_time, with_condition


@dataclass(slots=True)
class Waiting:
    """Why a container is not running: what kubectl shows in STATUS."""

    reason: str
    message: str = ""


@dataclass(slots=True)
class Live:
    """What is known of one container beyond the runtime's word; not kept over restarts of the agent."""

    ready: bool = False
    started: bool = False
    waiting: Waiting | None = None


@dataclass(slots=True)
class PodFacts:
    """Everything that a status is made from. ``restarts`` and ``last`` by container."""

    states: Mapping[str, ContainerState]
    live: Mapping[str, Live]
    restarts: Mapping[str, int]
    last: Mapping[str, dict[str, Any]]
    pod_ip: str = ""
    start_time: float = 0.0
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[dict[str, Any]] = field(default_factory=list)
    #: What containers said at their end, by container id.
    messages: Mapping[str, str] = field(default_factory=dict)
    #: Whether the init containers have done their work, once and for all.
    initialized: bool = False


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Of an init container: whether it runs on beside the others."""
    return container.get("restartPolicy") == "Always"


def terminated(state: ContainerState, said: str = "") -> dict[str, Any]:
    """The ``terminated`` form of a container that has ended; ``said`` is its own message."""
    found: dict[str, Any] = {
        "exitCode": int(state.exit_code or 0),
        "reason": state.reason or ("Completed" if state.exit_code == 0 else "Error"),
        "startedAt": format_time(state.start_time),
        "finishedAt": format_time(state.finish_time or state.start_time),
        "containerID": state.id,
    }
    if said or state.message:
        found["message"] = said or state.message
    return found


def _container(spec: Mapping[str, Any], facts: PodFacts, *, init: bool, idle: str) -> dict[str, Any]:
    name = str(spec["name"])
    state, live = facts.states.get(name), facts.live.get(name, Live())
    found: dict[str, Any] = {
        "name": name,
        "image": spec["image"],
        "imageID": "",
        "restartCount": facts.restarts.get(name, 0),
        "ready": False,
        "started": False,
        "state": {},
        "lastState": {"terminated": facts.last[name]} if name in facts.last else {},
    }
    if state is not None:
        found["containerID"] = state.id
        found["imageID"] = str(spec["image"])
    if state is not None and state.running:
        found["state"] = {"running": {"startedAt": format_time(state.start_time)}}
        found["ready"], found["started"] = live.ready, live.started
    elif live.waiting is not None and not (facts.phase and state is not None):
        # What a pod that is over would have waited for comes no more: it shows how its containers ended.
        waiting = {"reason": live.waiting.reason}
        if live.waiting.message:
            waiting["message"] = live.waiting.message
        found["state"] = {"waiting": waiting}
        if state is not None:
            found["lastState"] = {"terminated": terminated(state, facts.messages.get(state.id, ""))}
    elif state is not None:
        found["state"] = {"terminated": terminated(state, facts.messages.get(state.id, ""))}
        found["ready"] = init and state.exit_code == 0 and not is_sidecar(spec)
    else:
        found["state"] = {"waiting": {"reason": idle}}
    return found


def qos(spec: Mapping[str, Any]) -> str:
    """``Guaranteed``, ``Burstable`` or ``BestEffort``."""
    resources = [c.get("resources") or {} for c in workload.containers(dict(spec))]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    for found in resources:
        limits = found.get("limits") or {}
        requests = {**limits, **(found.get("requests") or {})}
        if not {"cpu", "memory"} <= set(limits) or any(requests.get(k) != limits[k] for k in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


def phase_of(spec: Mapping[str, Any], facts: PodFacts) -> str:
    """Pending until a main container has started; Succeeded or Failed once that is decided (``facts.phase``)."""
    if facts.phase:
        return facts.phase
    return "Running" if any(c["name"] in facts.states for c in spec.get("containers") or ()) else "Pending"


def pod_status(pod: Obj, facts: PodFacts, now: float) -> dict[str, Any]:
    """The whole ``status``."""
    spec = pod["spec"]
    idle = "PodInitializing" if spec.get("initContainers") else "ContainerCreating"
    inits = [_container(c, facts, init=True, idle=idle) for c in spec.get("initContainers") or ()]
    mains = [_container(c, facts, init=False, idle=idle) for c in spec.get("containers") or ()]
    phase = phase_of(spec, facts)
    sidecars = {c["name"] for c in spec.get("initContainers") or () if is_sidecar(c)}
    initialized = facts.initialized or all(c["started" if c["name"] in sidecars else "ready"] for c in inits)
    initialized |= any(c["name"] in facts.states for c in spec.get("containers") or ())
    unready = [c["name"] for c in (*inits, *mains) if not c["ready"] and (c in mains or c["name"] in sidecars)]
    conditions = facts.conditions

    def condition(kind: str, holds: bool, reason: str = "", message: str = "") -> None:
        nonlocal conditions
        conditions = with_condition(
            conditions, kind, "True" if holds else "False", reason if not holds else "", message if not holds else "", now
        )

    condition("PodScheduled", True)
    condition("PodReadyToStartContainers", bool(facts.start_time) and phase in ("Pending", "Running"))
    waiting = [c["name"] for c in inits if not c["started" if c["name"] in sidecars else "ready"]]
    incomplete = f"containers with incomplete status: [{' '.join(waiting)}]"
    condition("Initialized", initialized, "ContainersNotInitialized", incomplete)
    why = "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"
    text = f"containers with unready status: [{' '.join(unready)}]"
    condition("ContainersReady", not unready, why, text)
    condition("Ready", not unready and phase == "Running", why, text)
    facts.conditions = conditions
    found: dict[str, Any] = {
        "phase": phase,
        "conditions": [{k: v for k, v in c.items() if v != ""} for c in conditions],
        "containerStatuses": mains,
        "hostIP": "127.0.0.1",
        "qosClass": qos(spec),
        "startTime": format_time(facts.start_time),
    }
    if facts.pod_ip:
        found |= {"podIP": facts.pod_ip, "podIPs": [{"ip": facts.pod_ip}]}
    if inits:
        found["initContainerStatuses"] = inits
    if facts.reason:
        found["reason"] = facts.reason
    if facts.message:
        found["message"] = facts.message
    return found
