"""From this small program the processes of pods are forked. A program of its own (``python -I -S -E zygote.py FD``), never
imported by the agent; it serves requests that come over the unix socket FD, and ends when none came for a while.

A fork of a small program costs a tenth of what a large one's costs, and of starting shells and tools that do the same: enter
namespaces, join cgroups, take on limits. What is forked for good is a child of the agent, not of this program (``CLONE_PARENT``
of clone(2)): the agent collects it, and this program may end at any time.

A request is a message of words (a NUL byte before each) and descriptors, of which the first is where the answer goes. Each is
served by a child of its own, since a process cannot leave a user namespace that it has entered. Only the standard library, and
little of it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import fcntl
import os
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from enter import (  # type: ignore[import-not-found]
    _RLIMIT_CORE,
    _RLIMIT_NOFILE,
    _RLIMIT_NPROC,
    _TIOCSCTTY,
    _checked,
    _drop_to_nothing,
    _libc,
    _Limit,
    _open,
    _owner,
    _setns,
    _started,
)
from gateway import loopback, make, written  # type: ignore[import-not-found]

#: Seconds without a request after which the program ends.
IDLE_SECONDS = 5.0
#: Seconds after which a holder becomes something smaller than a fork of this program. Not at once: where many pods start
#: together, their containers come first.
SETTLE_SECONDS = 3
#: Of one request: bytes, and descriptors (SCM_MAX_FD of the kernel).
MAX_BYTES, MAX_FDS = 65 << 10, 253
#: Descriptors of a holder: its gateway's network namespace, and its pod's own copy of bubblewrap. This program keeps them free.
GATEWAY, BUBBLEWRAP = 3, 4

_CLONE_PARENT, _CLONE_NEWUSER, _CLONE_NEWNET = 0x8000, 0x10000000, 0x40000000
_CLONE_NEWUTS, _CLONE_NEWIPC = 0x04000000, 0x08000000
#: The number of clone(2); not of clone3, which Docker's filter refuses.
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "armv7l": 120, "ppc64le": 120}
_MFD_EXEC = 0x10
_ALL_SEALS = 0xF  # it cannot be written to nor resized, and that is for good


def _clone(flags: int) -> int:
    number = _CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"how to make processes is not known for {os.uname().machine}")
    pid: int = _libc.syscall(ctypes.c_long(number), ctypes.c_long(flags), None, None, None, None)
    if pid < 0:
        raise OSError(ctypes.get_errno(), f"making namespaces: {os.strerror(ctypes.get_errno())}")
    return pid


def _default_signals() -> None:
    """Some are ignored here, and others by whoever started the agent, which a command would inherit."""
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGCHLD, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


def _sockets(count: int, kind: int = _socket.SOCK_STREAM) -> list[_socket.socket]:
    kind |= _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    return [_socket.socket(_socket.AF_INET, kind) for _ in range(count)]


def _answer(reply: _socket.socket, *made: _socket.socket) -> None:
    """Raises ``BrokenPipeError`` where nobody waits for it any more: the agent has ended."""
    packed = b"".join(each.fileno().to_bytes(4, sys.byteorder) for each in made)
    reply.sendmsg([b"+%d" % os.getpid()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if made else [])


def _copy(program: bytes, directory: bytes) -> int:
    """bwrap is process 1 of its containers, so they reach its file as ``/proc/1/exe``, and as its owner they may change its
    mode: each pod has a copy of its own to spoil. In memory; where no program may be there, in a file without a name."""
    fd = -1
    for flags in (_MFD_EXEC, 0):  # older kernels do not know it, and need it not
        try:
            fd = os.memfd_create("bwrap", flags | os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            break
        except OSError:
            continue
    in_memory = fd >= 0
    if not in_memory:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o500)
    original = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    left = os.fstat(original).st_size
    while left > 0:
        left -= os.sendfile(fd, original, None, left)
    os.close(original)
    os.fchmod(fd, 0o500)
    if in_memory:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
    # What is open for writing cannot be executed.
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return readable


def _place(fd: int, number: int) -> None:
    os.dup2(fd, number)
    os.close(fd)


def hold(words: list[bytes], reply: _socket.socket, user: int, group: int) -> None:
    """``HOSTNAME ADDRESS BUBBLEWRAP DIRECTORY INSIDE OUTSIDE``, in namespaces of its own already: the last two say how many
    sockets to make in the pod and at its gateway. Without an address the pod has no gateway. Until it is told to stay, a holder
    ends when its starter does: nobody would know of it."""
    hostname, address, program, directory = words[0], words[1].decode(), words[2], words[3]
    written("/proc/self/setgroups", "deny")
    written("/proc/self/gid_map", f"0 {group} 1")
    written("/proc/self/uid_map", f"0 {user} 1")
    _checked(_libc.sethostname(hostname, len(hostname)), "setting the hostname")
    # Containers, which have no capability at all, may listen on ports below 1024 of their own network.
    written("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", needed=False)
    loopback()
    _place(_copy(program, directory), BUBBLEWRAP)
    made = _sockets(int(words[4]))
    if address:
        pod = _open(os.getpid(), "net")
        make(pod, address)
        made += _sockets(int(words[5]))
        _place(_open(os.getpid(), "net"), GATEWAY)
        _setns(pod, "net")
        os.close(pod)
    os.setsid()
    _drop_to_nothing()
    _answer(reply, *made)
    for each in made:
        each.close()
    if reply.recv(16) != b"stay":
        return
    reply.close()
    _default_signals()
    _libc.sleep(SETTLE_SECONDS)
    for path in ("/usr/bin/sleep", "/bin/sleep"):
        try:
            os.execve(path, ["sleep", "infinity"], {b"NEMO_SANDBOX": directory})  # noqa: S606
        except FileNotFoundError:
            continue
    while True:
        _libc.pause()


def _join(group: bytes) -> None:
    """By version 1's ``tasks``, as this process has one thread only: for ``cgroup.procs`` the kernel holds up every fork and end
    of the machine, and may wait 10 ms for that with all cgroups locked (``cgroup_procs_write_start`` of ``kernel/cgroup``)."""
    try:
        fd = os.open(group + b"/tasks", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(group + b"/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"0")
    os.close(fd)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Where the limit is lower already, it stays."""
    old = _Limit()
    _checked(_libc.prlimit(0, kind, None, ctypes.byref(old)), "reading limits")
    hard = min(hard, old.hard)
    _checked(_libc.prlimit(0, kind, ctypes.byref(_Limit(min(soft, hard), hard)), None), "setting limits")


