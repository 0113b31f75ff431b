"""Kustomize, and continuous apply of a git folder: server-side apply, pruning, drift put right, health."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.ecosystem.conftest import Up
from tests.ecosystem.tools import Tools

pytestmark = [pytest.mark.slow, pytest.mark.system]

HERE = Path(__file__).parent


@pytest.mark.parametrize("major", [3, 4])
def test_kustomize(up: Up, tools: Tools, namespace: str, major: int) -> None:
    """As the kubectl that comes with Helm 3 (1.33) and with Helm 4 (1.35) has it; other tests use the newest kubectl."""

    def kubectl(*arguments: str, text: str = "") -> str:
        return up.run(tools.kubectl(major), *arguments, "-n", namespace, text=text)

    base, overlay = str(HERE / "kustomize/base"), str(HERE / "kustomize/overlay")
    kubectl("apply", "-k", base)
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    built = kubectl("kustomize", overlay)
    assert "eu-settings-" in built
    kubectl("apply", "--server-side", "-f", "-", text=built)
    kubectl("rollout", "status", "deployment/eu-web", "--timeout=60s")
    assert kubectl("diff", "-k", base) == ""
    kubectl("delete", "-k", base, "--timeout=60s")
    assert kubectl("get", "deployments", "-o", "jsonpath={.items[*].metadata.name}") == "eu-web"


class Repository:
    """A git folder, and a loop's one turn: what Argo CD and Flux do with it, in kubectl's words."""

    def __init__(self, up: Up, folder: Path, namespace: str) -> None:
        self._up, self._folder, self._namespace = up, folder, namespace
        folder.mkdir()
        self._git("init", "-q")

    def _git(self, *arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(self._folder), *who, *arguments], check=True, capture_output=True)

    def commit(self, **files: dict[str, object] | None) -> None:
        for name, manifest in files.items():
            path = self._folder / f"{name}.yaml"
            path.unlink(missing_ok=True)
            if manifest is not None:
                path.write_text(yaml.safe_dump(manifest))
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "change")

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        command = [Path(sys.executable).with_name("kubectl"), *arguments, "-n", self._namespace]
        return self._up.run(*command, check=check, KUBECTL_APPLYSET="true")

    def turn(self) -> str:
        """What was applied and pruned."""
        settings = ["--server-side", "--force-conflicts", "--field-manager=continuous", "--prune", "--applyset=configmaps/set"]
        return self.kubectl("apply", "-f", str(self._folder), *settings)

    def drift(self) -> str:
        """By a manager that owns nothing: what ApplySets add to the objects is no drift."""
        settings = ["--server-side", "--force-conflicts", "--field-manager=drift"]
        return self.kubectl("diff", "-f", str(self._folder), *settings, check=False)


def test_continuous_apply(up: Up, namespace: str, tmp_path: Path) -> None:
    repository = Repository(up, tmp_path / "repository", namespace)
    container = {"name": "web", "image": "python:3", "command": ["sh", "-c", "sleep 1000"]}
    web = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    }
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1"}}
    repository.commit(web=web, settings=settings)
    assert "serverside-applied" in repository.turn()
    repository.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
    assert repository.drift() == ""
    # Somebody changes what the repository says, and adds what it does not speak of.
    repository.kubectl("scale", "deployment/web", "--replicas=3")
    repository.kubectl("annotate", "deployment/web", "seen=yes")
    assert "+  replicas: 1" in repository.drift()
    repository.turn()
    assert repository.kubectl("get", "deployment/web", "-o", "jsonpath={.spec.replicas}{.metadata.annotations.seen}") == "1yes"
    assert repository.drift() == ""
    # A commit that leaves something out takes it away, and nothing else.
    repository.kubectl("create", "configmap", "others", "--from-literal=a=b")
    repository.commit(settings=None)
    assert "pruned" in repository.turn()
    names = repository.kubectl("get", "configmaps", "-o", "jsonpath={.items[*].metadata.name}")
    assert names == "others set"
    # A commit that is wrong changes nothing, and the next one mends it.
    wrong = {**web, "spec": {**web["spec"], "replicas": -1}}  # type: ignore[dict-item]
    repository.commit(web=wrong)
    refused = repository.kubectl(
        "apply", "-f", str(tmp_path / "repository"), "--server-side", "--field-manager=continuous", check=False
    )
    assert "spec.replicas: Invalid value: -1" in refused
    repository.commit(web=web)
    repository.turn()
    assert repository.drift() == ""
