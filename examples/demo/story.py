"""The story, step by step. Every step is checked; one that does not hold ends the demonstration."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.demo.continuum import ROOT, Continuum
from examples.demo.load import Load, StableUrl
from metaos.twin.processes import ProcessesFailed, wait_for

SITES = ("cloud-frankfurt", "cloud-hamina", "edge-paris", "edge-london", "gateway-brussels")
URL = "/api/v1/namespaces/shop/services/{}/proxy{}"
#: Hours of the replay pass in seconds, so that work need not stay for minutes where it has moved to.
QUICK = {
    "apiVersion": "meta-os.eu/v1alpha1",
    "kind": "PlacementPolicy",
    "metadata": {"name": "quick", "namespace": "shop"},
    # What hardware embodies counts beside the electricity, so sites are nearer to each other than by that alone.
    "spec": {"migration": {"coolDownSeconds": 5, "minimumImprovement": 2}},
}
#: The carbon replay: rows of examples/data/carbon-week.csv.
CLEAN_HOUR, DIRTY_HOUR = 60, 76


class Story:
    """Runs the steps on a continuum and prints what happens."""

    def __init__(self, continuum: Continuum, console: Console) -> None:
        self.continuum = continuum
        self.console = console
        self.begin = time.monotonic()
        self.url: StableUrl | None = None

    # -- telling --------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{time.monotonic() - self.begin:5.0f} s  {text}[/]", soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(f"         {text}", highlight=False, soft_wrap=True)

    def show(self, text: str, limit: int = 40) -> None:
        for line in text.rstrip().splitlines()[:limit]:
            self.console.print("         │ " + line, highlight=False, markup=False, soft_wrap=True)

    def check(self, holds: Any, text: str) -> None:
        if not holds:
            raise ProcessesFailed(f"this should hold and does not: {text}")
        self.console.print(f"       [green]✔[/] {text}", highlight=False, soft_wrap=True)

    # -- looking --------------------------------------------------------------------------------------------

    def clusters_of(self, workload: str) -> list[str]:
        found = self.continuum.get("placement", workload, "-n", "shop") or {}
        return [c["name"] for c in (found.get("spec") or {}).get("clusters") or ()]

    def pods(self, app: str) -> list[dict[str, Any]]:
        found = self.continuum.get("pods", "-n", "shop", "-l", f"app={app}") or {}
        return [p for p in found.get("items") or () if not p["metadata"].get("deletionTimestamp")]

    def ready_sites(self, app: str) -> list[str]:
        return sorted(
            p["spec"]["nodeName"]
            for p in self.pods(app)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in (p.get("status") or {}).get("conditions") or ())
        )

    def call(self, service: str, path: str, **more: Any) -> Any:
        assert self.url is not None
        return self.url.call(URL.format(service, path), **more)

    # -- the steps ------------------------------------------------------------------------------------------

    def gather(self) -> None:
        self.title("A hub and five sites, each with processes of its own")
        trace = ROOT / "examples/data/carbon-week.csv"
        self.continuum.start_hub("--carbon-trace", str(trace), "--carbon-start-hour", str(CLEAN_HOUR))
        self.continuum.add_sites(*SITES)
        self.show(self.continuum.kubectl("get", "clusters"))
        self.check(
            len(self.continuum.get("nodes")["items"]) == len(SITES), "five sites are ready, and kubectl sees them as nodes"
        )
        self.url = StableUrl(self.continuum.kubeconfig)

    def deploy(self) -> None:
        self.title("An ordinary application and its intents: kubectl apply -f examples/shop -f examples/intents")
        self.show(self.continuum.kubectl("apply", "-f", str(ROOT / "examples/shop/00-namespace.yaml")))
        for intent in ("10-latency", "20-carbon", "30-residency"):
            self.continuum.kubectl("apply", "-f", str(ROOT / f"examples/intents/{intent}.yaml"))
        quick = self.continuum.directory / "quick.json"
        quick.write_text(json.dumps(QUICK))
        self.continuum.kubectl("apply", "-f", str(quick))
        self.show(self.continuum.kubectl("apply", "-f", str(self._application())))
        for workload in ("statefulset/store", "deployment/api", "deployment/web"):
            self.continuum.kubectl("rollout", "status", workload, "-n", "shop", "--timeout=60s")
        self.continuum.kubectl("wait", "--for=condition=Complete", "job/report", "-n", "shop", "--timeout=60s")
        self.show(self.continuum.kubectl("get", "pods", "-n", "shop", "-o", "wide"))
        self.check(len(self.ready_sites("web")) == 2, "two web pods are ready; the job has completed")
        self.check(
            "articles worth 31 EUR" in self.continuum.kubectl("logs", "job/report", "-n", "shop"), "its log says what it found"
        )
        answer = wait_for("the application to answer", lambda: self._answered("web", "/api/articles"), 20)
        self.check(
            b"Solar lamp" in answer.body, "the stable URL answers, through web and api, which find each other by Service name"
        )
        placed = self.call("web", "/api/orders", method="POST", body=json.dumps({"article": 1}).encode())
        self.check(placed.status == 201, f"an order is placed and kept by the stateful store ({placed.body.decode().strip()})")

    def _application(self) -> Path:
        if self.continuum.isolated:
            return ROOT / "examples/shop"
        from examples.demo.plain import adapted

        copies = self.continuum.directory / "shop"
        copies.mkdir()
        for manifest in sorted((ROOT / "examples/shop").glob("*.yaml")):
            (copies / manifest.name).write_text(adapted(manifest))
        self.say("(its programs adapted to sites without isolation)")
        return copies

    def _answered(self, service: str, path: str) -> Any:
        answer = self.call(service, path)
        return answer if answer.status == 200 else None

    def explain(self) -> None:
        self.title("What went where, and why: nemo why deployment/web -n shop")
        self.show(self.continuum.nemo("why", "deployment/web", "-n", "shop"), 60)
        why = json.loads(self.continuum.nemo("why", "deployment/web", "-n", "shop", "-o", "json"))
        text = json.dumps(why)
        self.check(
            all(site in text for site in SITES), "every site is accounted for: chosen, scored, or rejected with its reason"
        )
        stores = self.clusters_of("statefulset-store")
        self.check(stores and "edge-london" not in stores, f"orders stay in the EU: the store is on {', '.join(stores)}")

    def kill(self) -> None:
        victim, home = self.ready_sites("web")[0], self.clusters_of("deployment-api")
        self.title(f"SIGKILL to everything on {victim} while requests run")
        assert self.url is not None
        with Load(self.url, URL.format("web", "/")) as load:
            wait_for("requests to flow", lambda: len(load.answers) > 20, 20)
            self.continuum.kill_site(victim)
            killed = time.monotonic()
            wait_for("both replicas on other sites", lambda: len([s for s in self.ready_sites("web") if s != victim]) == 2, 40)
            healed = time.monotonic()
            wait_for("requests to succeed again", lambda: load.good_since(healed), 20)
        self.say(f"{len(load.failed)} of {len(load.answers)} requests failed, over {load.outage_seconds:.1f} s")
        self.check(
            load.outage_seconds < 20,
            f"replaced on {', '.join(sorted(set(self.ready_sites('web')) - {victim}))} in {healed - killed:.1f} s",
        )
        self.show(self.continuum.nemo("why", "deployment/web", "-n", "shop"), 6)
        self.say(f"{victim} is switched on again")
        self.continuum.start_site(self.continuum.sites[victim])
        self.continuum.kubectl("wait", "--for=condition=Ready", f"cluster/{victim}", "--timeout=60s")
        wait_for("its leftovers to be gone", lambda: self.as_decided("web", 2), 40)
        self.check(len(self.ready_sites("web")) == 2, "the healed site's leftovers are gone, good work was not deleted")
        # It was best there, and is again: the next step is about a move for another cause.
        back = lambda: self.clusters_of("deployment-api") == home and self.as_decided("api", 1)  # noqa: E731
        wait_for("the API to be back where its electricity is cleanest", back, 40)

    def as_decided(self, app: str, replicas: int) -> bool:
        """Whether exactly the decided pods are there, all of them ready, and nothing is left elsewhere."""
        sites = [p["spec"]["nodeName"] for p in self.pods(app)]
        decided = set(self.clusters_of(f"deployment-{app}"))
        return len(sites) == len(self.ready_sites(app)) == replicas and set(sites) == decided

    def migrate(self) -> None:
        before = self.clusters_of("deployment-api")
        self.title(f"Electricity turns dirty where the carbon-bound API runs ({', '.join(before)}): the replay is accelerated")
        assert self.url is not None
        self.show(self.continuum.kubectl("get", "clusters"))
        with Load(self.url, URL.format("web", "/api/articles")) as load:
            wait_for("requests to flow", lambda: len(load.answers) > 10, 20)
            self.replay(CLEAN_HOUR, speed=3600.0 * 2)
            wait_for("the API to be placed elsewhere", lambda: self._moved("api", before), 40)
            self.replay(DIRTY_HOUR, speed=1.0)
            seen = len(load.answers)
            wait_for("more requests", lambda: len(load.answers) > seen + 40, 20)
            moved = wait_for("the API to have settled", lambda: self._moved("api", before), 40)
        self.show(self.continuum.kubectl("get", "clusters"))
        self.check(moved, f"make before break: it now runs on {', '.join(moved)}")
        self.check(not load.failed, f"none of {len(load.answers)} requests failed during the migration")
        self.show(self.continuum.kubectl("events", "-n", "shop", "--for", "deployment/api"), 12)
        self.saved(before, moved)

    def _moved(self, app: str, before: list[str]) -> list[str]:
        sites = self.ready_sites(app)
        settled = sites and sites == self.clusters_of(f"deployment-{app}") and len(self.pods(app)) == len(sites)
        return sites if settled and not set(sites) & set(before) else []

    def replay(self, hour: float, *, speed: float) -> None:
        """Moves the carbon replay: from ``hour`` on at ``speed`` trace hours per hour."""
        value = json.dumps({"data": {"startHour": str(hour), "speed": str(speed)}})
        self.continuum.kubectl("patch", "configmap", "carbon-replay", "-n", "nemo-system", "--type=merge", "-p", value)

    def saved(self, before: list[str], after: list[str]) -> None:
        """The carbon saved against staying, over the rest of the replayed day, by the sites' power models."""
        from examples.demo.saving import saving

        clusters = {c["metadata"]["name"]: c for c in self.continuum.get("clusters")["items"]}
        found = saving(
            clusters[before[0]], clusters[after[0]], ROOT / "examples/data/carbon-week.csv", DIRTY_HOUR, 24, cpu_cores=0.1
        )
        self.say(f"staying: {found.stayed:.1f} g, moving: {found.moved:.1f} g over the following 24 h of the trace, for 0.1 CPU")
        self.check(
            found.moved < found.stayed, f"saved {1 - found.moved / found.stayed:.0%} of the carbon (modelled, not metered)"
        )

    def cut_off(self) -> None:
        site_name = self.clusters_of("statefulset-store")[0]
        site = self.continuum.sites[site_name]
        self.title(f"{site_name} is cut off from the hub; its processes live, and its agent is even restarted")
        before = self.pods("store")[0]["status"]["containerStatuses"][0]
        site.link.cut()
        wait_for("the hub to miss it", lambda: self._condition(site_name) != "True", 40)
        os.kill(self.continuum.agent_pid(site), 9)
        time.sleep(1)
        wait_for("its agent to be back", lambda: self._agent(site), 20)
        site.link.mend()
        self.continuum.kubectl("wait", "--for=condition=Ready", f"cluster/{site_name}", "--timeout=60s")
        wait_for("the store to be ready", lambda: self.ready_sites("store") == [site_name], 40)
        after = self.pods("store")[0]["status"]["containerStatuses"][0]
        self.check(
            after["containerID"] == before["containerID"] and after["restartCount"] == before["restartCount"],
            "the store's container kept running through all of it: same container, no restart",
        )
        wait_for("everything to have converged", lambda: self.as_decided("web", 2) and self.as_decided("api", 1), 40)
        self.check(
            len(self.pods("store")) == 1 and not self._twice(),
            "everything converged: each pod is where it was decided, none is missing, none runs twice",
        )
        orders = wait_for("the orders", lambda: self._answered("web", "/api/orders"), 30)
        self.check(b"article" in orders.body, "the order is still there")

    def _twice(self) -> list[str]:
        """Works of a site that was not chosen: what would run twice."""
        works = (self.continuum.get("works", "-A") or {"items": []})["items"]
        of = {f"nemo-cluster-{site}": site for site in SITES}
        return [
            f"{site} {workload}"
            for kind, workload in (("statefulset", "store"), ("deployment", "api"), ("deployment", "web"))
            for work in works
            if (site := of.get(work["metadata"]["namespace"])) and work["metadata"]["name"] == f"{kind}.shop.{workload}"
            if site not in self.clusters_of(f"{kind}-{workload}")
        ]

    def _condition(self, cluster: str) -> str:
        found = (self.continuum.get("cluster", cluster) or {}).get("status", {}).get("conditions") or ()
        return next((str(c["status"]) for c in found if c["type"] == "Ready"), "")

    def _agent(self, site: Any) -> bool:
        try:
            return self.continuum.agent_pid(site) > 0
        except ProcessesFailed:
            return False

    def impossible(self) -> None:
        self.title("An intent that cannot be met: kubectl apply -f examples/intents/90-impossible.yaml")
        self.continuum.kubectl("apply", "-f", str(ROOT / "examples/intents/90-impossible.yaml"))
        status = wait_for(
            "the intent to be judged",
            lambda: (
                ((self.continuum.get("intent", "impossible", "-n", "shop") or {}).get("status") or {}).get("message")
                and self.continuum.get("intent", "impossible", "-n", "shop")["status"]
            ),
            20,
        )
        self.say(status["message"])
        target = status["targets"][0]
        self.check(status["fulfilment"] == "NotFulfilled", "it says NotFulfilled, which part and by how much")
        nearest = target.get("nearest") or {}
        self.check(
            nearest,
            f"and the nearest offer: {nearest.get('value')} ms on {nearest.get('cluster')}, {nearest.get('gap')} ms short",
        )

    STEPS: tuple[Callable[[Story], None], ...] = (gather, deploy, explain, kill, migrate, cut_off, impossible)


def tell(continuum: Continuum, console: Console, *, only_gather: bool = False) -> None:
    """Runs the whole story, or only its first two steps."""
    story = Story(continuum, console)
    for step in Story.STEPS[:2] if only_gather else Story.STEPS:
        step(story)
    if not only_gather:
        console.print(f"\n[bold green]Every step was checked, in {time.monotonic() - story.begin:.0f} s.[/]")


def logs(continuum: Continuum) -> list[Path]:
    """The log files, for a post-mortem."""
    return sorted(continuum.directory.glob("*.log"))
