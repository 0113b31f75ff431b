"""The system calls that a container may not make, as a seccomp filter (classic BPF) for ``bwrap --seccomp`` and ``prctl``.

In the spirit of the default profiles of Docker and containerd for a container without any capability: what reaches deep into
the kernel, makes namespaces or inspects other processes fails with EPERM, what the filter has never heard of with ENOSYS, as
on an older kernel; programs for another architecture (32 bit) are killed. Ours, as libseccomp's bindings weigh megabytes and
load ctypes, and this is a list and six kinds of instruction.
Source: seccomp(2), ``linux/filter.h``, ``linux/seccomp.h``, ``asm/unistd.h``; Linux 6.17.
"""

from __future__ import annotations

import errno
import platform
import struct

#: Name → number for x86-64 and, where it has one, for arm64. Numbers from 424 on are the same everywhere.
DENIED: dict[str, tuple[int, int | None]] = {
    # file systems and what they show
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "lookup_dcookie": (212, 18),
    "sysfs": (139, None),
    "ustat": (136, None),
    "uselib": (134, None),
    "nfsservctl": (180, 42),
    # namespaces (clone is looked at below)
    "unshare": (272, 97),
    "setns": (308, 268),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # keys are not part of any namespace that a container has
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large and often broken parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "iopl": (172, None),
    "ioperm": (173, None),
    "_sysctl": (156, None),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # where memory lies
    "mbind": (237, 235),
    "get_mempolicy": (239, 236),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
#: The newest call that has been considered (file_setattr). On x86-64 this also refuses the x32 interface (bit 30).
NEWEST = 469

#: CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET.
NEW_NAMESPACES = 0x7E020000
#: Unix, IPv4, IPv6, netlink. Others are not kept apart by network namespaces (vsock) or reach deep into the kernel.
FAMILIES = (1, 2, 10, 16)
#: Linux, 32-bit Linux, both also with UNAME26; and the question.
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
#: Put text into a terminal's input: TIOCSTI, TIOCLINUX.
_INJECTIONS = (0x5412, 0x541C)

#: Machine → (AUDIT_ARCH, index into DENIED, and the calls whose arguments count).
_MACHINES = {
    "x86_64": (0xC000003E, 0, {"clone": 56, "socket": 41, "socketpair": 53, "ioctl": 16, "personality": 135}),
    "aarch64": (0xC00000B7, 1, {"clone": 220, "socket": 198, "socketpair": 199, "ioctl": 29, "personality": 92}),
}
_CLONE3 = 435

_LOAD, _GO, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

#: (code, value, label if it holds, label if not); "" goes on with the next.
_Step = tuple[int, int, str, str]


def program(machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``; empty for a machine whose numbers are not known here."""
    known = _MACHINES.get(platform.machine() if machine is None else machine)
    if known is None:
        return b""
    architecture, column, special = known
    steps: list[_Step] = []
    labels: dict[str, int] = {}

    def load(offset: int) -> None:
        steps.append((_LOAD, offset, "", ""))

    def jump(code: int, value: int, yes: str = "", no: str = "") -> None:
        steps.append((code, value, yes, no))

    def go(label: str) -> None:
        steps.append((_GO, 0, label, ""))

    def start(label: str, argument: int) -> None:
        labels[label] = len(steps)
        load(_ARGUMENTS + 8 * argument)

    load(_ARCHITECTURE)
    jump(_EQUAL, architecture, no="kill")
    load(_NUMBER)
    jump(_GREATER, NEWEST, yes="unknown")
    jump(_EQUAL, _CLONE3, yes="unknown")  # its flags lie in memory, where no filter can look: libraries fall back to clone
    for name, value in special.items():
        jump(_EQUAL, value, yes=name)
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            jump(_EQUAL, number, yes="deny")
    go("allow")
    # Arguments are looked at by their lower half, which is all that the kernel takes of these (little-endian machines).
    start("clone", 0)
    jump(_ANY_BIT, NEW_NAMESPACES, yes="deny", no="allow")
    start("ioctl", 1)
    for request in _INJECTIONS:
        jump(_EQUAL, request, yes="deny")
    go("allow")
    start("personality", 0)
    for persona in PERSONALITIES:
        jump(_EQUAL, persona, yes="allow")
    go("deny")
    start("socket", 0)
    labels["socketpair"] = labels["socket"]
    for family in FAMILIES:
        jump(_EQUAL, family, yes="allow")
    for label, value in (
        ("family", _ERRNO | errno.EAFNOSUPPORT),
        ("allow", _ALLOW),
        ("deny", _ERRNO | errno.EPERM),
        ("unknown", _ERRNO | errno.ENOSYS),
        ("kill", _KILL),
    ):
        labels[label] = len(steps)
        steps.append((_RETURN, value, "", ""))

    def distance(label: str, place: int) -> int:
        return labels[label] - place - 1 if label else 0

    encoded = b""
    for place, (code, value, yes, no) in enumerate(steps):
        if code == _GO:
            encoded += struct.pack("=HBBI", code, 0, 0, distance(yes, place))
        else:
            encoded += struct.pack("=HBBI", code, distance(yes, place), distance(no, place), value)
    return encoded
