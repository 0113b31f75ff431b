"""Reference pages from what benchmarks wrote down: the figures of ``bench/results`` between words."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "bench/results"


class _Figures:
    """Of one benchmark, by name."""

    def __init__(self, name: str) -> None:
        self._found = {f["name"]: f for f in json.loads((RESULTS / f"{name}.json").read_text())}

    def names(self, begin: str) -> list[str]:
        return [n for n in self._found if n.startswith(begin)]

    def value(self, name: str) -> float:
        return float(self._found[name]["value"])

    def words(self, name: str) -> str:
        """A whole number with its unit."""
        return f"{self.value(name):.0f} {self._found[name]['unit']}"

    def point(self, name: str) -> str:
        """``cost: carbon saved``; a dash where it was not run."""
        if f"{name}: cost" not in self._found:
            return "-"
        return f"{self.value(f'{name}: cost'):.1f}: {self.value(f'{name}: carbon saved'):.1f}"

    def published(self, name: str) -> str:
        cost, saved = (self._found[f"{name}: {what}"]["baseline"] for what in ("cost", "carbon saved"))
        return "" if cost is None else f"{cost:.1f}: {saved:.1f}"

    def machine(self) -> str:
        return str(next(iter(self._found.values()))["machine"])


def deferral_page() -> str:
    """``make bench ONLY=deferral``."""
    found = _Figures("deferral")
    trace = "alibaba-pai-1k"
    parts = [_HEAD.strip(), "", "| policy | published | here |", "|---|---|---|"]
    for name in found.names(f"{trace}, GAIA's ") + found.names(f"{trace}, bound"):
        if name.endswith(": cost"):
            bare = name.removesuffix(": cost")
            what = bare.removeprefix(f"{trace}, ").removeprefix("GAIA's ")
            cells = found.point(bare) if "bound" not in bare else f"{found.value(f'{bare}: carbon saved'):.1f}"
            note = _NOTES.get(what, "")
            parts.append(f"| {what} | {found.published(bare)} | {cells}{note} |")
    for when in ("known", "not known"):
        points = [
            f"{found.value(n):.1f}: **{found.value(n.replace(': cost', ': carbon saved')):.1f}**"
            for n in found.names(f"{trace}, ours, 9 reserved and spot")
            if n.endswith(f"run times {when}: cost")
        ]
        parts.append(f"| **NEMO, run times {when}** | | {'; '.join(points)} |")
    parts += ["", _KNOWN.strip(), ""]
    most = found.value(f"{trace}, GAIA's Wait-AWhile: carbon saved")
    without = found.value(f"{trace}, bound without run times, on the trace: carbon saved")
    parts += ["| published point (cost: carbon saved) | NEMO, run times known | the most | NEMO, not known | the most |"]
    parts += ["|---|---|---|---|---|"]
    for cost, saved in ((59, 13.8), (71, 14.6), (86, 27.5), (95, 45.4)):
        cells = [found.value(f"most carbon saved at {cost:g} % cost, run times {when}") for when in ("known", "not known")]
        parts.append(f"| {cost}: {saved} | {cells[0]:.1f} | {most:.1f} | {cells[1]:.1f} | {without:.1f} |")
    parts += ["", _BOUND.strip(), "", _DIFFERS.strip(), "", _PARTS.strip(), ""]
    parts += ["| trace | GAIA's Spot-RES Carbon-Time | NEMO, known | NEMO, not known | the most, known | the most, not known |"]
    parts += ["|---|---|---|---|---|---|"]
    for name in ("azure-100k", "alibaba-pai-100k"):
        theirs = next(n for n in found.names(f"{name}, GAIA's Spot-RES")).removesuffix(": cost")
        reserved = theirs.rpartition(", ")[2]
        ours = f"{name}, ours, {reserved} and spot"
        known = found.point(f"{ours}, 400 g an hour, run times known")
        unknown = [found.point(f"{ours}, {money} g an hour, run times not known") for money in (400, 0)]
        cells = [known, "; ".join(point if point != "-" else "400 g not run" for point in unknown)]
        most = found.value(f"{name}, Wait-AWhile: no policy that keeps to the rules emits less: carbon saved")
        bound = found.names(f"{name}, bound without run times, on the trace: carbon saved")
        last = f"{found.value(bound[0]):.1f}" if bound else "not run"
        parts.append(f"| `{name}`, {reserved} | {found.point(theirs)} | {cells[0]} | {cells[1]} | {most:.1f} | {last} |")
    zones = sorted({n.split(",")[0].removeprefix("zone ") for n in found.names("zone ")})
    parts += ["", _ZONES.format(count=len(zones)).strip(), ""]
    parts += ["| zone | GAIA | NEMO, not known | optimum with run times known, carbon saved |", "|---|---|---|---|"]
    columns = ("GAIA", "0 g an hour, run times not known", "the optimum with run times known")
    for zone in zones:
        cells = [found.point(f"zone {zone}, {what}") for what in columns[:2]]
        optimum = found.value(f"zone {zone}, {columns[2]}: carbon saved")
        parts.append(f"| {zone} | {cells[0]} | {cells[1]} | {optimum:.1f} |")
    medians = [statistics.median(found.value(f"zone {z}, {what}: carbon saved") for z in zones) for what in columns]
    parts.append(f"| median, carbon saved | {medians[0]:.1f} | {medians[1]:.1f} | {medians[2]:.1f} |")
    parts += [
        "",
        _ERRORS.strip(),
        "",
        "| error of the forecast | as it is | corrected by its past errors | at the 60 % quantile of them |",
    ]
    parts += ["|---|---|---|---|"]
    for error in (20, 40, 60, 80, 100):
        cells = []
        for how in ("taken as it is", "corrected by its past errors", "at the 60 % quantile of its past errors"):
            over = found.value(f"forecast error {error} %, {how}: emissions over perfect")
            against = found.value(f"forecast error {error} %, {how}: against starting at once")
            cells.append(f"+{over:.1f} % ({against:.1f})")
        parts.append(f"| {error} % | {cells[0]} | {cells[1]} | {cells[2]} |")
    parts += ["", _QUANTILE.strip(), "", *_elsewhere(), "", f"Machine: {found.machine()}.", ""]
    return "\n".join(parts)


def _elsewhere() -> list[str]:
    """``python -m bench.quantile``: the choice of the quantile, held against what it was not made on."""
    found, parts = _Figures("quantile"), [_HELD.strip(), "", "| electricity | error | as it is | 60 % quantile | 75 % quantile |"]
    parts.append("|---|---|---|---|---|")
    for where in ("the six zones at other times", "other zones"):
        for error in (20, 60, 100):
            cells = []
            for share in (50, 60, 75):
                name = f"{where}, error {error} %, at the {share} % quantile"
                better = "" if share == 50 else f" ({found.words(f'{name}: better than as it is')})"
                cells.append(f"+{found.value(f'{name}: emissions over perfect'):.1f} %{better}")
            parts.append(f"| {where} | {error} % | {' | '.join(cells)} |")
    return parts


_NOTES = {
    "Wait-AWhile": ", the optimum: no policy that keeps to the rules emits less",
    "bound without run times, on the trace": " % saved by the best policy that knows the true distributions",
    "bound without run times, expected": " % expected by it",
}
_HEAD = """
# What waiting saves, measured

