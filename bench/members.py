"""Three real API servers as members: applied at the hub until present on all of them, beside ``kubectl apply`` straight to each.

KUBECONFIG is a path list of the members' kubeconfigs (without nodes: nothing has to run). Pods are left unscheduled by a
scheduler's name that nobody has, so that each server's work is what its own controllers do, for the hub as for the floors.

Users apply with ``kubectl``, whose own processor time is a large part of what they wait for; so the same is applied by a bare
client, too. The least that is possible is what a bare client takes that sends each server what the hub's agents send it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.results import Figure, figure, percentile, write
from bench.servers import cluster_pids, cpu_seconds, resident_mb
from bench.wire import Connection, Endpoint
from examples.demo.continuum import ROOT, Continuum
from metaos.resources.meta import format_time
from metaos.twin.processes import wait_for

MEMBERS, MANY, MORE, ALONE, FEW = 3, 300, 1000, 60, 12
#: Requests of the bare client that are under way at one server at the same time: as many as an agent has.
LANES = 8
#: After a member is back, the others are watched for so long.
HEALED_SECONDS = 10.0
#: Statuses that somebody else writes at every member while many are applied, per second.
CHURN_RATE = 20
#: Between two measurements: until all members together take less than this part of a core, at most so long.
REST_SECONDS, REST_SHARE = 240.0, 0.45
#: Seconds in which 300 are wanted at all three.
AIM_MANY = 2.8
NODE = "nemo-bench-node"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
#: (hub's lease, heartbeat) as they are without being set, and as tight as is sensible on one machine; seconds.
DEFAULT, TUNED = (40.0, 10.0), (3.0, 0.5)


def deployment(name: str, namespace: str, replicas: int) -> dict[str, Any]:
    container = {"name": "main", "image": "busybox", "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "schedulerName": "nobody", "terminationGracePeriodSeconds": 0},
            },
        },
    }


def intent(namespace: str, groups: int) -> list[dict[str, Any]]:
    """One replica at each of so many members, and an intent that holds there."""
    residency = {"name": "residency", "condition": "IsOneOf", "value": ["EU"]}
    return [
        {
            "apiVersion": "meta-os.eu/v1alpha1",
            "kind": "PlacementPolicy",
            "metadata": {"name": "everywhere", "namespace": namespace},
            "spec": {"spread": [{"by": "site", "minGroups": groups, "maxSkew": 1}]},
        },
        {
            "apiVersion": "meta-os.eu/v1alpha1",
            "kind": "Intent",
            "metadata": {"name": "inside", "namespace": namespace},
            "spec": {"expectations": [{"verb": "Ensure", "targets": [residency]}]},
        },
    ]


def space(namespace: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}


class Cluster:
    """A member as its owner sees it."""

    def __init__(self, name: str, config: Path) -> None:
        self.name, self.config, self.endpoint = name, config, Endpoint.of(config)
        self.spaces: list[str] = []
        self._servers, self._controllers = cluster_pids(self.endpoint.port)

    def cpu(self) -> tuple[float, float]:
        """Seconds of the API server and its etcd, and of its controllers, so far; as far as they run on this machine."""
        return sum(map(cpu_seconds, self._servers)), sum(map(cpu_seconds, self._controllers))

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = Connection(self.endpoint)
        try:
            status, answer = await connection.call(method, path, b"" if body is None else json.dumps(body).encode())
            return None if status == 404 else json.loads(answer)
        finally:
            await connection.closed()

    async def keep_node(self) -> None:
        """A node that nothing runs on, kept ready: a cluster without one has no room."""
        await self.call("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        amounts = {"cpu": "64", "memory": "256Gi", "pods": "5000"}
        while True:
            now = format_time(time.time())
            ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
            ready |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
            node = await self.call("GET", f"/api/v1/nodes/{NODE}")
            status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
            await self.call("PUT", f"/api/v1/nodes/{NODE}/status", node | {"status": status})
            await asyncio.sleep(10)

    async def clear(self) -> None:
        for name in [NODE]:
            await self.call("DELETE", f"/api/v1/nodes/{name}")
        for where in [*self.spaces, "nemo-system"]:
            await self.call("DELETE", f"/api/v1/namespaces/{where}")


class Arrivals:
    """When each Deployment of a namespace was first seen at each member, by its watch."""

    def __init__(self, clusters: list[Cluster], namespace: str) -> None:
        self._clusters, self._namespace = clusters, namespace
        self.seen: dict[str, dict[str, float]] = {c.name: {} for c in clusters}
        self.deleted: dict[str, int] = {c.name: 0 for c in clusters}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Arrivals:
        for cluster in self._clusters:
            cluster.spaces.append(self._namespace)
            self._tasks.append(asyncio.create_task(self._follow(cluster)))
        await asyncio.sleep(0.3)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, cluster: Cluster) -> None:
        connection = Connection(cluster.endpoint)
        async for line in connection.lines(DEPLOYMENTS.format(self._namespace) + "?watch=1"):
            event = json.loads(line)
            if event["type"] == "ADDED":
                self.seen[cluster.name].setdefault(event["object"]["metadata"]["name"], time.monotonic())
            self.deleted[cluster.name] += event["type"] == "DELETED"

    def count(self) -> int:
        return min(len(found) for found in self.seen.values())

    def last(self) -> float:
        return max(max(found.values(), default=0.0) for found in self.seen.values())

    async def everywhere(self, count: int, seconds: float = 300) -> float:
        """The moment when ``count`` were at every member."""
        deadline = time.monotonic() + seconds
        while self.count() < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds:g} s there were {[len(f) for f in self.seen.values()]} of {count}")
            await asyncio.sleep(0.01)
        return self.last()


async def kubectl_apply(config: Path, file: Path, cache: Path) -> None:
    environment = os.environ | {"KUBECONFIG": str(config), "KUBECACHEDIR": str(cache)}
    process = await asyncio.create_subprocess_exec(
        *("kubectl", "apply", "-f", str(file)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"kubectl apply: {err.decode()[-500:]}")


class Run:
    """A hub, its members' agents, and what is measured of them."""

    def __init__(self, clusters: list[Cluster], directory: Path) -> None:
        self.clusters, self.directory = clusters, directory
        self.continuum = Continuum(directory, isolated=False, lease_seconds=DEFAULT[0])
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start_agent(self, cluster: Cluster, heartbeat: float) -> None:
        continuum, folder = self.continuum, self.directory
        file, token = folder / f"{cluster.name}.yaml", folder / f"{cluster.name}.token"
        spec = {"tier": "cloud", "location": {"country": "ES"}, "jurisdictions": ["EU", "ES"], "owner": "example"}
        site = {"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": cluster.name}, "spec": spec}
        if not token.exists():
            file.write_text(yaml.safe_dump(site))
            token.touch(0o600)
            token.write_text(continuum.nemo("join-token", cluster.name))
        command = [sys.executable, "-m", "metaos", "agent", "--runtime", "kubernetes", "--kubeconfig", str(cluster.config)]
        command += ["--hub", f"https://127.0.0.1:{continuum.port}", "--data", str(folder / cluster.name), "--site", str(file)]
        command += ["--token-file", str(token), "--heartbeat", str(heartbeat)]
        with (folder / f"{cluster.name}.log").open("ab") as log:
            self.agents[cluster.name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)

    def ready(self) -> bool:
        items = (self.continuum.get("clusters") or {}).get("items") or ()
        return len(items) == MEMBERS and all(
            (c.get("status", {}).get("allocatable") or {}).get("pods", "0") != "0"
            and any(x["type"] == "Ready" and x["status"] == "True" for x in c["status"].get("conditions") or ())
            for c in items
        )

    def begin(self, lease: float, heartbeat: float) -> None:
        self.continuum.lease_seconds = lease
        self.continuum.start_hub()
        for cluster in self.clusters:
            self.start_agent(cluster, heartbeat)
        wait_for("the members to be ready", self.ready, 60)

    def end(self) -> None:
        for process in self.agents.values():
            process.kill()
            process.wait()
        self.continuum.stop()

    def hub_mb(self) -> float:
        assert self.continuum.hub is not None
        return resident_mb(self.continuum.hub.pid)

    def cpu(self) -> dict[str, float]:
        assert self.continuum.hub is not None
        return {"hub": cpu_seconds(self.continuum.hub.pid)} | {n: cpu_seconds(p.pid) for n, p in self.agents.items()}

    def write(self, namespace: str, names: list[str], replicas: int, *, governed: bool, groups: int = MEMBERS) -> Path:
        rules = intent(namespace, groups) if governed else []
        items = [space(namespace), *rules, *(deployment(n, namespace, replicas) for n in names)]
        file = self.directory / f"{namespace}-{'hub' if governed else 'floor'}.json"
        file.write_text("\n".join(json.dumps(item) for item in items))
        return file


