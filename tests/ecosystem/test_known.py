"""The table of the ecosystem is true: versions are those that are installed, and every test that it names exists."""

import json
import re
from pathlib import Path

import yaml

HERE = Path(__file__).parent
KNOWN = yaml.safe_load((HERE / "known.yaml").read_text())


def test_the_table_names_versions_and_tests_that_are_there() -> None:
    pins = {**json.loads((HERE / "package.json").read_text())["dependencies"]}
    for file in ("requirements.in", "requirements-helm.txt"):
        pins.update(re.findall(r"^([\w.-]+)==(\S+)", (HERE / file).read_text(), re.M))
    for entry in KNOWN:
        assert entry.get("version", "helm4") in pins, entry["name"]
        for test in entry["tests"]:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (HERE / file).read_text(), test
