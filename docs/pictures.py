"""The pictures of ``docs/architecture/``, each drawn from what the code says (:mod:`docs.facts`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from bench.results import RESULTS
from docs import facts
from docs.drawing import Drawing
from docs.generate import commands

#: Who uses which command. A test checks that every command is in exactly one line.
ROLES = {
    "Developer": (
        "why",
        "twin run",
        "twin from-live",
        "twin replay",
        "twin calibrate",
        "plan",
        "intent list",
        "intent export",
        "intent import",
        "status",
        "carbon",
        "cost",
        "ledger receipts",
        "ledger verify",
        "volume list",
        "volume restore",
    ),
    "Operator of the continuum": (
        *("up", "kubeconfig", "revoke", "join-token", "ca status", "ca rotate", "ca retire"),
        *("keys list", "keys rotate", "backup", "restore", "migrate-store", "cluster add", "cluster remove"),
        *("bus config", "bus leaf", "bus revoke"),
        *("ledger export", "ledger keys", "ledger sign", "ledger rotate", "ledger archive"),
    ),
    "Owner of devices": (
        *("device add", "device credentials", "device import", "device command", "device claim"),
        *("device quarantine", "device release", "device remove"),
    ),
    "Owner of a site": ("agent", "image import", "image list", "image remove"),
    "Everybody": ("doctor", "version", "login", "token get", "token create", "token list", "token revoke"),
}
_PURE = {"scheduler", "network", "data", "ai", "accounting", "security", "plugins", "resources"}


def layers() -> str:
    """Packages in their layers: imports point down."""
    parts, drawing = facts.parts(), Drawing("Layers of the code: imports point down", 860)
    y = 16.0
    for layer in facts.layers():
        present = [name for name in layer if name in parts]
        width = (828 - 12 * (len(present) - 1)) / max(1, len(present))
        below = y
        for i, name in enumerate(present):
            colour = "green" if name in _PURE else "blue"
            below = max(below, drawing.box(16 + i * (width + 12), y, width, name, [parts[name]], colour=colour) + 10)
        y = below
    drawing.note(
        "Green: no I/O, no clock, no chance. Those side by side may not know each other. Empty packages are left out.",
    )
    return drawing.render()


def imports() -> str:
    """Who imports whom, as a matrix: everything lies right of the diagonal."""
    order = [name for layer in facts.layers() for name in layer if name in facts.parts()]
    cells = {pair: "●" for pair in facts.imports()} | {(name, name): "·" for name in order}
    drawing = Drawing("Imports: a row imports a column", 860)
    drawing.matrix(16, 16, order, order, cells, cell=26)
    drawing.note(
        "● the row imports the column. Rows and columns stand in the order of the layers: all of it is right of the diagonal.",
        "What stood left of it would be an import upwards.",
    )
    return drawing.render()


def kinds() -> str:
    """Every kind that is served, by API group."""
    drawing = Drawing("Kinds by API group", 860)
    columns = [16.0, 16.0, 16.0]

    def rank(group: str) -> tuple[bool, bool, int, str]:
        return group != "meta-os.eu", group != "core", -len(facts.kinds()[group]), group

    for group in sorted(facts.kinds(), key=rank):
        place = columns.index(min(columns))
        names = sorted({k.kind + ("" if k.namespaced else " *") for k in facts.kinds()[group]})
        colour = "green" if group == "meta-os.eu" else "blue"
        columns[place] = 12 + drawing.box(16 + place * 280, columns[place], 268, group, names, colour=colour)
    drawing.note("Green: NEMO's own. * is not in a namespace. Native kinds have their native schemas.")
    return drawing.render()


def controllers() -> str:
    """What each controller watches, reads and writes."""
    found = [c for c in facts.controllers() if c.name != "garbage"]
    touched = {kind for c in found for kind in c.watches | c.reads | c.writes}
    order = list(dict.fromkeys(k.kind for group in facts.kinds().values() for k in group if k.kind in touched))
    cells = {}
    for c in found:
        for kind in order:
            mark = "●" if kind in c.watches else "○" if kind in c.reads else ""
            mark += "✎" if kind in c.writes else ""
            if mark:
                cells[(c.name, kind)] = mark
    drawing = Drawing("Controllers: what they watch, read and write", 860)
    drawing.matrix(16, 16, [c.name for c in found], order, cells, cell=26)
    drawing.note(
        "● a change leads to work   ○ is looked up   ✎ is written",
        "garbage is left out: it watches every kind, and removes what nobody owns any more.",
    )
    return drawing.render()


def flow() -> str:
    """From a manifest to running pods and back."""
    names = {c.name: c for c in facts.controllers()}
    steps = (("placement", "Placement"), ("work", "Work"), ("migration", "Work"), ("status", "Deployment"))
    for name, kind in (*steps, ("service", "EndpointSlice")):
        assert kind in names[name].writes, f"the {name} controller does not write {kind} any more: draw this anew"
    drawing = Drawing("From a manifest to running pods, and back", 860)
    there: list[tuple[str, list[str], str]] = [
        ("Manifest, Intent", ["a user's, by kubectl"], "sand"),
        ("API server", ["authenticates, authorises, shapes, admits, validates"], "blue"),
        ("Store", ["a revision for each write, durable when it is acknowledged"], "blue"),
        ("Placement", ["the decision with its reasons", "by: placement"], "green"),
        ("Work", ["rendered manifests for each site", "by: work, migration"], "green"),
    ]
    for i, (title, lines, colour) in enumerate(there):
        drawing.box(16 + i * 169, 16, 152, title, lines, colour=colour, height=106)
        if i:
            drawing.arrow((16 + i * 169 - 17, 66), (16 + i * 169, 66))
    back: list[tuple[str, list[str], str]] = [
        ("kubectl", ["get, wait, rollout, logs; nemo why"], "sand"),
        ("Endpoints", ["which pods serve", "by: service"], "green"),
        ("Object's status", ["summed over its sites", "by: status"], "green"),
        ("Reports", ["Work.status and Pods, checked by the hub"], "green"),
        ("Agent", ["keeps the Work on disk, runs and heals pods"], "sand"),
    ]
    for i, (title, lines, colour) in enumerate(back):
        drawing.box(16 + i * 169, 180, 152, title, lines, colour=colour, height=90)
    drawing.arrow((768, 122), (768, 180))
    drawing.arrow((692, 225), (675, 225))
    drawing.arrow((523, 225), (506, 225))
    drawing.arrow((599, 270), (599, 292), (261, 292), (261, 270))
    drawing.arrow((430, 180), (430, 152), (92, 152), (92, 180))
    drawing.note("The names after 'by' are controllers: see the matrix.")
    return drawing.render()


def processes() -> str:
    """The processes of hub and site, and what runs inside them."""
    drawing = Drawing("Processes and what runs in them", 860)
    tasks = facts.tasks("server.py", "apiserver/registry.py", "apiserver/cache.py")
    lines = [
        "one thread with an event loop:",
        "· API server: a task for each request",
        f"· {len(facts.controllers())} controllers, a queue each",
        *(f"· {name}" for name in tasks),
        "a thread that writes the store, two that read it",
    ]
    hub = drawing.box(16, 16, 340, "Hub: nemo up", lines, colour="blue")
    files = ["state.db (revision log), keys.json,", "pki/, audit.log"]
    drawing.box(16, hub + 40, 340, "Files", files, colour="plain")
    drawing.arrow((186, hub), (186, hub + 40))
    parts = [f"· {part}" for part in facts.agent_parts()]
    agent = drawing.box(510, 16, 334, "Agent: nemo agent", ["one thread with an event loop:", *parts], colour="green")
    drawing.arrow((510, 70), (356, 70))
    drawing.text(364, 62, "HTTPS: API, watches", "n")
    drawing.arrow((510, 130), (356, 130), both=True)
    drawing.text(364, 122, "WebSocket: streams", "n")
    y = agent + 40
    short = f"short-lived: {', '.join(facts.identity_commands())}"
    drawing.box(510, y, 104, "agent.identity", [short], colour="plain", height=120)
    held = ["owns its namespaces; its containers outlive the agent"]
    drawing.box(625, y, 104, "Holder of a pod", held, colour="plain", height=120)
    guard = ["kills in time what must not run twice"]
    drawing.box(740, y, 104, "Watchdog", guard, colour="plain", height=120)
    for x in (562, 677, 792):
        drawing.arrow((x, agent), (x, y))
    return drawing.render()


def network() -> str:
    """Who connects to whom, by what."""
    drawing = Drawing("Connections between machines", 860)
    port = facts.default_listen().rpartition(":")[2]
    drawing.box(16, 16, 210, "Users", ["kubectl, Helm, client libraries, nemo"], colour="sand", height=76)
    drawing.box(340, 16, 180, "Hub", [f"one port, {port}: TLS,", "client certificates"], colour="blue", height=76)
    drawing.arrow((226, 60), (340, 60))
    drawing.text(232, 52, "HTTPS, WebSocket", "n")
    drawing.box(634, 16, 210, "Clients of applications", ["by the Service's stable URL"], colour="sand", height=76)
    drawing.arrow((634, 60), (520, 60))
    drawing.text(556, 52, "HTTPS", "n")
    for i, (title, lines) in enumerate(
        (
            ("Site behind NAT", ["its agent dials out; nothing listens"]),
            ("Site", ["the same"]),
            ("Site", ["addresses may overlap with those of others"]),
        )
    ):
        drawing.box(16 + i * 309, 200, 210, title, lines, colour="green", height=76)
        drawing.arrow((121 + i * 309, 200), (385 + i * 45, 92))
    drawing.note(
        "Agent → hub: HTTPS (API, watches) and one WebSocket, the tunnel.",
        f"Streams that the hub opens in a tunnel: {', '.join(facts.streams())}.",
        "Streams that a site opens: dial, to a pod of another site, where a Service and the NetworkPolicies lead there.",
    )
    return drawing.render()


def users() -> str:
    """Who uses which commands."""
    from metaos.cli.main import nemo

    helps = {path.removeprefix("nemo "): (c.help or "").strip().partition("\n")[0] for path, c in commands(nemo, "nemo")}
    drawing = Drawing("Users and the commands they use", 860)
    heights = [16.0, 16.0]
    for role, used in ROLES.items():
        place = heights.index(min(heights))
        lines = [f"nemo {word}: {helps.get(word, '')}" for word in used]
        heights[place] = drawing.box(16 + place * 420, heights[place], 408, role, lines, colour="sand") + 12
    drawing.note("All of them use kubectl and what else speaks the Kubernetes API, as far as their roles go.")
    return drawing.render()


def overview() -> str:
    """The picture of the README."""
    drawing = Drawing("NEMO: users talk to the hub, agents at sites dial out to it", 860)
    lines = ["kubectl, Helm, client libraries", "nemo why | status", "manifests, intents"]
    drawing.box(16, 16, 170, "Users", lines, colour="sand", height=190)
    drawing.box(270, 16, 574, "Hub", [], height=190)
    for x, y, title, said in (
        (284, 44, "API server", "Kubernetes' API, RBAC, admission"),
        (284, 124, "Store", "SQLite revision log, sealed Secrets"),
        (470, 44, "Scheduler", "pure: filters, scores, reasons"),
        (470, 124, f"{len(facts.controllers())} controllers", "Placement → Work → status"),
    ):
        drawing.box(x, y, 176, title, [said], colour="plain", height=72)
    carried = ["logs, commands, ports, Services across sites, the stable URL"]
    drawing.box(656, 44, 176, "Tunnels", carried, colour="plain", height=152)
    drawing.arrow((186, 110), (270, 110))
    drawing.text(208, 102, "HTTPS", "n")
    for x, title, said_of_site in (
        (16, "Cloud site", ["agent: desired state on disk", "sandbox runtime, pods", "heals alone when cut off"]),
        (312, "Edge site", ["agent", "each pod: namespaces of its own, Services by name"]),
        (608, "Gateway", ["agent: under 43 MB", "a small machine near users"]),
    ):
        drawing.box(x, 280, 236, title, said_of_site, colour="green", height=84)
        drawing.arrow((x + 118, 280), (max(x + 118, 330), 206))
    drawing.text(444, 248, "agents only ever dial out: HTTPS, one WebSocket", "n")
    return drawing.render()


def scale() -> str:
    """Where each limit of one hub is, as ``bench/results/scale.json`` says: bars on a logarithmic scale."""
    rows = json.loads((RESULTS / "scale.json").read_text())
    found = [row for row in rows if row["name"].startswith("limit: ")]
    drawing, y = Drawing("How far one hub goes: where each limit is met", 860), 16.0
    for unit, first, last, wanted in (("sites", 3, 5, 1e4), ("objects", 5, 8, 1e6)):
        left, width = 420.0, 400.0

        def at(value: float, first: int = first, last: int = last) -> float:
            return 420.0 + 400.0 * min(1.0, max(0.0, (math.log10(value) - first) / (last - first)))

        drawing.text(16, y + 14, f"{unit} of one hub", "h")
        for power in range(first, last + 1):
            drawing.text(at(10.0**power), y + 14, f"{10**power:,}", "n", anchor="middle")
        y += 26
        for row in sorted((row for row in found if row["unit"] == unit), key=lambda row: float(row["value"])):
            drawing.text(left - 10, y + 14, row["name"].removeprefix(f"limit: {unit}, "), anchor="end")
            value = float(row["value"])
            end = max(4.0, at(value) - left)
            drawing.box(left, y, end, "", colour="green" if value >= wanted else "sand", height=18)
            drawing.text(left + min(end, width - 60) + 6, y + 14, f"{float(f'{value:.2g}'):,.0f}", "n")
            y += 24
        y += 14
    drawing.note("Green: beyond 10,000 sites and a million objects. Logarithmic. Measured by make bench ONLY=scale.")
    return drawing.render()


PICTURES: dict[str, Callable[[], str]] = {
    "architecture/layers.svg": layers,
    "architecture/imports.svg": imports,
    "architecture/kinds.svg": kinds,
    "architecture/controllers.svg": controllers,
    "architecture/flow.svg": flow,
    "architecture/processes.svg": processes,
    "architecture/network.svg": network,
    "architecture/users.svg": users,
    "architecture/scale.svg": scale,
    "architecture.svg": overview,
}
