"""Exports of Services: what is said of them, the import that comes of each, and where it goes."""

from __future__ import annotations

from typing import Any

from metaos.controllers import service as service_controller
from metaos.controllers import serviceexport
from metaos.controllers.render import work
from metaos.controllers.serviceexport import derived, imported, serving, verdict
from metaos.resources import scheme
from metaos.resources.meta import Obj, condition, ref
from metaos.resources.services import FROM, derived_name, dialled
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


async def test_a_service_of_a_members_own_is_one_of_the_hub() -> None:
    web = deployment() | {"metadata": {"name": "web", "namespace": "shop", "uid": "w"}}
    here = [work(ref(web), site, [web]) for site in ("paris", "kube")]
    sites = (cluster("paris"), cluster("kube", runtime="kubernetes"))
    abroad = export()
    abroad["metadata"]["annotations"] = {FROM: "kube"}
    wrong = export("wrong")
    wrong["metadata"]["annotations"] = {FROM: "paris"}
    async with running(serviceexport.setup, service_controller.setup, objects=(abroad, wrong, *here, *sites)) as (client, clock):

        def valid(name: str = "api") -> Any:
            found = condition(client.find(scheme.SERVICE_EXPORT, name, "shop") or {}, "Valid")
            return found and (found["status"], found["reason"])

        def asked() -> Any:
            return client.find(scheme.WORK, "serviceexport.shop.api", "nemo-cluster-kube")

        async def tell(**said: Any) -> None:
            await client.update(asked() | {"status": {"manifests": [said]}}, subresource="status")

        await until(clock, lambda: valid() == ("Unknown", "Pending") and valid("wrong") == ("False", "NoCluster"))
        await tell(reason="NotOffered", message="annotate it", status={})
        await until(clock, lambda: valid() == ("False", "NotOffered"))
        ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
        await tell(status={"ports": ports, "sessionAffinity": "None", "ready": True})
        await until(clock, lambda: valid() == ("True", "Valid"))
        made = client.find(scheme.SERVICE, "api", "shop")
        assert made is not None and made["spec"]["ports"] == ports and "selector" not in made["spec"]
        part = client.find(scheme.ENDPOINT_SLICE, "api-kube", "shop")
        assert part is not None and dialled(part["endpoints"][0]["targetRef"]) == "service/api"
        told = await until(clock, lambda: client.find(scheme.WORK, "service.shop.api", "nemo-cluster-paris"))
        assert [m["kind"] for m in told["spec"]["manifests"]] == ["Service", "EndpointSlice"]
        assert client.find(scheme.WORK, "service.shop.api", "nemo-cluster-kube") is None, "it has one of this name"
        await tell(status={"ports": [{"name": "http", "port": 81, "protocol": "TCP"}], "ready": False})
        await until(clock, lambda: (client.find(scheme.SERVICE, "api", "shop") or made)["spec"]["ports"][0]["port"] == 81)
        found = await until(clock, lambda: client.find(scheme.SERVICE_IMPORT, "api", "shop"))
        await until(clock, lambda: (client.find(scheme.SERVICE_IMPORT, "api", "shop") or found)["status"] == {"clusters": []})
        await tell(status={"ports": ports, "sessionAffinity": "None", "ready": True})

        def clusters() -> Any:
            return (client.find(scheme.SERVICE_IMPORT, "api", "shop") or found)["status"]["clusters"]

        await until(clock, lambda: clusters() == [{"cluster": "kube"}])
        lost = (await client.get(scheme.CLUSTER, "kube")) | {"status": cluster("kube", ready=False)["status"]}
        await client.update(lost, subresource="status")
        await until(clock, lambda: clusters() == [])
        await tell(reason="NotOffered", message="annotate it", status={})
        await until(clock, lambda: valid() == ("False", "NotOffered"))
        assert client.find(scheme.ENDPOINT_SLICE, "api-kube", "shop") is None, "nobody is led there any more"
        await tell(status={"ports": ports, "sessionAffinity": "None", "ready": True})
        await until(clock, lambda: valid() == ("True", "Valid") and client.find(scheme.ENDPOINT_SLICE, "api-kube", "shop"))
        now = client.find(scheme.SERVICE_EXPORT, "api", "shop")
        assert now is not None
        await client.update(now | {"metadata": {**now["metadata"], "annotations": {}}})
        await until(clock, lambda: valid() == ("False", "NoService") and not asked())
        assert client.find(scheme.ENDPOINT_SLICE, "api-kube", "shop") is None


async def test_the_hubs_own_service_is_not_covered_by_a_members() -> None:
    abroad = export()
    abroad["metadata"]["annotations"] = {FROM: "kube"}
    async with running(serviceexport.setup, objects=(abroad, service(), cluster("kube", runtime="kubernetes"))) as (
        client,
        clock,
    ):

        def valid() -> Any:
            return (condition(client.find(scheme.SERVICE_EXPORT, "api", "shop") or {}, "Valid") or {}).get("reason")

        await until(clock, lambda: valid() == "Ambiguous")
        assert client.find(scheme.SERVICE_IMPORT, "api", "shop") is None