def start(words: list[bytes], fds: list[int], reply: _socket.socket) -> None:
    """``RECORD GROUPS FILES PROCESSES TERMINAL HOLDER START DIRECTORY NUMBERS VARIABLES`` and the command, of which nothing is
    run where nobody waits for the answer any more. ``NUMBERS``: of the descriptors in the command, its standard ones too.
    With a holder the command's program is the pod's own bubblewrap, whatever it is called."""
    record, groups, files, processes, terminal, holder, began, directory = words[:8]
    numbers = [int(word) for word in words[8].split()]
    env = dict(word.split(b"=", 1) for word in words[10 : 10 + int(words[9])])
    argv = words[10 + int(words[9]) :]
    top = max(numbers) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top) for fd in fds]
    os.setsid()
    # Who it is, before everything else; unless nobody would know of it.
    _append(record, b'{"monitor": [%d, %d]}\n' % (os.getpid(), _started(os.getpid())))
    try:
        _answer(reply)
    except BrokenPipeError:
        _append(record, b'{"monitor": null}\n')
        raise
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)  # not closed by executing the command
    try:
        if terminal:
            fcntl.ioctl(0, _TIOCSCTTY, 0)
        for group in groups.split(b":") if groups else ():
            _join(group)
        written("/proc/self/oom_score_adj", "500", needed=False)
        _limit(_RLIMIT_CORE, 0, 0)
        _limit(_RLIMIT_NOFILE, 1024, int(files))
        if processes:
            _limit(_RLIMIT_NPROC, int(processes), int(processes))
        program: int | bytes = argv[0]
        if holder:
            pid = int(holder)
            spaces = [(kind, _open(pid, kind)) for kind in ("user", "net", "ipc", "uts")]
            copy = os.open(f"/proc/{pid}/fd/{BUBBLEWRAP}", os.O_RDONLY | os.O_CLOEXEC)
            if _started(pid) != int(began):
                raise OSError(3, "the pod has ended")
            for kind, fd in spaces:
                _setns(fd, kind)
            program = copy
        os.chdir(directory)
        _default_signals()
        os.execve(program, argv, env)  # noqa: S606
    except OSError as error:
        os.write(2, f"nemo: the container cannot be started: {error.strerror or error}\n".encode())
        os._exit(126)


