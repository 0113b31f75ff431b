"""Trees that somebody spoilt: they are measured and removed, and nothing outside of them is touched."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos import trees


def deep(base: Path, levels: int) -> None:
    """Deeper than any path may be long."""
    here = os.open(base, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_no_depth_is_too_deep_to_remove(tmp_path: Path) -> None:
    (tmp_path / "pod").mkdir()
    deep(tmp_path / "pod", 5000)
    with pytest.raises(trees.TooDeep):
        trees.measure(str(tmp_path / "pod"))
    trees.remove(str(tmp_path / "pod"))
    assert os.listdir(tmp_path) == []
    trees.remove(str(tmp_path / "pod"))


def test_two_may_remove_the_same(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"pod/{number % 7}/{number % 11}/{number}").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(trees.remove, [str(tmp_path / "pod")] * 4))
    assert os.listdir(tmp_path) == []


def test_links_and_special_files_lead_nowhere(tmp_path: Path) -> None:
    outside, pod = tmp_path / "outside", tmp_path / "pod"
    (outside / "sub").mkdir(parents=True)
    (outside / "big").write_bytes(b"x" * 3_000_000)
    (pod / "a/b").mkdir(parents=True)
    os.symlink(outside, pod / "link")
    os.symlink(outside / "big", pod / "a/file")
    os.symlink("/", pod / "a/b/root")
    os.mkfifo(pod / "a/fifo")
    (pod / "a/b/.nemo-removed-1").write_text("was here before")
    (pod / ".nemo-removed-1").mkdir()
    (pod / ".nemo-removed-1/x").write_text("too")
    (pod / "a/real").write_bytes(b"y" * 1_000_000)
    os.link(pod / "a/real", pod / "a/again")
    os.chmod(pod / "a/b", 0)
    os.chmod(pod / "a", 0o500)
    size = trees.measure(str(pod))
    assert 1_000_000 <= size.bytes < 1_100_000
    trees.remove(str(pod))
    assert os.listdir(tmp_path) == ["outside"] and sorted(os.listdir(outside)) == ["big", "sub"]


def test_what_a_file_pretends_to_hold_does_not_count(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert trees.measure(str(tmp_path)).bytes < 1 << 20
    assert trees.measure(str(tmp_path / "missing")).bytes == 0


@pytest.mark.parametrize("relative", ["a/b", "./a//b/", "new"])
def test_directories_are_made_below(tmp_path: Path, relative: str) -> None:
    made = trees.make_below(str(tmp_path), relative)
    assert os.path.isdir(made) and made.startswith(str(tmp_path))
    assert trees.make_below(str(tmp_path), relative) == made


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "outside").mkdir()
    os.symlink("../outside", tmp_path / "volume/link")
    (tmp_path / "volume/file").write_text("")
    for relative in ("link/x", "link", "file/x"):
        with pytest.raises(OSError, match=r"directory|symbolic"):
            trees.make_below(str(tmp_path / "volume"), relative)
    with pytest.raises(ValueError, match="must not contain"):
        trees.make_below(str(tmp_path / "volume"), "a/../../outside")
    assert os.listdir(tmp_path / "outside") == []


names = st.sampled_from(["a", "b", "c", ".nemo-removed-1", ".nemo-removed-2"])
tree = st.recursive(st.sampled_from(["file", "link", "fifo"]), lambda below: st.dictionaries(names, below, max_size=4))


@settings(max_examples=60, deadline=None)
@given(tree.filter(lambda t: isinstance(t, dict)))
def test_any_tree_goes_whole(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, object]) -> None:
    base = tmp_path_factory.mktemp("tree")

    def make(place: Path, below: dict[str, object]) -> int:
        place.mkdir()
        count = 0
        for name, what in below.items():
            count += 1
            if isinstance(what, dict):
                count += make(place / name, what)
            elif what == "link":
                os.symlink("..", place / name)
            elif what == "fifo":
                os.mkfifo(place / name)
            else:
                (place / name).write_text("x")
        return count

    assert make(base / "pod", wanted) == trees.measure(str(base / "pod")).entries
    trees.remove(str(base / "pod"))
    assert os.listdir(base) == []
