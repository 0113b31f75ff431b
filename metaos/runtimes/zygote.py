"""From this small program the processes of pods are forked. A program of its own (``python -I -S -E zygote.py FD``), never
imported by the agent; it serves requests that come over the unix socket FD, and ends when none came for a while.

A fork of a small program costs a tenth of what a large one's costs, and of starting shells and tools that do the same: enter
namespaces, join cgroups, take on limits. What is forked for good is a child of the agent, not of this program (``CLONE_PARENT``
of clone(2)): the agent collects it, and this program may end at any time.

A request is a message of words (a NUL byte before each) and descriptors, of which the first is where the answer goes. Each is
served by a child of its own, since a process cannot leave a user namespace that it has entered. For a while a new pod's holder
serves requests to start containers too: it is in the pod's namespaces already, and needs no fork of its own memory for it.
Only the standard library, and little of it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import fcntl
import gc
import os
import sys

if False:  # no more modules than needed
    from collections.abc import Callable
    from typing import Any

    _Begin = Callable[[list[bytes], list[int], _socket.socket], None]

sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from enter import (  # type: ignore[import-not-found]
    _RLIMIT_CORE,
    _RLIMIT_NOFILE,
    _RLIMIT_NPROC,
    _SIGKILL,
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
#: Of one request: bytes, and descriptors (SCM_MAX_FD of the kernel).
MAX_BYTES, MAX_FDS = 65 << 10, 253
#: The one user and group of a pod's own user namespace. Not root: bubblewrap, which has no capability there, may map others.
#: Source: user_namespaces(7), CAP_SETFCAP.
INSIDE = 1
#: Descriptors of a holder: its gateway's network namespace, and its pod's own copy of bubblewrap. This program keeps them free.
GATEWAY, BUBBLEWRAP = 3, 4

_CLONE_PARENT, _CLONE_NEWUSER, _CLONE_NEWNET = 0x8000, 0x10000000, 0x40000000
_CLONE_NEWUTS, _CLONE_NEWIPC = 0x04000000, 0x08000000
#: The number of clone(2); not of clone3, which Docker's filter refuses.
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "armv7l": 120, "ppc64le": 120}
#: Some are ignored here, and others by whoever started the agent, which a command would inherit.
_IGNORED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGCHLD, _signal.SIGXFSZ)
_SPAWNED: dict[str, Any] = {"setsid": True, "setsigdef": _IGNORED}
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
    for number in _IGNORED:
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
    written("/proc/self/gid_map", f"{INSIDE} {group} 1")
    written("/proc/self/uid_map", f"{INSIDE} {user} 1")
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
    stays = False
    while True:
        data, fds = _received(reply)
        if not data:
            break
        if data == b"stay":
            stays = True
        else:
            _launch(_words(data, fds)[1:], fds)
        for fd in fds:
            os.close(fd)
    if not stays:
        return
    reply.close()
    _default_signals()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # of the containers that it has started nobody is left behind
    for path in ("/usr/bin/sleep", "/bin/sleep"):
        try:
            os.execve(path, ["sleep", "infinity"], {b"NEMO_SANDBOX": directory})  # noqa: S606
        except FileNotFoundError:
            continue
    while True:
        _libc.pause()


def _launch(words: list[bytes], fds: list[int]) -> None:
    """Starts a container in this holder's pod, as :func:`start` describes it."""
    reply = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds[0])
    try:
        _spawn(words, fds[1:], reply)
    except OSError as error:
        _refuse(reply, 0, error)
    except NotImplementedError as error:  # of posix_spawn, by the C library's age
        _refuse(reply, 0, OSError(38, str(error)))
    finally:
        reply.detach()


def _spawn(words: list[bytes], fds: list[int], reply: _socket.socket) -> None:
    """The parent's memory is lent to the child, not copied (``posix_spawn``). Bubblewrap waits for its arguments until the start
    is recorded and answered, and ends at the latest where it gets no seccomp filter: nothing of the command runs before."""
    record, groups, files, processes = words[:4]
    homes, gates = words[7], [int(word) for word in words[8].split()]
    numbers = [int(word) for word in words[10].split()]
    count = 12 + int(words[11])
    env = dict(word.split(b"=", 1) for word in words[12:count])
    top = max(BUBBLEWRAP, *numbers) + 1
    theirs, ours, passed = [fcntl.fcntl(BUBBLEWRAP, fcntl.F_DUPFD_CLOEXEC, top)], dict[int, int](), dict[int, bytes]()
    try:
        program = b"/proc/self/fd/%d" % theirs[0]
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, GATEWAY), (os.POSIX_SPAWN_CLOSE, BUBBLEWRAP)]
        for fd, number in zip(fds, numbers, strict=True):
            if number in gates:
                passed[number] = os.pread(fd, os.fstat(fd).st_size, 0)
                inside, ours[number] = os.pipe2(os.O_CLOEXEC)
                theirs.append(inside)
                fd = inside
            theirs.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top))
            actions.append((os.POSIX_SPAWN_DUP2, theirs[-1], number))
        _limit(_RLIMIT_CORE, 0, 0)
        _limit(_RLIMIT_NOFILE, 1024, int(files))
        _limit(_RLIMIT_NPROC, int(processes), int(processes))
        child = _inside(groups, homes, lambda: os.posix_spawn(program, words[count:], env, file_actions=actions, **_SPAWNED))
        while theirs:
            os.close(theirs.pop())  # who reads of the gates is the child alone
        if _recorded(record, child, reply):
            for number in gates:
                _pour(ours[number], passed[number])
                os.close(ours.pop(number))
    finally:
        for fd in (*theirs, *ours.values()):
            os.close(fd)


