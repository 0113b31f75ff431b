"""The seccomp filter: every verdict by an interpreter of its instructions, and the numbers by the machine's own headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.runtimes import seccomp

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY, UNKNOWN, FAMILY = (0x50000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))


def verdict(number: int, *arguments: int, machine: str = "x86_64", architecture: int | None = None) -> int:
    """What the kernel would do: classic BPF on ``struct seccomp_data``."""
    steps = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    assert len(steps) <= 4096  # BPF_MAXINSNS
    given_ = {"x86_64": X86, "aarch64": ARM}[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, given_, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    at, accumulator = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x05:
            at += value
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[code]
            at += yes if holds else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_exactly_what_is_listed_is_denied(machine: str, column: int) -> None:
    denied = {numbers[column] for numbers in seccomp.DENIED.values()} - {None}
    looked_at = set(seccomp._MACHINES[machine][2].values())
    assert not denied & looked_at
    for number in range(seccomp.NEWEST + 1):
        if number in denied:
            assert verdict(number, machine=machine) == DENY
        elif number == 435:
            assert verdict(number, machine=machine) == UNKNOWN
        elif number not in looked_at:
            assert verdict(number, machine=machine) == ALLOW


@given(st.integers(seccomp.NEWEST + 1, 2**32 - 1))
def test_what_is_not_known_does_not_exist(number: int) -> None:
    assert verdict(number) == UNKNOWN  # x32 numbers, with bit 30, are among them


@given(st.integers(0, 2**32 - 1).filter(lambda n: n != X86), st.integers(0, 500))
def test_another_architecture_is_killed(architecture: int, number: int) -> None:
    assert verdict(number, architecture=architecture) == KILL


@given(st.integers(0, 2**64 - 1))
def test_clone_makes_threads_and_processes_but_no_namespaces(flags: int) -> None:
    wanted = DENY if flags & 0x7E020000 else ALLOW
    assert verdict(56, flags) == verdict(220, flags, machine="aarch64") == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_the_upper_half_of_an_argument_hides_nothing(upper: int, request: int) -> None:
    for wanted in (0x5412, 0x541C):
        assert verdict(16, 0, (upper << 32 | wanted) & (2**64 - 1)) == DENY
    assert verdict(16, 0, request) == (DENY if request in (0x5412, 0x541C) else ALLOW)


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 41), ("x86_64", 53), ("aarch64", 198), ("aarch64", 199)])
def test_sockets_of_four_families(machine: str, number: int) -> None:
    assert [family for family in range(64) if verdict(number, family, machine=machine) == ALLOW] == [1, 2, 10, 16]
    assert verdict(number, 40, machine=machine) == FAMILY


def test_personalities() -> None:
    assert verdict(135, 0xFFFFFFFF) == verdict(135, 8) == ALLOW
    assert verdict(135, 0x0400000) == DENY  # READ_IMPLIES_EXEC


def test_other_machines_have_none() -> None:
    assert seccomp.program("riscv64") == b""
    assert seccomp.program("x86_64") != seccomp.program("aarch64")


@pytest.mark.parametrize(
    ("column", "header"), [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")]
)
def test_the_numbers_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not on this machine (apt install linux-libc-dev)")
    known = {name: int(number) for name, number in re.findall(r"#define __NR\w*?_(\w+)\s+(\d+)", Path(header).read_text())}
    special = seccomp._MACHINES["x86_64" if column == 0 else "aarch64"][2]
    ours = {name: numbers[column] for name, numbers in seccomp.DENIED.items()} | special
    for name, number in ours.items():
        if name in known:
            assert number == known[name], name
    assert len(known.keys() & ours.keys()) > 50