Generated by `make docs` from `bench/results/deferral.json`, which `make bench ONLY=deferral` writes: batch jobs against the
carbon intensity of 2022. The data is not part of NEMO: `NEMO_DATA` names its directory, without it the run says loudly that
it is skipped. Nothing is drawn by chance, so there are no seeds: the same data gives the same figures on every machine.
Rules and traces are those of GAIA (Hanafy et al., ASPLOS 2024; github.com/umassos/GAIA, MIT): jobs under 2 h may wait 6 h
in all, others 24 h; pausing is free; on-demand costs 1, spot 0.2 and only for jobs up to 2 h, reserved capacity 0.4 times
its size times the horizon, used or not. 100 % is all on-demand without waiting. GAIA's policies are implemented beside
ours, in the same run.

**AU-SA from hour 7000, `alibaba-pai-1k`, 9 reserved CPUs.** Cost: carbon saved, both in percent:
"""
_KNOWN = """
The figures of our lines differ in what a saved on-demand hour is worth (400, 250, 100 and 0 g). Not known means: only
whether the user chose the queue for short or for long jobs, as in GAIA, and the lengths of jobs that have ended or still
run; nothing of the trace is known before it has happened. The most that is saved for no more cost than each published
point:
"""
_BOUND = """
**What not knowing costs.** With run times known the optimum is reached, for less money than the published point (45.38 %,
published rounded up). Without, it cannot be: which hours are the cheapest of the window depends on how many are needed. The
bound is dynamic programming with the true distribution of each queue's lengths over the whole trace, which nobody has in
advance, on steps of five minutes: no policy that knows the queue alone can expect to save more, where lengths come one
independent of the other. NEMO learns the distributions as jobs end (Kaplan and Meier, with those that still run as "longer
than that") and plans with the same recursion; what is missing to the bound is the price of learning. So the point (95,
45.4) is out of reach without run times, whatever is paid: a negative result. "The most" in the table is at any cost; both are
worked out in the same run (`informed` and `paused` in `bench/deferral.py`) and stand in its results.
"""
_DIFFERS = """
**How it differs.** Ours may pause on all capacity, GAIA's Carbon-Time starts once; it decides every minute where run times
are known, every five where not (also over all zones) and every 15 for the large traces, there with prices looked at once an
hour; GAIA decides every five seconds. Spot is never taken away in either. Plans without run times have steps of a quarter
of an hour, half an hour over the zones, an hour for the large traces. Large traces last a year, so the carbon of 2022
begins again at its end, and reserved capacity is as large a share of the mean load. Two points: 400 and 0 g.
"""
_PARTS = """
The run takes about half an hour of one core. These figures were taken in parts, the same inputs giving the same figures:
`alibaba-pai-100k` with run times known and the wrong forecasts before plans without run times were changed, which they do not
touch.
"""
_ZONES = """
**All {count} zones of 2022**, `alibaba-pai-1k`, 9 reserved CPUs and spot. GAIA's is Spot-RES Carbon-Time; NEMO's the one that
pays for carbon (0 g), which with run times known is the optimum but for the minute in which it decides. Where electricity
hardly changes, nobody saves.
"""
_ERRORS = """
**Wrong forecasts**, run times known, six zones, three start times each: emissions over those with perfect forecasts, and
against starting at once (100).
"""
_QUANTILE = """
The correction (least squares of the past over what was said and the seasonal model) pays for bad forecasts only. The quantile
is what decisions use: later hours count as 0.32 mean absolute errors of the last 28 days more than was said, which is the 60 %
quantile where errors are normal; the present hour is known. It costs nothing at 20 % and saves from 40 % on, a quarter of what
bad forecasts cost. 60 % was the best of 50, 60 and 75 % on these six zones and start times.
"""

_HELD = """
**Held against what it was not chosen on** (`make bench ONLY=quantile`, two minutes of a core): the same zones from three other
hours on (2300, 4900, 7500), and the 22 other zones of 2022. Of those there are no forecasts: each has the relative errors of
one of the six, hour by hour. Mean emissions over those with perfect forecasts; in brackets in how many cases less than with
the forecast as it is. 60 % holds there too; where errors are 100 %, 75 % is as good.
"""


def gpus_page() -> str:
    """``make bench ONLY=gpu``."""
    rows = json.loads((RESULTS / "gpu.json").read_text())
    parts = [_GPUS.strip(), "", "| what | NEMO | beside | aim | over the seeds |", "|---|---|---|---|---|"]
    for row in rows:
        digits = 0 if row["unit"] == "W" else 2
        value, base = f"{row['value']:,.{digits}f}", f"{row['baseline']:,.{digits}f}"
        low, high = (f"{end:,.{digits}f}" for end in row["spread"])
        what = row["name"].removeprefix("gpu: ").replace("    ", "… ")
        aim = "" if row["aim"] is None else f"{row['aim']:.2f}"
        parts.append(f"| {what} | {value} {row['unit']} | {base} | {aim} | {low} to {high} |")
    return "\n".join([*parts, "", _GPUS_DIFFER.strip(), "", _GPUS_POWER.strip()]) + "\n"


_GPUS = """
# GPUs, measured

