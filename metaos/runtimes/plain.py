"""Containers as plain processes in sessions of their own, in a private directory: no isolation. Only when asked for outright."""

from __future__ import annotations

import os
from collections.abc import Sequence

from metaos.runtimes import process, records
from metaos.runtimes.forks import Forks
from metaos.runtimes.images import python_program
from metaos.runtimes.isolation import Launch, Start, on_terminal
from metaos.runtimes.process import Identity

#: Marks every process of a plain pod, in its environment: how they are found where there is no pid namespace.
COOKIE = "NEMO_POD_UID"

_PLAIN = """record=$1; shift; "$@"; code=$?; printf '{"exit-code": %s}\\n' "$code" >>"$record" """


class Plain:
    name = "none"
    overlay = False
    separate = False
    no_card = "pods share the machine's network"

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.forks = Forks()
        self.filter = b""

    async def check(self) -> None:
        """Nothing is needed but a shell."""

    async def hold(self, hostname: str, address: str, directory: str) -> None:
        return None

    def _links(self) -> str:
        """A directory in which ``python`` and ``python3`` are this very Python."""
        place = os.path.join(self._directory, "bin")
        if not os.path.isdir(place):
            os.makedirs(place, exist_ok=True)
            for name in ("python", "python3"):
                os.symlink(python_program(), os.path.join(place, name))
        return place

    def container(self, start: Start) -> Launch:
        root = os.path.join(start.directory, "root")
        os.mkdir(root, 0o700)
        for mount in start.mounts:
            place = os.path.join(root, mount.target.lstrip("/"))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if not os.path.lexists(place):
                os.symlink(mount.source, place)
        env = dict(start.env)
        env["PATH"] = self._links() + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        env |= {
            COOKIE: start.pod,
            "NEMO_POD_ADDRESS": start.address,
            "NEMO_ROOT": root,
            "NEMO_HOSTS_FILE": start.hosts,
        }
        env |= {"HOME": root, "TMPDIR": root} | {name: env[name] for name in ("HOME", "TMPDIR") if name in env}
        argv = ["/bin/sh", "-c", _PLAIN, "nemo", records.path(start.directory), *start.argv]
        return Launch(argv, env, directory=root, forks=self.forks)

    def main(self, monitor: Identity, directory: str) -> Identity | None:
        below = process.children(monitor.pid) if monitor.alive() else []
        return process.identity(below[0]) if below else None

    def members(self, pod: str, monitor: Identity, directory: str) -> list[Identity]:
        found = {each.pid: each for each in process.session_of(monitor)}
        root = os.path.join(directory, "root")
        for each in process.everyone():
            if each.pid not in found and each.state not in "ZX":
                env = dict(process.environ(each.pid))
                if env.get(COOKIE) == pod and env.get("NEMO_ROOT") == root:
                    found[each.pid] = Identity(each.pid, each.start)
        return [found[pid] for pid in sorted(found)]

    def enter(
        self, pod: str, main: Identity, directory: str, command: Sequence[str], env: Sequence[tuple[str, str]], terminal: str
    ) -> Launch:
        argv = on_terminal(terminal, list(command)) if terminal else ["/bin/sh", "-c", 'exec "$@"', "nemo", *command]
        merged = dict(env) | dict(process.environ(main.pid))
        return Launch(argv, merged, directory=os.path.join(directory, "root"))

    def conditions(self) -> list[tuple[str, str]]:
        return [
            ("Isolation", "isolation is none, as the site file asks: containers are plain processes and see the whole machine"),
            (
                "PodNetwork",
                "pods share the machine's network: two pods cannot listen on the same port, unless each listens only at the "
                "address that NEMO_POD_ADDRESS names; Services are not reached by UDP",
            ),
            (
                "ServiceNames",
                "Service names are not resolved: /etc/hosts is the machine's; the pod's is the file that NEMO_HOSTS_FILE names",
            ),
            (
                "VolumePaths",
                "volumes are not at their paths: they are below the directory that NEMO_ROOT names, where containers start",
            ),
        ]
