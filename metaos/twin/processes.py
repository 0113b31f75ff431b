"""A hub and its sites as real processes on this machine: what demonstrations, tests and calibration run on.

Where the kernel permits, every site has a process-id namespace of its own: killing its first process is like pulling the
plug, everything on the site dies at once. A small shell loop stands for the machine's init system and starts the
agent again when it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from metaos.http import unverified_context
from metaos.messaging.embedded import free_port as free_port
from metaos.runtimes.cgroups import forget
from metaos.twin.link import Link

#: Where this very program is, for its own processes.
HERE = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 5.0
HEARTBEAT_SECONDS = 1.0
DRAIN_SECONDS = 2.0


class ProcessesFailed(Exception):
    """What processes were to do did not come about. The message says what, with what they logged."""


@dataclass
class Site:
    """One site: its processes, link and data."""

    name: str
    file: Path
    data: Path
    link: Link
    #: Further ones of its agent.
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)


def wait_for(what: str, test: Callable[[], Any], seconds: float = 60.0, every: float = 0.2) -> Any:
    """The first truthy answer of ``test``; ``ProcessesFailed`` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        if found := test():
            return found
        if time.monotonic() > deadline:
            raise ProcessesFailed(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(every)


def namespaces_work() -> bool:
    """Whether this user may make process-id namespaces (with a user namespace where needed)."""
    try:
        tried = subprocess.run([*_unshare(), "true"], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    return ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc"]


class Processes:
    """A hub and its sites below one directory, which goes at the end together with every process."""

    def __init__(
        self,
        directory: Path,
        *,
        isolated: bool,
        lease_seconds: float = LEASE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
        metering_seconds: float | None = None,
    ) -> None:
        self.directory = directory
        self.isolated = isolated
        self.lease_seconds, self.heartbeat_seconds, self.drain_seconds = lease_seconds, heartbeat_seconds, drain_seconds
        self.metering_seconds = metering_seconds
        self.machines = namespaces_work()
        self.port = free_port()
        self.hub: subprocess.Popen[bytes] | None = None
        self.sites: dict[str, Site] = {}
        self.data = directory / "hub"
        self.kubeconfig = self.data / "admin.kubeconfig"
        self._logs: list[Any] = []

    # -- hub ------------------------------------------------------------------------------------------------

    def start_hub(self, *arguments: str) -> None:
        hub = [sys.executable, "-m", "metaos", "up", "--no-local", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}"]
        hub += ["--lease-duration", str(self.lease_seconds), "--drain", str(self.drain_seconds), *arguments]
        self.hub = self._spawn(self.directory / "hub.log", hub)
        wait_for("the hub to be ready", self._hub_ready, 30, 0.05)

    def _hub_ready(self) -> bool:
        if self.hub is not None and self.hub.poll() is not None:
            raise ProcessesFailed(f"the hub ended with {self.hub.returncode}:\n{self.tail(self.directory / 'hub.log')}")
        if not self.kubeconfig.exists():
            return False
        # Whether it answers; who it is, everyone else checks.
        url = f"https://127.0.0.1:{self.port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=5, context=unverified_context()) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill_hub(self) -> None:
        """SIGKILL: nothing in memory survives."""
        assert self.hub is not None
        self.hub.kill()
        self.hub.wait()

    # -- sites ----------------------------------------------------------------------------------------------

    def add_site(self, file: Path, *arguments: str) -> Site:
        """Starts a site from its file, with a join token of its own; its agent with these arguments besides."""
        manifest = yaml.safe_load(file.read_text())
        name = manifest["metadata"]["name"]
        data = self.directory / name
        data.mkdir(mode=0o700)
        if not self.isolated:
            manifest["spec"]["isolation"] = "none"
        own = self.directory / f"{name}.yaml"
        own.write_text(yaml.safe_dump(manifest))
        token = self.directory / f"{name}.token"
        token.touch(0o600)
        token.write_text(self.nemo("join-token", name))
        site = Site(name, own, data, Link(("127.0.0.1", self.port)), log=self.directory / f"{name}.log")
        site.arguments = arguments
        self.sites[name] = site
        self.start_site(site)
        return site

    def start_site(self, site: Site) -> None:
        """Boots the machine: its init starts the agent."""
        agent = [
            sys.executable,
            "-m",
            "metaos",
            "agent",
            "--hub",
            f"https://127.0.0.1:{site.link.port}",
            "--data",
            str(site.data),
        ]
        agent += ["--site", str(site.file), "--token-file", str(self.directory / f"{site.name}.token")]
        agent += ["--heartbeat", str(self.heartbeat_seconds), *site.arguments]
        agent += [] if self.metering_seconds is None else ["--metering-period", f"{self.metering_seconds:g}"]
        init = ["sh", "-c", f'while [ -d "{site.data}" ]; do "$@"; sleep 0.3; done', "init", *agent]
        site.process = self._spawn(site.log, [*_unshare(), *init] if self.machines else init)

    def agent_pid(self, site: Site) -> int:
        """The agent's process, below the site's init."""
        wanted = str(site.data).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    arguments = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"agent" in arguments and wanted in arguments and arguments[0].endswith(Path(sys.executable).name.encode()):
                    return int(entry.name)
        raise ProcessesFailed(f"no agent process of {site.name} found")

    def kill_site(self, name: str) -> None:
        """Pulls the plug: SIGKILL to everything on the site."""
        site = self.sites[name]
        assert site.process is not None
        if self.machines:
            os.kill(site.process.pid, signal.SIGKILL)
        else:
            os.killpg(site.process.pid, signal.SIGKILL)
            self._kill_leftovers(site)
        site.process.wait()
        site.process = None

    def _kill_leftovers(self, site: Site) -> None:
        """Without namespaces of their own, a site's processes are found by its data directory."""
        mark = str(site.data).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    if mark in known or os.readlink(entry / "cwd").startswith(str(site.data)):
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    continue

    def stop(self) -> None:
        """Ends every process and removes every file."""
        for site in self.sites.values():
            site.link.close()
            if site.process is not None:
                self.kill_site(site.name)
            runtime = os.path.realpath(site.data / "runtime")
            with contextlib.suppress(ProcessesFailed):  # an empty cgroup more does no harm
                wait_for(f"the cgroups of {site.name} to be empty", partial(forget, runtime), 5, 0.05)
        if self.hub is not None and self.hub.poll() is None:
            self.hub.terminate()
            try:
                self.hub.wait(10)
            except subprocess.TimeoutExpired:
                self.hub.kill()
                self.hub.wait()
        for log in self._logs:
            log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- commands -------------------------------------------------------------------------------------------

    def nemo(self, *arguments: str) -> str:
        """Runs the nemo command; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "metaos", *arguments, "--kubeconfig", str(self.kubeconfig)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=HERE,
        )
        if done.returncode:
            raise ProcessesFailed(f"nemo {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    def _spawn(self, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
        output = log.open("ab")
        self._logs.append(output)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=HERE)

    @staticmethod
    def tail(log: Path, lines: int = 15) -> str:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