`make bench ONLY=gpu` lets pods of Alibaba's `cluster-trace-gpu-v2023` arrive at its 1,213 nodes with 6,212 GPUs until 130 %
of them are asked for, ten orders (`NEMO_DATA` names the data's directory; without it the run says loudly that it is
skipped). What is told is how much of all GPUs is given away in the end. Published for FGD ("Beware of Fragmentation",
USENIX ATC 2023, with its artifact's results): 95.39 %, with ties by name; best-fit 93.08 %. Both are implemented beside
ours, with the same arrivals and ties. Figures after … belong to the one above.
"""
_GPUS_DIFFER = """
**How it differs.** FGD counts a free GPU as usable by a kind of pod where one of it fits; ours counts how many fit, by
thousandths and by CPU and memory, and adds the watts of a placement times a weight (GPU per watt). The weight helps
allocation too: it fills the frugal GPUs first, which here have the most cores. Scores of FGD and best-fit are whole numbers
of 0 to 100, as in their artifact; many nodes tie, and the name then packs them. Ours hardly ties, so the rule for ties does
not matter to it. All three place a pod wherever it fits; what fits nowhere is turned away. FGD and ours know how often the
pods come that make up 95 % of the list, "learned" only those that have arrived. The weight was chosen on two other seeds.
Of the four points that are not given away nearly three are 190 thousandths beside pods of 810 (in the runs that were looked
at): too few pods come that are so small.
These figures were taken in parts, run by run, with the bench's own functions, on a machine with much else to do.
"""
_GPUS_POWER = """
**Power.** All nodes are on; a GPU of which anything is given draws its board's power (data sheets: T4 70 W, A10 150 W, P100
250 W, V100 300 W, A100 400 W), a free one its idle power, which data sheets do not tell (10, 30, 25, 30, 50 W, assumed as in
Lettich et al. 2024); CPUs by the coefficients of cloud-carbon-footprint, a microarchitecture assumed for each GPU model, G2
and G3 taken for A10 and A100. **The aim of 13 % below FGD is not met**, and under these rules cannot be: "the most possible"
is a relaxation that packs every GPU full and takes the most frugal GPUs and cores first, whatever fits together.
"""
