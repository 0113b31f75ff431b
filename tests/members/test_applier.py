"""What is applied to a cluster, what is left alone, and what is said of it. Each runs on NEMO's own API server, which has the
same server-side apply, and with the slow tests on a real kube-apiserver."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from metaos.client import PatchType
from metaos.members.manifests import MEMBER_LABEL, USE
from metaos.resources import scheme
from metaos.resources.meta import ADOPT, labels, uid
from tests.agent.hub import until
from tests.members.conftest import Applying, start


async def test_what_a_work_says_is_there_and_goes_with_it(applying: Applying) -> None:
    applying.give(applying.work("a", applying.config("one", k="v")), applying.work("b", applying.config("two", k="v")))
    await applying.applied("a", "b")
    found = await applying.get(scheme.CONFIG_MAP, "one")
    assert found is not None and found["data"] == {"k": "v"}
    managers = [(e["manager"], e["operation"]) for e in found["metadata"]["managedFields"]]
    assert managers == [("nemo", "Apply")], "exactly its fields"
    applying.give(applying.work("b", applying.config("two", k="w", l="x"), generation=2))
    await applying.gone(scheme.CONFIG_MAP, "one")
    await applying.shows(scheme.CONFIG_MAP, "two", "data", value={"k": "w", "l": "x"})
    applying.give(applying.work("b", applying.config("two", l="x"), generation=3))
    await applying.shows(scheme.CONFIG_MAP, "two", "data", value={"l": "x"})
    assert await applying.get(scheme.NAMESPACE, applying.namespace) is not None, "others may have put things there"


async def test_what_another_changes_of_ours_is_put_right_and_what_they_add_stays(applying: Applying) -> None:
    applying.give(applying.work("a", applying.deployment("web", 2)))
    await applying.applied("a")
    change: Any = {"metadata": {"labels": {"theirs": "yes"}}, "spec": {"replicas": 7, "minReadySeconds": 3}}
    await applying.client.patch(scheme.DEPLOYMENT, "web", applying.namespace, change, field_manager="somebody")
    await applying.shows(scheme.DEPLOYMENT, "web", "spec", "replicas", value=2)
    found = await applying.get(scheme.DEPLOYMENT, "web")
    assert found is not None and labels(found)["theirs"] == "yes" and found["spec"]["minReadySeconds"] == 3
    await until(lambda: ("web", "Normal", "DriftCorrected") in applying.told)
    await applying.client.delete(scheme.DEPLOYMENT, "web", applying.namespace, propagation="Background")
    await applying.shows(scheme.DEPLOYMENT, "web", "spec", "minReadySeconds", value=None)
    await applying.shows(scheme.DEPLOYMENT, "web", "spec", "replicas", value=2)


async def test_labels_that_somebody_takes_off_come_back(applying: Applying) -> None:
    applying.give(applying.work("a", applying.config("one", k="v")))
    await applying.applied("a")
    off: Any = {"metadata": {"labels": {MEMBER_LABEL: None}}}
    await applying.client.patch(scheme.CONFIG_MAP, "one", applying.namespace, off)
    found: Any = None
    async with asyncio.timeout(10):
        while found is None or MEMBER_LABEL not in labels(found):
            found = await applying.get(scheme.CONFIG_MAP, "one")
            await asyncio.sleep(0.02)


async def test_somebody_elses_object_is_not_touched_and_adopted_only_when_they_say_so(applying: Applying) -> None:
    applying.give(applying.work("first", applying.config("zero")))
    await applying.applied("first")
    theirs = await applying.client.create(applying.config("one", uid="", k="theirs", more="m"), field_manager="them")
    mine = applying.config("one", k="ours")
    mine["metadata"]["annotations"] = {ADOPT: "true"}  # Not for a user of the hub to say.
    applying.give(applying.work("a", mine))
    said = await applying.refused("a", "NameTaken")
    assert "somebody else" in said and "them" in said
    assert f"kubectl annotate configmap one -n {applying.namespace} {ADOPT}=true" in said
    assert await applying.get(scheme.CONFIG_MAP, "one") == theirs
    applying.give()  # What is not ours does not go with the Work.
    await applying.gone(scheme.CONFIG_MAP, "zero")
    assert await applying.get(scheme.CONFIG_MAP, "one") == theirs
    consent: Any = {"metadata": {"annotations": {ADOPT: "true"}}}
    await applying.client.patch(scheme.CONFIG_MAP, "one", applying.namespace, consent, field_manager="them")
    applying.give(applying.work("a", applying.config("one", k="ours"), generation=2))
    await applying.applied("a")
    found = await applying.get(scheme.CONFIG_MAP, "one")
    assert found is not None and found["data"] == {"k": "ours", "more": "m"} and uid(found) == uid(theirs)
    applying.give()
    await applying.shows(scheme.CONFIG_MAP, "one", "metadata", "labels", value=None)
    found = await applying.get(scheme.CONFIG_MAP, "one")
    assert found is not None and uid(found) == uid(theirs), "what was adopted is left in place"


async def test_in_a_namespace_of_the_clusters_owner_nothing_is_written_before_they_open_it(applying: Applying) -> None:
    space: Any = scheme.NAMESPACE.empty(applying.namespace)
    theirs = await applying.client.create(space, field_manager="them")
    web, mine = applying.deployment("web"), {**scheme.NAMESPACE.empty(applying.namespace)}
    mine["metadata"] = {"name": applying.namespace, "labels": {USE: "true"}, "uid": "u", "generation": 1}
    applying.give(applying.work("a", web), applying.work("b", mine))
    for work in ("a", "b"):
        said = await applying.refused(work, "NamespaceTaken")
        assert repr(applying.namespace) in said and f"kubectl label namespace {applying.namespace} {USE}=true" in said
    assert await applying.get(scheme.DEPLOYMENT, "web") is None
    found = await applying.get(scheme.NAMESPACE, applying.namespace)
    assert found is not None and labels(found) == labels(theirs), "no user of the hub opens it"
    for said in ("true", None):
        change: Any = {"metadata": {"labels": {USE: said}}}
        await applying.client.patch(scheme.NAMESPACE, applying.namespace, "", change, field_manager="them")
        applying.applier.refresh()
        if said:
            await applying.applied("a", "b")
    applying.applier._spaces.doubt(applying.namespace)  # the time has passed
    applying.give(applying.work("a", applying.deployment("web", 3, generation=4), generation=2))
    await applying.refused("a", "NamespaceTaken")
    found = await applying.get(scheme.DEPLOYMENT, "web")
    assert found is not None and found["spec"]["replicas"] == 1, "what runs there stays as it is"
    applying.give()
    await applying.gone(scheme.DEPLOYMENT, "web")


async def test_what_a_load_balancer_of_the_cluster_has_is_told(applying: Applying) -> None:
    found: Any = scheme.SERVICE.empty("web", applying.namespace)
    found["metadata"] |= {"uid": "u-web", "generation": 2}
    spec = {"type": "LoadBalancer", "clusterIP": "100.64.1.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}
    applying.give(applying.work("a", {**found, "spec": spec}))
    await applying.applied("a")
    ingress = [{"hostname": "lb.example.org"}]
    # As the cluster's own load balancer does it.
    change: Any = {"status": {"loadBalancer": {"ingress": ingress}}}
    await applying.client.patch(scheme.SERVICE, "web", applying.namespace, change, subresource="status", field_manager="them")

    def told() -> Any:
        return applying.status("a")["manifests"][0]["status"].get("loadBalancer", {}).get("ingress")

    await until(lambda: told() == ingress)


async def test_each_wrong_manifest_is_told_by_itself_and_the_others_are_applied(applying: Applying) -> None:
    wrong = applying.deployment("wrong")
    wrong["spec"]["template"]["spec"]["containers"][0]["name"] = "Not A Name"
    unknown = applying.config("unknown")
    unknown["kind"] = "Gadget"
    unknown["apiVersion"] = "example.com/v1"
    system = applying.config("system")
    system["metadata"]["namespace"] = "kube-system"
    applying.give(applying.work("a", applying.config("good", k="v"), wrong, unknown, system))
    await until(lambda: len([e for e in applying.status("a")["manifests"] if e.get("reason")]) == 3)
    entries = {e["name"]: e for e in applying.status("a")["manifests"]}
    assert entries["wrong"]["reason"] == "Invalid" and "Not A Name" in entries["wrong"]["message"]
    assert entries["unknown"]["reason"] == "KindUnknown" and entries["unknown"]["health"] == "InProgress"
    assert entries["system"]["reason"] == "Refused"
    assert entries["good"]["health"] == "Current" and "reason" not in entries["good"]
    condition = applying.condition("a")
    assert condition["status"] == "False" and all(w in condition["message"] for w in ("wrong", "unknown", "system"))
    assert await applying.get(scheme.CONFIG_MAP, "good") is not None


async def test_an_agent_that_starts_anew_finds_what_is_to_go_and_changes_nothing_else(applying: Applying, tmp_path: Path) -> None:
    applying.give(applying.work("a", applying.config("stays", k="v")), applying.work("b", applying.config("goes")))
    await applying.applied("a", "b")
    before = await applying.get(scheme.CONFIG_MAP, "stays")
    (tmp_path / "again").mkdir()
    again, task = await start(applying.access, tmp_path / "again", applying.namespace, applying.applier._id, real=applying.real)
    # The first one is still there; it has the same Works as the hub gives the second.
    applying.give(applying.work("a", applying.config("stays", k="v")))
    try:
        await asyncio.sleep(0)
        assert again.works.names() == [] and not again.works.listed
        again.give(applying.work("a", applying.config("stays", k="v")))
        await again.applied("a")
        await again.gone(scheme.CONFIG_MAP, "goes")
        assert await applying.get(scheme.CONFIG_MAP, "stays") == before, "an apply that changes nothing writes nothing"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await again.client.close()


async def test_two_writers_of_one_name_the_first_work_has_it(applying: Applying) -> None:
    applying.give(applying.work("a", applying.config("one", k="a")), applying.work("b", applying.config("one", k="b")))
    await applying.applied("a")
    assert "Work a" in await applying.refused("b", "Duplicate")
    applying.give(applying.work("b", applying.config("one", k="b")))
    await applying.applied("b")
    await applying.shows(scheme.CONFIG_MAP, "one", "data", value={"k": "b"})


async def test_a_server_side_apply_of_another_hub_is_somebody_elses(applying: Applying, tmp_path: Path) -> None:
    applying.give(applying.work("a", applying.config("one", k="v")))
    await applying.applied("a")
    (tmp_path / "other").mkdir()
    other, task = await start(applying.access, tmp_path / "other", applying.namespace, "m-other", real=applying.real)
    try:
        other.give(other.work("x", applying.config("one", k="w")))
        await other.refused("x", "NamespaceTaken")
        change: Any = {"metadata": {"labels": {USE: "true"}}}
        await applying.client.patch(scheme.NAMESPACE, applying.namespace, "", change, field_manager="them")
        other.applier.refresh()
        assert "another NEMO membership" in await other.refused("x", "NameTaken")
        await applying.shows(scheme.CONFIG_MAP, "one", "data", value={"k": "v"})
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"k": "forced"}}
        await other.client.patch(
            scheme.CONFIG_MAP, "one", applying.namespace, body, type=PatchType.APPLY, field_manager="argo", force=True
        )
        await applying.shows(scheme.CONFIG_MAP, "one", "data", value={"k": "v"})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await other.client.close()
