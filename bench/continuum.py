"""The whole way: applied → running; a site killed → service restored; requests lost in a migration."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from bench.results import Figure, figure, percentile, write
from examples.demo.continuum import ROOT, Continuum
from examples.demo.load import Load, StableUrl
from examples.demo.story import Story
from metaos.resources.meta import is_true
from metaos.twin.processes import wait_for

DEPLOYMENTS = 20
#: Of each measurement.
ROUNDS = 3


def manifest(name: str, replicas: int = 1) -> dict[str, object]:
    container = {"name": "main", "image": "python:3", "command": ["sleep", "3600"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    }


def ready(continuum: Continuum, name: str, replicas: int = 1) -> bool:
    found = continuum.get("deployment", name) or {}
    return int((found.get("status") or {}).get("availableReplicas") or 0) >= replicas


def applied_to_running(url: StableUrl, turn: int) -> list[float]:
    """Milliseconds from the POST of a Deployment until its status says available, one at a time, asked every 2 ms."""
    path = "/apis/apps/v1/namespaces/default/deployments"
    found = []
    for number in range(DEPLOYMENTS):
        name = f"quick-{turn}-{number}"
        started = time.monotonic()
        url.call(path, method="POST", body=json.dumps(manifest(name)).encode())
        while True:
            status = json.loads(url.call(f"{path}/{name}").body).get("status") or {}
            if status.get("availableReplicas"):
                break
            if time.monotonic() - started > 20:
                raise TimeoutError(f"{name} did not become available within 20 s")
            time.sleep(0.002)
        found.append((time.monotonic() - started) * 1000)
        url.call(f"{path}/{name}", method="DELETE")
    return found


def process_start() -> list[float]:
    """The floor: a plain process of the same command, milliseconds until it runs."""
    found = []
    for _ in range(DEPLOYMENTS):
        started = time.monotonic()
        process = subprocess.Popen(["sleep", "3600"])
        found.append((time.monotonic() - started) * 1000)
        process.kill()
        process.wait()
    return found


def main() -> None:
    continuum = Continuum(Path(tempfile.mkdtemp(prefix="nemo-bench-")), isolated=True)
    try:
        continuum.start_hub()
        continuum.add_sites("edge-paris", "edge-london")
        story = Story.__new__(Story)
        story.continuum = continuum
        url = StableUrl(continuum.kubeconfig)
        starts = [applied_to_running(url, turn) for turn in range(ROUNDS)]
        bare = [process_start() for _ in range(ROUNDS)]
        figures = [
            figure(
                f"continuum: applied to available, p{share:.0%}".rstrip("%"),
                [percentile(each, share) for each in starts],
                "ms",
                baseline=[percentile(each, share) for each in bare],
            )
            for share in (0.5, 0.99)
        ]
        continuum.kubectl("apply", "-f", str(ROOT / "examples/shop/00-namespace.yaml"))
        continuum.kubectl("apply", "-f", str(ROOT / "examples/shop"))
        wait_for("the front", lambda: len(story.ready_sites("web")) == 2, 60)
        path = "/api/v1/namespaces/shop/services/web/proxy/"
        figures += migration(continuum, story, url, path)
        figures.append(failover(continuum, story, url, path))
        write("continuum", figures)
    finally:
        continuum.stop()


def migration(continuum: Continuum, story: Story, url: StableUrl, path: str) -> list[Figure]:
    """Requests lost while the front moves to the other site and back, because an operator says so."""
    lost, asked = [], []
    with Load(url, path, 0.01) as quiet:  # the baseline: nothing moves
        wait_for("requests", lambda: len(quiet.answers) > 100, 20)
    for site in ("edge-london", "edge-paris") * 2:
        policy = {
            "apiVersion": "meta-os.eu/v1alpha1",
            "kind": "PlacementPolicy",
            "metadata": {"name": "where", "namespace": "shop"},
            "spec": {"workloads": {"refs": [{"kind": "Deployment", "name": "web"}]}, "clusters": {"allowed": [site]}},
        }
        file = continuum.directory / "policy.json"
        file.write_text(json.dumps(policy))
        with Load(url, path, 0.01) as load:
            wait_for("requests", lambda load=load: len(load.answers) > 20, 20)  # type: ignore[misc]
            continuum.kubectl("apply", "-f", str(file))
            wait_for("the move", lambda site=site: story.ready_sites("web") == [site, site], 60)  # type: ignore[misc]
            wait_for("the old pods to go", lambda: len(story.pods("web")) == 2, 60)
        lost.append(float(len(load.failed)))
        asked.append(float(len(load.answers)))
    return [
        figure("continuum: requests lost in a migration", lost, "", baseline=[float(len(quiet.failed))], aim=0),
        figure("continuum: requests sent during a migration", asked, "", baseline=[float(len(quiet.answers))]),
    ]


def failover(continuum: Continuum, story: Story, url: StableUrl, path: str) -> Figure:
    """Seconds from the SIGKILL of the front's site until requests succeed again (lease of 5 s), beside those until the hub
    counts the site as lost."""
    continuum.kubectl("delete", "placementpolicy", "where", "-n", "shop")
    restored, missed = [], []
    for _ in range(ROUNDS):
        victim = story.ready_sites("web")[0]
        until_good, until_missed = _kill(continuum, story, url, path, victim)
        restored.append(until_good)
        missed.append(until_missed)
        continuum.start_site(continuum.sites[victim])
        continuum.kubectl("wait", "--for=condition=Ready", f"cluster/{victim}", "--timeout=60s")
        wait_for("its leftovers to be gone", lambda: story.as_decided("web", 2), 60)
    return figure("continuum: SIGKILL of a site to service restored", restored, "s", baseline=missed)


def _kill(continuum: Continuum, story: Story, url: StableUrl, path: str, victim: str) -> tuple[float, float]:
    cluster = f"/apis/meta-os.eu/v1alpha1/clusters/{victim}"
    with Load(url, path, 0.02) as load:
        wait_for("requests", lambda: len(load.answers) > 20, 20)
        killed = time.monotonic()
        continuum.kill_site(victim)
        wait_for("the hub to miss it", lambda: not is_true(json.loads(url.call(cluster).body), "Ready"), 60, 0.02)
        missed = time.monotonic() - killed
        wait_for("the replacement", lambda: len([s for s in story.ready_sites("web") if s != victim]) == 2, 60)
        wait_for("requests to succeed", lambda: load.good_since(killed + 3), 30)
        good = [
            a.start
            for a in load.answers
            if a.start > killed and a.status == 200 and not any(b.start > a.start for b in load.failed)
        ]
    return min(good) - killed, missed


if __name__ == "__main__":
    main()