def prefixed(count: int) -> list[str]:
    return [f"app-{number}" for number in range(count)]


def kubectl_cpu() -> float:
    """Processor seconds of the processes that have ended so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds from the first request until the last was acknowledged, and until all was at all members; ``kubectl``: processor
    seconds of it, 0 where there is none."""

    acknowledged: float
    present: float
    kubectl: float = 0.0


class Spent:
    """Processor seconds of everybody between two moments, for the eye."""

    def __init__(self, run: Run) -> None:
        self._run, self._before = run, self._now(run)

    @staticmethod
    def _now(run: Run) -> dict[str, float]:
        servers = [c.cpu() for c in run.clusters]
        ours = {"bench": time.process_time(), "kubectl": kubectl_cpu()} | run.cpu()
        return ours | {"API servers": sum(a for a, _ in servers), "controllers": sum(b for _, b in servers)}

    def __str__(self) -> str:
        return ", ".join(f"{n} {v - self._before[n]:.2f}" for n, v in self._now(self._run).items())


async def lanes(endpoint: Endpoint, count: int, request: Callable[[int], tuple[str, str, bytes, str]]) -> None:
    """So many requests, ``LANES`` at a time."""
    turn = iter(range(count))

    async def lane() -> None:
        connection = Connection(endpoint)
        for number in turn:
            method, path, body, media = request(number)
            status, answer = await connection.call(method, path, body, media=media)
            if status not in (200, 201):
                raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
        await connection.closed()

    await asyncio.gather(*(lane() for _ in range(LANES)))


