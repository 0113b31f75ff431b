"""Energy as the processor counts it: Running Average Power Limit, read from ``/sys/class/powercap``.

Source: Linux ``Documentation/power/powercap/powercap.rst``. The counters are readable by root alone since CVE-2020-8694. They see
processors and, where the machine has that domain, memory: not disks, cards, fans or what the power supply loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metaos.accounting.metering import RAPL_UNCERTAINTY, Counter

#: Domains that do not overlap: packages contain their cores and graphics; memory is counted beside them.
_COUNTED = ("package", "dram")


class Rapl:
    """The counters of one machine: an ``EnergyMeter``. To be read more often than a counter wraps (minutes at full load)."""

    name, basis, whole = "rapl", "measured", False
    uncertainty = RAPL_UNCERTAINTY

    def __init__(self, root: Path = Path("/")) -> None:
        self.problem, self.source = "", ""
        #: Domain → its counter's file, the counter, and microjoules that make no millijoule yet.
        self._domains: dict[str, tuple[Path, Counter]] = {}
        self._rest: dict[str, int] = {}
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            try:
                name = (folder / "name").read_text().strip()
                if not name.startswith(_COUNTED):
                    continue
                most = int((folder / "max_energy_range_uj").read_text())
                int((folder / "energy_uj").read_text())
                self._domains[f"{name} {folder.name}"] = folder / "energy_uj", Counter(most)
            except PermissionError:
                self.problem = f"{folder}/energy_uj may be read by root alone: run the agent as root, or let its user read it"
            except (OSError, ValueError) as error:
                self.problem = f"{folder} cannot be read: {error}"
        if not self._domains and not self.problem:
            self.problem = "this machine has no RAPL counters (/sys/class/powercap): state spec.power in the site file"
        if self.problem:
            self._domains = {}
        else:
            self.source = f"RAPL, {' and '.join(sorted({name.partition('-')[0].split()[0] for name in self._domains}))}"

    def read(self, seconds: float) -> Mapping[str, int]:
        found = {}
        for name, (file, counter) in self._domains.items():
            try:
                value = int(file.read_text())
            except (OSError, ValueError):
                continue
            whole = counter.advance(value) + self._rest.get(name, 0)
            found[name], self._rest[name] = divmod(whole, 1000)
        return found