def _pour(fd: int, data: bytes) -> None:
    """As much as is taken: who has ended takes nothing more."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        return


def _recorded(record: bytes, child: int, reply: _socket.socket) -> bool:
    """Whether it is, and somebody knows of the child; otherwise that is ended before it can record anything."""
    try:
        began = _started(child)
        _append(record, b'{"monitor": [%d, %d]}\n' % (child, began))
        try:
            reply.send(b"+%d %d" % (child, began))
        except BrokenPipeError:
            _append(record, b'{"monitor": null}\n')
            raise
    except OSError as error:
        os.kill(child, _SIGKILL)  # a child of ours that waits: its number is still its own
        _refuse(reply, child, error)
        return False
    return True


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
    """``RECORD GROUPS FILES PROCESSES TERMINAL HOLDER START HOMES GATES DIRECTORY NUMBERS VARIABLES`` and the command, of which
    nothing is run where nobody waits for the answer any more. ``NUMBERS``: of the descriptors in the command, its standard ones
    too. With a holder the command's program is the pod's own bubblewrap, whatever it is called. What a holder needs that starts
    it: ``HOMES``, the cgroups in which it stays itself, and ``GATES``, the numbers of what bubblewrap waits for."""
    record, groups, files, processes, terminal, holder, began, _, _, directory = words[:10]
    numbers = [int(word) for word in words[10].split()]
    count = 12 + int(words[11])
    env = dict(word.split(b"=", 1) for word in words[12:count])
    argv = words[count:]
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


def _inside(groups: bytes, homes: bytes, begin: Callable[[], int]) -> int:
    """Begins something as a member of these cgroups, and as one whom the kernel kills first."""
    path = "/proc/self/oom_score_adj"
    with open(path, "rb", buffering=0) as file:
        before = file.read().decode()
    written(path, "500", needed=False)
    try:
        for group in groups.split(b":") if groups else ():
            _join(group)
        return begin()
    finally:
        try:
            for home in homes.split(b":") if groups else ():
                _join(home)
        except OSError:
            os._exit(1)  # what stays in a container's cgroups ends with it
        written(path, before, needed=False)


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
    owner = _owner(network)
    if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:  # nobody may enter the one that he is in
        _setns(owner, "user")
    _setns(network, "net")
    made = _sockets(int(words[3]))
    if gateway >= 0:
        _setns(gateway, "net")
    made += _sockets(int(words[4])) + _sockets(int(words[5]), _socket.SOCK_DGRAM)
    _answer(reply, *made)


def _received(channel: _socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors with it; both empty where nobody is left to send one."""
    try:
        data, rights, _, _ = channel.recvmsg(MAX_BYTES, _socket.CMSG_SPACE(4 * MAX_FDS), _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    return data, [
        int.from_bytes(packed[at : at + 4], sys.byteorder) for _, _, packed in rights for at in range(0, len(packed), 4)
    ]


def _words(data: bytes, fds: list[int]) -> list[bytes]:
    """Those of a long request stand in a file."""
    if data == b"\0":
        body = fds.pop(1)
        os.lseek(body, 0, os.SEEK_SET)  # another may have read it before
        while piece := os.read(body, 1 << 20):
            data += piece
        os.close(body)
    return data.split(b"\0")[1:]


def serve(data: bytes, fds: list[int], requests: _socket.socket, begin: _Begin) -> None:
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
            begin(words, fds[1:], reply)
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


def main(channel: int, begin: _Begin = start, idle_seconds: float = IDLE_SECONDS) -> None:
    """``begin`` starts a container, in a process of its own."""
    beyond = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, BUBBLEWRAP + 1)
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, beyond)
    if channel > BUBBLEWRAP:
        os.close(channel)
    for number in (GATEWAY, BUBBLEWRAP):
        os.dup2(0, number, inheritable=False)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # nobody waits for the children that are ours
    requests.settimeout(idle_seconds)
    gc.disable()  # there is little to collect, and looking for it would make each child copy all that there is
    while True:
        try:
            data, fds = _received(requests)
        except TimeoutError:
            return
        if not data:
            return
        try:
            serve(data, fds, requests, begin)
        finally:
            for fd in fds:
                os.close(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
