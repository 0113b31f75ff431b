"""lightkube: typed resources, server-side apply, apply of many, watch, wait, logs, scale, status, generic resources."""

import sys

from lightkube import ApiError, Client, codecs
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.apps_v1 import DeploymentSpec
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.models.core_v1 import Container, PodSpec, PodTemplateSpec
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import ConfigMap, Pod
from lightkube.types import PatchType

NAMESPACE = sys.argv[1]
client = Client(namespace=NAMESPACE, field_manager="ecosystem")
container = Container("web", image="python:3", command=["sh", "-c", "echo up; sleep 1000"])
template = PodTemplateSpec(
    metadata=ObjectMeta(labels={"app": "web"}), spec=PodSpec(containers=[container], terminationGracePeriodSeconds=1)
)
web = Deployment(
    metadata=ObjectMeta(name="web", namespace=NAMESPACE),
    spec=DeploymentSpec(selector=LabelSelector(matchLabels={"app": "web"}), template=template, replicas=1),
)
client.apply(web)
found = client.wait(Deployment, "web", for_conditions=["Available"])
assert found.status is not None and found.status.readyReplicas == 1
client.replace(Deployment.Scale(metadata=ObjectMeta(name="web", namespace=NAMESPACE), spec=ScaleSpec(replicas=2)))
assert client.get(Deployment, "web").spec.replicas == 2
(pod, *_) = client.list(Pod, labels={"app": "web"})
assert list(client.log(pod.metadata.name)) == ["up\n"]
client.create(ConfigMap(metadata=ObjectMeta(name="a"), data={"k": "v"}))
client.patch(ConfigMap, "a", {"data": {"k": "w"}}, patch_type=PatchType.MERGE)
for kind, held in client.watch(ConfigMap, fields={"metadata.name": "a"}, server_timeout=10):
    assert (kind, held.data) == ("ADDED", {"k": "w"})
    break
Intent = create_namespaced_resource("meta-os.eu", "v1alpha1", "Intent", "intents")
text = """
apiVersion: meta-os.eu/v1alpha1
kind: Intent
metadata: {name: cheap}
spec: {expectations: [{verb: Ensure, targets: [{name: cost, condition: Minimize}]}]}
"""
for each in codecs.load_all_yaml(text):
    client.create(each)
assert [i.metadata.name for i in client.list(Intent)] == ["cheap"]
try:
    client.get(ConfigMap, "none")
except ApiError as error:
    assert error.status.code == 404 and error.status.reason == "NotFound"
else:
    raise AssertionError("no 404")
client.deletecollection(ConfigMap)
assert not list(client.list(ConfigMap))
print("lightkube: all passed")
