"""Two real sites: cordon, drain, taint and removal do what their names say; secrets stay where they may be."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from examples.demo.continuum import ROOT, Continuum
from examples.demo.story import Story
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    continuum = Continuum(tmp_path_factory.mktemp("continuum") / "c", isolated=True)
    continuum.directory.mkdir()
    found = Story.__new__(Story)
    found.continuum = continuum
    try:
        continuum.start_hub()
        continuum.add_sites("edge-paris", "edge-london")
        continuum.kubectl("apply", "-f", str(ROOT / "examples/shop/00-namespace.yaml"))
        continuum.kubectl("apply", "-f", str(ROOT / "examples/intents/30-residency.yaml"))
        continuum.kubectl(
            "apply", "-f", str(ROOT / "examples/shop/10-config.yaml"), "-f", str(ROOT / "examples/shop/20-store.yaml")
        )
        continuum.kubectl(
            "create", "deployment", "front", "-n", "shop", "--image=python:3", "--replicas=2", "--", "sleep", "3600"
        )
        continuum.kubectl("rollout", "status", "deployment/front", "-n", "shop", "--timeout=30s")
        continuum.kubectl("rollout", "status", "statefulset/store", "-n", "shop", "--timeout=30s")
        yield found
    finally:
        continuum.stop()


def test_a_secret_is_on_no_site_outside_its_residency_and_nowhere_in_clear(story: Story) -> None:
    wait_for("the store, in Paris: London is outside the EU", lambda: story.ready_sites("store") == ["edge-paris"], 30)
    continuum = story.continuum
    for place in (continuum.sites["edge-london"].data, continuum.data):
        found = subprocess.run(
            ["grep", "-rlaE", "change-me|Y2hhbmdlLW1l", str(place)], capture_output=True, text=True, check=False
        )
        assert found.stdout == "", f"the secret's value is in {found.stdout}"
    for log in continuum.directory.glob("*.log"):
        assert "change-me" not in log.read_text(errors="replace")


def test_a_drain_goes_where_the_plan_said(story: Story) -> None:
    here = story.ready_sites("front")[0]
    planned = json.loads(story.continuum.nemo("plan", "--drain", here, "-o", "json"))
    row = next(w for w in planned["workloads"] if w["name"] == "front")
    there = [c["name"] for c in row["after"]["clusters"]]
    assert [c["name"] for c in row["before"]["clusters"]] == [here] and there != [here]
    assert story.ready_sites("front") == [here, here], "a plan does nothing"
    story.continuum.kubectl("drain", here, "--ignore-daemonsets", "--pod-selector=app=front", "--timeout=30s")
    assert sorted(set(story.ready_sites("front"))) == there
    story.continuum.kubectl("uncordon", here)


def test_a_drained_site_is_left_make_before_break(story: Story) -> None:
    site = story.ready_sites("front")[0]
    other = next(s for s in ("edge-paris", "edge-london") if s != site)
    story.continuum.kubectl("drain", site, "--ignore-daemonsets", "--pod-selector=app=front", "--timeout=30s")
    assert story.ready_sites("front") == [other, other]
    story.continuum.kubectl("uncordon", site)
    events = story.continuum.kubectl("events", "-n", "shop", "--for", "deployment/front")
    assert "ReplacementReady" in events and "Switched" in events


def test_a_taint_moves_what_does_not_tolerate_it(story: Story) -> None:
    site = story.ready_sites("front")[0]
    story.continuum.kubectl("taint", "node", site, "maintenance=yes:NoExecute")
    wait_for("the move", lambda: len(found := story.ready_sites("front")) == 2 and site not in found, 30)
    story.continuum.kubectl("taint", "node", site, "maintenance-")


def test_a_removed_site_hands_over_stops_and_leaves_nothing(story: Story) -> None:
    continuum = story.continuum
    continuum.kubectl("delete", "deployment", "front", "-n", "shop")
    wait_for("the pods to go", lambda: not story.pods("front"), 30)
    continuum.kubectl("delete", "cluster", "edge-london", "--timeout=60s")
    assert "edge-london" not in continuum.kubectl("get", "clusters,nodes,namespaces,leases", "-A")
    log = continuum.sites["edge-london"].log
    wait_for("the agent to say so", lambda: "stops its pods and ends" in log.read_text(errors="replace"), 30)
    assert story.ready_sites("store") == ["edge-paris"]
