"""Reports of a run: a summary for the terminal, and a page with plots (matplotlib, loaded on first use)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaos.twin.jobs import told

SHOWN = 12
_PLOTS = (
    ("Copies", (("copies", "exist"), ("copiesReady", "serve"))),
    ("Sites", (("sitesReached", "reached"), ("sitesReady", "ready, as the hub believes"))),
)
_POWER_PLOTS = (
    ("Power in W", (("watts", "all sites"),)),
    ("gCO2e per hour", (("gramsPerHour", "all sites"),)),
)


def summary(report: dict[str, Any]) -> str:
    """For people."""
    simulated, energy = report["simulated"], report["energy"]
    sites = ", ".join(f"{n} {kind}" for kind, n in simulated["sites"].items())
    lines = [
        f"{report['title']}",
        f"seed {report['seed']}: {simulated['seconds'] / 3600:.2f} h, sites: {sites}; {simulated['workloads']} workloads, "
        f"{simulated['faults']} faults, {simulated['writes']} writes, {simulated['hubLives']} lives of the hub",
        _energy(energy),
    ]
    lines.append(f"carbon intensity: {report['carbon']}")
    if report["jobs"] is not None:
        lines += told(report["jobs"])
    for answer in report["expectations"]:
        lines.append(f"  {'held  ' if answer['held'] else 'FAILED'} {answer['expected']}")
        if not answer["held"]:
            lines.append(f"         found: {answer['found']}")
    lines += [f"  WRONG  at {v['seconds']:g} s: {v['what']}" for v in report["violations"][:SHOWN]]
    if len(report["violations"]) > SHOWN:
        lines.append(f"  … and {len(report['violations']) - SHOWN} more")
    lines += [f"  LEFT   {text}" for text in report["unfinished"][:SHOWN]]
    if not report["healed"]:
        lines.append("  some faults last to the end, so it was not judged whether all that can run does")
    lines.append(f"log: {report['log']['lines']} lines, sha256 {report['log']['sha256']}")
    lines.append("everything held" if report["passed"] else "not everything held")
    return "\n".join(lines)


def _energy(found: dict[str, Any]) -> str:
    """Sites that state no power are not counted, and that is told."""
    if not found["sitesWithPower"]:
        return "energy is not known: no site states 'power' (idleWatts, maxWatts)"
    silent = found["sitesWithoutPower"]
    missing = f"; {silent} that state none count as 0" if silent else ""
    return f"{found['kilowattHours']:.3f} kWh, {found['gramsCO2e']:.0f} gCO2e (by the power models that the sites state{missing})"


def again(report: dict[str, Any]) -> str:
    """The command that plays the same story."""
    return f"nemo twin run {report['scenario']} --seed {report['seed']}"


def write_html(report: dict[str, Any], file: Path) -> None:
    """One file with everything in it. Raises ``ImportError`` where there is no matplotlib, ``OSError``."""
    picture = _picture(report)
    escape = html.escape

    def rows(cells: Sequence[Sequence[str]]) -> str:
        return "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)

    expectations = [("held" if a["held"] else "FAILED", str(a["expected"]), str(a["found"])) for a in report["expectations"]]
    wrong = [(f"{v['seconds']:g} s", str(v["what"])) for v in report["violations"]]
    wrong += [("end", text) for text in report["unfinished"]]
    placed = [(w, ", ".join(f"{s} ({n})" for s, n in sites.items()) or "nowhere") for w, sites in report["placements"].items()]
    faults = [(str(f["at"]), str({k: v for k, v in f.items() if k != "at"})) for f in report["faults"]]
    events = [(reason, str(count)) for reason, count in report["events"].items()]
    meaning = "; ".join(
        f"{n} × {kind}: {report['simulated']['meaning'][kind]}" for kind, n in report["simulated"]["sites"].items()
    )
    about = f"This was simulated. {meaning}. The hub is the real one on a simulated disk."
    parts = page(report["title"], summary(report), about, "What happened over time", picture)
    tables: tuple[tuple[str, Sequence[Sequence[str]]], ...] = (
        ("Expected", expectations),
        ("Wrong", wrong),
        ("Faults", faults),
        ("Placements at the end", placed),
        ("Events", events),
    )
    for title, found in tables:
        if found:
            parts.append(f"<h2>{title}</h2><table>{rows(found)}</table>")
    file.write_text("\n".join(parts))


def page(title: str, text: str, about: str, shown: str, picture: str) -> list[str]:
    """The head of a report: its title, the summary for the terminal, what it is, and a PNG in base64 with what that shows."""
    escape = html.escape
    return [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{escape(title)}</title>",
        "<style>body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1b2a49}"
        "table{border-collapse:collapse;margin:1em 0}td{border-bottom:1px solid #dfe5ee;padding:.25em .8em .25em 0;"
        "vertical-align:top}img{max-width:100%}pre{white-space:pre-wrap}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<pre>{escape(text)}</pre>",
        f"<p>{escape(about)}</p>",
        f"<img alt='{escape(shown)}' src='data:image/png;base64,{picture}'>",
    ]


def encoded(figure: Any) -> str:
    """A matplotlib figure as PNG in base64."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=110)
        return base64.b64encode(file.getvalue()).decode()


def _picture(report: dict[str, Any]) -> str:
    from matplotlib.figure import Figure

    # What is not known is not drawn as 0.
    plots = (*_PLOTS, *(_POWER_PLOTS if report["energy"]["sitesWithPower"] else ()))
    figure = Figure(figsize=(10, 2.25 * len(plots)), layout="constrained")
    axes = figure.subplots(len(plots), 1, sharex=True)
    hours = [point["seconds"] / 3600 for point in report["series"]]
    for axis, (title, lines) in zip(axes, plots, strict=True):
        for key, label in lines:
            axis.plot(hours, [point[key] for point in report["series"]], label=label, drawstyle="steps-post")
        for fault in report["faults"]:
            begin = float(fault["at"].removesuffix("s")) / 3600
            length = float(str(fault.get("for", "0s")).removesuffix("s")) / 3600
            axis.axvspan(begin, begin + max(length, hours[-1] / 2000), color="#c0392b", alpha=0.12, linewidth=0)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=8, loc="lower right")
    axes[-1].set_xlabel("hours; shaded: faults")
    return encoded(figure)
