"""Energy as the processor counts it: Running Average Power Limit, read from ``/sys/class/powercap``.

Source: Linux ``Documentation/power/powercap/powercap.rst``. The counters are readable by root alone since CVE-2020-8694. They see
processors and, where the machine has that domain, memory: not disks, cards, fans or what the power supply loses.
"""

from __future__ import annotations

from pathlib import Path

from metaos.accounting.metering import Counter

#: Domains that do not overlap: packages contain their cores and graphics; memory is counted beside them.
_COUNTED = ("package", "dram")


class Rapl:
    """The counters of one machine. ``problem`` says why there are none, and what to do."""

    name, basis = "rapl", "measured"

    def __init__(self, root: Path = Path("/")) -> None:
        self.problem, self.source = "", ""
        self._counters: dict[Path, Counter] = {}
        names = []
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            try:
                name = (folder / "name").read_text().strip()
                if not name.startswith(_COUNTED):
                    continue
                self._counters[folder / "energy_uj"] = Counter(int((folder / "max_energy_range_uj").read_text()))
                int((folder / "energy_uj").read_text())
                names.append(name)
            except PermissionError:
                self.problem = f"{folder}/energy_uj may be read by root alone: run the agent as root, or let its user read it"
            except (OSError, ValueError) as error:
                self.problem = f"{folder} cannot be read: {error}"
        if not self._counters and not self.problem:
            self.problem = "this machine has no RAPL counters (/sys/class/powercap): state spec.power in the site file"
        if self.problem:
            self._counters = {}
        else:
            self.source = f"RAPL, {' and '.join(sorted({name.split('-')[0] for name in names}))}"

    def millijoules(self) -> int:
        """Since the last call; 0 for the first. To be asked more often than a counter wraps (minutes at full load)."""
        return sum(counter.advance(int(path.read_text())) for path, counter in self._counters.items()) // 1000
