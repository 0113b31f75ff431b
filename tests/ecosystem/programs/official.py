"""The official Python client beyond its typed verbs: dynamic client, watch, leader election, create_from_yaml, exec."""

import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client import api_client
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.stream import stream

NAMESPACE = sys.argv[1]
config.load_kube_config()

# -- the dynamic client: discovery, all verbs, server-side apply, watch --------------------------------------
dyn = dynamic.DynamicClient(api_client.ApiClient())
deployments = dyn.resources.get(api_version="apps/v1", kind="Deployment")
intents = dyn.resources.get(api_version="meta-os.eu/v1alpha1", kind="Intent")
assert intents.namespaced and "watch" in intents.verbs
web = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "web", "image": "python:3", "command": ["sh", "-c", "echo up; sleep 1000"]}],
            },
        },
    },
}
made = deployments.server_side_apply(body=web, namespace=NAMESPACE, field_manager="ecosystem")
assert made.metadata.managedFields[0].manager == "ecosystem"
ready = False
for event in deployments.watch(namespace=NAMESPACE, timeout=40):
    if (event["object"].status or {}).get("readyReplicas") == 1:
        ready = True
        break
assert ready, "the watch of the dynamic client saw no ready replica"
deployments.patch(name="web", namespace=NAMESPACE, body={"spec": {"replicas": 2}}, content_type="application/merge-patch+json")
assert deployments.get(name="web", namespace=NAMESPACE).spec.replicas == 2
assert [d.metadata.name for d in deployments.get(namespace=NAMESPACE, label_selector="app=web").items] == ["web"]
try:
    deployments.get(name="none", namespace=NAMESPACE)
except dynamic.exceptions.NotFoundError as error:
    assert error.status == 404
else:
    raise AssertionError("no 404")

# -- exec, logs ----------------------------------------------------------------------------------------------
core = client.CoreV1Api()
pod = next(p for p in core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items if p.status.phase == "Running")
said = stream(
    core.connect_get_namespaced_pod_exec,
    pod.metadata.name,
    NAMESPACE,
    command=["sh", "-c", "echo from inside"],
    stdout=True,
    stderr=True,
    stdin=False,
    tty=False,
)
assert said == "from inside\n", said
assert core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE) == "up\n"

# -- create_from_yaml ----------------------------------------------------------------------------------------
with TemporaryDirectory() as folder:
    file = Path(folder) / "all.yaml"
    file.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-yaml}\ndata: {a: b}\n---\n"
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: from-yaml}\nspec:\n  template:\n    spec:\n"
        "      restartPolicy: Never\n      containers: [{name: a, image: 'python:3', command: [sh, -c, 'true']}]\n"
    )
    utils.create_from_yaml(client.ApiClient(), str(file), namespace=NAMESPACE)
    try:
        utils.create_from_yaml(client.ApiClient(), str(file), namespace=NAMESPACE)
    except utils.FailToCreateError as error:
        assert {e.status for e in error.api_exceptions} == {409}
batch, watcher = client.BatchV1Api(), watch.Watch()
for event in watcher.stream(batch.list_namespaced_job, NAMESPACE, timeout_seconds=40):
    if event["object"].status.succeeded:
        watcher.stop()
        break
else:
    raise AssertionError("the Job did not end")

# -- leader election: the second takes over when the first gives up ------------------------------------------
order: list[str] = []


class GaveUp(Exception):
    """The one way to end an election of this client: what leads raises."""


def elect(name: str, stop: threading.Event) -> None:
    def lead() -> None:
        order.append(name)
        stop.wait(30)
        raise GaveUp

    settings = electionconfig.Config(
        LeaseLock("leader", NAMESPACE, name),
        lease_duration=3,
        renew_deadline=2,
        retry_period=1,
        onstarted_leading=lead,
        onstopped_leading=lambda: None,
    )
    leaderelection.LeaderElection(settings).run()


def until_led_by(*names: str) -> None:
    deadline = time.monotonic() + 15
    while order != list(names) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert order == list(names), order
    lease = client.CoordinationV1Api().read_namespaced_lease("leader", NAMESPACE)
    assert lease.spec.holder_identity == names[-1], lease


stops = {name: threading.Event() for name in ("first", "second")}
candidates = {name: threading.Thread(target=elect, args=(name, stop), daemon=True) for name, stop in stops.items()}
candidates["first"].start()
until_led_by("first")
candidates["second"].start()
stops["first"].set()
until_led_by("first", "second")
stops["second"].set()
# Python before 3.14 ends a thread that still runs at exit by pthread_exit, inside a read of TLS here: at times that aborts.
for candidate in candidates.values():
    candidate.join(20)
    assert not candidate.is_alive()
print("official: all passed", flush=True)
