"""What is given to clusters' owners to run the agent inside: one set of rights, in the chart, the manifest and the guide."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy/member"
VALUES = DEPLOY / "example-values.yaml"


def manifest() -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((DEPLOY / "manifest.yaml").read_text()) if found]


def one(kind: str) -> dict[str, Any]:
    return next(found for found in manifest() if found["kind"] == kind)


def helm() -> str:
    """As the environment names it (HELM), in the path, or as the tests of the ecosystem install it."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    try:
        return str(importlib.import_module("tests.ecosystem.tools").installed().helm(3))
    except Exception as error:
        pytest.skip(f"NOT RUN: there is no helm ({error}): install it, or name it with HELM")


def test_the_guide_names_the_rights_that_the_manifest_gives() -> None:
    guide = (ROOT / "docs/how-to/kubernetes-members.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    role = next(found for block in blocks for found in yaml.safe_load_all(block) if found.get("kind") == "ClusterRole")
    given = one("ClusterRole")
    assert role["metadata"]["name"] == given["metadata"]["name"] and role["rules"] == given["rules"]


def test_the_agent_runs_without_privileges_and_one_at_a_time() -> None:
    agent = one("StatefulSet")["spec"]
    pod = agent["template"]["spec"]
    assert agent["replicas"] == 1 and pod["securityContext"]["runAsNonRoot"]
    container = pod["containers"][0]["securityContext"]
    assert container == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert yaml.safe_load(one("ConfigMap")["data"]["site.yaml"])["kind"] == "Cluster"


@pytest.mark.slow
def test_the_manifest_is_what_the_chart_makes_and_a_missing_value_is_named() -> None:
    program, chart = helm(), str(DEPLOY / "chart")
    subprocess.run([program, "lint", "--strict", chart, "-f", str(VALUES)], check=True, capture_output=True, timeout=60)
    made = subprocess.run(
        [program, "template", "nemo", chart, "-n", "nemo-agent", "-f", str(VALUES)],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    rendered = [found for found in yaml.safe_load_all(made) if found]
    assert rendered == [found for found in manifest() if found["kind"] != "Namespace"]
    for value in ("hub", "tokenSecret", "site.name", "image.repository", "image.tag"):
        arguments = [program, "template", "nemo", chart, "-f", str(VALUES), "--set", f"{value}="]
        failed = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert failed.returncode != 0 and value in failed.stderr, f"{value}: {failed.stderr}"
