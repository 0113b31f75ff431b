"""What the sandbox runtime knows of its pods, and where it stands on disk, so that a new agent process finds all again.

``pods/UID/pod.json``: the pod and its holder; ``pods/UID/hosts``: its ``/etc/hosts``;
``pods/UID/containers/NAME/SEQUENCE/``: one start of a container (``record``, ``log``, ``end.json``).
Nothing secret is written: environments stay in memory and in the kernel.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metaos.plugins.points import ContainerState, ContainerUsage
from metaos.runtimes import records
from metaos.runtimes.forks import Launcher
from metaos.runtimes.netns import Sockets
from metaos.runtimes.process import Identity, Watch

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")


def checked(name: str, what: str) -> str:
    """The name, if it can be one of a directory. Raises ``ValueError``."""
    if not _NAME.match(name) or ".." in name:
        raise ValueError(f"{what} {name!r} must consist of letters, digits, '-', '_' and '.'")
    return name


@dataclass(frozen=True, slots=True)
class End:
    exit_code: int
    finish_time: float
    reason: str
    message: str = ""
    #: CPU seconds that it used from its start to its end.
    cpu: float = 0.0


@dataclass(slots=True)
class Container:
    """One start of a container."""

    name: str
    directory: str
    start_time: float
    attempt: int
    #: Name in the cgroup hierarchy.
    group: str
    env: tuple[tuple[str, str], ...] = ()
    monitor: Identity | None = None
    watch: Watch | None = None
    end: End | None = None
    #: What was asked of its input, and the process that keeps it.
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    runtime_class: str = ""
    console: Watch | None = None
    #: CPU seconds since its start, as of the last measurement.
    cpu: float = 0.0
    #: What the start before this one used.
    before: ContainerUsage | None = None
    #: What runs it.
    runtime: str = "sandbox"

    def id(self, uid: str) -> str:
        return f"{self.runtime}://{uid}/{self.name}/{os.path.basename(self.directory)}"

    def usage(self, uid: str, memory: float = 0.0) -> ContainerUsage:
        return ContainerUsage(self.name, self.id(uid), self.cpu, memory, self.start_time, self.end is None)

    def state(self, uid: str) -> ContainerState:
        end = self.end
        return ContainerState(
            name=self.name,
            id=self.id(uid),
            running=end is None,
            start_time=self.start_time,
            exit_code=None if end is None else end.exit_code,
            finish_time=None if end is None else end.finish_time,
            reason="" if end is None else end.reason,
            message="" if end is None else end.message,
        )

    def record(self, image: str, working_dir: str, cgroups: Sequence[str]) -> None:
        records.begin(
            self.directory,
            {
                "name": self.name,
                "attempt": self.attempt,
                "startTime": self.start_time,
                "image": image,
                "workingDir": working_dir,
                "cgroups": list(cgroups),
                "input": [self.stdin, self.stdin_once, self.tty],
                "class": self.runtime_class,
            },
        )

    def finish(self, end: End) -> None:
        self.end, self.cpu = end, end.cpu
        write_json(
            os.path.join(self.directory, "end.json"),
            {"exitCode": end.exit_code, "finishTime": end.finish_time, "reason": end.reason, "message": end.message}
            | {"cpuSeconds": end.cpu},
        )

    @classmethod
    def load(cls, name: str, directory: str) -> Container | None:
        """As recorded; ``None`` if it was never started."""
        known = records.read(directory)
        monitor = Identity(*known["monitor"]) if known.get("monitor") else None
        if "name" not in known or (monitor is None and not os.path.exists(os.path.join(directory, "end.json"))):
            return None
        found = cls(
            name, directory, known["startTime"], known["attempt"], f"{name}-{os.path.basename(directory)}", monitor=monitor
        )
        found.stdin, found.stdin_once, found.tty = known.get("input") or (False, False, False)
        found.runtime_class = str(known.get("class") or "")
        end = read_json(os.path.join(directory, "end.json"))
        if end is not None:
            found.cpu = float(end.get("cpuSeconds") or 0.0)
            found.end = End(end["exitCode"], end["finishTime"], end["reason"], end["message"], found.cpu)
        return found


@dataclass(slots=True)
class Pod:
    """A pod's sandbox and the latest start of each of its containers."""

    uid: str
    directory: str
    hostname: str
    hosts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    #: Of its network card, or, where pods share the machine's network, the loopback address that stands for it; or empty.
    address: str = ""
    boot: str = ""
    holder: Identity | None = None
    watch: Watch | None = None
    sockets: Sockets | None = None
    #: Its holder, for as long as that starts containers.
    launcher: Launcher | None = None
    containers: dict[str, Container] = field(default_factory=dict)
    stopping: bool = False

    @property
    def hosts_file(self) -> str:
        return os.path.join(self.directory, "hosts")

    def record(self) -> None:
        holder = self.holder
        write_json(
            os.path.join(self.directory, "pod.json"),
            {
                "uid": self.uid,
                "hostname": self.hostname,
                "address": self.address,
                "boot": self.boot,
                "holder": None if holder is None else [holder.pid, holder.start],
            },
        )

    @classmethod
    def load(cls, directory: str, boot: str) -> Pod | None:
        """As recorded; the holder only if it can still be that of this boot."""
        known = read_json(os.path.join(directory, "pod.json"))
        if known is None:
            return None
        pod = cls(known["uid"], directory, known["hostname"], address=known.get("address", ""), boot=known["boot"])
        if known["holder"] is not None and known["boot"] == boot:
            pod.holder = Identity(*known["holder"])
        for name in entries(os.path.join(directory, "containers")):
            pod.load_container(name)
        return pod

    def load_container(self, name: str) -> None:
        """Its latest start, as recorded; none where it was never started."""
        self.containers.pop(name, None)
        place = os.path.join(self.directory, "containers", name)
        for sequence in sorted(entries(place), key=int, reverse=True):
            found = Container.load(name, os.path.join(place, sequence))
            if found is not None:
                self.containers[name] = found
                return

    def write_hosts(self) -> None:
        """In place, as containers have the file itself mounted."""
        own = f"{self.address or '127.0.0.1'}\t{self.hostname}"
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", own]
        lines += [f"{address}\t{' '.join(names)}" for address, names in self.hosts]
        data = "".join(line + "\n" for line in lines).encode()
        fd = os.open(self.hosts_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def write_json(path: str, document: Any) -> None:
    """Whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(document, file)
    os.rename(path + ".new", path)


def read_json(path: str) -> Any:
    """``None`` where the file is missing or, after a crash of the machine, damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
