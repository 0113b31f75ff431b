"""Whether what is mounted is what was looked at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from metaos.runtimes.mounts import Mounts, misplaced


def test_what_was_put_in_the_place_of_a_mount_since_is_noticed(tmp_path: Path) -> None:
    """Of a process whose root is ours."""
    volume = tmp_path / "a/volume"
    volume.mkdir(parents=True)
    (tmp_path / "link").symlink_to(volume)
    with contextlib.ExitStack() as opened:
        seen = Mounts(str(tmp_path / "runtime"), [str(tmp_path)]).open(opened, str(volume), str(volume), True)
        through = Mounts(str(tmp_path / "runtime"), [str(tmp_path)]).open(opened, str(volume), str(tmp_path / "link"), True)
        assert misplaced(os.getpid(), [seen, through]) == ""
        volume.rename(tmp_path / "moved")
        volume.mkdir()
        assert misplaced(os.getpid(), [seen]) == str(volume)
