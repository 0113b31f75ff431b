"""kubernetes_asyncio: typed verbs, watch, dynamic client, logs, exec over WebSocket."""

import asyncio
import sys

from kubernetes_asyncio import client, config, dynamic, watch
from kubernetes_asyncio.stream import WsApiClient

NAMESPACE = sys.argv[1]


async def main() -> None:
    await config.load_kube_config()
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        made = await core.create_namespaced_config_map(
            NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a"), data={"k": "v"})
        )
        seen: list[str] = []

        async def follow() -> None:
            async with watch.Watch() as watcher:
                version = made.metadata.resource_version
                async for event in watcher.stream(
                    core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=20
                ):
                    seen.append(event["type"])
                    if event["type"] == "DELETED":
                        return

        following = asyncio.create_task(follow())
        await core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"k": "w"}})
        await core.delete_namespaced_config_map("a", NAMESPACE)
        await asyncio.wait_for(following, 20)
        assert seen == ["MODIFIED", "DELETED"], seen
        pod = {
            "metadata": {"name": "one"},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "one", "image": "python:3", "command": ["sh", "-c", "echo up; sleep 1000"]}],
            },
        }
        await core.create_namespaced_pod(NAMESPACE, pod)
        async with watch.Watch() as watcher:
            async for event in watcher.stream(core.list_namespaced_pod, NAMESPACE, timeout_seconds=40):
                if event["object"].status.phase == "Running":
                    break
        assert await core.read_namespaced_pod_log("one", NAMESPACE) == "up\n"
        dyn = await dynamic.DynamicClient(api)
        intents = await dyn.resources.get(api_version="meta-os.eu/v1alpha1", kind="Intent")
        assert (await intents.get(namespace=NAMESPACE)).items == []
    async with WsApiClient() as api:
        said = await client.CoreV1Api(api).connect_get_namespaced_pod_exec(
            "one", NAMESPACE, command=["sh", "-c", "echo from inside"], stderr=True, stdin=False, stdout=True, tty=False
        )
        assert said == "from inside\n", said
    print("asynchronous: all passed")


asyncio.run(main())
