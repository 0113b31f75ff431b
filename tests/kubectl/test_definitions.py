"""The real kubectl on kinds that users define."""

from __future__ import annotations

import json

import pytest

from tests.apiserver.definitions import controllers, crontab, definition_of
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system


def text(*objects: object) -> str:
    return "\n---\n".join(json.dumps(each) for each in objects)


async def test_a_kind_of_ones_own(hub: ServedHub, kubectl: Kubectl) -> None:
    async with controllers(hub.registry, hub.clock):
        await kubectl("apply", "-f", "-", text=text(definition_of()))
        await kubectl("wait", "--for=condition=Established", "crd/crontabs.stable.example.com", "--timeout=10s")
        assert "crontabs.stable.example.com" in await kubectl("get", "crd")
        assert await kubectl("apply", "-f", "-", text=text(crontab(tags=["a"]))) == "crontab.stable.example.com/one created\n"
        found = json.loads(await kubectl("get", "ct", "one", "-o", "json"))
        assert found["spec"] == {"cronSpec": "* * * * */5", "image": "busybox", "replicas": 1, "tags": ["a"]}
        assert await kubectl("apply", "-f", "-", text=text(crontab(tags=["a"]))) == "crontab.stable.example.com/one unchanged\n"
        assert await kubectl("apply", "-f", "-", text=text(crontab(port=80))) == "crontab.stable.example.com/one configured\n"
        found = json.loads(await kubectl("get", "ct", "one", "-o", "json"))
        assert found["spec"] == {"cronSpec": "* * * * */5", "image": "busybox", "replicas": 1, "port": 80}
        lines = (await kubectl("get", "crontabs")).splitlines()
        assert lines[0].split() == ["NAME", "SPEC", "REPLICAS", "AGE"] and lines[1].startswith("one    * * * * */5   1")
        assert "one" in await kubectl("get", "all")
        assert "When it runs." in await kubectl("explain", "crontab.spec.cronSpec")
        await kubectl("scale", "crontab/one", "--replicas=3")
        assert await kubectl("get", "ct", "one", "-o", "jsonpath={.spec.replicas} {.metadata.generation}") == "3 3"
        await kubectl("patch", "ct", "one", "--type=merge", "--subresource=status", "-p", '{"status":{"phase":"Ready"}}')
        await kubectl("wait", "--for=jsonpath={.status.phase}=Ready", "ct/one", "--timeout=5s")
        assert "one" in await kubectl("get", "ct", "--field-selector", "spec.image=busybox")
        assert "No resources" in (await kubectl.run("get", "ct", "--field-selector", "spec.image=other"))[2]
        code, _, err = await kubectl.run("get", "ct", "--field-selector", "spec.cronSpec=x")
        assert code and "field label not supported: spec.cronSpec" in err
        _, _, err = await kubectl.run("get", "crontabs.v1beta1.stable.example.com")
        assert "Warning: stable.example.com/v1beta1 CronTab is deprecated" in err
        assert "stable.example.com/v1beta1" in await kubectl("get", "crontabs.v1beta1.stable.example.com", "-o", "yaml")
        code, _, err = await kubectl.run("apply", "-f", "-", text=text(crontab("two", replicas=11, cronSpec="x", other=1)))
        assert code and 'unknown field "spec.other"' in err
        code, _, err = await kubectl.run(
            "apply", "--validate=ignore", "-f", "-", text=text(crontab("two", replicas=11, cronSpec="x", other=1))
        )
        assert "* spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10" in err
        assert """* spec.cronSpec: Invalid value: "x": spec.cronSpec in body should match '^""" in err


