"""The official Python client, unmodified."""

from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes import config as untyped_config
from kubernetes import watch as untyped_watch

from tests.apiserver.serving import ServedHub

config: Any = untyped_config
watch: Any = untyped_watch

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


async def test_the_verbs(hub: ServedHub, tmp_path: Path) -> None:
    import asyncio

    await asyncio.to_thread(use, str(hub.kubeconfig(tmp_path)))


def use(kubeconfig: str) -> None:
    api: Any = config.new_client_from_config(kubeconfig)
    try:
        core: Any = client.CoreV1Api(api)
        apps, custom = client.AppsV1Api(api), client.CustomObjectsApi(api)
        made = core.create_namespaced_config_map(
            "default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"x": "y"}), data={"k": "v"})
        )
        assert made.metadata.uid
        assert [c.metadata.name for c in core.list_namespaced_config_map("default", label_selector="x=y").items] == ["a"]
        core.patch_namespaced_config_map("a", "default", {"data": {"k": "w"}})
        seen: list[tuple[str, str]] = []
        watcher = watch.Watch()
        events = watcher.stream(
            core.list_namespaced_config_map, "default", resource_version=made.metadata.resource_version, timeout_seconds=10
        )
        for event in events:
            seen.append((event["type"], event["object"].data["k"]))
            if len(seen) == 1:
                core.delete_namespaced_config_map("a", "default", body=client.V1DeleteOptions(grace_period_seconds=0))
            if len(seen) == 2:
                watcher.stop()
        assert seen == [("MODIFIED", "w"), ("DELETED", "w")]
        with pytest.raises(client.ApiException) as missing:
            core.read_namespaced_config_map("a", "default")
        assert missing.value.status == 404
        deploy(apps)
        intent: dict[str, Any] = {
            "apiVersion": "meta-os.eu/v1alpha1",
            "kind": "Intent",
            "metadata": {"name": "fast"},
            "spec": {"expectations": [{"verb": "Ensure", "targets": [{"name": "cost", "condition": "Minimize"}]}]},
        }
        custom.create_namespaced_custom_object("meta-os.eu", "v1alpha1", "default", "intents", intent)
        found: Any = custom.list_cluster_custom_object("meta-os.eu", "v1alpha1", "intents")
        assert [i["metadata"]["name"] for i in found["items"]] == ["fast"]
        version: Any = client.VersionApi(api)
        assert version.get_code().git_version.startswith("v1.37.0+nemo")
    finally:
        api.rest_client.pool_manager.clear()
        api.close()


def deploy(apps: Any) -> None:
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "web"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="web", image="python:3")]),
    )
    spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template)
    body = client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    assert apps.create_namespaced_deployment("default", body).spec.replicas == 1
    scaled = apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 4}})
    assert scaled.spec.replicas == 4
    assert apps.read_namespaced_deployment_status("web", "default").spec.replicas == 4
    held = apps.read_namespaced_deployment("web", "default")
    held.spec.replicas = 2
    assert apps.replace_namespaced_deployment("web", "default", held).metadata.generation == 3
    apps.delete_namespaced_deployment("web", "default")
    assert not apps.list_deployment_for_all_namespaces().items
