"""The values in tables that are more than a field: what ``kubectl get`` shows of each kind. Pure.

Source: ``k8s.io/kubernetes/pkg/printers/internalversion/printers.go`` and ``apimachinery/pkg/util/duration``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaos.resources.meta import Obj, condition, deleting, is_true, name, parse_time

Cell = Callable[[Obj, float], Any]
NONE = "<none>"
UNKNOWN = "<unknown>"


def human_duration(seconds: float) -> str:
    """As Kubernetes writes it: two units at most, coarser the longer it is."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    if s < 120:
        return f"{s}s"
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if minutes < 10:
        return f"{minutes}m" + (f"{s % 60}s" if s % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if hours < 365 * 24 * 2:
        return f"{days}d"
    if hours < 365 * 24 * 8:
        rest = days % 365
        return f"{days // 365}y" + (f"{rest}d" if rest else "")
    return f"{days // 365}y"


def since(text: Any, now: float) -> str:
    """How long ago a time of the API is."""
    try:
        return human_duration(now - parse_time(str(text))) if text else UNKNOWN
    except ValueError:
        return UNKNOWN


def spec(obj: Obj) -> Obj:
    return obj.get("spec") or {}


def status(obj: Obj) -> Obj:
    return obj.get("status") or {}


def age(obj: Obj, now: float) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now)


def ratio(part: Any, whole: Any) -> str:
    return f"{part or 0}/{whole or 0}"


def joined(values: Any) -> str:
    return ",".join(str(v) for v in values or ()) or NONE


def selector_text(selector: Any) -> str:
    """A LabelSelector, or a plain map of labels, in one line."""
    selector = selector or {}
    plain = selector.get("matchLabels", {}) if {"matchLabels", "matchExpressions"} & selector.keys() else selector
    parts = [f"{key}={value}" for key, value in sorted((plain or {}).items())]
    for rule in selector.get("matchExpressions") or () if plain is not selector else ():
        values = ",".join(rule.get("values") or ())
        operator = rule.get("operator", "")
        texts = {"Exists": rule.get("key", ""), "DoesNotExist": f"!{rule.get('key', '')}"}
        parts.append(texts.get(operator, f"{rule.get('key', '')} {operator.lower()} ({values})"))
    return ",".join(parts) or NONE


# -- pods --------------------------------------------------------------------------------------------------


def _containers(pod: Obj, key: str) -> list[Obj]:
    return list(status(pod).get(key) or ())


def pod_ready(pod: Obj, now: float) -> str:
    """Of containers; sidecars are some too."""
    sidecars = {c["name"] for c in spec(pod).get("initContainers") or () if c.get("restartPolicy") == "Always"}
    rows = [c for c in _containers(pod, "initContainerStatuses") if c["name"] in sidecars]
    ready = sum(bool(c.get("ready")) for c in (*rows, *_containers(pod, "containerStatuses")))
    return ratio(ready, len(spec(pod).get("containers") or ()) + len(sidecars))


def pod_status(pod: Obj, now: float) -> str:
    state = status(pod)
    reason = str(state.get("reason") or state.get("phase") or "Unknown")
    starting, first_reason = False, ""
    inits = _containers(pod, "initContainerStatuses")
    for number, container in enumerate(inits):
        now_in = container.get("state") or {}
        ended = now_in.get("terminated")
        if ended and ended.get("exitCode") == 0:
            continue
        if container.get("started") and container.get("ready"):
            continue  # A sidecar that runs.
        starting = True
        if ended:
            first_reason = f"Init:{ended.get('reason') or 'ExitCode:' + str(ended.get('exitCode', 0))}"
        elif (now_in.get("waiting") or {}).get("reason", "PodInitializing") != "PodInitializing":
            first_reason = f"Init:{now_in['waiting']['reason']}"
        else:
            first_reason = f"Init:{number}/{len(spec(pod).get('initContainers') or inits)}"
        break
    reason = first_reason if starting else _running_reason(pod, reason)
    if deleting(pod):
        return "Unknown" if state.get("reason") == "NodeLost" else "Terminating" if _alive(state) else reason
    ready = condition(pod, "Ready")
    if ready and ready.get("status") == "Unknown" and _alive(state):
        return "Unknown"
    return reason


def _alive(state: Obj) -> bool:
    return state.get("phase") not in ("Succeeded", "Failed")


