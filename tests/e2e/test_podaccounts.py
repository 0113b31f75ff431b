"""A pod that speaks to the API as its ServiceAccount: the real client of Kubernetes for Python, in a sandbox."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]
PACKAGES = str(Path(kubernetes.__file__).parents[1])
#: What an operator does at its start: it reads what it may, and is refused what it may not.
PROGRAM = """
import json, time
from kubernetes import client, config
config.load_incluster_config()
api = client.CoreV1Api()
made = api.create_namespaced_config_map("shop", {"metadata": {"name": "made"}, "data": {"by": "the pod"}})
try:
    api.list_namespaced_secret("shop")
    refused = 0
except client.ApiException as error:
    refused = error.status
whoami = client.AuthenticationV1Api().create_self_subject_review({}).status.user_info
print(json.dumps({"refused": refused, "user": whoami.username, "host": client.Configuration.get_default_copy().host}), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("accounts") / "c", isolated=True)
    found.directory.mkdir()
    spec: dict[str, Any] = {"runtime": "sandbox", "jurisdictions": ["EU"], "hostPaths": [PACKAGES]}
    spec["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "10"}
    site = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": "here"}, "spec": spec}
    file = found.directory / "here-file.yaml"
    file.write_text(yaml.safe_dump(site))
    try:
        found.start_hub()
        found.add_site(file)
        wait_for("the site", lambda: "True" in found.kubectl("get", "clusters", "--no-headers", check=False), 60)
        yield found
    finally:
        found.stop()


def apply(continuum: Continuum, *manifests: dict[str, Any]) -> None:
    file = continuum.directory / "manifests.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))
    continuum.kubectl("apply", "-f", str(file))


def role(*verbs: str) -> list[dict[str, Any]]:
    rbac = "rbac.authorization.k8s.io"
    metadata = {"name": "robot", "namespace": "shop"}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": list(verbs)}]
    subjects = [{"kind": "ServiceAccount", "name": "robot", "namespace": "shop"}]
    reference = {"apiGroup": rbac, "kind": "Role", "name": "robot"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": reference,
            "subjects": subjects,
        },
    ]


def answer(continuum: Continuum, token: str) -> int:
    """The status of a request with this token."""
    url = f"https://127.0.0.1:{continuum.port}/api/v1/namespaces/shop/configmaps/made"
    context = ssl._create_unverified_context()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_official_client_in_a_pod_has_its_accounts_rights_until_the_pod_is_gone(continuum: Continuum) -> None:
    continuum.kubectl("create", "namespace", "shop")
    wait_for("the account default", lambda: continuum.get("serviceaccount", "default", "-n", "shop"), 10)
    container = {
        "name": "main",
        "image": "python:3",
        "command": ["python3", "-c", PROGRAM],
        "env": [{"name": "PYTHONPATH", "value": "/packages"}],
        "volumeMounts": [{"name": "packages", "mountPath": "/packages", "readOnly": True}],
    }
    spec = {
        "serviceAccountName": "robot",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "packages", "hostPath": {"path": PACKAGES}}],
    }
    template = {"metadata": {"labels": {"app": "robot"}}, "spec": spec}
    wanted = {"replicas": 1, "selector": {"matchLabels": {"app": "robot"}}, "template": template}
    metadata = {"name": "robot", "namespace": "shop"}
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": wanted}
    apply(continuum, *role("get", "create"), workload)

    def said() -> Any:
        text = continuum.kubectl("logs", "-n", "shop", "deployment/robot", check=False)
        assert "Traceback" not in text, text
        return json.loads(text) if text.startswith("{") else None

    found = wait_for("what the pod says", said, 60)
    assert found == {
        "refused": 403,
        "user": "system:serviceaccount:shop:robot",
        "host": "https://kubernetes.default.svc:443",
    }
    assert continuum.get("configmap", "made", "-n", "shop")["data"] == {"by": "the pod"}
    # The token is nowhere but in its volume: in no record or log of the hub's or the site's.
    (pod,) = continuum.get("pods", "-n", "shop")["items"]
    token = continuum.kubectl(
        "exec", "-n", "shop", pod["metadata"]["name"], "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )
    assert answer(continuum, token) == 200
    places = [
        path
        for path in continuum.directory.rglob("*")
        if path.is_file() and not path.is_symlink() and token.encode() in path.read_bytes()
    ]
    assert [path.name for path in places] == ["token"] and "volumes" in places[0].parts, places
    continuum.kubectl("delete", "deployment", "robot", "-n", "shop")
    wait_for("the pod's end", lambda: not (continuum.get("pods", "-n", "shop") or {}).get("items"), 30)
    assert answer(continuum, token) == 401, "the hub takes it no more"
    assert not places[0].exists(), "with its pod it is gone"
