"""``nemo plan``: what would go where and why, without doing it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from metaos.cli.connection import with_client
from metaos.cli.output import emit, fit, screen_width, table
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, name, namespace
from metaos.resources.scheme import Kind

FIELD_MANAGER = "nemo-plan"
#: Who has it may plan.
VIEWER = "system:site-viewer"
SUFFIXES = (".yaml", ".yml", ".json")
#: Of a plot in the terminal.
PLOT_COLUMNS, PLOT_ROWS = 60, 12

_MEASURES = (("cost", "EUR/h"), ("carbon", "gCO2eq/h"), ("power", "W"), ("latency", "ms"))


def read_objects(paths: Sequence[Path], where: str) -> list[Obj]:
    """The objects of files and folders, in their order; lists are taken apart. Raises ``ValueError`` naming file and remedy."""
    import yaml

    found: list[Obj] = []
    for path in paths:
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} has no file that ends in {', '.join(SUFFIXES)}")
        for file in files:
            try:
                documents = list(yaml.safe_load_all(file.read_text()))
            except yaml.MarkedYAMLError as error:
                line = error.problem_mark.line + 1 if error.problem_mark else 1
                raise ValueError(f"{file}: line {line}: {error.problem}") from None
            except (yaml.YAMLError, UnicodeDecodeError):
                raise ValueError(f"{file} is no manifest: it is not a YAML text") from None
            for document in documents:
                found += _objects(document, file, where)
    return found


def _objects(document: object, file: Path, where: str) -> Iterable[Obj]:
    if document is None:
        return
    if not isinstance(document, dict) or not document.get("kind") or not document.get("apiVersion"):
        raise ValueError(f"{file}: every document needs apiVersion and kind")
    if str(document["kind"]).endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _objects(item, file, where)
        return
    kind = scheme.by_kind(str(document["apiVersion"]), str(document["kind"]))
    if kind is None:
        what = f"kind {document['kind']!r} in {document['apiVersion']!r}"
        raise ValueError(f"{file}: {what} is not served: see 'kubectl api-resources'")
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        raise ValueError(f"{file}: a {kind.kind} without metadata.name")
    for word in ("name", "namespace"):
        if not isinstance(metadata.get(word) or "", str):
            raise ValueError(f"{file}: metadata.{word} must be a text: {metadata[word]!r} is not; put it in quotes")
    if kind.namespaced and not metadata.get("namespace"):
        metadata["namespace"] = where
    yield document


def supposed(drain: Sequence[str], lose: Sequence[str], price: Sequence[str], carbon: Sequence[str]) -> dict[str, Any]:
    """The part of a review's spec that says how the world would change. Raises ``click.BadParameter``."""
    found: dict[str, Any] = {"drain": list(drain), "lose": list(lose)}
    found["prices"] = dict(_amount(text, "--price") for text in price)
    found["carbonIntensities"] = dict(_amount(text, "--carbon") for text in carbon)
    return {word: value for word, value in found.items() if value}


def _amount(text: str, option: str) -> tuple[str, float]:
    named, _, amount = text.partition("=")
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not named or not math.isfinite(value) or value < 0:
        raise click.BadParameter(f"{text!r} must be NAME=AMOUNT with a number of at least 0", param_hint=option)
    return named, value


async def ask(client: HttpClient, objects: Sequence[Obj], changes: dict[str, Any]) -> tuple[Obj, list[str]]:
    """The answered review, and what was not checked. Each object is applied without effect first, so that it is valid, has its
    defaults, and is what this user may apply."""
    told: list[str] = []
    new = {name(o) for o in objects if o["kind"] == scheme.NAMESPACE.kind}
    spec: dict[str, Any] = {"objects": [], **changes}
    for obj in objects:
        kind = scheme.kind_of(obj)
        if kind not in (*scheme.WORKLOADS, scheme.INTENT, scheme.PLACEMENT_POLICY):
            continue
        spec["objects"].append(await _applied(client, kind, obj, new, told))
    if sites := [name(o) for o in objects if scheme.kind_of(o) in (scheme.CLUSTER, scheme.NODE)]:
        told.append(f"a plan is made for the sites that there are: what the manifests say of {', '.join(sites)} is passed over")
    review = {"apiVersion": scheme.PLACEMENT_REVIEW.api_version, "kind": scheme.PLACEMENT_REVIEW.kind, "spec": spec}
    try:
        return await client.create(review), told
    except ApiError as error:
        if error.code == 403 and "cannot create" in error.message:
            error.message += f"; an administrator can bind the role {VIEWER!r} to you"
        raise


