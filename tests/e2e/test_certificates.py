"""A real hub and a real agent: the authority is replaced under open streams and over a hub's restart; what is withdrawn is
cut off."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

POD = """
apiVersion: v1
kind: Pod
metadata: {name: ticking}
spec:
  containers:
  - name: main
    image: python:3
    command: [sh, -c, "while true; do echo tick; sleep 0.1; done"]
"""


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("continuum") / "c", isolated=True)
    found.directory.mkdir()
    try:
        found.start_hub()
        found.add_sites("edge-paris")
        manifest = found.directory / "pod.yaml"
        manifest.write_text(POD)
        found.kubectl("apply", "-f", str(manifest))
        found.kubectl("wait", "--for=condition=Ready", "pod/ticking", "--timeout=30s")
        yield found
    finally:
        logs = [path.read_text(errors="replace") for path in (found.directory / "hub.log", found.sites["edge-paris"].log)]
        found_traceback = [text for text in logs if "Traceback" in text]
        found.stop()
    assert not found_traceback, found_traceback[0][-2000:]


class Running:
    """A kubectl that goes on until it is cut off; what it has printed lies in a file."""

    def __init__(self, continuum: Continuum, kubeconfig: Path, *arguments: str) -> None:
        self.output = continuum.directory / f"{time.monotonic_ns()}.out"
        environment = os.environ | {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(continuum.directory / "kubecache")}
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(["kubectl", *arguments], stdout=file, stderr=file, env=environment)

    def lines(self) -> int:
        return self.output.read_bytes().count(b"\n")

    def advances(self) -> None:
        before = self.lines()
        wait_for("more output", lambda: self.process.poll() is not None or self.lines() > before, 20)
        assert self.process.poll() is None, self.output.read_text()[-500:]

    def ends(self) -> float:
        """Seconds until it did; ``TimeoutExpired`` where it goes on."""
        started = time.monotonic()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - started


def authority_of(continuum: Continuum) -> str:
    return str((continuum.get("cluster", "edge-paris") or {}).get("status", {}).get("certificate", {}).get("authority"))


def ready(continuum: Continuum) -> bool:
    conditions = (continuum.get("cluster", "edge-paris") or {}).get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.mark.slow
def test_the_authority_is_replaced_under_open_streams_and_over_a_restart(continuum: Continuum) -> None:
    old = continuum.directory / "old.kubeconfig"
    old.write_text(continuum.kubeconfig.read_text())
    before = json.loads(continuum.nemo("ca", "status", "-o", "json"))
    wait_for("the site's certificate", lambda: authority_of(continuum) == before["current"]["name"], 20)
    followed = Running(continuum, old, "logs", "-f", "ticking")
    command = Running(continuum, old, "exec", "ticking", "--", "sh", "-c", "while true; do echo tock; sleep 0.1; done")
    followed.advances()
    command.advances()
    after = json.loads(continuum.nemo("ca", "rotate", "-o", "json"))
    assert after["current"]["name"] != before["current"]["name"] and after["older"] == [before["current"]]
    wait_for("the site's new certificate", lambda: authority_of(continuum) == after["current"]["name"], 30)
    followed.advances()
    command.advances()
    new = Running(continuum, continuum.kubeconfig, "logs", "-f", "ticking")
    new.advances()
    # The hub dies between the two steps; both authorities still count, and the site comes back with its new certificate.
    assert continuum.hub is not None
    os.kill(continuum.hub.pid, signal.SIGKILL)
    continuum.hub.wait()
    continuum.start_hub()
    for each in (followed, command, new):
        each.ends()
    wait_for("the site to be back", lambda: continuum.kubectl("logs", "ticking", "--tail=1", check=False), 30)
    followed = Running(continuum, old, "logs", "-f", "ticking")
    new = Running(continuum, continuum.kubeconfig, "logs", "-f", "ticking")
    followed.advances()
    new.advances()
    retired = json.loads(continuum.nemo("ca", "retire", "-o", "json"))
    assert retired["older"] == []
    assert followed.ends() < 5, "it was opened with a certificate of the retired authority"
    new.advances()
    new.process.kill()
    new.process.wait()
    refused = Running(continuum, old, "get", "pods")
    refused.ends()
    assert refused.process.returncode != 0
    wait_for("heartbeats under the new authority", lambda: ready(continuum), 20)
    assert "ticking" in continuum.kubectl("get", "pods")


def test_a_withdrawn_user_is_cut_off_and_may_come_back(continuum: Continuum) -> None:
    continuum.kubectl("create", "clusterrolebinding", "ann-views", "--clusterrole=view", "--group=readers")
    ann = continuum.directory / "ann.kubeconfig"
    ann.write_text(continuum.nemo("kubeconfig", "--user", "ann", "--group", "readers", "--ttl", "1h"))
    assert "CERTIFICATE REQUEST" not in ann.read_text()
    watch, log = (Running(continuum, ann, *words) for words in (("get", "pods", "-w"), ("logs", "-f", "ticking")))
    watch.advances()
    log.advances()
    secrets = Running(continuum, ann, "get", "secrets")
    secrets.ends()
    assert secrets.process.returncode != 0, "a user has the rights that were bound, and no more"
    continuum.nemo("revoke", "ann")
    assert watch.ends() < 3 and log.ends() < 3
    refused = Running(continuum, ann, "get", "pods")
    refused.ends()
    assert refused.process.returncode != 0
    ann.write_text(continuum.nemo("kubeconfig", "--user", "ann", "--group", "readers"))
    again = Running(continuum, ann, "get", "pods")
    again.ends()
    assert again.process.returncode == 0, again.output.read_text()


@pytest.mark.parametrize(
    "asked",
    [("--user", "system:cluster:edge-paris"), ("--user", "eve", "--group", "system:masters"), ("--user", "eve", "--ttl", "1s")],
)
def test_nobody_gets_a_name_of_the_system(continuum: Continuum, asked: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"may not begin with 'system:'|must be from 10m to 365d"):
        continuum.nemo("kubeconfig", *asked)


def test_the_administrators_certificate_is_made_anew_when_it_is_withdrawn(continuum: Continuum) -> None:
    stolen = continuum.directory / "stolen.kubeconfig"
    stolen.write_text(continuum.kubeconfig.read_text())
    continuum.nemo("revoke", "admin")
    wait_for("another kubeconfig", lambda: continuum.kubeconfig.read_text() != stolen.read_text(), 20)
    assert "ticking" in continuum.kubectl("get", "pods")
    thief = Running(continuum, stolen, "get", "pods")
    thief.ends()
    assert thief.process.returncode != 0


def test_a_withdrawn_site_is_cut_off_and_stops(continuum: Continuum) -> None:
    log = Running(continuum, continuum.kubeconfig, "logs", "-f", "ticking")
    log.advances()
    continuum.nemo("revoke", "--site", "edge-paris")
    assert log.ends() < 3, "the tunnel went, and with it what it carried"
    said = continuum.sites["edge-paris"].log
    wait_for("the agent to say so", lambda: "stops its pods and ends" in said.read_text(errors="replace"), 30)
