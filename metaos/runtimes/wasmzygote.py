"""From this program WebAssembly guests are forked, with wasmtime loaded already: ``python -I -S -E wasmzygote.py FD LIBRARIES``,
never imported by the agent. It serves requests as ``zygote.py`` does, and ends when none came for a while.

A guest's sandbox is made here and not by bubblewrap, which could only execute a program that has to load all that again: it
takes thirty times as long. Around a guest are its pod's namespaces and a user, mount and pid namespace of its own, in which
there is the compiled module, its volumes and nothing else (no ``/proc``, no device, no file of the machine); no capability, no
new privileges, the seccomp filter and the cgroups of any container. Its processes are those that bubblewrap would leave: a
monitor, which records the end; process 1, whose end ends all; and the guest.
Source: user_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))

import _signal  # type: ignore[import-not-found]

import wasmworker  # type: ignore[import-not-found]
import zygote  # type: ignore[import-not-found]
from enter import (  # type: ignore[import-not-found]
    _PR_SET_PDEATHSIG,
    _RLIMIT_CORE,
    _RLIMIT_NOFILE,
    _RLIMIT_NPROC,
    _SIGKILL,
    _TIOCSCTTY,
    _checked,
    _confine,
    _drop_capabilities,
    _drop_to_nothing,
    _libc,
    _open,
    _setns,
    _started,
)

if False:  # no more modules than needed
    import _socket
    from typing import Any

#: Seconds without a request after which the program ends, and gives back its 20 MB.
IDLE_SECONDS = 600.0
_SIGCHLD = 17
_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_BIND, _REC, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2
_NO_SUID, _NO_DEVICES = 2, 4
#: Of ``struct mount_attr``; and AT_FDCWD, AT_RECURSIVE.
_READ_ONLY, _NOT_SUID, _NOT_DEVICES, _NOT_EXECUTED = 1, 2, 4, 8
_HERE, _WHOLE = -100, 0x8000
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "loongarch64": 41}
#: Where the new root is made. It exists everywhere, and what lies there is seen at the old root all the same.
_PLACE = b"/tmp"


def start(words: list[bytes], fds: list[int], reply: _socket.socket) -> None:
    """``RECORD GROUPS FILES PROCESSES TERMINAL HOLDER START USER GROUP ASKED`` with the descriptors of the input (where ``ASKED``
    says that there is one), the output, the seccomp filter, the module and the volumes. Does not return."""
    record, groups, files, processes, terminal, holder, began, user, group = words[:9]
    os.setsid()
    ends = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(ends, b'{"monitor": [%d, %d]}\n' % (os.getpid(), _started(os.getpid())))
    try:
        zygote._answer(reply)
    except BrokenPipeError:
        os.write(ends, b'{"monitor": null}\n')
        raise
    try:
        asked = json.loads(words[9])
        source, output, filter_, module, *volumes = fds if asked["input"] else (os.open("/dev/null", os.O_RDWR), *fds)
        for fd, number in ((source, 0), (output, 1), (output, 2)):
            os.dup2(fd, number)
        if terminal:
            fcntl.ioctl(0, _TIOCSCTTY, 0)
        for each in groups.split(b":") if groups else ():
            zygote._join(each)
        zygote.written("/proc/self/oom_score_adj", "500", needed=False)
        zygote._limit(_RLIMIT_CORE, 0, 0)
        zygote._limit(_RLIMIT_NOFILE, 1024, int(files))
        zygote._limit(_RLIMIT_NPROC, int(processes), int(processes))
        spaces = [(kind, _open(int(holder), kind)) for kind in ("user", "net", "ipc", "uts")]
        if _started(int(holder)) != int(began):
            raise OSError(3, "the pod has ended")
        for kind, fd in spaces:
            _setns(fd, kind)
        steps = os.pread(filter_, os.fstat(filter_).st_size, 0)
        _begin(asked, ends, (user, group), steps, module, volumes)
    except BaseException as error:
        _fail(error)


def _fail(error: BaseException) -> None:
    """Whatever it was, this process must not go on as the zygote would."""
    try:
        why = (isinstance(error, OSError) and error.strerror) or error
        os.write(2, f"nemo: the container cannot be started: {why}\n".encode())
    finally:
        os._exit(126)


def _begin(asked: dict[str, Any], ends: int, ids: tuple[bytes, bytes], steps: bytes, module: int, volumes: list[int]) -> None:
    """The monitor: gives process 1 its one user, and tells its end."""
    zygote._default_signals()  # before there is a child: of one that ends while SIGCHLD is ignored nothing is left to tell
    ready, go = os.pipe2(os.O_CLOEXEC)
    init = zygote._clone(zygote._CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _SIGCHLD)
    if init == 0:
        os.close(go)
        _inside(asked, ready, steps, module, volumes)
    zygote.written(f"/proc/{init}/setgroups", "deny")
    for name, number in zip(("uid_map", "gid_map"), ids, strict=True):
        zygote.written(f"/proc/{init}/{name}", f"{number.decode()} {zygote.INSIDE} 1")
    os.write(ends, b'{"child-pid": %d}\n' % init)
    os.write(go, b"+")
    _close(but=ends)
    _drop_to_nothing()
    code = _ended(init)
    os.write(ends, b'{"exit-code": %d}\n' % code)
    os._exit(code)


def _inside(asked: dict[str, Any], ready: int, steps: bytes, module: int, volumes: list[int]) -> None:
    """Process 1."""
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.read(ready, 1) != b"+":
            os._exit(1)  # the monitor has ended
        _root(module, [(fd, bool(writable)) for fd, (_, writable) in zip(volumes, asked["directories"], strict=True)])
        os.closerange(3, zygote.MAX_FDS + 64)
        _drop_capabilities()
        _confine(steps)
        guest = os.fork()
        if guest:
            _close()
            os._exit(_ended(guest))
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)  # a guest is told so
        os._exit(wasmworker.main(asked) & 0xFF)
    except BaseException as error:
        _fail(error)


def _root(module: int, volumes: list[tuple[int, bool]]) -> None:
    """Mounted are paths, as a descriptor from another mount namespace cannot be: that they still are what was opened and looked
    at is looked at afterwards."""
    sources = [os.fsencode(os.readlink(f"/proc/self/fd/{fd}")) for fd in (module, *(fd for fd, _ in volumes))]
    _mount(b"none", b"/", None, _REC | _PRIVATE)
    _mount(b"tmpfs", _PLACE, b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=64k,mode=755")
    os.mkdir(_PLACE + b"/old")
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"how to change the root is not known for {os.uname().machine}")
    _checked(_libc.syscall(ctypes.c_long(number), _PLACE, _PLACE + b"/old"), "changing the root")
    os.chdir("/")
    os.close(os.open("/module", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o400))
    # Machine code is mapped to be executed.
    _show(module, sources[0], b"/module", _READ_ONLY)
    os.mkdir("/volumes", 0o755)
    for at, (fd, writable) in enumerate(volumes):
        target = b"/volumes/%d" % at
        os.mkdir(target)
        _show(fd, sources[1 + at], target, _NOT_EXECUTED | (0 if writable else _READ_ONLY))
    _checked(_libc.umount2(b"/old", _DETACH), "leaving the old root")
    os.rmdir("/old")
    _attributes(b"/", _READ_ONLY | _NOT_SUID | _NOT_DEVICES | _NOT_EXECUTED, 0)


def _show(fd: int, source: bytes, target: bytes, attributes: int) -> None:
    _mount(b"/old" + source, target, None, _BIND | _REC)
    meant, found = os.fstat(fd), os.stat(target)
    if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino):
        raise OSError(5, f"{os.fsdecode(source)} is not what it was when it was looked at")
    _attributes(target, attributes | _NOT_SUID | _NOT_DEVICES, _WHOLE)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _checked(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options), f"mounting {os.fsdecode(target)}")


def _attributes(target: bytes, those: int, whole: int) -> None:
    asked = (ctypes.c_uint64 * 4)(those, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_HERE), target, ctypes.c_uint(whole), asked, ctypes.c_size_t(32)
    )
    _checked(result, "restricting a mount (it needs Linux 5.12)")


def _close(*, but: int = -1) -> None:
    """Everything, so that the other ends see the guest's end and not ours."""
    for fd in os.listdir("/proc/self/fd") if but >= 0 else map(str, range(3)):
        if int(fd) != but:
            try:
                os.close(int(fd))
            except OSError:
                continue


def _ended(child: int) -> int:
    """Its exit code, once it has ended. Others that process 1 inherits are collected on the way."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    wasmworker.load()
    gc.freeze()
    zygote.main(int(sys.argv[1]), start, IDLE_SECONDS)
