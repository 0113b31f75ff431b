"""A network that can be broken: a hub and sites in network namespaces of their own, and a router between them that drops,
delays and resets what passes. Real processes, real packets; nothing leaves these namespaces. Needs root and iptables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HUB, PORT, RELAY_PORT = "10.99.0.1", 6443, 7443
LEASE_SECONDS, HEARTBEAT_SECONDS = 5.0, 1.0

#: Relays to the hub, and holds everything back for a while each way. Run in the router's namespace.
RELAY = """
import asyncio, sys
host, port, listen, delay = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
async def pump(reader, writer):
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue(1000)
    async def later():
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(0, due - loop.time()))
            if not data:
                return writer.close()
            writer.write(data); await writer.drain()
    task = asyncio.create_task(later())
    try:
        while data := await reader.read(65536):
            await waiting.put((loop.time() + delay, data))
    except OSError:
        pass
    await waiting.put((loop.time() + delay, b""))
    await asyncio.gather(task, return_exceptions=True)
async def serve(reader, writer):
    try:
        far = await asyncio.open_connection(host, port)
    except OSError:
        return writer.close()
    await asyncio.gather(pump(reader, far[1]), pump(far[0], writer))
async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", listen) as server:
        print("ready", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""


def missing() -> str:
    """Why this cannot run here, or nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces and break links between them"
    for program in ("ip", "iptables", "nsenter", "unshare", "kubectl"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{program} is not on this machine"
    probe = f"nemo-probe-{os.getpid()}"
    try:
        run("ip", "netns", "add", probe)
        for rule in (
            ("-m", "statistic", "--mode", "random", "--probability", "0.1", "-j", "DROP"),
            ("-p", "tcp", "-j", "ACCEPT"),
        ):
            run(*inside(probe), "iptables", "-A", "FORWARD", *rule)
        run(*inside(probe), "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1")
    except subprocess.CalledProcessError as error:
        return f"the kernel cannot do it: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return ""


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def inside(space: str) -> list[str]:
    # Not "ip netns exec", which hides the cgroups.
    return ["nsenter", f"--net=/var/run/netns/{space}"]


def until(what: str, test: Callable[[], Any], seconds: float) -> float:
    """How long it took until ``test`` held. Fails after the deadline."""
    began = time.monotonic()
    while not test():
        assert time.monotonic() - began < seconds, f"waited {seconds:g} s in vain for: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass
class Site:
    name: str
    address: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    rules: list[tuple[str, ...]] = field(default_factory=list)


class Network:
    """``start``, ``add``; then ``break_`` a site's link by iptables rules, and ``mend`` it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = f"nemo{os.getpid()}"
        self.router, self.space = f"{self.key}-router", f"{self.key}-hub"
        self.sites: dict[str, Site] = {}
        self.kubeconfig = folder / "hub" / "admin.kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._spaces: list[str] = []

    # -- wires ----------------------------------------------------------------------------------------------

    def _space(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._spaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _wire(self, space: str, number: int, address: str) -> None:
        """From the router to a namespace."""
        gateway = address.rpartition(".")[0] + ".254"
        run("ip", "link", "add", f"r{number}", "netns", self.router, "type", "veth", "peer", "name", "eth0", "netns", space)
        for name, device, own in ((self.router, f"r{number}", gateway), (space, "eth0", address)):
            run("ip", "-n", name, "address", "add", f"{own}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
        run("ip", "-n", space, "route", "add", "default", "via", gateway)

    def start(self) -> None:
        self._space(self.router)
        run(*inside(self.router), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._space(self.space)
        self._wire(self.space, 0, HUB)
        arguments = ["up", "--no-local", "--data", str(self.folder / "hub"), "--listen", f"{HUB}:{PORT}"]
        self._spawn(self.space, self.folder / "hub.log", ["-m", "metaos", *arguments, "--lease-duration", str(LEASE_SECONDS)])
        until("the hub", lambda: self.kubeconfig.exists() and self.kubectl("get", "--raw", "/readyz", check=False) == "ok", 30)

    def add(self, name: str) -> Site:
        number = len(self.sites) + 1
        site = Site(name, f"10.99.{number}.1", self.folder / name, self.folder / f"{name}.log")
        space = f"{self.key}-{name}"
        self._space(space)
        self._wire(space, number, site.address)
        site.data.mkdir(mode=0o700)
        token, file = self.folder / f"{name}.token", self.folder / f"{name}.yaml"
        token.touch(0o600)
        command = [sys.executable, "-m", "metaos", "join-token", name, "--kubeconfig", str(self.kubeconfig)]
        token.write_text(run(*inside(self.space), *command))
        spec = {
            "runtime": "sandbox",
            "tier": "edge",
            "location": {"region": "europe-west9", "country": "FR"},
            "jurisdictions": ["EU"],
        }
        file.write_text(
            yaml.safe_dump({"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": name}, "spec": spec})
        )
        agent = ["-m", "metaos", "agent", "--hub", f"https://{HUB}:{PORT}", "--data", str(site.data), "--site", str(file)]
        agent += ["--token-file", str(token), "--heartbeat", str(HEARTBEAT_SECONDS)]
        # A process-id namespace of its own, so that its pods end with it.
        site.process = self._spawn(space, site.log, agent, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self.sites[name] = site
        return site

    def _spawn(self, space: str, log: Path, arguments: list[str], *around: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            command = [*inside(space), *around, sys.executable, *arguments]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=ROOT
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        for space in self._spaces:
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    # -- faults ---------------------------------------------------------------------------------------------

    def break_(self, site: str, *rule: str, up: bool = True, down: bool = True) -> None:
        """A rule for what passes from the site to the hub (``up``) and back (``down``)."""
        found = self.sites[site]
        for wanted, direction in ((up, "-s"), (down, "-d")):
            if wanted:
                whole = ("FORWARD", direction, found.address, *rule)
                self._iptables("-I", *whole)
                found.rules.append(whole)

    def lose(self, site: str, share: float) -> None:
        """At random, of all packets that the router takes or sends, also on their way to its own relay."""
        for chain, direction in (("INPUT", "-s"), ("OUTPUT", "-d"), ("FORWARD", "-s"), ("FORWARD", "-d")):
            whole = (chain, direction, self.sites[site].address, "-m", "statistic", "--mode", "random")
            whole += ("--probability", str(share), "-j", "DROP")
            self._iptables("-I", *whole)
            self.sites[site].rules.append(whole)

    def mend(self, site: str) -> None:
        found = self.sites[site]
        while found.rules:
            self._iptables("-D", *found.rules.pop())

    def delay(self, site: str, seconds: float) -> None:
        """For connections from now on."""
        log = self.folder / "relay.log"
        self._spawn(self.router, log, ["-c", RELAY, HUB, str(PORT), str(RELAY_PORT), str(seconds)])
        until("the relay", lambda: "ready" in log.read_text(), 10)
        whole = ("PREROUTING", "-t", "nat", "-s", self.sites[site].address, "-p", "tcp", "--dport", str(PORT))
        whole += ("-j", "REDIRECT", "--to-ports", str(RELAY_PORT))
        self._iptables("-I", *whole)
        self.sites[site].rules.append(whole)

    def _iptables(self, action: str, *rule: str) -> None:
        run(*inside(self.router), "iptables", "-w", action, *rule)

    # -- looking --------------------------------------------------------------------------------------------

    def _kubectl(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.folder / "kubecache")}
        return [*inside(self.space), "kubectl", *arguments], environment

    def kubectl(self, *arguments: str, check: bool = True, seconds: float = 60) -> str:
        command, environment = self._kubectl(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def stream(self, *arguments: str) -> subprocess.Popen[str]:
        command, environment = self._kubectl(*arguments)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def condition(self, site: str) -> str:
        """``True``, ``False`` or ``Unknown``: whether the hub takes the site for ready."""
        found = self.get("cluster", site).get("status", {}).get("conditions", [])
        return next((c["status"] for c in found if c["type"] == "Ready"), "")