async def test_server_side_apply_and_edit(hub: ServedHub, kubectl: Kubectl) -> None:
    async with controllers(hub.registry, hub.clock):
        await kubectl("apply", "-f", "-", text=text(definition_of()))
        await kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=10s")

        async def apply(who: str, **spec: object) -> tuple[int, str, str]:
            return await kubectl.run("apply", "--server-side", f"--field-manager={who}", "-f", "-", text=text(crontab(**spec)))

        assert (await apply("one", steps=[{"name": "a", "run": "x"}], tags=["t"]))[0] == 0
        assert (await apply("two", steps=[{"name": "b", "run": "y"}], tags=["u"]))[0] == 0
        found = json.loads(await kubectl("get", "ct", "one", "-o", "json"))["spec"]
        assert [(s["name"], s["run"], s["retries"]) for s in found["steps"]] == [("a", "x", 2), ("b", "y", 2)]
        assert found["tags"] == ["t", "u"]
        code, _, err = await apply("three", steps=[{"name": "a", "run": "z"}])
        assert code and 'conflict with "one": .spec.steps[name="a"].run' in err
        editor = "sed -i s/busybox/nginx/"
        await kubectl("edit", "ct", "one", KUBE_EDITOR=editor)
        assert await kubectl("get", "ct", "one", "-o", "jsonpath={.spec.image}") == "nginx"


@pytest.mark.slow
async def test_what_goes_with_a_definition(hub: ServedHub, kubectl: Kubectl) -> None:
    async with controllers(hub.registry, hub.clock):
        await kubectl("apply", "-f", "-", text=text(definition_of()))
        await kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=10s")
        await kubectl(
            "apply", "-f", "-", text=text(crontab(), {**crontab("two"), "metadata": {"name": "two", "namespace": "default"}})
        )
        uid = await kubectl("get", "ct", "one", "-o", "jsonpath={.metadata.uid}")
        owner = [{"apiVersion": "stable.example.com/v1", "kind": "CronTab", "name": "one", "uid": uid}]
        owned = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "owned", "namespace": "default", "ownerReferences": owner},
        }
        await kubectl("apply", "-f", "-", text=text(owned))
        await kubectl("delete", "ct", "one")
        await kubectl("wait", "--for=delete", "cm/owned", "--timeout=10s")
        await kubectl("create", "namespace", "other")
        there = crontab("three")
        there["metadata"]["namespace"] = "other"
        await kubectl("apply", "-f", "-", text=text(there))
        await kubectl("delete", "namespace", "other", "--timeout=20s")
        assert await kubectl("get", "ct", "-A", "-o", "name") == "crontab.stable.example.com/two\n"
        await kubectl("delete", "crd", "crontabs.stable.example.com", "--timeout=20s")
        code, _, err = await kubectl.run("get", "ct")
        assert code and "could not find the requested resource" in err


@pytest.mark.slow
async def test_quotas_as_kubectl_makes_and_shows_them(hub: ServedHub, kubectl: Kubectl) -> None:
    async with controllers(hub.registry, hub.clock):
        await kubectl("create", "quota", "few", "--hard=pods=2,count/crontabs.stable.example.com=1,limits.cpu=4")
        await kubectl("apply", "-f", "-", text=text(definition_of()))
        await kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=10s")
        await kubectl("apply", "-f", "-", text=text(crontab()))
        other = crontab("two")
        code, _, err = await kubectl.run("apply", "-f", "-", text=text(other))
        assert code and "exceeded quota: few, requested: count/crontabs.stable.example.com=1" in err
        await kubectl(
            "wait", "--for=jsonpath={.status.used.count/crontabs\\.stable\\.example\\.com}=1", "quota/few", "--timeout=10s"
        )
        lines = (await kubectl("get", "quota")).splitlines()
        assert "count/crontabs.stable.example.com: 1/1, pods: 0/2" in lines[1] and "limits.cpu: 0/4" in lines[1]
        assert "pods" in await kubectl("describe", "quota", "few")
        code, _, err = await kubectl.run("create", "deployment", "web", "--image=x", "--replicas=3")
        assert code and "failed quota: few: must specify limits.cpu for: x" in err
