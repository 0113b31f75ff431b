"""``nemo carbon`` and ``nemo cost``: what was used, emitted and is owed, as tables, pictures, and files for other programs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from metaos.accounting.focus import as_focus
from metaos.accounting.footprint import plain
from metaos.accounting.statement import as_csv
from metaos.cli.connection import with_client
from metaos.cli.output import emit, fit, screen_width, table
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.meta import Obj, format_time, parse_time

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
BARS = 40
GRAMS = "gCO2eq, location-based with hardware"
#: Units of work that the ledger counts by itself: what SCI is given per (R).
WORK = {"core-hour": "cpuHours", "pod-hour": "podHours", "gib-hour": "memoryGiBHours"}


def moment(text: str, option: str, now: float) -> str:
    """An RFC 3339 time, a day, or how long ago (``24h``). Raises ``click.BadParameter``."""
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if ago:
        return format_time(now - int(ago[1]) * UNITS[ago[2]])
    try:
        return format_time(parse_time(f"{text}T00:00:00Z" if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else text))
    except (ValueError, OverflowError):
        wanted = "a time such as 2026-11-30T10:00:00Z, a day such as 2026-11-30, or how long ago, such as 24h"
        raise click.BadParameter(f"{text!r} must be {wanted}", param_hint=option) from None


def unit_of(text: str) -> tuple[str, Decimal | None]:
    """What SCI is given per: the name, and how many there were, where the ledger does not count them."""
    if text in WORK:
        return text, None
    named, _, count = text.rpartition("=")
    if named and re.fullmatch(r"\d{1,15}(\.\d{1,9})?", count) and Decimal(count):
        return named, Decimal(count)
    raise click.BadParameter(f"{text!r} must be {', '.join(WORK)} or NAME=COUNT, for example requests=120000", param_hint="--per")


def show(
    spec: dict[str, Any],
    *,
    money: bool,
    per: str,
    plot: Path | None,
    output: str,
    kubeconfig: Path | None,
    data: Path,
) -> None:
    """Asks for a statement and prints it."""
    unit = unit_of(per)
    now = SystemClock().now()
    for key in ("since", "until"):
        if spec.get(key):
            spec[key] = moment(spec[key], f"--{key}", now)
    spec = {key: value for key, value in spec.items() if value}
    if plot is not None or output == "text":
        spec["series"] = True
    if output == "focus":
        spec["charges"] = True

    async def ask(client: HttpClient) -> Obj:
        return await client.create({**scheme.STATEMENT.empty(""), "spec": spec})

    status: dict[str, Any] = with_client(kubeconfig, data, ask)["status"]
    for group in status["groups"]:
        group["sci"] = sci_of(group, *unit)
    told = []
    if plot is not None:
        draw(status, plot, money=money)
        told.append(f"the picture is in {plot}")
    if output == "csv":
        click.echo(as_csv(status["groups"]), nl=False)
    elif output == "focus":
        click.echo(as_focus(status["groups"], status["by"]), nl=False)
    else:
        width = screen_width()
        emit(status, output, text="\n".join(fit(render(status, width, money=money), width)))
    for each in told:
        click.echo(f"note: {each}", err=True)


def sci_of(group: dict[str, Any], unit: str, count: Decimal | None) -> dict[str, Any]:
    """Software Carbon Intensity (ISO/IEC 21031), location-based: (E x I + M) / R, of a group. ``None``: a part is not known, or
    not of all lines."""
    work = Decimal(group[WORK[unit]]) if count is None else count
    parts = group["operationalGrams"]["location"], group["embodiedGrams"]
    whole = not {"location", "embodied"} & group["unknownLines"].keys()
    value = None
    if whole and None not in parts and work:
        value = f"{(Decimal(parts[0]) + Decimal(parts[1])) / work:.6g}"
    return {"gramsPerUnit": value, "unit": unit, "units": plain(work)}


# -- tables ------------------------------------------------------------------------------------------------


def render(status: dict[str, Any], width: int, *, money: bool) -> list[str]:
    """For people, on a screen of so many columns (0: of any)."""
    groups = status["groups"]
    if not groups:
        return ["nothing is booked for that", *_notes(status, groups)]
    if money:
        found = _cost_table(status["by"], groups, width)
    else:
        found = _carbon_table(status["by"], groups, width, against="against" in status)
    return [*found, "", *_chart(status.get("series") or [], width, money=money), *_notes(status, groups)]


def _carbon_table(by: str, groups: Sequence[dict[str, Any]], width: int, *, against: bool) -> list[str]:
    unit = groups[0]["sci"]["unit"]
    head = [by, "energy kWh", "+/-", "location g", "market g", "marginal g", "hardware g", f"SCI g/{unit}"]
    head += ["same work g", "elsewhere g", "saved g"] if against else []
    rows = []
    for group in groups:
        grams, unknown = group["operationalGrams"], group["unknownLines"]
        row = [
            *("/".join(group["key"]), _number(group["energyKWh"]), _percent(group["energyUncertainty"])),
            *(_partly(grams[basis], basis in unknown) for basis in ("location", "market", "marginal")),
            *(_partly(group["embodiedGrams"], "embodied" in unknown), _number(group["sci"]["gramsPerUnit"])),
        ]
        if against:
            other = group.get("against") or {}
            row += [_partly(other.get(key), bool(other.get("unknownLines"))) for key in ("grams", "elsewhereGrams", "savedGrams")]
        rows.append(row)
    return table(head, rows, width)


def _cost_table(by: str, groups: Sequence[dict[str, Any]], width: int) -> list[str]:
    """What was used once; below each other what it costs in each currency, as these are not added."""
    rows = []
    for group in groups:
        owed = sorted(group["cost"].items()) or [("no price", None)]
        rows.append(
            [
                "/".join(group["key"]),
                "\n".join(_partly(amount, "cost" in group["unknownLines"]) for _, amount in owed),
                "\n".join(currency for currency, _ in owed),
                *(_number(group[key]) for key in ("cpuHours", "memoryGiBHours", "podHours", "energyKWh")),
            ]
        )
    return table([by, "cost", "currency", "core hours", "GiB hours", "pod hours", "energy kWh"], rows, width)


def _number(text: str | None) -> str:
    """Four significant digits; ``-``: not known."""
    return "-" if text is None else f"{float(text):.4g}"


def _partly(text: str | None, partly: bool) -> str:
    """``*``: of some lines it is not known, and they are not in it."""
    return _number(text) + ("*" if partly and text is not None else "")


def _percent(text: str | None) -> str:
    return "-" if text is None else f"{float(text) * 100:.0f}%"


def _chart(series: Sequence[dict[str, Any]], width: int, *, money: bool) -> list[str]:
    """A bar for each step, of all groups together; for each currency by itself."""
    lines = []
    for unit in _units(series, money):
        found = []
        for step in series:
            known = [value for group in step["groups"] if (value := _value(group, unit)) is not None]
            found.append((step["start"], sum(known) if known else None))
        most = max((value for _, value in found if value is not None), default=0.0)
        if len(found) < 2 or not most:
            continue
        bars = max(10, min(BARS, (width or 100) - 36))
        lines.append(f"{f'cost in {unit}' if unit else GRAMS}, by time (UTC)")
        for start, value in found:
            bar = "?" if value is None else "#" * max(1 if value else 0, round(value / most * bars))
            lines.append(
                f"{start[5:16].replace('T', ' ')}  {bar.ljust(bars)}  {'' if value is None else f'{value:.4g}'}".rstrip()
            )
        lines.append("")
    return lines


def _units(series: Sequence[dict[str, Any]], money: bool) -> list[str]:
    """What is drawn, each by itself: currencies, which are not added; the empty one stands for grams."""
    return sorted({currency for step in series for group in step["groups"] for currency in group["cost"]}) if money else [""]


def _value(group: dict[str, Any], unit: str) -> float | None:
    """Of a group in a step. ``None``: not known. Who is charged in other currencies alone is charged nothing in this one."""
    found = group["cost"].get(unit, "0" if group["cost"] else None) if unit else group["grams"]
    return None if found is None else float(found)


_MEANINGS = {
    "location": "lines without a location-based intensity",
    "market": "lines without a market-based one (spec.electricity.marketIntensity of the site)",
    "marginal": "lines without a marginal one (marginalIntensity)",
    "embodied": "lines without the hardware's emissions (spec.power.embodied...)",
    "cost": "lines without a price",
    "network": "lines whose bytes were not counted",
    "notGiven": "lines of what the hub did not give the site: charged to nobody",
}


def _notes(status: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures do not say."""
    found = []
    unknown: dict[str, int] = {}
    for group in groups:
        for key, count in group["unknownLines"].items():
            unknown[key] = unknown.get(key, 0) + count
    lines = sum(group["lines"] for group in groups)
    if unknown:
        found.append("-: not known; *: without lines of which it is not known")
        found += [f"{unknown[key]} of {lines} {meaning}" for key, meaning in _MEANINGS.items() if key in unknown]
    bases: dict[str, float] = {}
    for group in groups:
        for key, value in group["energyKWhByBasis"].items():
            bases[key] = bases.get(key, 0.0) + float(value)
    if bases and sum(bases.values()):
        parts = [f"{value / sum(bases.values()):.0%} {key}" for key, value in sorted(bases.items())]
        found.append(f"energy: {', '.join(parts)} (assumed: average coefficients; stated: the owner's power model)")
    guessed = [float(group["estimatedShare"]) for group in groups if float(group["estimatedShare"] or 0)]
    if guessed:
        found.append(f"up to {max(guessed):.1%} of the time of a group nobody looked: figures for it are estimated")
    if any(group["lostSeconds"] for group in groups):
        found.append("some sites gave up periods, as they were cut off for too long: what was used then is missing")
    if status["linesLeftOut"]:
        found.append(f"{status['linesLeftOut']} more lines are in namespaces of which you may not list statements")
    if "against" in status:
        found.append(f"against {status['against']['what']}: {status['against']['method']}")
    return found


