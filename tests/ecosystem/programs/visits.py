"""A Kopf operator over ConfigMaps with the label kind=visit (it greets, counts with a timer, and cleans up at the end), and over
Visits, a kind of its own, whose status it writes."""

from typing import Any

import kopf
import kubernetes


@kopf.on.startup()
def settings(settings: kopf.OperatorSettings, **_: Any) -> None:
    kubernetes.config.load_kube_config()
    settings.persistence.finalizer = "ecosystem.example/finalizer"


@kopf.on.create("", "v1", "configmaps", labels={"kind": "visit"})
def created(name: str, namespace: str, body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
    patch.meta.annotations["example/greeted"] = "yes"
    kopf.info(body, reason="Greeted", message=f"{name} was greeted")
    child = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-child"}, "stringData": {"a": "b"}}
    kopf.adopt(child)
    kubernetes.client.CoreV1Api().create_namespaced_secret(namespace, child)


@kopf.on.field("", "v1", "configmaps", field="data.wish", labels={"kind": "visit"})
def wished(new: str | None, patch: kopf.Patch, **_: Any) -> None:
    patch.meta.annotations["example/wish"] = new or "nothing"


@kopf.timer("", "v1", "configmaps", interval=0.5, labels={"kind": "visit"})
def ticked(patch: kopf.Patch, annotations: kopf.Annotations, **_: Any) -> None:
    count = int(annotations.get("example/ticks", "0"))
    if count < 3:
        patch.meta.annotations["example/ticks"] = str(count + 1)


@kopf.on.delete("", "v1", "configmaps", labels={"kind": "visit"})
def deleted(namespace: str, name: str, **_: Any) -> None:
    body = {"metadata": {"name": f"{name}-gone"}}
    kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, body)


@kopf.on.create("ecosystem.example", "v1", "visits")
@kopf.on.update("ecosystem.example", "v1", "visits")
def served(spec: kopf.Spec, patch: kopf.Patch, **_: Any) -> None:
    patch.status["served"] = spec["wish"]