def _running_reason(pod: Obj, reason: str) -> str:
    running = False
    for container in reversed(_containers(pod, "containerStatuses")):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif ended:
            reason = ended.get("reason") or (
                f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
            )
        elif container.get("ready") and state.get("running"):
            running = True
    if reason == "Completed" and running:
        return "Running" if is_true(pod, "Ready") else "NotReady"
    return str(reason)


def pod_restarts(pod: Obj, now: float) -> str:
    everything = _containers(pod, "containerStatuses") + _containers(pod, "initContainerStatuses")
    count = sum(int(c.get("restartCount") or 0) for c in everything)
    last = [(c.get("lastState") or {}).get("terminated", {}).get("finishedAt") for c in everything]
    times = sorted(str(t) for t in last if t)
    return f"{count} ({since(times[-1], now)} ago)" if count and times else str(count)


def readiness_gates(pod: Obj, now: float) -> str:
    gates = [g.get("conditionType", "") for g in spec(pod).get("readinessGates") or ()]
    return ratio(sum(is_true(pod, g) for g in gates), len(gates)) if gates else NONE


# -- workloads ---------------------------------------------------------------------------------------------


def _template(obj: Obj) -> Obj:
    found: Obj = spec(obj).get("template") or (spec(obj).get("jobTemplate") or {}).get("spec", {}).get("template") or {}
    return found


def container_names(obj: Obj, now: float) -> str:
    return joined(c.get("name") for c in spec(_template(obj)).get("containers") or ())


def images(obj: Obj, now: float) -> str:
    return joined(c.get("image") for c in spec(_template(obj)).get("containers") or ())


def workload_selector(obj: Obj, now: float) -> str:
    return selector_text(spec(obj).get("selector"))


def replicas_ready(obj: Obj, now: float) -> str:
    return ratio(status(obj).get("readyReplicas"), spec(obj).get("replicas", 1))


def _counted(key: str) -> Cell:
    return lambda obj, now: int(status(obj).get(key) or 0)


def job_status(job: Obj, now: float) -> str:
    for kind, text in (("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended"), ("FailureTarget", "Failing")):
        if is_true(job, kind):
            return text
    return "Terminating" if deleting(job) else "Running"


def job_completions(job: Obj, now: float) -> str:
    done = status(job).get("succeeded") or 0
    if spec(job).get("completions") is not None:
        return ratio(done, spec(job)["completions"])
    parallel = spec(job).get("parallelism") or 1
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def job_duration(job: Obj, now: float) -> str:
    state = status(job)
    if not state.get("startTime"):
        return ""
    end = parse_time(state["completionTime"]) if state.get("completionTime") else now
    return human_duration(end - parse_time(state["startTime"]))


def cron_last(job: Obj, now: float) -> str:
    last = status(job).get("lastScheduleTime")
    return since(last, now) if last else NONE


def cron_active(job: Obj, now: float) -> int:
    return len(status(job).get("active") or ())


def cron_suspend(job: Obj, now: float) -> str:
    return "True" if spec(job).get("suspend") else "False"


# -- services and configuration ----------------------------------------------------------------------------


def external_ip(service: Obj, now: float) -> str:
    if spec(service).get("type") == "ExternalName":
        return str(spec(service).get("externalName") or NONE)
    if spec(service).get("type") != "LoadBalancer":
        return joined(spec(service).get("externalIPs"))
    found = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    addresses = [str(each.get("ip") or each.get("hostname") or "") for each in found]
    return ",".join([*addresses, *(spec(service).get("externalIPs") or ())]) or "<pending>"


def service_ports(service: Obj, now: float) -> str:
    return joined(
        f"{p.get('port')}{':' + str(p['nodePort']) if p.get('nodePort') else ''}/{p.get('protocol', 'TCP')}"
        for p in spec(service).get("ports") or ()
    )


def data_count(obj: Obj, now: float) -> int:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def secrets_count(obj: Obj, now: float) -> int:
    return len(obj.get("secrets") or ())


def slice_ports(obj: Obj, now: float) -> str:
    return joined(p.get("port", "*") for p in obj.get("ports") or ())


def slice_endpoints(obj: Obj, now: float) -> str:
    found = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    shown = ",".join(found[:3])
    return (shown + (f" + {len(found) - 3} more..." if len(found) > 3 else "")) or "<unset>"


def access_modes(claim: Obj, now: float) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    modes = status(claim).get("accessModes") or spec(claim).get("accessModes") or ()
    return ",".join(short.get(m, m) for m in modes)