async def _applied(client: HttpClient, kind: Kind, obj: Obj, new: set[str], told: list[str]) -> Obj:
    from metaos.client import PatchType

    where = namespace(obj)
    try:
        return await client.patch(
            kind, name(obj), where, obj, type=PatchType.APPLY, field_manager=FIELD_MANAGER, force=True, dry_run=True
        )
    except ApiError as error:
        if error.code == 404 and where in new:
            note = f"namespace {where!r} is not there yet: what goes into it was held to its schema alone"
            told += [note] if note not in told else []
            return obj
        raise


def show_plan(
    paths: Sequence[Path],
    changes: dict[str, Any],
    where: str,
    output: str,
    picture: Path | None,
    kubeconfig: Path | None,
    data: Path,
) -> None:
    """Prints the answer, and draws it where a file for the picture is named."""
    objects = read_objects(paths, where or "default")

    async def read(client: HttpClient) -> tuple[Obj, list[str]]:
        return await ask(client, objects, changes)

    review, told = with_client(kubeconfig, data, read)
    status = review.get("status") or {}
    if picture is not None:
        draw(status, picture)
        told.append(f"the picture is in {picture}")
    width = screen_width()
    lines = [*render(status, width), *(f"note: {t}" for t in told)]
    emit(status, output, text="\n".join(fit(lines, width)))
    if output != "text":
        for text in told:
            click.echo(f"note: {text}", err=True)


# -- for people --------------------------------------------------------------------------------------------


def render(status: dict[str, Any], width: int) -> list[str]:
    """The plan, for a screen of so many columns (0: any): each workload, the sums, what cannot be met, what else could be had."""
    from metaos.scheduler.conflicts import lines as conflict_lines
    from metaos.scheduler.explain import costs_line, talk_line

    rows = status.get("workloads") or []
    found: list[str] = []
    for row in rows:
        before, after = _places(row["before"]["clusters"]), _places(row["after"]["clusters"])
        found.append(f"{row['kind']} {row['namespace']}/{row['name']}")
        move = after if before == after else f"{before} -> {after}"
        found.append(f"  where     {move}")
        found.append(f"  because   {row['reason']}")
        if row.get("timing"):
            found.append(f"  when      {row['timing']}")
        if row["before"]["clusters"] or row["after"]["clusters"]:
            found.append(f"  figures   {_figures(row['before'], row['after'])}")
        found += [f"  {talk_line(talk)}" for talk in row.get("traffic") or ()]
        found += [f"  {costs_line(part)}" for part in row.get("costs") or ()]
        told = conflict_lines(row.get("conflict") or {})
        if told:
            found += [f"  {word:<9} {line}" for word, line in zip(["problem", *[""] * len(told)], told, strict=False)]
        else:
            found += [f"  not on    {r['cluster']}: {r['reason']}" for r in row.get("rejected") or ()]
        found.append("")
    unchanged, left_out = status.get("unchanged"), status.get("workloadsLeftOut")
    if unchanged:
        found.append("1 workload would stay as it is" if unchanged == 1 else f"{unchanged} workloads would stay as they are")
    for held in status.get("held") or ():
        until = f"; at the earliest from {held['until']}" if held.get("until") else ""
        found.append(f"  {held['kind']} {held['namespace']}/{held['name']} {held['reason']}{until}")
    if left_out:
        found.append(f"{left_out} more would change or have no place that are not listed here")
    if not rows and not unchanged and not left_out and not status.get("reoptimised"):
        found.append("nothing would change")
    if rows or unchanged:
        found.append(f"all together  {_figures(status.get('before') or {}, status.get('after') or {})}")
    if status.get("reoptimised"):
        found += [*([""] if found else []), *_reoptimised(status["reoptimised"])]
    ways = status.get("alternatives") or []
    if _differ(ways, status.get("chosen") or {}):
        found += [
            "",
            "other ways for what comes or moves; none is beaten by another in everything:",
            *_ways(ways, status, width),
        ]
        found += ["", *plot(ways, status.get("chosen") or {}, min(PLOT_COLUMNS, max(20, (width or 100) - 16)))]
    return found


