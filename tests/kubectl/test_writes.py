"""kubectl's ways to write that need no site: apply and its kinds of pruning, edit, replace, diff, patch, set, dry runs."""

import json
from pathlib import Path

import pytest
import yaml

from tests.apiserver.objects import deployment
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system


def settings(*names: str, **data: str) -> str:
    """ConfigMaps with the label that says they belong together."""
    made = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": n, "labels": {"set": "one"}}, "data": data or {"k": "v"}}
        for n in names
    ]
    return yaml.safe_dump_all(made)


async def names(kubectl: Kubectl, *more: str) -> list[str]:
    return (await kubectl("get", "cm", "-o", "jsonpath={.items[*].metadata.name}", *more)).split()


async def test_prune_by_label(kubectl: Kubectl) -> None:
    await kubectl("create", "configmap", "another")
    await kubectl("apply", "-f", "-", text=settings("a", "b"))
    only = ("--prune", "-l", "set=one", "--prune-allowlist=core/v1/ConfigMap")
    assert "configmap/b pruned" in await kubectl("apply", *only, "--dry-run=server", "-f", "-", text=settings("a"))
    assert await names(kubectl) == ["a", "another", "b"]
    assert "configmap/b pruned" in await kubectl("apply", *only, "-f", "-", text=settings("a"))
    # With the list that kubectl has itself.
    assert "pruned" not in await kubectl("apply", "--prune", "-l", "set=one", "-f", "-", text=settings("a"))
    assert await names(kubectl) == ["a", "another"]


async def test_prune_by_apply_set(kubectl: Kubectl) -> None:
    arguments = ("apply", "--prune", "--applyset=configmaps/parent", "-n", "default", "-f", "-")
    await kubectl(*arguments, text=settings("a", "b"), KUBECTL_APPLYSET="true")
    assert "configmap/b pruned" in await kubectl(*arguments, text=settings("a"), KUBECTL_APPLYSET="true")
    assert await names(kubectl) == ["a", "parent"]


async def test_a_list_is_checked_and_applied(kubectl: Kubectl) -> None:
    """kubectl checks a List itself, by /openapi/v2 as protobuf."""
    items = [*yaml.safe_load_all(settings("a")), deployment("web")]
    whole = {"apiVersion": "v1", "kind": "List", "items": items}
    said = await kubectl("apply", "-f", "-", text=json.dumps(whole))
    assert "configmap/a created" in said and "deployment.apps/web created" in said
    assert "configmap/a unchanged" in await kubectl("apply", "-f", "-", text=json.dumps(whole))
    items[0]["daata"] = {}
    code, _, err = await kubectl.run("apply", "-f", "-", text=json.dumps(whole))
    assert code != 0 and 'unknown field "daata" in io.k8s.api.core.v1.ConfigMap' in err


async def test_edit(kubectl: Kubectl, tmp_path: Path) -> None:
    await kubectl("apply", "-f", "-", text=settings("a"))
    await kubectl("edit", "cm", "a", EDITOR="sed -i s/k:.v/k:\\ changed/")
    assert await kubectl("get", "cm", "a", "-o", "jsonpath={.data}") == '{"k":"changed"}'
    assert "no changes made" in (await kubectl.run("edit", "cm", "a", EDITOR="true"))[2]
    code, _, err = await kubectl.run("edit", "cm", "a", EDITOR="sed -i s/^data:/dota:/", TMPDIR=str(tmp_path))
    assert code == 1 and 'unknown field "dota"' in err
    code, _, err = await kubectl.run("edit", "cm", "a", EDITOR="sed -i s/name:.a/name:\\ b/", TMPDIR=str(tmp_path))
    assert code == 1 and "name" in err


async def test_replace(kubectl: Kubectl) -> None:
    code, _, err = await kubectl.run("replace", "-f", "-", text=settings("a"))
    assert code == 1 and 'configmaps "a" not found' in err
    await kubectl("create", "-f", "-", text=settings("a"))
    uid = await kubectl("get", "cm", "a", "-o", "jsonpath={.metadata.uid}")
    assert "replaced" in await kubectl("replace", "-f", "-", text=settings("a", x="z"))
    assert await kubectl("get", "cm", "a", "-o", "jsonpath={.data}{.metadata.uid}") == '{"x":"z"}' + uid
    assert "replaced" in await kubectl("replace", "--force", "-f", "-", text=settings("a"))
    assert await kubectl("get", "cm", "a", "-o", "jsonpath={.metadata.uid}") != uid
    stale = yaml.safe_load(settings("a"))
    stale["metadata"]["resourceVersion"] = "1"
    code, _, err = await kubectl.run("replace", "-f", "-", text=yaml.safe_dump(stale))
    assert code == 1 and "the object has been modified" in err


