"""The report of a calibration: tables for the terminal, and a page with plots (matplotlib, loaded on first use)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metaos.twin.report import encoded, page

_SIDES = (
    ("real", "real", "#1b2a49"),
    ("before", "twin, as the scenario has it", "#c0392b"),
    ("after", "twin, calibrated", "#2e86c1"),
)


def summary(report: dict[str, Any]) -> str:
    """For people."""
    before, after = report["before"], report["after"]
    lines = [report["title"], f"{report['seconds']:g} s on real processes of this machine, and in the twin", ""]
    rows = []
    for old, row in _paired(before, after, "placement", "workload"):
        places = [_sites(row[key]) for key in ("realFirst", "twinFirst", "realLast", "twinLast")]
        rows.append([row["workload"], *places, _verdict(old), _verdict(row)])
    lines += _table(["placement", "real first", "twin first", "real last", "twin last", "before", "calibrated"], rows)
    rows = []
    for old, row in _paired(before, after, "timing", "leg"):
        cells = [row["what"], *(_number(row[key]) for key in ("realP50", "realMax"))]
        for twin in (old, row):
            cells += [*(_number(twin.get(key)) for key in ("twinP50", "twinMax", "ratio")), _verdict(twin)]
        rows.append([*cells, _number(row["allowed"])])
    sides = ["real/twin", "before", "twin p50", "max", "real/twin", "calibrated", "allowed"]
    lines += ["", *_table(["time in s", "real p50", "max", "twin p50", "max", *sides], rows)]
    rows = []
    for old, row in _paired(before, after, "energy", "site"):
        cells = [row["site"], _number(row["realWatts"]), _number(old.get("twinWatts")), _verdict(old)]
        cells += [_number(row["twinWatts"]), _verdict(row), f"{row.get('uncertainty', 0):.0%}"]
        rows.append(
            [*cells, *(_number(each.get(f"{side}GramsPerHour")) for each, side in ((row, "real"), (old, "twin"), (row, "twin")))]
        )
    heads = ["mean W", "real", "twin", "before", "calibrated", "verdict", "+/-", "real gCO2e/h", "twin", "calibrated"]
    lines += ["", *_table(heads, rows)] if rows else ["", "no energy was booked: write a shorter timing.metering"]
    for side in ("before", "after"):
        for row in report[side]["timing"]:
            for key, where in (("onlyReal", "for real"), ("onlyTwin", "in the twin")):
                if row[key]:
                    lines.append(f"only {where} ({side}): {row['what']}: {', '.join(row[key])}")
    settings = report["settings"]
    lines += [
        "",
        f"tolerance: {report['tolerance']}",
        f"energy: {report['energyMethod']}",
        f"fitted on this very run, in {settings['plays']} plays; another run tells how well it carries over",
        "one load is fitted for all containers: sites whose containers differ in it come out apart in energy",
        f"before:     {_settings(settings['before'])}",
        f"calibrated: {_settings(settings['after'])}",
        "the calibrated twin agrees" if report["held"] else "the calibrated twin does not agree in all",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    every = [head, *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]


def _sites(found: dict[str, int]) -> str:
    return ", ".join(f"{site} {count}" for site, count in sorted(found.items())) or "nowhere"


def _verdict(row: dict[str, Any]) -> str:
    return "held" if row.get("held") else "APART"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _paired(
    before: dict[str, Any], after: dict[str, Any], part: str, key: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of the same thing; an empty one where there was none before."""
    known = {row[key]: row for row in before[part]}
    return ((known.get(row[key], {}), row) for row in after[part])


def _settings(found: dict[str, Any]) -> str:
    return "; ".join(f"{block}: {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}" for block, values in found.items())


def write_html(report: dict[str, Any], file: Path) -> None:
    """One file with everything in it. Raises ``ImportError`` where there is no matplotlib, ``OSError``."""
    about = "One side ran as real processes (a hub, and agents with the sandbox runtime), the other one was simulated."
    shown = "Times, power, and pods that serve, on both sides"
    file.write_text("\n".join(page(report["title"], summary(report), about, shown, _picture(report))))


def _picture(report: dict[str, Any]) -> str:
    from matplotlib.figure import Figure

    workloads = sorted({workload for side in report["series"].values() for workload in side})
    figure = Figure(figsize=(10, 6 + 1.6 * len(workloads)), layout="constrained")
    axes = figure.subplots(2 + len(workloads), 1)
    _bars(axes[0], "Times in s, in the middle", list(_paired(report["before"], report["after"], "timing", "leg")), "what", "P50")
    _bars(axes[1], "Mean power in W", list(_paired(report["before"], report["after"], "energy", "site")), "site", "Watts")
    for axis, workload in zip(axes[2:], workloads, strict=True):
        for key, label, colour in _SIDES:
            course = report["series"][key].get(workload) or [(0.0, 0)]
            times, counts = [0.0, *(at for at, _ in course), report["seconds"]], [0, *(n for _, n in course), course[-1][1]]
            axis.plot(times, counts, label=label, color=colour, drawstyle="steps-post", alpha=0.8)
        axis.set_title(f"{workload}: pods that serve, over seconds", loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return encoded(figure)


def _bars(axis: Any, title: str, rows: Sequence[tuple[dict[str, Any], dict[str, Any]]], label: str, figure: str) -> None:
    names = [row[label] for _, row in rows]
    sides = [
        [row[f"real{figure}"] for _, row in rows],
        *([r.get(f"twin{figure}") for r in side] for side in zip(*rows, strict=True)),
    ]
    for number, ((_, what, colour), heights) in enumerate(zip(_SIDES, sides, strict=True) if rows else ()):
        places = [at + (number - 1) * 0.27 for at in range(len(names))]
        axis.bar(places, [height or 0.0 for height in heights], width=0.25, label=what, color=colour)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, loc="left", fontsize=10)
    axis.grid(axis="y", alpha=0.3)
