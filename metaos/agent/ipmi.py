"""Power of the whole machine as its baseboard controller measures it at the supply, where the kernel shows it as a sensor.

Source: Linux ``Documentation/hwmon/acpi_power_meter.rst`` and ``sysfs-interface.rst``: servers offer what IPMI (DCMI) calls the
power reading by ACPI 4.0 as ``power1_average`` in microwatts, with its ``power1_accuracy`` in percent. No ``ipmitool`` is run: it
would be a process every few seconds, as root. Other sensors of the kind see parts of a machine only and are not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Where the meter does not state its accuracy.
UNCERTAINTY = 0.1
#: More is no reading.
MAX_MICROWATTS = 10**12
_NAME = "power_meter"


class Ipmi:
    """An ``EnergyMeter``. Energy is the power at each look times the time since the one before."""

    name, basis, whole = "ipmi", "measured", True

    def __init__(self, root: Path = Path("/")) -> None:
        self.problem, self.source, self.uncertainty = "", "", str(UNCERTAINTY)
        self._files: list[Path] = []
        self._begun = False
        stated = []
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            if _text(folder / "name") != _NAME:
                continue
            files = [folder / file for file in ("power1_average", "power1_input") if (folder / file).exists()]
            if not files:
                continue
            try:
                _microwatts(files[0])
            except PermissionError:
                self.problem = f"{files[0]} may not be read: run the agent as root, or let its user read it"
            except (OSError, ValueError) as error:
                self.problem = f"{files[0]} cannot be read: {error}"
            self._files.append(files[0])
            stated.append(_accuracy(folder))
        if not self._files:
            self.problem = "the kernel shows no power meter of the whole machine (acpi_power_meter in /sys/class/hwmon)"
        elif not self.problem:
            self.uncertainty = f"{max(stated):.3f}".rstrip("0").rstrip(".")
            self.source = f"ACPI power meter of the baseboard controller, {len(self._files)} at the supply"

    def read(self, seconds: float) -> Mapping[str, int]:
        begun, self._begun = self._begun, True
        found = {}
        for file in self._files if begun else ():
            try:
                found[str(file.parent.name)] = round(_microwatts(file) * seconds / 1000)
            except (OSError, ValueError):
                continue
        return found


def _microwatts(file: Path) -> int:
    found = int(file.read_text())
    if not 0 <= found <= MAX_MICROWATTS:
        raise ValueError(f"{found} is no power in microwatts")
    return found


def _accuracy(folder: Path) -> float:
    """As a part of the reading: the file says ``95.5%`` where that is how much of it can be relied on."""
    try:
        return min(1.0, max(0.0, 1 - float(_text(folder / "power1_accuracy").rstrip("%")) / 100))
    except ValueError:
        return UNCERTAINTY


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
