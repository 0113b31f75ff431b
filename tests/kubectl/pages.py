"""Pages that are followed, command by command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.kubectl.conftest import Kubectl

HOW_TO = Path(__file__).parents[2] / "docs/how-to"


def plain(text: str) -> str:
    """Columns of tables are told apart by any room between them."""
    return " ".join(text.split())


async def follow(page: str, files: list[str], kubectl: Kubectl, folder: Path) -> int:
    """Writes the ``files`` that a page shows, runs its commands and looks for what it says they print; how many there were."""
    text = (HOW_TO / page).read_text()
    shown = re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", text, re.S)
    assert [name for name, _ in shown] == files
    for name, content in shown:
        (folder / name).write_text(content)
    steps = [step for block in re.findall(r"```console\n(.*?)```", text, re.S) for step in block.split("$ ")[1:]]
    for step in steps:
        line, *expected = step.strip().splitlines()
        program, *words = shlex.split(line.replace('"', '\\"'))
        assert program == "kubectl"
        words = [str(folder / word) if word in dict(shown) else word for word in words]
        _, out, err = await kubectl.run(*words)
        for each in expected:
            assert plain(each) in plain(out + err), f"{line}\n{out}{err}"
    return len(steps)
