"""kr8s: objects, watch, wait, scale, logs, exec, patch, custom kinds, port-forward."""

import os
import sys
import urllib.request

import kr8s
from kr8s.objects import ConfigMap, Deployment, Service, new_class

NAMESPACE = sys.argv[1]
api = kr8s.api(namespace=NAMESPACE)
assert api.version()["gitVersion"].startswith("v1.")
made = ConfigMap({"metadata": {"name": "a", "namespace": NAMESPACE, "labels": {"x": "y"}}, "data": {"k": "v"}})
made.create()
made.patch({"data": {"k": "w"}})
assert [c.name for c in kr8s.get("configmaps", namespace=NAMESPACE, label_selector={"x": "y"})] == ["a"]
assert ConfigMap.get("a", namespace=NAMESPACE).raw["data"] == {"k": "w"}
made.label(seen="yes")
assert made.labels["seen"] == "yes"
web = Deployment(
    {
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [
                        {
                            "name": "web",
                            "image": "python:3",
                            "command": ["python3", "-m", "http.server", "8080"],
                            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                        }
                    ],
                },
            },
        },
    }
)
web.create()
web.wait("condition=Available", timeout=40)
web.scale(2)
assert web.replicas == 2
(pod, *_) = web.pods()
pod.wait("condition=Ready", timeout=40)
done = pod.exec(["sh", "-c", "echo from inside"])
assert done.stdout == b"from inside\n" and done.returncode == 0, done
service = Service(
    {
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
)
service.create()
with pod.portforward(8080) as port:
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).status == 200
Intent = new_class("Intent", "meta-os.eu/v1alpha1", namespaced=True)
targets = [{"name": "cost", "condition": "Minimize"}]
Intent(
    {"metadata": {"name": "cheap", "namespace": NAMESPACE}, "spec": {"expectations": [{"verb": "Ensure", "targets": targets}]}}
).create()
assert [i.name for i in kr8s.get("intents.meta-os.eu", namespace=NAMESPACE)] == ["cheap"]
try:
    ConfigMap.get("none", namespace=NAMESPACE)
except kr8s.NotFoundError:
    pass
else:
    raise AssertionError("no 404")
web.delete(propagation_policy="Foreground")
web.wait("delete", timeout=40)
print("kr8s: all passed", flush=True)
# Its thread with the event loop runs to the end and cannot be stopped; see the end of ``official.py``.
os._exit(0)