# -- pictures ----------------------------------------------------------------------------------------------


def draw(status: dict[str, Any], file: Path, *, money: bool) -> None:
    """The series as stacked areas, by group, as PNG, SVG or PDF by the file's ending. Raises ``ValueError``."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'nemo-metaos[pictures]'") from None
    series = status.get("series") or []
    names, units = sorted({"/".join(group["key"]) for step in series for group in step["groups"]}), _units(series, money)
    if not names or not units:
        why = "nothing that is booked for that has a price" if names else "nothing is booked for that"
        raise ValueError(f"there is nothing to draw: {why}")
    figure = Figure(figsize=(9, 5 * len(units)), layout="constrained")
    starts = [parse_time(step["start"]) / 3600 for step in series]
    widths = [parse_time(step["end"]) / 3600 - start for step, start in zip(series, starts, strict=True)]
    shown = [*range(0, len(series), max(1, len(series) // 6))]
    for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units, strict=True):
        bottom = [0.0] * len(series)
        for number, name in enumerate(names):
            heights = []
            for step in series:
                found = [_value(group, unit) for group in step["groups"] if "/".join(group["key"]) == name]
                heights.append(sum(value for value in found if value is not None and math.isfinite(value)))
            # One entry of the legend for each name, whatever the number of currencies.
            label = name if unit == units[0] else None
            axes.bar(
                starts,
                heights,
                widths,
                bottom,
                align="edge",
                color=f"C{number % 10}",
                label=label,
                edgecolor="white",
                linewidth=0.3,
            )
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        what = f"Cost in {unit}" if unit else "Carbon"
        axes.set_title(
            f"{what} by {status['by']}; steps of {widths[0] * 60:.0f} minutes; what is not known is left out", fontsize=10
        )
        axes.set_ylabel(f"cost [{unit}]" if unit else GRAMS)
        axes.set_xticks([starts[at] for at in shown], [series[at]["start"][5:16].replace("T", "\n") for at in shown])
        axes.set_xlabel("UTC")
        axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"the picture {file} cannot be written: {error}") from None
