"""The page that says how the API is extended, command by command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.apiserver.definitions import controllers
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = [pytest.mark.system, pytest.mark.slow]
PAGE = Path(__file__).parents[2] / "docs/how-to/extend-the-api.md"


def plain(text: str) -> str:
    """Columns of tables are told apart by any room between them."""
    return " ".join(text.split())


async def test_what_the_page_says_happens(hub: ServedHub, kubectl: Kubectl, tmp_path: Path) -> None:
    files = re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.S)
    assert [name for name, _ in files] == ["definition.yaml", "sensor.json", "policy.yaml", "limits.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    steps = [step for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S) for step in block.split("$ ")[1:]]
    assert len(steps) > 20
    async with controllers(hub.registry, hub.clock):
        for step in steps:
            line, *expected = step.strip().splitlines()
            program, *words = shlex.split(line.replace('"', '\\"'))
            assert program == "kubectl"
            words = [str(tmp_path / word) if word in dict(files) else word for word in words]
            _, out, err = await kubectl.run(*words)
            for each in expected:
                assert plain(each) in plain(out + err), f"{line}\n{out}{err}"