async def least(run: Run, namespace: str, count: int) -> tuple[float, float]:
    """Seconds in which all API servers take so many Deployments each, by server-side apply, as fast as they can; and the
    processor seconds that they and their etcd take for it."""

    def request(number: int) -> tuple[str, str, bytes, str]:
        body = json.dumps(deployment(f"app-{number}", namespace, 1)).encode()
        path = f"{DEPLOYMENTS.format(namespace)}/app-{number}?fieldManager=bench&force=true"
        return "PATCH", path, body, "application/apply-patch+yaml"

    for cluster in run.clusters:
        cluster.spaces.append(namespace)
        await cluster.call("POST", "/api/v1/namespaces", space(namespace))
    spent, before, started = Spent(run), sum(c.cpu()[0] for c in run.clusters), time.monotonic()
    await asyncio.gather(*(lanes(c.endpoint, count, request) for c in run.clusters))
    taken, servers = time.monotonic() - started, sum(c.cpu()[0] for c in run.clusters) - before
    print(f"    {count} by a bare client straight to three: {taken:.2f} s; CPU seconds {spent}", flush=True)
    return taken, servers


async def floor(run: Run, namespace: str, count: int) -> Taken:
    """``kubectl apply`` straight to all members at once."""
    file = run.write(namespace, prefixed(count), 1, governed=False)
    async with Arrivals(run.clusters, namespace) as arrivals:
        spent, before, started = Spent(run), kubectl_cpu(), time.monotonic()
        await asyncio.gather(*(kubectl_apply(c.config, file, run.directory / f"cache-{c.name}") for c in run.clusters))
        ended, own = time.monotonic() - started, kubectl_cpu() - before
        present = await arrivals.everywhere(count) - started
        print(f"    {count} by kubectl straight to three: {present:.2f} s; CPU seconds {spent}", flush=True)
        return Taken(ended, present, own)


