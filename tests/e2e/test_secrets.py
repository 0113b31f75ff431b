"""Secrets are hunted: a real hub and a real agent handle known ones, log everything, fail and crash; then every file, every
process's arguments and everything that can be read through the API are searched for them."""

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from examples.demo.continuum import ROOT, Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

#: Values that stand in the place of secrets; each is looked for as it is, in base64 and as it stands in a URL.
CANARIES = {
    what: f"canary+{what}/0f9d3b7a"
    for what in ("env", "volume", "applied", "doomed", "bearer", "stdin", "argument", "broken-env", "updated")
}
#: Plugins that fail with what they were given in their hands: one at the hub, one at the site.
CRASHING = """
from metaos.runtimes.sandbox import SandboxRuntime

class Refusing:
    def admit(self, operation, obj, old):
        if obj.get("kind") == "Secret" and obj["metadata"].get("name") == "doomed":
            raise RuntimeError("this plugin fails")
        return obj, ()

class Failing(SandboxRuntime):
    async def start_container(self, uid, container):
        if any("broken-env" in value for _, value in container.env):
            raise RuntimeError("this plugin fails")
        return await super().start_container(uid, container)
"""
POINTS = "[metaos.admission]\nrefusing = crashing:Refusing\n[metaos.runtime]\nfailing = crashing:Failing\n"


class Loud(Continuum):
    """Logs everything, and carries the plugins."""

    def _spawn(self, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
        place = next((i for i, word in enumerate(command) if word in ("up", "agent")), None)
        if place is not None and "metaos" in command:
            command = [*command[: place + 1], "-v", *command[place + 1 :]]
        return super()._spawn(log, command)


@dataclass
class Scene:
    continuum: Continuum
    #: What else must be nowhere: private keys and the token, by what they are.
    held: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        return self.continuum.sites["edge-paris"].data

    def words(self) -> dict[bytes, str]:
        """Each secret in each form that it might be written in."""
        found: dict[bytes, str] = {}
        for what, value in (CANARIES | self.held).items():
            for shift in range(3):
                # Of base64 the middle, whatever stands before and after.
                coded = base64.b64encode(b"x" * shift + value.encode())[4:-4]
                found[coded] = found[base64.urlsafe_b64encode(b"x" * shift + value.encode())[4:-4]] = what
            found[value.encode()] = found[quote(value, safe="").encode()] = found[json.dumps(value)[1:-1].encode()] = what
        return found

    def search(self, data: bytes) -> set[str]:
        return {what for word, what in self.words().items() if word in data}


def secret(name: str, **values: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def pod(name: str, canary: str) -> dict[str, Any]:
    reference = {"secretKeyRef": {"name": name, "key": "password"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "python:3",
                    "command": ["sh", "-c", 'test -n "$PASSWORD" && cat /etc/secret/file >/dev/null && exec sleep 600'],
                    "env": [{"name": "PASSWORD", "valueFrom": reference}],
                    "volumeMounts": [{"name": "files", "mountPath": "/etc/secret"}],
                }
            ],
            "volumes": [{"name": "files", "secret": {"secretName": name}}],
        },
    }


def middle(pem: str) -> str:
    """A line of a private key that is nowhere else."""
    return next(block.splitlines()[1] for block in re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END", pem, re.S))


def call(continuum: Continuum, path: str, **headers: str) -> int:
    """A request without a certificate; the answer's status."""
    context = ssl._create_unverified_context()
    request = urllib.request.Request(f"https://127.0.0.1:{continuum.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("secrets")
    plugins = folder / "plugins"
    (plugins / "crashing-1.dist-info").mkdir(parents=True)
    (plugins / "crashing.py").write_text(CRASHING)
    (plugins / "crashing-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1\n")
    (plugins / "crashing-1.dist-info/entry_points.txt").write_text(POINTS)
    continuum = Loud(folder / "c", isolated=True)
    continuum.directory.mkdir()
    site = yaml.safe_load((ROOT / "examples/sites/edge-paris.yaml").read_text())
    site["spec"]["runtime"] = "failing"
    (folder / "edge-paris.yaml").write_text(yaml.safe_dump(site))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plugins))
        patch.setenv("PYTHONFAULTHANDLER", "1")
        try:
            continuum.start_hub()
            continuum.add_site(folder / "edge-paris.yaml")
            wait_for("the site", lambda: (continuum.get("clusters") or {}).get("items"))
            continuum.kubectl("wait", "--for=condition=Ready", "clusters", "--all", "--timeout=30s")
            yield happened(Scene(continuum))
        finally:
            continuum.stop()


