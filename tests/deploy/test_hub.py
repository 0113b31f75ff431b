"""What is delivered for hubs says what ``nemo up`` understands, without an engine; ``test_engine`` has one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from metaos.cli.main import nemo
from metaos.messaging.exchange import read_servers

HUB = Path(__file__).resolve().parents[2] / "deploy/hub"


def arguments() -> dict[str, list[str]]:
    compose = yaml.safe_load((HUB / "compose.yaml").read_text())
    found = {name: service["command"] for name, service in compose["services"].items() if "command" in service}
    chart = (HUB / "chart/templates/hubs.yaml").read_text()
    found["chart"] = ["up", *re.findall(r"- (--[^\s]+)", chart)]
    return found


@pytest.mark.parametrize("where", arguments())
def test_its_options_exist(where: str) -> None:
    command, *options = arguments()[where]
    known = {option for parameter in nemo.commands[command].params for option in parameter.opts}
    assert options and {option.partition("=")[0] for option in options} <= known


def test_the_compose_file_holds_together() -> None:
    compose = yaml.safe_load((HUB / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        assert set(service.get("depends_on", ())) <= set(compose["services"])
    hubs = [service for service in compose["services"].values() if "command" in service]
    assert len({next(a for a in hub["command"] if a.startswith("--advertise")) for hub in hubs}) == len(hubs) == 2


def helm() -> Path:
    tools: Any = pytest.importorskip("tests.ecosystem.tools")
    try:
        found: Path = tools.installed().helm(4)
    except tools.Missing as missing:
        pytest.skip(str(missing))
    return found


@pytest.mark.slow
def test_the_chart_makes_valid_objects() -> None:
    program = helm()
    given = ["secret=s", "postgresql.enabled=true", "postgresql.secret=p", "names={hub.example.org}", "arguments={--drain,60}"]
    given += ["nats.enabled=true", "nats.config=c", "nats.tls=t"]
    options = [part for each in given for part in ("--set", each)]
    subprocess.run([program, "lint", "--strict", HUB / "chart", *options], check=True, capture_output=True)
    made = subprocess.run([program, "template", "nemo", HUB / "chart", *options], check=True, capture_output=True, text=True)
    objects = list(yaml.safe_load_all(made.stdout))
    for obj in objects:
        kubernetes_validate.validate(obj, "1.35", strict=True)
    assert [obj["kind"] for obj in objects].count("StatefulSet") == 3
    hub = next(obj for obj in objects if obj["kind"] == "StatefulSet" and obj["metadata"]["name"] == "nemo")
    (bus,) = (a for a in hub["spec"]["template"]["spec"]["containers"][0]["args"] if a.startswith("--bus="))
    assert len(read_servers(bus.removeprefix("--bus="))) == 3
    bare = subprocess.run([program, "template", "nemo", HUB / "chart"], capture_output=True, text=True)
    assert bare.returncode and "name a Secret with the keys store and hub.key" in bare.stderr