def claim_capacity(claim: Obj, now: float) -> str:
    return str((status(claim).get("capacity") or {}).get("storage") or "")


# -- events, leases, requests, roles -----------------------------------------------------------------------


def last_seen(event: Obj, now: float) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return since(next((t for t in times if t), event["metadata"].get("creationTimestamp")), now)


def first_seen(event: Obj, now: float) -> str:
    return since(event.get("firstTimestamp") or event.get("eventTime"), now)


def event_object(event: Obj, now: float) -> str:
    about = event.get("involvedObject") or {}
    return f"{str(about.get('kind') or '').lower()}/{about.get('name') or ''}"


def event_source(event: Obj, now: float) -> str:
    source = event.get("source") or {}
    component = source.get("component") or event.get("reportingComponent") or ""
    host = source.get("host") or event.get("reportingInstance") or ""
    return ", ".join(part for part in (component, host) if part)


def event_count(event: Obj, now: float) -> int:
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def event_message(event: Obj, now: float) -> str:
    return str(event.get("message") or "").strip()


def csr_condition(request: Obj, now: float) -> str:
    found = [c.get("type", "") for c in status(request).get("conditions") or ()]
    verdict = "Denied" if "Denied" in found else "Approved" if "Approved" in found else "Pending"
    parts = [verdict] + (["Failed"] if "Failed" in found else [])
    return ",".join(parts + (["Issued"] if status(request).get("certificate") else []))


def csr_duration(request: Obj, now: float) -> str:
    seconds = spec(request).get("expirationSeconds")
    return human_duration(seconds) if seconds is not None else NONE


def role_ref(binding: Obj, now: float) -> str:
    to = binding.get("roleRef") or {}
    return f"{to.get('kind', '')}/{to.get('name', '')}"


def _subjects(kind: str) -> Cell:
    def cell(binding: Obj, now: float) -> str:
        found = [s for s in binding.get("subjects") or () if s.get("kind") == kind]
        return ", ".join(f"{s['namespace']}/{s['name']}" if s.get("namespace") else str(s.get("name")) for s in found)

    return cell


def owner(obj: Obj, now: float) -> str:
    found = next((o for o in obj["metadata"].get("ownerReferences") or () if o.get("controller")), None)
    return f"{str(found.get('kind')).lower()}/{found.get('name')}" if found else NONE


#: What ``fn`` may say in ``tables.yaml``.
CELLS: dict[str, Cell] = {
    "name": lambda obj, now: name(obj),
    "age": age,
    "pod_ready": pod_ready,
    "pod_status": pod_status,
    "pod_restarts": pod_restarts,
    "readiness_gates": readiness_gates,
    "container_names": container_names,
    "images": images,
    "selector": workload_selector,
    "replicas_ready": replicas_ready,
    "updated": _counted("updatedReplicas"),
    "available": _counted("availableReplicas"),
    "replicas": _counted("replicas"),
    "ready_replicas": _counted("readyReplicas"),
    "desired_scheduled": _counted("desiredNumberScheduled"),
    "current_scheduled": _counted("currentNumberScheduled"),
    "number_ready": _counted("numberReady"),
    "updated_scheduled": _counted("updatedNumberScheduled"),
    "number_available": _counted("numberAvailable"),
    "node_selector": lambda obj, now: selector_text(spec(_template(obj)).get("nodeSelector")),
    "job_status": job_status,
    "job_completions": job_completions,
    "job_duration": job_duration,
    "cron_last": cron_last,
    "cron_active": cron_active,
    "cron_suspend": cron_suspend,
    "external_ip": external_ip,
    "service_ports": service_ports,
    "data_count": data_count,
    "secrets_count": secrets_count,
    "slice_ports": slice_ports,
    "slice_endpoints": slice_endpoints,
    "access_modes": access_modes,
    "claim_capacity": claim_capacity,
    "last_seen": last_seen,
    "first_seen": first_seen,
    "event_object": event_object,
    "event_source": event_source,
    "event_count": event_count,
    "event_message": event_message,
    "csr_condition": csr_condition,
    "csr_duration": csr_duration,
    "role_ref": role_ref,
    "users": _subjects("User"),
    "groups": _subjects("Group"),
    "service_accounts": _subjects("ServiceAccount"),
    "owner": owner,
    "policy_pods": lambda obj, now: selector_text(spec(obj).get("podSelector")),
}
