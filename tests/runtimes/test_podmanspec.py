"""What is asked of podman, and what is read of what it writes: without a podman."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaos.plugins.points import ContainerConfig
from metaos.runtimes import podmanspec
from metaos.runtimes.images import Image
from metaos.runtimes.isolation import Mount
from metaos.runtimes.libpod import Frames
from metaos.runtimes.podmanlogs import Lines, last

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=3).map(tuple)
HOST = Image(names=("host:1",), paths=("/usr",), env=(("A", "image"), ("B", "image")), command=("python3",))


def spec(config: ContainerConfig, image: Image | str = "sha256:abc", mounts: tuple[Mount, ...] = ()) -> dict[str, Any]:
    more = {"labels": {}, "hostname": "web-0", "hosts": "/h", "holder": 7, "cgroup": "/nemo/k/u/c-0", "files": 512}
    return podmanspec.container("c", config, image, "/rootfs", mounts, **more)  # type: ignore[arg-type]


@given(WORDS, WORDS)
def test_commands_follow_the_rules_of_kubernetes(command: tuple[str, ...], args: tuple[str, ...]) -> None:
    made = spec(ContainerConfig("c", "i", command, args, (), "", ()))
    if command:
        assert (made["entrypoint"], made["command"]) == (list(command), list(args)), "a command replaces both"
    else:
        assert "entrypoint" not in made and made.get("command") == (list(args) or None)
    assert spec(ContainerConfig("c", "i", command, args, (), "", ()), HOST)["command"] == HOST.argv(command, args)


def test_what_a_container_gets() -> None:
    mounts = (Mount(3, "/v/a", "/data", False), Mount(4, "/v/b", "/fixed", True))
    config = ContainerConfig(
        "c", "i", (), (), (("B", "own"),), "/w", (), cpu_limit=250, memory_limit=64 << 20, run_as_user=7, run_as_group=8, tty=True
    )
    made = spec(config, HOST, mounts)
    assert made["env"] == {"PATH": made["env"]["PATH"], "A": "image", "B": "own", "HOSTNAME": "web-0", "TERM": "xterm"}
    assert made["resource_limits"] == {
        "pids": {"limit": 4096},
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": 25_000, "period": 100_000},
    }
    assert (made["user"], made["work_dir"], made["read_only_filesystem"], made["no_new_privileges"]) == ("7:8", "/w", True, True)
    assert made["netns"] == {"nsmode": "path", "value": "/proc/7/ns/net"}
    binds = {each["destination"]: each["options"][-1] for each in made["mounts"] if each["type"] == "bind"}
    assert binds == {"/usr": "ro", "/data": "rw", "/fixed": "ro", "/etc/hosts": "ro"}
    assert {each["type"]: each["hard"] for each in made["r_limits"]} == {"nofile": 512, "nproc": 4096}
    assert "NET_RAW" in made["cap_drop"]


LINES = st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=8)


def written(lines: list[bytes], part: int = 10) -> bytes:
    """As conmon does: long lines in parts."""
    found = []
    for line in lines:
        pieces = [line[at : at + part] for at in range(0, len(line), part)] or [b""]
        flags = ["P"] * (len(pieces) - 1) + ["F"]
        for flag, piece in zip(flags, pieces, strict=True):
            found.append(f"2026-01-01T00:00:00.123456789+00:00 stdout {flag} ".encode() + piece + b"\n")
    return b"".join(found)


@given(LINES, st.integers(1, 40))
def test_a_log_is_read_however_it_comes(lines: list[bytes], size: int) -> None:
    data, decoder = written(lines), Lines()
    got = [piece for at in range(0, len(data), size) for piece in decoder.feed(data[at : at + size])]
    assert b"".join(got) == b"".join(line + b"\n" for line in lines)


@given(LINES, st.integers(0, 9))
def test_the_last_lines_are_whole(tmp_path_factory: Any, lines: list[bytes], count: int) -> None:
    path: Path = tmp_path_factory.mktemp("log") / "ctr.log"
    path.write_bytes(written(lines))
    assert last(str(path), count) == [line + b"\n" for line in lines][max(0, len(lines) - count) :]


def test_older_lines_are_left_out() -> None:
    old, new = b"2026-01-01T00:00:00.5Z stdout F old\n", b"2026-01-01T00:00:05.5Z stdout F new\n"
    assert Lines(since=1767225603.0).feed(old + new) == [b"new\n"]


@given(st.lists(st.tuples(st.integers(1, 2), st.binary(max_size=30)), max_size=6), st.integers(1, 20))
def test_frames_are_taken_apart_however_they_come(frames: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(bytes([channel, 0, 0, 0]) + len(piece).to_bytes(4, "big") + piece for channel, piece in frames)
    decoder = Frames()
    assert [each for at in range(0, len(data), size) for each in decoder.feed(data[at : at + size])] == frames