async def test_diff(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", text=settings("a"))
    assert (await kubectl.run("diff", "-f", "-", text=settings("a")))[:2] == (0, "")
    code, out, _ = await kubectl.run("diff", "-f", "-", text=settings("a", "new", k="w"))
    assert code == 1 and "-  k: v\n+  k: w" in out and "+  name: new" in out
    assert await kubectl("get", "cm", "a", "-o", "jsonpath={.data.k}") == "v", "a look changes nothing"


async def test_server_side(kubectl: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    await kubectl(*apply, "--field-manager=one", text=settings("a", k="v", own="1"))
    code, _, err = await kubectl.run(*apply, "--field-manager=two", text=settings("a", k="w"))
    assert code == 1 and 'conflict with "one": .data.k' in err
    await kubectl(*apply, "--field-manager=two", "--force-conflicts", text=settings("a", k="w"))
    await kubectl(*apply, "--field-manager=one", text=settings("a", own="2"))
    assert json.loads(await kubectl("get", "cm", "a", "-o", "jsonpath={.data}")) == {"k": "w", "own": "2"}
    managers = json.loads(await kubectl("get", "cm", "a", "-o", "json", "--show-managed-fields"))["metadata"]["managedFields"]
    assert {m["manager"] for m in managers} == {"one", "two"}
    # From the kind of apply that keeps its last configuration to this one.
    await kubectl("apply", "-f", "-", text=settings("b"))
    await kubectl(*apply, text=settings("b"))
    assert "serverside-applied" in await kubectl(*apply, text=settings("b", k="new"))


async def test_patches_of_all_types(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(deployment())
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    strategic = '{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"a:1"}]}}}}'
    await kubectl("patch", "deploy", "web", "-p", strategic)
    assert await kubectl("get", "deploy", "web", "-o", image) == "a:1"
    steps = '[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":4}]'
    await kubectl("patch", "deploy", "web", "--type=json", "-p", steps)
    code, _, err = await kubectl.run("patch", "deploy", "web", "--type=json", "-p", steps)
    assert code == 1 and "test" in err
    await kubectl("patch", "deploy", "web", "--type=merge", "-p", "spec: {paused: true}")
    await kubectl("patch", "deploy", "web", "--subresource=scale", "--type=merge", "-p", '{"spec":{"replicas":2}}')
    assert await kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas} {.spec.paused}") == "2 true"
    assert "patched (no change)" in await kubectl("patch", "deploy", "web", "--type=merge", "-p", '{"spec":{"paused":true}}')


async def test_set(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(deployment())
    await kubectl("set", "image", "deploy/web", "web=x:2")
    await kubectl("set", "env", "deploy/web", "A=a", "B=b")
    await kubectl("set", "env", "deploy/web", "B-")
    assert "A=a" in await kubectl("set", "env", "deploy/web", "--list")
    await kubectl("set", "resources", "deploy/web", "--requests=cpu=100m", "--limits=memory=64Mi")
    await kubectl("set", "serviceaccount", "deploy/web", "robot")
    spec = json.loads(await kubectl("get", "deploy", "web", "-o", "json"))["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["image"] == "x:2" and container["env"] == [{"name": "A", "value": "a"}]
    assert container["resources"]["limits"] == {"memory": "64Mi"} and container["resources"]["requests"]["cpu"] == "100m"
    assert spec["serviceAccountName"] == "robot"
    code, _, err = await kubectl.run("set", "image", "deploy/web", "none=x:3")
    assert code == 1 and "none" in err


async def test_labels_and_annotations_are_not_overwritten_unasked(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", text=settings("a"))
    for verb in ("label", "annotate"):
        await kubectl(verb, "cm", "a", "x=1")
        code, _, err = await kubectl.run(verb, "cm", "a", "x=2")
        assert code == 1 and "overwrite" in err
        await kubectl(verb, "cm", "a", "x=2", "--overwrite")
    assert await names(kubectl, "-l", "x=2,set in (one,two),!none") == ["a"]
    await kubectl("label", "cm", "a", "x-")
    assert await names(kubectl, "-l", "x") == []
    code, _, err = await kubectl.run("label", "cm", "a", "x=not valid")
    assert code == 1 and "not valid" in err


async def test_dry_runs_leave_nothing(hub: ServedHub, kubectl: Kubectl) -> None:
    await hub.make(deployment())
    before = await kubectl("get", "all,cm", "-o", "json")
    await kubectl("create", "configmap", "a", "--dry-run=server")
    await kubectl("apply", "-f", "-", "--dry-run=server", text=settings("a"))
    await kubectl("scale", "deploy", "web", "--replicas=9", "--dry-run=server")
    await kubectl("set", "image", "deploy/web", "web=x:2", "--dry-run=server")
    await kubectl("delete", "deploy", "web", "--dry-run=server")
    await kubectl("label", "deploy", "web", "a=b", "--dry-run=server")
    assert await kubectl("get", "all,cm", "-o", "json") == before
    code, _, err = await kubectl.run("apply", "-f", "-", "--dry-run=server", text=settings("A_b"))
    assert code == 1 and "Invalid value" in err
    assert "kind: ConfigMap" in await kubectl("create", "configmap", "a", "--dry-run=client", "-o", "yaml")


async def test_deletes(hub: ServedHub, kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", text=settings("a", "b", "c"))
    assert "deleted" in await kubectl("delete", "cm", "a", "b")
    assert "deleted" in await kubectl("delete", "cm", "-l", "set=one")
    assert await kubectl("delete", "cm", "a", "--ignore-not-found") == ""
    code, _, err = await kubectl.run("delete", "cm", "a")
    assert code == 1 and 'configmaps "a" not found' in err
    await hub.make(deployment())
    code, _, err = await kubectl.run("delete", "deploy", "web", "--cascade=orphan")
    assert code == 1 and "its pods cannot outlive it" in err
