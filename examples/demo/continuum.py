"""The processes of the demonstration, with the example sites, and the real kubectl to ask the hub."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from metaos.twin.processes import Processes, ProcessesFailed, wait_for

ROOT = Path(__file__).resolve().parents[2]


class Continuum(Processes):
    """See the module."""

    def add_sites(self, *names: str) -> None:
        """Starts example sites by name, and waits until every site so far is ready."""
        for name in names:
            self.add_site(ROOT / "examples/sites" / f"{name}.yaml")
        wait_for("all sites to be known", lambda: len((self.get("clusters") or {}).get("items") or ()) == len(self.sites))
        self.kubectl("wait", "--for=condition=Ready", "clusters", "--all", "--timeout=60s")

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """Runs the real kubectl; its output."""
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubecache")}
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=120, env=environment)
        if check and done.returncode:
            raise ProcessesFailed(f"kubectl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """``kubectl get … -o json``, decoded; ``None`` where it fails."""
        text = self.kubectl("get", *arguments, "-o", "json", check=False)
        return json.loads(text) if text else None
