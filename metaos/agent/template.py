"""From a workload's template to one Pod: its name, labels, identity and volumes. Pure; identity and time are arguments."""

import hashlib
from collections.abc import Mapping
from typing import Any

from metaos.resources.meta import Obj, ObjectRef, annotations, format_time, labels, ref, uid

#: On a Job that a CronJob made at a site: whose it is.
CRON_NAME, CRON_UID = "meta-os.eu/cronjob", "meta-os.eu/cronjob-uid"
INDEX = "batch.kubernetes.io/job-completion-index"


def make_pod(obj: Obj, template: Obj, digest: str, ordinal: int, *, site: str, uid_: str, suffix: str, now: float) -> Obj:
    """The Pod object. ``ordinal`` is −1 where there is none; ``suffix`` makes the name unique where the ordinal does not."""
    about = ref(obj)
    spec = {**(template.get("spec") or {}), "nodeName": site}
    metadata: dict[str, Any] = {"namespace": about.namespace, "uid": uid_, "creationTimestamp": format_time(now)}
    if about.kind == "Pod":
        metadata |= {"name": about.name, "uid": uid(obj), "labels": dict(labels(obj))}
        if annotations(obj):
            metadata["annotations"] = dict(annotations(obj))
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    found = dict((template.get("metadata") or {}).get("labels") or {})
    notes = dict((template.get("metadata") or {}).get("annotations") or {})
    owner = {"apiVersion": obj["apiVersion"], "kind": about.kind, "name": about.name, "uid": uid(obj), "controller": True}
    if about.kind == "StatefulSet":
        metadata["name"] = f"{about.name}-{ordinal}"
        found |= {
            "controller-revision-hash": f"{about.name}-{digest}",
            "statefulset.kubernetes.io/pod-name": metadata["name"],
            "apps.kubernetes.io/pod-index": str(ordinal),
        }
        spec["hostname"] = metadata["name"]
        spec |= {"volumes": volumes(obj, spec, metadata["name"])}
        if (obj.get("spec") or {}).get("serviceName"):
            spec["subdomain"] = obj["spec"]["serviceName"]
    elif about.kind == "Deployment":
        metadata |= _named(f"{about.name[:46]}-{digest}-", suffix)
        found["pod-template-hash"] = digest
    elif about.kind == "DaemonSet":
        metadata |= _named(f"{about.name[:57]}-", suffix)
        found["controller-revision-hash"] = digest
    else:
        _job_pod(obj, about, ordinal, suffix, metadata, found, notes, spec)
        cron = annotations(obj).get(CRON_NAME)
        if cron:
            owner |= {"kind": "CronJob", "name": cron, "uid": annotations(obj)[CRON_UID]}
    metadata |= {"labels": found, "ownerReferences": [owner | {"blockOwnerDeletion": True}]}
    if notes:
        metadata["annotations"] = notes
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _named(prefix: str, suffix: str) -> dict[str, str]:
    return {"name": prefix + suffix, "generateName": prefix}


def _job_pod(
    obj: Obj,
    about: ObjectRef,
    index: int,
    suffix: str,
    metadata: dict[str, Any],
    found: dict[str, str],
    notes: dict[str, str],
    spec: dict[str, Any],
) -> None:
    found |= {
        "job-name": about.name,
        "batch.kubernetes.io/job-name": about.name,
        "controller-uid": uid(obj),
        "batch.kubernetes.io/controller-uid": uid(obj),
    }
    if index < 0:
        metadata |= _named(f"{about.name[:57]}-", suffix)
        return
    metadata |= _named(_indexed(about.name, index, 57) + "-", suffix)
    found[INDEX] = notes[INDEX] = str(index)
    # The name by which pods of one Job find each other.
    spec["hostname"] = _indexed(about.name, index, 63)
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [_with_index(container, index) for container in spec[kind]]


def _indexed(job: str, index: int, limit: int) -> str:
    """``JOB-INDEX``; a long name is cut and told from others by its digest."""
    tail = f"-{index}"
    if len(job) + len(tail) <= limit:
        return job + tail
    digest = hashlib.sha256(job.encode()).hexdigest()[:6]
    return f"{job[: limit - len(tail) - 7].rstrip('-.')}-{digest}{tail}"


def _with_index(container: dict[str, Any], index: int) -> dict[str, Any]:
    env = container.get("env") or []
    if any(variable.get("name") == "JOB_COMPLETION_INDEX" for variable in env):
        return container
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{INDEX}']"}}
    return {**container, "env": [*env, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]}


def volumes(obj: Obj, spec: Mapping[str, Any], pod: str) -> list[dict[str, Any]]:
    """Of a StatefulSet's pod, of whose template ``spec`` is: for claim templates they are local directories named after claim and
    pod, which stay."""
    claims = [
        {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": f"{claim['metadata']['name']}-{pod}"}}
        for claim in (obj.get("spec") or {}).get("volumeClaimTemplates") or ()
    ]
    taken = {claim["name"] for claim in claims}
    return [*(v for v in spec.get("volumes") or () if v["name"] not in taken), *claims]