def _differ(ways: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> bool:
    """Whether there is any way besides the plan's own."""
    return any(_cells(way) != _cells(chosen) for way in ways)


def _reoptimised(found: dict[str, Any]) -> list[str]:
    moves = found["moves"]
    points = f"{found['before']:.1f} -> {found['after']:.1f} points of 100 on average"
    proof = f"; of what is missing, at most {found['gap']:.2%} could be had besides" if "gap" in found else ""
    lines = [f"all {found['considered']} workloads that may move, at once: {points}{proof}"]
    for move in moves:
        places = f"{', '.join(move['from']) or 'nowhere'} -> {move['to']}"
        lines.append(f"  {move['kind']} {move['namespace']}/{move['name']}: {places}, {move['gain']:+.1f} points")
    if found.get("movesLeftOut"):
        lines.append(f"  and {found['movesLeftOut']} more moves that are not listed here")
    return lines if moves else [*lines, "  none of them would gain what its policy asks of a move"]


def _places(clusters: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"{c['name']} ({c['replicas']})" for c in clusters) or "nowhere"


def _figures(before: dict[str, Any], after: dict[str, Any]) -> str:
    parts = []
    for word, unit in _MEASURES:
        old, new = before.get(word), after.get(word)
        if new is None and old is None:
            continue
        was = "" if old is None or not (before.get("clusters", True)) or old == new else f"{old:.4g} -> "
        parts.append(f"{word} {was}{'unknown' if new is None else f'{new:.4g}'} {unit}")
    return ", ".join(parts) or "none known"


def _ways(ways: Sequence[dict[str, Any]], status: dict[str, Any], width: int) -> list[str]:
    rows = [["plan", *_cells(status.get("chosen") or {}), ""]]
    for number, way in enumerate(ways, start=1):
        places = sorted({f"{w['name']} on {'+'.join(c['name'] for c in w['clusters'])}" for w in way["workloads"]})
        rows.append([str(number), *_cells(way), "; ".join(places)])
    head = ["", *(f"{word} [{unit}]" for word, unit in _MEASURES), "where"]
    return [f"  {line}" for line in table(head, rows, width and width - 2, words=True)]


def _cells(found: dict[str, Any]) -> list[str]:
    return ["-" if found.get(word) is None else f"{found[word]:.4g}" for word, _ in _MEASURES]


def plot(ways: Sequence[dict[str, Any]], chosen: dict[str, Any], columns: int) -> list[str]:
    """Money over carbon, a number for each way and ``*`` for the plan."""
    points = [(str(n % 10), w["cost"], w["carbon"]) for n, w in enumerate(ways, start=1) if _drawable(w)]
    if _drawable(chosen):
        points.append(("*", chosen["cost"], chosen["carbon"]))
    if len(points) < 2:
        return []
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    grid = [[" "] * columns for _ in range(PLOT_ROWS)]
    for mark, x, y in points:
        column = round((x - min(xs)) / ((max(xs) - min(xs)) or 1) * (columns - 1))
        row = round((max(ys) - y) / ((max(ys) - min(ys)) or 1) * (PLOT_ROWS - 1))
        grid[row][column] = mark
    heads = [f"{max(ys):.4g}", *[""] * (PLOT_ROWS - 2), f"{min(ys):.4g}"]
    found = ["  gCO2eq/h", *(f"{head:>11} |{''.join(row).rstrip()}" for head, row in zip(heads, grid, strict=True))]
    found.append(" " * 12 + "+" + "-" * columns)
    left = f"{min(xs):.4g}"
    return [*found, " " * 13 + left + f"{max(xs):.4g} EUR/h".rjust(columns - len(left))]


def _drawable(found: dict[str, Any]) -> bool:
    return found.get("cost") is not None and found.get("carbon") is not None


def draw(status: dict[str, Any], file: Path) -> None:
    """The alternatives as PNG, SVG or PDF, by the file's ending: money, carbon, and the round trip as colour."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'nemo-metaos[pictures]'") from None
    ways = [w for w in status.get("alternatives") or () if _drawable(w)]
    chosen = status.get("chosen") or {}
    if not ways and not _drawable(chosen):
        raise ValueError("there is nothing to draw: nothing would move, or no site states its price and carbon intensity")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    if ways:
        trips = [w.get("latency") for w in ways]
        known = all(t is not None for t in trips)
        colours: dict[str, Any] = {"c": trips, "cmap": "viridis"} if known else {}
        dots = axes.scatter([w["cost"] for w in ways], [w["carbon"] for w in ways], s=60, zorder=2, **colours)
        if known:
            figure.colorbar(dots, label="worst round trip from users [ms]")
        for number, way in enumerate(ways, start=1):
            axes.annotate(str(number), (way["cost"], way["carbon"]), textcoords="offset points", xytext=(7, 5))
    if _drawable(chosen):
        axes.scatter([chosen["cost"]], [chosen["carbon"]], s=220, marker="*", color="tab:red", label="the plan", zorder=3)
        axes.legend()
    axes.set_xlabel("money per hour")
    axes.set_ylabel("gCO2eq per hour")
    axes.set_title("Other ways: none of them is beaten by another in everything")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"the picture {file} cannot be written: {error}") from None
