"""What a site's energy is read from. The sysfs trees and the boards' library are made up here: it is our reading of them that is
tested; that real hardware looks so is what their documentation says."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metaos.agent import nvml
from metaos.agent.energy import NoMeter, detect
from metaos.agent.identity import meters_of
from metaos.agent.ipmi import Ipmi
from metaos.agent.nvml import Nvml
from metaos.agent.rapl import Rapl
from metaos.plugins.points import EnergyMeter


def domain(root: Path, folder: str, name: str, energy: int, most: int = 1_000_000) -> Path:
    place = root / "sys/class/powercap" / folder
    place.mkdir(parents=True)
    (place / "name").write_text(name + "\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    (place / "energy_uj").write_text(f"{energy}\n")
    return place


def sensor(root: Path, number: int, name: str, **files: str) -> Path:
    place = root / f"sys/class/hwmon/hwmon{number}"
    place.mkdir(parents=True)
    for file, text in {"name": name, **files}.items():
        (place / file).write_text(f"{text}\n")
    return place


def test_rapl_adds_packages_and_memory_and_wraps_around(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 5)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    rapl = Rapl(tmp_path)
    assert not rapl.problem and rapl.source == "RAPL, dram and package" and not sum(rapl.read(10).values())
    (package / "energy_uj").write_text("100000")
    (memory / "energy_uj").write_text("50700")
    assert sum(rapl.read(10).values()) == 250
    (memory / "energy_uj").write_text("51400")
    assert sum(rapl.read(10).values()) == 1, "what made no millijoule is not lost"
    (memory / "energy_uj").unlink()
    (package / "energy_uj").write_text("200000")
    assert sum(rapl.read(10).values()) == 100, "one that cannot be read for once is left out"
    assert "state spec.power in the site file" in Rapl(tmp_path / "none").problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rapl_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (domain(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").chmod(0)
    assert "run the agent as root" in Rapl(tmp_path).problem


def test_rapl_that_is_refused_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refused(path: Path, *arguments: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refused)
    assert "run the agent as root" in Rapl(tmp_path).problem


def test_the_supplys_meter_and_its_accuracy(tmp_path: Path) -> None:
    sensor(tmp_path, 0, "coretemp", temp1_input="40000")
    sensor(tmp_path, 1, "ina3221", power1_input="5000000")
    place = sensor(tmp_path, 2, "power_meter", power1_average="120000000", power1_accuracy="98.5%")
    ipmi = Ipmi(tmp_path)
    assert not ipmi.problem and ipmi.uncertainty == "0.015" and ipmi.whole and "1 at the supply" in ipmi.source
    assert not ipmi.read(10)
    assert ipmi.read(10) == {"hwmon2": 1_200_000}
    for broken in ("-1", "nan", "9" * 30):
        (place / "power1_average").write_text(broken)
        assert not ipmi.read(10)
    assert "acpi_power_meter" in Ipmi(tmp_path / "none").problem
    assert "hwmon2/power1_average cannot be read" in Ipmi(tmp_path).problem


class BoardsError(Exception):
    pass


def library(energies: Mapping[str, int], error: str = "") -> Any:
    def energy(handle: str) -> int:
        if error:
            raise BoardsError(error)
        return energies[handle]

    return SimpleNamespace(
        NVMLError=BoardsError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(energies),
        nvmlDeviceGetHandleByIndex=lambda index: sorted(energies)[index],
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def test_boards_are_counted_by_their_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a stand-in: there is no board here."""
    assert "/dev/nvidiactl" in Nvml(tmp_path).problem
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    energies = {"a": 100, "b": 5_000}
    monkeypatch.setattr(nvml, "import_module", lambda name: library(energies))
    boards = Nvml(tmp_path)
    assert not boards.problem and boards.source == "NVML, 2 boards" and not boards.read(10)
    energies |= {"a": 350, "b": 40}
    assert boards.read(10) == {"GPU-a": 250, "GPU-b": 40}, "the driver of b was loaded anew"
    monkeypatch.setattr(nvml, "import_module", lambda name: library(energies, "Not Supported"))
    assert "Not Supported" in Nvml(tmp_path).problem

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(nvml, "import_module", missing)
    assert "pip install 'nemo-metaos[accelerators]'" in Nvml(tmp_path).problem


class Fixed:
    basis, source = "measured", "a test"

    def __init__(self, name: str, parts: Mapping[str, int], problem: str = "", whole: bool = False) -> None:
        self.name, self.problem, self.whole, self._parts = name, problem, whole, parts
        self.uncertainty = "0.05" if name == "nvml" else "0.02"

    def read(self, seconds: float) -> Mapping[str, int]:
        return self._parts


STATED = {"idleWatts": 40, "maxWatts": 180}
IPMI, RAPL = Fixed("ipmi", {"supply": 900_000}, whole=True), Fixed("rapl", {"package": 500_000})
NVML = Fixed("nvml", {"GPU-a": 200_000})


def found(power: dict[str, Any], *meters: EnergyMeter) -> Any:
    return detect(power, 4000, {meter.name: meter for meter in meters})[0]


def test_the_first_that_works_is_taken_and_boards_are_added_to_what_does_not_see_them() -> None:
    energy = found(STATED, IPMI, RAPL, NVML)
    assert energy.name == "ipmi+nvml" and energy.uncertainty == "0.05" and energy.basis == "measured"
    reading = energy.read(10, 20)
    assert (reading.millijoules, reading.idle_millijoules, dict(reading.devices)) == (900_000, 400_000, {"GPU-a": 200_000})
    energy = found(STATED, Fixed("ipmi", {}, "none here"), RAPL, NVML)
    assert energy.name == "rapl+nvml" and energy.read(10, 20).millijoules == 700_000
    assert energy.estimate(10, 20).millijoules == 10 * 40_000 + 20 * 35_000, "where nobody read, the model says it"
    energy = found(STATED, Fixed("rapl", {}, "none here"), NVML)
    assert (energy.name, energy.basis, energy.measured) == ("model+nvml", "stated", False)
    assert energy.read(10, 0).millijoules == 600_000


def test_without_any_meter_it_is_a_model_that_says_so() -> None:
    stated, assumed = found(STATED, Fixed("rapl", {}, "none here")), found({})
    assert (stated.name, stated.basis, stated.uncertainty) == ("model", "stated", "0.2")
    assert (assumed.basis, assumed.uncertainty) == ("assumed", "0.5") and "average server" in assumed.source
    assert assumed.read(100, 0).millijoules == 296_000 and assumed.read(100, 400).millijoules == 1_400_000
    assert found(STATED | {"meter": "model"}, IPMI, RAPL).name == "model"
    assert found(STATED | {"acceleratorMeter": "none"}, RAPL, NVML).name == "rapl"


def test_a_meter_that_is_named_works_or_is_an_error() -> None:
    assert found(STATED | {"meter": "rapl"}, IPMI, RAPL).name == "rapl"
    with pytest.raises(NoMeter, match="the meter 'rapl' does not work here: not readable"):
        found({"meter": "rapl"}, Fixed("rapl", {}, "not readable"))
    with pytest.raises(NoMeter, match="there is no meter 'shelly'; installed are model, rapl"):
        found({"meter": "shelly"}, RAPL)


def test_meters_are_plugins() -> None:
    assert meters_of({})["rapl"] == "metaos.agent.rapl:Rapl" and set(meters_of({})) == {"ipmi", "rapl", "nvml"}
    with pytest.raises(LookupError, match="shelly"):
        meters_of({"spec": {"power": {"meter": "shelly"}}})