def happened(scene: Scene) -> Scene:
    """Everything in which a secret could slip."""
    continuum = scene.continuum

    def apply(*objects: dict[str, Any], check: bool = True) -> str:
        file = continuum.directory.parent / "objects.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        return continuum.kubectl("apply", "-f", str(file), check=check)

    apply(secret("good", password=CANARIES["env"], file=CANARIES["volume"]), pod("good", "env"))
    apply(secret("applied", password=CANARIES["applied"]))
    continuum.kubectl("wait", "--for=condition=Ready", "pod/good", "--timeout=30s")
    # The hub fails with a Secret in its hands; the site with a container's environment.
    apply(secret("doomed", password=CANARIES["doomed"]), check=False)
    apply(secret("broken", password=CANARIES["broken-env"], file="x"), pod("broken", "broken-env"))
    agent_log = continuum.sites["edge-paris"].log
    wait_for("the site's plugin to fail", lambda: "this plugin fails" in agent_log.read_text(errors="replace"), 30)
    apply(secret("applied", password=CANARIES["updated"]))
    continuum.kubectl("patch", "secret", "applied", "-p", json.dumps({"stringData": {"more": CANARIES["updated"]}}))
    # Credentials that are none, commands and their input.
    assert call(continuum, "/api/v1/secrets", Authorization=f"Bearer nemo1.0123.{CANARIES['bearer']}") == 401
    assert call(continuum, "/api/v1/secrets", Authorization=f"Basic {CANARIES['bearer']}") == 401
    environment = os.environ | {"KUBECONFIG": str(continuum.kubeconfig), "KUBECACHEDIR": str(continuum.directory / "kubecache")}
    execute = ["kubectl", "exec", "-i", "good", "--", "sh", "-c", "cat >/dev/null; : " + CANARIES["argument"]]
    subprocess.run(execute, input=CANARIES["stdin"].encode(), env=environment, check=True, timeout=30)
    scene.held["token"] = (continuum.directory / "edge-paris.token").read_text().split(".")[2]
    for name in ("ca-1", "server", "admin"):
        scene.held[name] = middle((continuum.data / f"pki/{name}.pem").read_text())
    scene.held["agent"] = middle((scene.site / "identity/agent.pem").read_text())
    scene.held["keyring"] = next(iter(json.loads((continuum.data / "keys.json").read_text())["keys"].values()))
    return scene


#: Where private keys, tokens and kubeconfigs belong: files that only their owner can read.
KEPT = re.compile(r"hub/(pki/[a-z0-9-]+\.pem|admin\.kubeconfig|keys\.json)|edge-paris\.token|edge-paris/identity/agent\.pem")


def reachable_by_others(path: Path, below: Path) -> bool:
    """Whether anybody but the owner (and root) can read a file: through it, and through every directory above it."""
    with suppress(FileNotFoundError):
        while path != below:
            if not path.stat().st_mode & 0o077:
                return False
            path = path.parent
        return True
    return False


def files(scene: Scene) -> Iterator[Path]:
    """What is there now: the sites work on, and remove directories and files meanwhile."""
    for folder, _, names in os.walk(scene.continuum.directory):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and not path.is_symlink():
                yield path


def searched(scene: Scene) -> dict[str, set[str]]:
    """File → which secrets are in it."""
    found: dict[str, set[str]] = {}
    for path in files(scene):
        try:
            there = scene.search(path.read_bytes())
        except FileNotFoundError:
            continue
        if there:
            found[str(path.relative_to(scene.continuum.directory))] = there
    return found


