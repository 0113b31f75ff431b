"""Clusters that the hub reaches by itself: what it is given of them, and the way from adding to removing one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.demo.continuum import Continuum, wait_for
from metaos.cli.clusters import portable
from metaos.members.kubeconfig import Access, read


def test_what_the_hub_keeps_of_a_kubeconfig_needs_no_file_and_says_the_same() -> None:
    access = Access("https://10.0.0.1:6443", ca="CA", certificate="CERT", key="KEY", server_name="kube")
    for each in (access, Access("https://h", insecure=True, token="t"), Access("https://h", oidc={"id-token": "x"})):
        assert read(yaml.safe_load(yaml.safe_dump(portable(each, "madrid"))), "", Path("/nowhere")) == each


@pytest.mark.parametrize("access", [Access("https://h", exec={"command": "login"}), Access("https://h", token_file="/tmp/t")])
def test_the_hub_runs_no_program_and_reads_no_file_for_a_kubeconfig(access: Access) -> None:
    with pytest.raises(ValueError, match="use a token or a certificate, or run the agent"):
        portable(access, "madrid")


def add(above: Continuum, below: Continuum) -> str:
    """What it says, on whichever channel."""
    command = [sys.executable, "-m", "metaos", "cluster", "add", "kube", "--kubeconfig", str(below.kubeconfig)]
    command += ["--hub-kubeconfig", str(above.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def ready(hub: Continuum) -> bool:
    found = hub.get("cluster", "kube") or {}
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found.get("status", {}).get("conditions") or ())


@pytest.mark.slow
@pytest.mark.system
def test_an_added_cluster_is_a_site_also_after_the_hub_was_killed_until_it_is_removed(tmp_path: Path) -> None:
    """The cluster is another hub: that is a Kubernetes API, too."""
    (tmp_path / "below").mkdir()
    (tmp_path / "above").mkdir()
    below, above = Continuum(tmp_path / "below", isolated=False), Continuum(tmp_path / "above", isolated=False, lease_seconds=25)
    try:
        below.start_hub()
        above.start_hub()
        assert "is being joined" in add(above, below)
        wait_for("the cluster to be ready", lambda: ready(above), 40)
        secret = above.get("secret", "cluster.kube", "-n", "nemo-system")
        assert secret["type"] == "meta-os.eu/cluster" and "kubeconfig" in secret["data"]
        assert "there is a site 'kube' already" in add(above, below)
        above.kill_hub()
        log = tmp_path / "above/hub.log"
        begun = len(log.read_text())
        above.start_hub()
        wait_for(
            "the agent to run again", lambda: "site kube is connected" in (tmp_path / "above/hub.log").read_text()[begun:], 40
        )
        assert "hands over its work" in above.nemo("cluster", "remove", "kube")
        wait_for("the cluster to be gone", lambda: above.get("cluster", "kube") is None, 60)
        wait_for("its kubeconfig to be forgotten", lambda: above.get("secret", "cluster.kube", "-n", "nemo-system") is None, 60)
        assert not (above.data / "hosted" / "kube").exists()
        assert below.get("configmap", "nemo-member", "-n", "nemo-system") is None, "another hub may have it"
    finally:
        above.stop()
        below.stop()
