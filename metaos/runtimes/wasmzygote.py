"""From this program the sandboxes of WebAssembly guests are forked, with wasmtime loaded already: ``python -I -S -E
wasmzygote.py FD LIBRARIES``, never imported by the agent. It serves requests as ``zygote.py`` does, and ends when none came for a
while.

A guest's sandbox is made here and not by bubblewrap, which could only execute a program that has to load all that again: it
takes thirty times as long. Around a guest are its pod's namespaces and a user, mount and pid namespace of its own, in which
there is the compiled module, its volumes and nothing else (no ``/proc``, no device, no file of the machine); no capability, no
new privileges, the seccomp filter and the cgroups of any container. Its processes are those that bubblewrap would leave: a
monitor, which records the end; process 1, whose end ends all; and the guest.

A sandbox is made before it is known for which container of its pod (see ``spares.py``): its processes wait. What the container is
comes from the agent to the monitor, and from that to the guest; this program, from which other pods' sandboxes are forked, never
has it. Source: user_namespaces(7), pivot_root(2), mount_setattr(2).
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
import _socket

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

#: Seconds without a request after which the program ends, and gives back its 20 MB.
IDLE_SECONDS = 600.0
#: Where the container comes so soon, it is not kept waiting for anything that would only make it quicker.
_AT_ONCE_SECONDS = 0.02
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


def prepare(words: list[bytes], fds: list[int], reply: _socket.socket) -> None:
    """``FILES PROCESSES HOLDER START GROUPS`` with the descriptor of the seccomp filter: a sandbox in this holder's pod and these
    cgroups. It waits for its container, which is asked for over ``reply`` (see :func:`_begin`), and ends when the other end of
    that does. Does not return."""
    files, processes, holder, began, groups = words
    os.setsid()
    for each in groups.split(b":") if groups else ():
        zygote._join(each)
    zygote.written("/proc/self/oom_score_adj", "500", needed=False)
    zygote._limit(_RLIMIT_CORE, 0, 0)
    zygote._limit(_RLIMIT_NOFILE, 1024, int(files))
    zygote._limit(_RLIMIT_NPROC, int(processes), int(processes))
    steps = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
    spaces = [(kind, _open(int(holder), kind)) for kind in ("user", "net", "ipc", "uts")]
    if _started(int(holder)) != int(began):
        raise OSError(3, "the pod has ended")
    for kind, fd in spaces:
        _setns(fd, kind)
    for fd in (*fds, *(fd for _, fd in spaces)):
        os.close(fd)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # of a child that ends while it is ignored nothing is left to tell
    guest, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    init = zygote._clone(zygote._CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _SIGCHLD)
    if init == 0:
        guest.close()
        reply.close()
        _first(theirs, steps)
    theirs.close()
    zygote.written(f"/proc/{init}/setgroups", "deny")
    if (said := guest.recv(1000)) != b"+":
        raise OSError(5, said.decode(errors="replace") or "the first process of the sandbox has ended")
    zygote._answer(reply)
    data, fds = zygote._received(reply)
    reply.close()
    if data:
        _begin(data, fds, guest, init)
    os.kill(init, _SIGKILL)  # nobody is left who could ask for a container
    os.waitpid(init, 0)
    os._exit(0)


def _begin(data: bytes, fds: list[int], guest: _socket.socket, init: int) -> None:
    """``RECORD INPUT USER GROUP GROUPS`` with the descriptors of the answer, the input (where ``INPUT`` says that there is one:
    1, or a terminal: t), the output, what ``wasmworker.main`` is asked, the module and the volumes. From here on this is the
    container's monitor: it gives the sandbox its one user, and tells its end. What is asked, only the guest reads."""
    _, record, given, user, group, _ = data.split(b"\0")[1:]
    reply = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds.pop(0))
    try:
        os.dup2(fds[1 if given else 0], 2)
        if given == b"t":
            fcntl.ioctl(fds[0], _TIOCSCTTY, 0)
        for name, number in (("uid_map", user), ("gid_map", group)):
            zygote.written(f"/proc/{init}/{name}", f"{number.decode()} {zygote.INSIDE} 1")
        packed = b"".join(each.to_bytes(4, sys.byteorder) for each in fds)
        guest.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
        ends = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        who = (os.getpid(), _started(os.getpid()), init)
        os.write(ends, b'{"monitor": [%d, %d]}\n{"child-pid": %d}\n' % who)
    except OSError as error:
        zygote._refuse(reply, 0, error)
        os._exit(1)
    try:
        zygote._answer(reply)
    except BrokenPipeError:
        os.write(ends, b'{"monitor": null}\n')
        os._exit(1)
    zygote._default_signals()
    # The guest's end hangs its terminal up, of which this is the session's leader; the end is told all the same.
    _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
    _told(guest)
    _close(but=ends)
    _drop_to_nothing()
    code = _ended(init)
    os.write(ends, b'{"exit-code": %d}\n' % code)
    os._exit(code)