def test_no_file_holds_a_secret_that_does_not_have_to(scene: Scene) -> None:
    found = searched(scene)
    for name, secrets in found.items():
        path = scene.continuum.directory / name
        assert not reachable_by_others(path, scene.continuum.directory), f"others can read {name}, with {secrets}"
        if KEPT.fullmatch(name):
            assert secrets <= scene.held.keys(), (name, secrets)
        else:
            # A site needs what its pods need, also without the hub; nothing else of it, and the hub nothing in clear.
            assert name.startswith("edge-paris/") and secrets <= {"env", "volume", "broken-env"}, (name, secrets)
    kept = {name for name in found if KEPT.fullmatch(name)}
    assert len(kept) == 7, f"the search finds what it should: {kept}"
    logs = [p for p in files(scene) if p.name.endswith(".log")]
    assert {"hub.log", "edge-paris.log", "audit.log"} <= {p.name for p in logs}
    texts = {p.name: p.read_text(errors="replace") for p in logs}
    assert "Traceback" in texts["hub.log"] and "DEBUG" in texts["hub.log"], "what was to fail has failed, in public"
    assert "this plugin fails" in texts["edge-paris.log"]


def test_no_process_was_given_a_secret(scene: Scene) -> None:
    root = str(scene.continuum.directory)
    looked = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            ours = b"metaos" in arguments or root.encode() in arguments + environment or b"bwrap" in arguments
        except OSError:
            continue
        assert not scene.search(arguments), arguments
        looked += ours
        if b"metaos" in arguments or b"bwrap" in arguments:
            assert not scene.search(environment), arguments
    assert looked >= 3, "hub, agent and container at least"


def test_nothing_that_is_shown_has_a_secret(scene: Scene) -> None:
    for words in (
        ("describe", "secrets,pods,configmaps,events", "-A"),
        ("describe", "clusters,works.meta-os.eu", "-A"),
        ("get", "events", "-A", "-o", "yaml"),
        ("get", "pods,deployments,clusters,nodes,configmaps,csr", "-A", "-o", "yaml"),
        ("get", "secrets,works.meta-os.eu", "-A"),
        ("get", "--raw", "/metrics"),
        ("logs", "good"),
    ):
        shown = scene.continuum.kubectl(*words)
        if "works.meta-os.eu" in words[1]:
            # A Work that carries a Secret is as secret as the Secret: who may read one may read the other.
            shown = re.sub(r"(?s)Name: +secret\..*?(?=\nName: |\Z)", "", shown)
        assert not scene.search(shown.encode()), (words, scene.search(shown.encode()))


def test_a_crash_shows_none_and_leaves_no_core(scene: Scene) -> None:
    continuum = scene.continuum
    agent = continuum.agent_pid(continuum.sites["edge-paris"])
    assert continuum.hub is not None
    for pid in (agent, continuum.hub.pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 ", limits), "a core file would hold every secret"
        os.kill(pid, signal.SIGABRT)
    continuum.hub.wait()
    log = continuum.directory / "hub.log"
    wait_for("the hub's last words", lambda: "Fatal Python error: Aborted" in log.read_text(errors="replace"), 10)
    continuum.start_hub()
    test_no_file_holds_a_secret_that_does_not_have_to(scene)
    assert not [p for p in (ROOT, continuum.directory, scene.site) for p in p.glob("core*")]


def test_the_hunt_finds_what_is_there() -> None:
    """The search itself: in every form, wherever it begins."""
    scene = Scene(Continuum.__new__(Continuum))
    for what, value in CANARIES.items():
        coded = [base64.b64encode(b"p" * n + value.encode() + b"tail").decode() for n in range(5)]
        for form in (value, quote(value, safe=""), *coded):
            assert what in scene.search(f"before {form} after".encode())
    assert not scene.search(textwrap.dedent(CRASHING).encode())
