"""Enters a pod's namespaces. A program of its own (``python -I -S -E enter.py``), short-lived, never imported by the agent.

``enter.py exec FD``
    runs a command in a container as ``bubblewrap.exec_request`` describes it, and exits as it exits.

Each namespace is entered with the rights of the user namespace that owns it (ioctl_ns(2), ``NS_GET_USERNS``), so this
works for root and for the plain user who made them. The command keeps no capability. Only the standard library, and
little of it: every import is paid for at each exec probe.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

_NS_GET_USERNS = 0xB701
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_MODE_FILTER = 2
_RLIMIT_CORE, _RLIMIT_NPROC, _RLIMIT_NOFILE = 4, 6, 7
_SIGKILL = 9
_TIOCSCTTY = 0x540E

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("capset", "prctl", "prlimit", "sethostname", "setns", "syscall", "unshare"):
    getattr(_libc, _name)  # looked up once, and not again in each fork of the zygote


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def _here(kind: str) -> int:
    return os.stat(f"/proc/thread-self/ns/{kind}").st_ino


def _setns(fd: int, kind: str) -> None:
    # A process may not enter the user namespace that it is in already (EINVAL).
    if _here(kind) != _inode(fd):
        _checked(_libc.setns(fd, 0), f"entering the {kind} namespace")


def _owner(fd: int) -> int:
    return fcntl.ioctl(fd, _NS_GET_USERNS)


def _open(pid: int, kind: str) -> int:
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


class _Limit(ctypes.Structure):
    """``struct rlimit64``."""

    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def _limits(pid: int) -> list[tuple[int, _Limit]]:
    """Of the container's command: what is run beside it has the same. Set where processes count as the container's."""
    found = []
    for kind in (_RLIMIT_CORE, _RLIMIT_NPROC, _RLIMIT_NOFILE):
        limit = _Limit()
        _checked(_libc.prlimit(pid, kind, None, ctypes.byref(limit)), "reading the container's limits")
        found.append((kind, limit))
    return found


def _drop_capabilities() -> None:
    for number in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _drop_to_nothing()


#: Of capset(2): the header, and nothing effective, permitted or inheritable.
_OWN, _NOTHING = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()


def _drop_to_nothing() -> None:
    """For good: without new privileges, executing something gives none back."""
    _checked(_libc.capset(_OWN, _NOTHING), "dropping capabilities")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("count", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _confine(filter_: bytes) -> None:
    """The same seccomp filter as the container's own command has; it needs no_new_privs."""
    if filter_:
        known = _Filter(len(filter_) // 8, filter_)
        result = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(known), 0, 0)
        _checked(result, "loading the seccomp filter")


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _execute(command: list[bytes], env: dict[bytes, bytes]) -> None:
    """As ``os.execvpe``, which would import something: our own library is not there any more."""
    paths = [command[0]]
    if b"/" not in command[0]:
        paths = [place + b"/" + command[0] for place in env.get(b"PATH", b"/usr/bin:/bin").split(b":")]
    refused: OSError | None = None
    for path in paths:
        try:
            os.execve(path, command, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = error
    raise refused or FileNotFoundError(2, "not found")


def run(data: bytes) -> int:
    words = data.split(b"\0")
    pid, start, tty, directory = int(words[0]), int(words[1]), bool(words[2]), words[3]
    filter_ = bytes.fromhex(words[4].decode())
    rest = iter(words[5:])
    cgroups = [next(rest) for _ in range(int(next(rest)))]
    env = dict(next(rest).split(b"=", 1) for _ in range(int(next(rest))))
    command = list(rest)
    final = _open(pid, "user")
    shared = [(kind, _open(pid, kind)) for kind in ("net", "ipc", "uts")]
    own = [(kind, _open(pid, kind)) for kind in ("cgroup", "pid", "mnt")]
    if _started(pid) != start:
        raise OSError("the container has ended")
    for group in cgroups:  # memory and time of the command count as the container's
        with open(group + b"/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")
    limits = _limits(pid)
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(b"500")
    here = _here("user")
    for kind, fd in (*shared, *own):
        if kind == "pid" or _here(kind) != _inode(fd):
            owner = _owner(fd)
            if _inode(owner) != here:
                _checked(_libc.setns(owner, 0), "entering a user namespace")
                here = _inode(owner)
            _checked(_libc.setns(fd, 0), f"entering the {kind} namespace")
    child = os.fork()
    if child == 0:
        try:
            if _inode(final) != here:
                _checked(_libc.setns(final, 0), "entering the container's user namespace")
            os.setsid()
            if tty:
                fcntl.ioctl(0, _TIOCSCTTY, 0)
            for which, limit in limits:
                _checked(_libc.prlimit(0, which, ctypes.byref(limit), None), "setting limits")
            _drop_capabilities()
            _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
            os.chdir(directory or b"/")
            _confine(filter_)
            _execute(command, env)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            os.write(2, f"cannot run {os.fsdecode(command[0])}: {error.strerror or error}\n".encode())
            os._exit(127 if missing else 126)
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):  # so that the other ends see the command's end, not ours
        os.dup2(nothing, fd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


def main(arguments: list[str]) -> int:
    try:
        fd = int(arguments[1])
        data = b""
        while piece := os.read(fd, 1 << 20):
            data += piece
        os.close(fd)
        return run(data)
    except OSError as error:
        os.write(2, f"cannot enter the container: {error}\n".encode())
        return 126


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