async def applied(run: Run, namespace: str, count: int) -> Taken:
    """By ``kubectl apply`` at the hub."""
    file = run.write(namespace, prefixed(count), MEMBERS, governed=True)
    async with Arrivals(run.clusters, namespace) as arrivals:
        spent, before, started = Spent(run), kubectl_cpu(), time.monotonic()
        await kubectl_apply(run.continuum.kubeconfig, file, run.directory / "cache-hub")
        ended, own = time.monotonic() - started, kubectl_cpu() - before
        present = await arrivals.everywhere(count) - started
        print(f"    {count} by kubectl: acknowledged {ended:.2f} s, present {present:.2f} s; CPU seconds {spent}", flush=True)
        return Taken(ended, present, own)


async def posted(run: Run, namespace: str, count: int) -> Taken:
    """By the bare client at the hub, whose policy and intent are there."""
    await kubectl_apply(run.continuum.kubeconfig, run.write(namespace, [], MEMBERS, governed=True), run.directory / "cache-hub")

    def request(number: int) -> tuple[str, str, bytes, str]:
        body = json.dumps(deployment(f"app-{number}", namespace, MEMBERS)).encode()
        return "POST", DEPLOYMENTS.format(namespace), body, "application/json"

    async with Arrivals(run.clusters, namespace) as arrivals:
        spent, started = Spent(run), time.monotonic()
        await lanes(Endpoint.of(run.continuum.kubeconfig), count, request)
        ended = time.monotonic() - started
        present = await arrivals.everywhere(count) - started
        print(
            f"    {count} by a bare client: acknowledged {ended:.2f} s, present {present:.2f} s; CPU seconds {spent}", flush=True
        )
        return Taken(ended, present)


async def rest(run: Run) -> None:
    """Until what was applied before occupies the members no longer: their controllers make its ReplicaSets and pods at a bounded
    rate, for minutes."""
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline:
        before = sum(sum(c.cpu()) for c in run.clusters)
        await asyncio.sleep(3.0)
        if sum(sum(c.cpu()) for c in run.clusters) - before < 3.0 * REST_SHARE:
            return
    print(f"    the members had not come to rest after {REST_SECONDS:g} s", flush=True)


async def pause(number: int) -> None:
    """Until what the one before has caused at the members (its ReplicaSet, its pods, their events) has come to rest, and not in
    step with what is told of it."""
    await asyncio.sleep(0.75 + 0.05 * (number % 11))


async def alone(run: Run, namespace: str) -> list[float]:
    """Milliseconds of one Deployment, by the hub's API, until it is at all members; one after the other."""
    await kubectl_apply(run.continuum.kubeconfig, run.write(namespace, [], MEMBERS, governed=True), run.directory / "cache-hub")
    connection, found = Connection(Endpoint.of(run.continuum.kubeconfig)), []
    async with Arrivals(run.clusters, namespace) as arrivals:
        for number in range(ALONE):
            body = json.dumps(deployment(f"one-{number}", namespace, MEMBERS)).encode()
            started = time.monotonic()
            status, answer = await connection.call("POST", DEPLOYMENTS.format(namespace), body)
            if status != 201:
                raise RuntimeError(f"{status} {answer[:300]!r}")
            found.append((await arrivals.everywhere(number + 1, 30) - started) * 1000)
            await pause(number)
    await connection.closed()
    return found[1:]  # the first makes the namespace


async def alone_floor(run: Run, namespace: str) -> list[float]:
    """The same by POST to each of the members at once."""
    for cluster in run.clusters:
        await cluster.call("POST", "/api/v1/namespaces", space(namespace))
    connections, found = [Connection(c.endpoint) for c in run.clusters], []
    async with Arrivals(run.clusters, namespace) as arrivals:
        for number in range(ALONE):
            body = json.dumps(deployment(f"one-{number}", namespace, 1)).encode()
            started = time.monotonic()
            await asyncio.gather(*(c.call("POST", DEPLOYMENTS.format(namespace), body) for c in connections))
            found.append((await arrivals.everywhere(number + 1, 30) - started) * 1000)
            await pause(number)
    for connection in connections:
        await connection.closed()
    return found[1:]