def _append(record: bytes, line: bytes) -> None:
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(fd, line)
    os.close(fd)


def sockets(words: list[bytes], reply: _socket.socket) -> None:
    """``PID START ADDRESS INSIDE OUTSIDE DATAGRAM``: the last three say how many sockets to make in the pod of this holder, at
    its gateway, and there for UDP."""
    pid, address = int(words[0]), words[2]
    network = _open(pid, "net")
    gateway = os.open(f"/proc/{pid}/fd/{GATEWAY}", os.O_RDONLY | os.O_CLOEXEC) if address else -1
    if _started(pid) != int(words[1]):
        raise OSError(3, "the pod has ended")
    _setns(_owner(network), "user")
    _setns(network, "net")
    made = _sockets(int(words[3]))
    if gateway >= 0:
        _setns(gateway, "net")
    made += _sockets(int(words[4])) + _sockets(int(words[5]), _socket.SOCK_DGRAM)
    _answer(reply, *made)


def _words(data: bytes, fds: list[int]) -> list[bytes]:
    """Those of a long request stand in a file."""
    if data == b"\0":
        body = fds.pop(1)
        while piece := os.read(body, 1 << 20):
            data += piece
    return data.split(b"\0")[1:]


def serve(data: bytes, fds: list[int], requests: _socket.socket) -> None:
    task, *words = _words(data, fds)
    reply = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds[0])
    user, group = os.geteuid(), os.getegid()
    try:
        if task == b"sockets":
            child = os.fork()  # collected by nobody: see below
        else:
            new = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWUTS | _CLONE_NEWIPC if task == b"hold" else 0
            child = _clone(_CLONE_PARENT | new)
        if child != 0:
            reply.detach()
            return
    except OSError as error:
        _refuse(reply, 0, error)
        reply.detach()
        return
    requests.close()
    try:
        if task == b"sockets":
            sockets(words, reply)
        elif task == b"hold":
            hold(words, reply, user, group)
        else:
            start(words, fds[1:], reply)
    except BrokenPipeError:
        pass
    except OSError as error:
        _refuse(reply, 0 if task == b"sockets" else os.getpid(), error)
    os._exit(0)


def _refuse(reply: _socket.socket, pid: int, error: OSError) -> None:
    try:
        reply.send(f"-{pid} {error.errno or 0} {error.strerror or error}".encode())
    except BrokenPipeError:
        return  # nobody waits for it any more


def main(channel: int) -> None:
    beyond = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, BUBBLEWRAP + 1)
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, beyond)
    if channel > BUBBLEWRAP:
        os.close(channel)
    for number in (GATEWAY, BUBBLEWRAP):
        os.dup2(0, number, inheritable=False)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # nobody waits for the children that are ours
    requests.settimeout(IDLE_SECONDS)
    while True:
        try:
            data, rights, _, _ = requests.recvmsg(MAX_BYTES, _socket.CMSG_SPACE(4 * MAX_FDS), _socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            return
        if not data:
            return
        fds = [int.from_bytes(packed[at : at + 4], sys.byteorder) for _, _, packed in rights for at in range(0, len(packed), 4)]
        try:
            serve(data, list(fds), requests)
        finally:
            for fd in fds:
                os.close(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
