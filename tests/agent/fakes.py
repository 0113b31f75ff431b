"""A runtime whose pods' networks are real sockets on this machine's loopback, and pods that do as they are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from metaos.agent.site import Pods
from metaos.plugins.points import ContainerUsage, PodNetwork, Runtime
from metaos.resources.meta import Obj, ObjectRef, name, namespace, owner_reference, ref, uid
from metaos.resources.workload import pod_spec


class FakeRuntime:
    """``listen`` takes any free port and remembers it; ``serve`` puts an echo server with a name on a pod's port."""

    def __init__(self) -> None:
        self.listeners: dict[tuple[str, str, int], int] = {}
        self.hosts: dict[str, Sequence[Any]] = {}
        self.servers: dict[tuple[str, int], asyncio.Server] = {}
        self.busy: set[int] = set()
        self.sandboxes: set[str] = set()
        #: CPU seconds by pod.
        self.cpu: dict[str, float] = {}
        #: Whether pods have network cards, and how often each pod's network was made.
        self.separate = False
        self.networks: dict[str, int] = {}
        #: What it was told of fences.
        self.told: tuple[float, dict[str, float]] = float("-inf"), {}

    async def serve(self, pod: str, port: int, greeting: bytes) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(greeting)
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                writer.write(b"|end")
                await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        self.servers[(pod, port)] = await asyncio.start_server(talk, "127.0.0.1", 0)
        self.sandboxes.add(pod)

    def network(self, uid: str = "") -> PodNetwork:
        if uid and uid not in self.sandboxes:
            raise LookupError(uid)
        return PodNetwork(f"n{self.networks.get(uid, 0)}", self.separate)

    async def listen(self, uid: str, address: str, port: int) -> socket.socket:
        if uid not in self.sandboxes:
            raise LookupError(uid)
        if port in self.busy:
            raise OSError(98, "Address already in use")
        sock = socket.create_server((address, 0))
        sock.setblocking(False)
        self.listeners[(uid, address, port)] = sock.getsockname()[1]
        return sock

    async def connect(self, uid: str, port: int) -> socket.socket:
        server = self.servers.get((uid, port))
        if server is None or not server.is_serving():
            raise ConnectionRefusedError("nobody listens there")
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
        return sock

    async def set_hosts(self, uid: str, hosts: Sequence[Any]) -> None:
        if uid not in self.sandboxes:
            raise LookupError(uid)
        self.hosts[uid] = hosts

    async def fence(self, renewed: float, limits: dict[str, float]) -> None:
        self.told = renewed, dict(limits)

    def renewed(self) -> float:
        return self.told[0]

    async def check(self) -> None: ...

    async def usage(self) -> dict[str, list[ContainerUsage]]:
        return {pod: [ContainerUsage("c", f"{pod}-c", self.cpu.get(pod, 0.1), 2.0**20, 0.0)] for pod in self.sandboxes}

    async def collect_images(self, keep: set[str], wanted: int) -> list[str]:
        return []

    async def storage(self, uid: str) -> dict[str, int]:
        return {}

    async def images(self) -> list[dict[str, Any]]:
        return [{"names": ["docker.io/library/python:3"], "sizeBytes": 1, "host": True}]

    def runtime_classes(self) -> list[str]:
        return []

    def conditions(self) -> list[dict[str, str]]:
        return [{"type": "ResourceLimits", "status": "False", "reason": "NoCgroups", "message": "no cgroups here"}]

    async def close(self) -> None:
        for server in self.servers.values():
            server.close()
            await server.wait_closed()

    def as_runtime(self) -> Runtime:
        found: Any = self
        return found  # type: ignore[no-any-return]


class FakePods:
    """One ready pod per replica of each Deployment; everything else is only remembered."""

    def __init__(self) -> None:
        self.desired: list[Obj] = []
        self.here: dict[tuple[str, str], Obj] = {}
        self.deleted: list[tuple[str, str, float | None]] = []
        self.history: list[list[str]] = []
        self._count = 0
        self._listeners: list[Callable[[], None]] = []

    def set_desired(self, objects: list[Obj]) -> None:
        self.desired = objects
        self.history.append(sorted(name(o) for o in objects))
        wanted: dict[str, Obj] = {uid(o): o for o in objects if o["kind"] in ("Deployment", "StatefulSet", "Pod")}
        for key, pod in list(self.here.items()):
            if self._owner(pod) not in wanted:
                del self.here[key]
        for owner in wanted.values():
            if owner["kind"] == "Pod":
                status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
                self.here.setdefault((namespace(owner), name(owner)), owner | {"status": status})
                continue
            have = [p for p in self.here.values() if self._owner(p) == uid(owner)]
            for _ in range(owner["spec"]["replicas"] - len(have)):
                self._start(owner)
        self.changed()

    @staticmethod
    def _owner(pod: Obj) -> str:
        owners = pod["metadata"].get("ownerReferences")
        return str(owners[0]["uid"]) if owners else uid(pod)

    def _start(self, owner: Obj) -> None:
        self._count += 1
        metadata = {
            "name": f"{name(owner)}-{self._count}",
            "namespace": namespace(owner),
            "uid": f"local-{self._count}",
            "labels": {"app": name(owner)},
            "ownerReferences": [owner_reference(owner)],
        }
        spec = pod_spec(owner) or {"containers": [{"name": "c", "image": "python:3"}]}
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
        self.here[(namespace(owner), str(metadata["name"]))] = pod

    def changed(self) -> None:
        for listener in self._listeners:
            listener()

    def pods(self) -> list[Obj]:
        return list(self.here.values())

    def status_of(self, wanted: ObjectRef) -> Obj | None:
        for owner in self.desired:
            if ref(owner) == wanted:
                ready = len([p for p in self.here.values() if self._owner(p) == uid(owner)])
                counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
                return {"observedGeneration": owner["metadata"].get("generation", 0), **dict.fromkeys(counts, ready)}
        return None

    def on_change(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    async def delete_pod(self, namespace: str, name: str, grace_seconds: float | None = None, evicted: bool = False) -> None:
        self.deleted.append((namespace, name, grace_seconds))
        pod = self.here.pop((namespace, name))
        owner = next((o for o in self.desired if uid(o) == self._owner(pod)), None)
        if owner is not None and owner["kind"] != "Pod":
            self._start(owner)
        self.changed()

    async def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        newest_seconds: float | None = None,
    ) -> AsyncIterator[bytes]:
        yield f"{namespace}/{pod}/{container} {follow} {tail} {previous} {newest_seconds}\n".encode()
        while follow:
            await asyncio.Event().wait()

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> FakeExec:
        return FakeExec(command)

    async def attach(self, namespace: str, pod: str, container: str) -> FakeExec:
        return FakeExec(["attached", "0"])

    async def connect(self, namespace: str, pod: str, port: int) -> socket.socket:
        raise ConnectionRefusedError(f"nobody listens on port {port} of {namespace}/{pod}")

    async def run(self) -> None:
        await asyncio.Event().wait()

    def as_pods(self) -> Pods:
        found: Any = self
        return found  # type: ignore[no-any-return]


class FakeExec:
    """Says its command, echoes its input, ends with the code that its first argument names."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command, self.killed, self.size = list(command), False, (0, 0)
        self._input: asyncio.Queue[bytes] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        await self._input.put(data)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 2, " ".join(self.command).encode()
        while data := await self._input.get():
            yield 1, data

    async def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)

    async def wait(self) -> int:
        return int(self.command[1])

    async def kill(self) -> None:
        self.killed = True
