"""Exports of Services: what is said of them, the import that comes of each, and where it goes."""

from __future__ import annotations

from typing import Any

from metaos.controllers import serviceexport
from metaos.controllers.render import work
from metaos.controllers.serviceexport import derived, imported, serving, verdict
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, ref
from metaos.resources.services import derived_name
from tests.controllers.continuum import cluster, deployment, running, until


def service(**spec: Any) -> Obj:
    metadata = {"name": "api", "namespace": "shop", "uid": "s"}
    usual = {"selector": {"app": "api"}, "clusterIP": "100.64.1.1", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": usual | spec}


def export(name: str = "api") -> Obj:
    return scheme.SERVICE_EXPORT.empty(name, "shop") | {"metadata": {"name": name, "namespace": "shop", "uid": f"e-{name}"}}


def endpoints(site: str, *, ready: bool = True) -> Obj:
    labels = {"kubernetes.io/service-name": "api", "meta-os.eu/cluster": site}
    found = scheme.ENDPOINT_SLICE.empty(f"api-{site}", "shop")
    found["metadata"] |= {"labels": labels, "uid": f"u-{site}"}  # type: ignore[operator]
    return found | {"endpoints": [{"nodeName": site, "conditions": {"ready": ready}}], "ports": []}


def test_what_can_be_exported() -> None:
    assert verdict(service())[0] == "True"
    assert verdict(None)[:2] == ("False", "NoService")
    assert verdict(service(type="ExternalName"))[:2] == ("False", "InvalidServiceType")


def test_an_import_is_of_the_service() -> None:
    found = imported(export(), service(sessionAffinity="ClientIP"))["spec"]
    assert found == {
        "type": "ClusterSetIP",
        "ports": [{"name": "http", "port": 80}],
        "ips": ["100.64.1.1"],
        "sessionAffinity": "ClientIP",
    }
    assert imported(export(), service(clusterIP="None"))["spec"]["type"] == "Headless"
    native = derived(imported(export(), service()), service())
    assert native["metadata"]["name"] == "api-clusterset" and native["spec"]["selector"] == {"app": "api"}
    assert native["spec"]["ports"] == [{"name": "http", "port": 80}] and "clusterIP" not in native["spec"]


def test_names_of_derived_services_are_names() -> None:
    long = "a" * 63
    assert len(derived_name(long)) <= 63 and derived_name(long) != derived_name("a" * 62) and derived_name("b") == "b-clusterset"


def test_who_serves_is_who_has_a_ready_pod() -> None:
    assert serving([endpoints("paris"), endpoints("london", ready=False), endpoints("kube")]) == ["kube", "paris"]


async def test_an_import_goes_where_its_namespace_has_work() -> None:
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "w"}}
    here = [work(ref(web), site, [web]) for site in ("paris", "kube")]
    sites = (cluster("paris"), cluster("kube", runtime="kubernetes"))
    async with running(serviceexport.setup, objects=(export(), export("none"), *here, *sites, endpoints("paris"))) as (
        client,
        clock,
    ):

        def said(name: str, kind: str) -> Any:
            found = condition(client.find(scheme.SERVICE_EXPORT, name, "shop") or {}, kind)
            return found and (found["status"], found["reason"])

        def told(site: str) -> Any:
            found = client.find(scheme.WORK, "serviceimport.shop.api", f"nemo-cluster-{site}")
            return found and [(m["kind"], m["metadata"]["name"]) for m in found["spec"]["manifests"]]

        await until(clock, lambda: said("api", "Valid") == said("none", "Valid") == ("False", "NoService"))
        await client.create(service())
        await until(clock, lambda: said("api", "Valid") == ("True", "Valid"))
        assert said("api", "Conflict") == ("False", "NoConflicts")
        assert await until(clock, lambda: told("paris")) == [("ServiceImport", "api")]
        assert told("kube") == [("ServiceImport", "api"), ("Service", "api-clusterset")]
        found = client.find(scheme.SERVICE_IMPORT, "api", "shop")
        assert found is not None and found["status"] == {"clusters": [{"cluster": "paris"}]}
        await client.delete(scheme.WORK, here[1]["metadata"]["name"], "nemo-cluster-kube")
        await until(clock, lambda: not told("kube"))
        await client.delete(scheme.SERVICE_EXPORT, "api", "shop")
        await until(clock, lambda: not told("paris") and client.find(scheme.SERVICE_IMPORT, "api", "shop") is None)