@contextlib.asynccontextmanager
async def churn(run: Run, namespace: str, count: int) -> AsyncIterator[list[int]]:
    """Somebody writes statuses of what is there already, at every member, ``CHURN_RATE`` a second."""
    written = [0]

    async def at(cluster: Cluster) -> None:
        connection = Connection(cluster.endpoint)
        for number in range(1_000_000):
            path = f"{DEPLOYMENTS.format(namespace)}/app-{number % count}"
            _, answer = await connection.call("GET", path)
            obj = json.loads(answer)
            obj["status"] = obj.get("status", {}) | {"collisionCount": number + 1}
            await connection.call("PUT", f"{path}/status", json.dumps(obj).encode())
            written[0] += 1
            await asyncio.sleep(1 / CHURN_RATE)

    tasks = [asyncio.create_task(at(c)) for c in run.clusters]
    try:
        yield written
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def failover(run: Run, namespace: str, heartbeat: float) -> tuple[float, int]:
    """Seconds from the SIGKILL of a member's agent until all that it had is at another member, and how many Deployments the
    others lost after it was back."""
    names = prefixed(FEW)
    file = run.write(namespace, names, MEMBERS - 1, governed=True, groups=MEMBERS - 1)
    async with Arrivals(run.clusters, namespace) as arrivals:
        await kubectl_apply(run.continuum.kubeconfig, file, run.directory / "cache-hub")

        async def until(what: str, test: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 120
            while not test():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited in vain for {what}: { {n: len(f) for n, f in arrivals.seen.items()} }")
                await asyncio.sleep(0.01)

        await until("all to be at two members", lambda: sum(map(len, arrivals.seen.values())) == FEW * (MEMBERS - 1))
        victim = max(run.clusters, key=lambda c: len(arrivals.seen[c.name]))
        others = [c.name for c in run.clusters if c is not victim]
        await asyncio.sleep(2 * heartbeat)
        killed = time.monotonic()
        run.agents[victim.name].kill()
        run.agents[victim.name].wait()
        await until("the replacements", lambda: all(len(arrivals.seen[n]) == FEW for n in others))
        replaced = max(max(arrivals.seen[n].values()) for n in others) - killed
        run.start_agent(victim, heartbeat)
        await asyncio.to_thread(wait_for, "the member to be back", run.ready, 60)
        await asyncio.sleep(HEALED_SECONDS)
        return replaced, sum(arrivals.deleted[n] for n in others)


def kubeconfigs() -> Iterator[Path]:
    for part in os.environ.get("KUBECONFIG", "").split(os.pathsep):
        if part and Path(part).is_file():
            yield Path(part)


async def measure(clusters: list[Cluster], directory: Path, only: str) -> list[Figure]:
    mark, figures = f"{time.time_ns() // 1_000_000:x}"[-6:], []
    nodes = [asyncio.create_task(c.keep_node()) for c in clusters]

    def wants(word: str) -> bool:
        return not only or word in only.split(",")

    try:
        if wants("tuned"):
            async with running(clusters, directory / "tuned", *TUNED) as run:
                figures += await failure(run, f"tuned-{mark}", "tuned", TUNED, 5.0)
        async with running(clusters, directory / "default", *DEFAULT) as run:
            idle = run.hub_mb()
            figures.append(figure("members: hub memory, three members, idle", [idle], "MB", aim=150))
            if wants("failover"):
                figures += await failure(run, f"fail-{mark}", "default settings", DEFAULT, 45.0)
            if wants("alone"):
                base_ms, ours = await alone_floor(run, f"alonef-{mark}"), await alone(run, f"alone-{mark}")
                for share in (0.5, 0.99):
                    label = f"members: one Deployment alone, p{share:.0%}".rstrip("%")
                    one, other = percentile(ours, share), percentile(base_ms, share)
                    figures.append(figure(label, [one], "ms", baseline=[other], aim=150 if share == 0.99 else None))
            if wants("many"):
                await rest(run)
                figures += await many(run, mark)
            if wants("more"):
                await rest(run)
                bare, _ = await least(run, f"least2-{mark}", MORE)
                await rest(run)
                base = await floor(run, f"floor2-{mark}", MORE)
                await rest(run)
                async with churn(run, f"many-{mark}", MANY) as written:
                    found = await applied(run, f"more-{mark}", MORE)
                    print(f"    {written[0]} statuses were written meanwhile")
                name = f"members: {MORE} by kubectl, statuses churn: present"
                figures.append(figure(name, [found.present], "s", baseline=[base.present], aim=10))
                name = f"    {MORE}: until kubectl ended"
                figures.append(figure(name, [found.acknowledged], "s", baseline=[base.acknowledged]))
                figures.append(figure(f"    the least: a bare client, {MEMBERS * MORE} server-side applies", [bare], "s", aim=10))
                await asyncio.sleep(10)
                figures.append(figure(f"members: hub memory, {MORE} propagated", [run.hub_mb()], "MB", baseline=[idle], aim=300))
    finally:
        for task in nodes:
            task.cancel()
        await asyncio.gather(*nodes, return_exceptions=True)
        for cluster in clusters:
            await cluster.clear()
    return figures


async def many(run: Run, mark: str) -> list[Figure]:
    """Each in a namespace of its own; what was told of one before has come to rest."""
    bare, servers = await least(run, f"least-{mark}", MANY)
    await rest(run)
    base = await floor(run, f"floor-{mark}", MANY)
    await rest(run)
    found = await applied(run, f"many-{mark}", MANY)
    await rest(run)
    direct = await posted(run, f"bare-{mark}", MANY)
    if bare > AIM_MANY:
        print(f"    IMPOSSIBLE on this machine: the servers alone take {bare:.2f} s, and {AIM_MANY:g} s are wanted", flush=True)
    return [
        figure(f"members: {MANY} to three by kubectl: present", [found.present], "s", baseline=[base.present], aim=AIM_MANY),
        figure(f"    {MANY}: until kubectl ended", [found.acknowledged], "s", baseline=[base.acknowledged]),
        figure("    kubectl's own processor time", [found.kubectl], "s", baseline=[base.kubectl]),
        figure("    after kubectl's end", [found.present - found.acknowledged], "s"),
        figure(f"members: {MANY} to three by a bare client: present", [direct.present], "s", baseline=[bare], aim=AIM_MANY),
        figure("    after the last was acknowledged", [direct.present - direct.acknowledged], "s"),
        figure(f"    the least: a bare client, {MEMBERS * MANY} server-side applies", [bare], "s", aim=AIM_MANY),
        figure("    processor time of the API servers and etcd in it", [servers], "s"),
    ]


async def failure(run: Run, namespace: str, word: str, settings: tuple[float, float], limit: float) -> list[Figure]:
    replaced, lost = await failover(run, namespace, settings[1])
    name = f"members: failure of one to replaced, {word} (lease {settings[0]:g} s)"
    return [
        figure(name, [replaced], "s", baseline=[settings[0]], aim=limit),
        figure(f"    {word}: deleted elsewhere after the heal", [float(lost)], "", aim=0),
    ]


@contextlib.asynccontextmanager
async def running(clusters: list[Cluster], directory: Path, lease: float, heartbeat: float) -> AsyncIterator[Run]:
    """A hub whose members the clusters are, while it lasts."""
    directory.mkdir()
    run = Run(clusters, directory)
    try:
        await asyncio.to_thread(run.begin, lease, heartbeat)
        yield run
    finally:
        await asyncio.to_thread(run.end)
        for cluster in clusters:  # for another hub
            await cluster.call("DELETE", "/api/v1/namespaces/nemo-system/configmaps/nemo-member")


def main() -> int:
    configs = list(kubeconfigs())
    if len(configs) < MEMBERS:
        print(f"NOT MEASURED: KUBECONFIG must list {MEMBERS} kubeconfigs, there are {len(configs)}", flush=True)
        return 0
    clusters = [Cluster(f"member-{number}", config) for number, config in enumerate(configs[:MEMBERS], 1)]
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as directory:
        figures = asyncio.run(measure(clusters, Path(directory), only))
    write("members", figures, beside=bool(only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