def _told(guest: _socket.socket) -> None:
    """That it may begin. One that cannot has said why."""
    try:
        guest.send(b"+")
    except BrokenPipeError:
        return


def _first(channel: _socket.socket, steps: bytes) -> None:
    """Process 1, and the guest's own, which keeps its capabilities until it has mounted what the container has."""
    guest = -1
    try:
        zygote._default_signals()
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        old = _root()
        guest = os.fork()
        if guest == 0:
            _run(channel, old, steps)
        _drop_capabilities()
        _confine(steps)
        channel.send(b"+")
        os.closerange(0, zygote.MAX_FDS + 64)
        os._exit(_ended(guest))
    except BaseException as error:
        why = str((isinstance(error, OSError) and error.strerror) or error)
        if guest == 0:
            os.write(2, f"nemo: the container cannot be started: {why}\n".encode())
        else:
            channel.send(why.encode())
    finally:  # whatever it was, this process must not go on as the zygote would
        os._exit(126)


def _run(channel: _socket.socket, old: int, steps: bytes) -> None:
    """Nothing of the guest is run before the monitor has answered."""
    channel.settimeout(_AT_ONCE_SECONDS)
    try:
        data, fds = zygote._received(channel)
        channel.settimeout(None)
    except TimeoutError:
        channel.settimeout(None)
        wasmworker.warm()
        data, fds = zygote._received(channel)
    if not data:
        os._exit(1)  # the monitor has ended
    _, _, given, _, _, groups = data.split(b"\0")[1:]
    output, body, module, *volumes = fds[1:] if given else fds
    for fd, number in ((fds[0] if given else 0, 0), (output, 1), (output, 2)):
        os.dup2(fd, number)
    os.fchdir(old)
    if len(os.listdir(b"proc/self/task")) > 1:  # a thread that is there already is not confined by what follows
        raise OSError(11, "something has started a thread in its sandbox before that was closed")
    for each in groups.split(b":") if groups else ():
        zygote._join(b"." + each)
    asked = json.loads(os.pread(body, os.fstat(body).st_size, 0))
    _furnish(module, [(fd, bool(writable)) for fd, (_, writable) in zip(volumes, asked["directories"], strict=True)])
    _drop_capabilities()
    _confine(steps)
    if channel.recv(1) != b"+":
        os._exit(1)
    os.closerange(3, zygote.MAX_FDS + 64)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)  # a guest is told so
    os._exit(wasmworker.main(asked) & 0xFF)


def _root() -> int:
    """Makes an empty root; a descriptor of the old one, which lies over it until all is there. What is unmounted on the machine
    meanwhile is so there too, if the machine shares it: a sandbox that waits keeps no medium from being taken away."""
    _mount(b"tmpfs", _PLACE, b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=64k,mode=755")
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"how to change the root is not known for {os.uname().machine}")
    os.chdir(_PLACE)
    _checked(_libc.syscall(ctypes.c_long(number), b".", b"."), "changing the root")
    os.chdir("/")
    return old


def _furnish(module: int, volumes: list[tuple[int, bool]]) -> None:
    """With the old root as directory, which it leaves. Mounted are paths, as a descriptor from another mount namespace cannot be:
    that they still are what was opened and looked at is looked at afterwards."""
    os.close(os.open("/module", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o400))
    # Machine code is mapped to be executed.
    _show(module, b"/module", _READ_ONLY)
    os.mkdir("/volumes", 0o755)
    for at, (fd, writable) in enumerate(volumes):
        target = b"/volumes/%d" % at
        os.mkdir(target)
        _show(fd, target, _NOT_EXECUTED | (0 if writable else _READ_ONLY))
    _checked(_libc.umount2(b".", _DETACH), "leaving the old root")
    os.chdir("/")
    _attributes(b"/", _READ_ONLY | _NOT_SUID | _NOT_DEVICES | _NOT_EXECUTED, 0)


def _show(fd: int, target: bytes, attributes: int) -> None:
    source = os.readlink(b"proc/self/fd/%d" % fd)
    _mount(b"." + source, target, None, _BIND | _REC)
    meant, found = os.fstat(fd), os.stat(target)
    if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino):
        raise OSError(5, f"{os.fsdecode(source)} is not what it was when it was looked at")
    _attributes(target, attributes | _NOT_SUID | _NOT_DEVICES, _WHOLE)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _checked(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options), f"mounting {os.fsdecode(target)}")


def _attributes(target: bytes, those: int, whole: int) -> None:
    """And nothing that is mounted on the machine later is seen there."""
    asked = (ctypes.c_uint64 * 4)(those, 0, _PRIVATE, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_HERE), target, ctypes.c_uint(whole), asked, ctypes.c_size_t(32)
    )
    _checked(result, "restricting a mount (it needs Linux 5.12)")


def _close(*, but: int) -> None:
    """Everything, so that the other ends see the guest's end and not ours."""
    for fd in os.listdir("/proc/self/fd"):
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
    zygote.main(int(sys.argv[1]), prepare, IDLE_SECONDS)
