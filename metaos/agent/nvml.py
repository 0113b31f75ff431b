"""Energy of NVIDIA accelerators as their boards count it, by the NVIDIA Management Library.

Source: NVML API reference, ``nvmlDeviceGetTotalEnergyConsumption``: millijoules since the driver was loaded, from Volta on. The
library (``nvidia-ml-py``, the extra ``accelerators``) is imported only where there is such a board.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

#: What boards say against a meter (Yang et al., "Part-time Power Measurements", SC 2024).
UNCERTAINTY = "0.05"


class Nvml:
    """An ``EnergyMeter`` whose parts are devices, by their UUID (``GPU-…``)."""

    name, basis, whole, uncertainty = "nvml", "measured", False, UNCERTAINTY

    def __init__(self, root: Path = Path("/")) -> None:
        self.problem, self.source = "", ""
        self._devices: dict[str, Any] = {}
        self._last: dict[str, int] = {}
        if not (root / "dev/nvidiactl").exists():
            self.problem = "this machine has no NVIDIA accelerator (/dev/nvidiactl)"
            return
        try:
            pynvml: Any = import_module("pynvml")
        except ImportError:
            self.problem = "the library is missing: pip install 'nemo-metaos[accelerators]'"
            return
        self._library = pynvml
        try:
            pynvml.nvmlInit()
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                named = pynvml.nvmlDeviceGetUUID(handle)
                self._devices[named if isinstance(named, str) else named.decode()] = handle
        except pynvml.NVMLError as error:
            self.problem = f"NVML does not give the energy of its devices: {error}"
            self._devices = {}
            return
        if not self._devices:
            self.problem = "NVML sees no device"
        self.source = f"NVML, {len(self._devices)} board{'s' if len(self._devices) != 1 else ''}"

    def read(self, seconds: float) -> Mapping[str, int]:
        found = {}
        for name, handle in self._devices.items():
            try:
                value = int(self._library.nvmlDeviceGetTotalEnergyConsumption(handle))
            except self._library.NVMLError:
                continue
            before, self._last[name] = self._last.get(name), value
            if before is not None:
                # The driver was loaded anew: it counts from 0.
                found[name] = value - before if value >= before else value
        return found
