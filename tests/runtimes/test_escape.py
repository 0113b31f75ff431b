"""A container that wants out: what it tries, and that it gets nothing, as its command and as one executed in it.

What it may use up is in ``test_exhaustion``; ``test_plain_user`` runs both again without root.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.runtimes import bubblewrap, seccomp
from metaos.runtimes.images import system_paths
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import container, execute, pod, run, state, until_logged

pytestmark = pytest.mark.system


@pytest.fixture
async def runtime() -> AsyncIterator[SandboxRuntime]:
    place = tempfile.mkdtemp(prefix="nemo-escape-")
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    await made.check()
    await made.start_pod(pod(address="100.64.9.1"))
    yield made
    for uid in list(await made.pods()):
        await made.stop_pod(uid)
    await made.close()
    shutil.rmtree(place)


async def attempt(runtime: SandboxRuntime, script: str) -> str:
    """As the container's command, and again as a command executed in it."""
    _, first = await run(runtime, pod().uid, container("python3", "-c", script))
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 100"))
    await until_logged(runtime, pod().uid, b"ready")
    _, second, errors = await execute(runtime, pod().uid, ("python3", "-c", script))
    assert first == second.decode(), errors
    return first


TRY = """
import os, sys, ctypes, socket, signal
libc = ctypes.CDLL(None, use_errno=True)
def trying(what, *names):
    try:
        print(what, 'SUCCEEDED', names[0](*names[1:]))
    except OSError as error:
        print(what, 'failed')
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), '')
    return result
"""


async def test_files_of_the_host_are_not_there(runtime: SandboxRuntime, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    paths = [str(secret), runtime._directory, "/etc/shadow", "/sys/kernel", f"/proc/1/root{secret}", "/proc/kcore"]
    script = f"""{TRY}
def look(path):
    found = os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)
    return found or call(-1)
for path in {paths}:
    trying(path, look, path)
print(sorted(set(os.listdir('/')) - {{'bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32', 'usr', 'opt'}}))
print('root' in open('/etc/passwd').read(), len(open('/etc/passwd').readlines()))
"""
    said = await attempt(runtime, script)
    assert "SUCCEEDED" not in said
    listed = said.splitlines()[-2]
    shown = {Path(path).parts[1] for path in system_paths()}  # Where this Python lives, too.
    assert not ({"home", "work", "srv", "var", "boot", "mnt"} - shown) & set(eval(listed))
    assert said.splitlines()[-1] == "True 2"


async def test_nothing_of_the_host_can_be_written(runtime: SandboxRuntime) -> None:
    script = f"""{TRY}
for path in ('/usr/bin/evil', '/bin/evil', '/etc/evil', '/etc/hosts', '/evil', '/lib/evil', '/proc/sys/kernel/core_pattern',
             '/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches', '/dev/evil', '/opt/python/bin/evil'):
    trying(path, lambda: open(path, 'r+' if os.path.exists(path) else 'w').close())
for path in ('/usr', '/proc/sys', '/etc/hosts', '/'):
    trying('remount ' + path, lambda: call(libc.mount(b'none', path.encode(), None, 32 | 4096, None)))
    trying('umount ' + path, lambda: call(libc.umount2(path.encode(), 2)))
trying('chmod', os.chmod, '/usr/bin/env', 0o4777)
trying('mknod', os.mknod, '/tmp/disk', 0o60600, os.makedev(259, 0))
"""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    assert "SUCCEEDED" not in await attempt(runtime, script)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


async def test_our_own_program_cannot_be_spoilt(runtime: SandboxRuntime) -> None:
    """Process 1 of a container is bubblewrap: its file must not be one that anybody else uses."""
    program = Path(bubblewrap.find_bwrap())
    before = (program.stat().st_mode, program.stat().st_mtime, program.read_bytes())
    script = f"{TRY}\ntrying('write', open, '/proc/1/exe', 'r+b')\nos.chmod('/proc/1/exe', 0)\nos.utime('/proc/1/exe', (1, 1))"
    _, said = await run(runtime, pod().uid, container("python3", "-c", script))
    assert said == "write failed\n"
    assert (program.stat().st_mode, program.stat().st_mtime, program.read_bytes()) == before
    await runtime.start_pod(pod("other"))
    ended, _ = await run(runtime, "other", container("true"))
    assert ended.exit_code == 0


async def test_no_rights_can_be_gained(runtime: SandboxRuntime) -> None:
    script = f"""{TRY}
status = open('/proc/self/status').read()
print([line for line in status.splitlines() if line.startswith('Cap') and line.split()[1].strip('0')])
print('NoNewPrivs:\\t1' in status)
trying('user namespace', lambda: call(libc.unshare(0x10000000)))
trying('mount namespace', lambda: call(libc.unshare(0x20000)))
trying('net namespace', lambda: call(libc.unshare(0x40000000)))
trying('setuid', os.setuid, 12345)
trying('setgroups', os.setgroups, [4, 6])
trying('chroot', os.chroot, '/tmp')
trying('sethostname', socket.sethostname, 'evil')
trying('priority', os.setpriority, 0, 0, -10)
trying('raw socket', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
trying('packet socket', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
for kind in ('mnt', 'user', 'net', 'pid'):
    trying('setns ' + kind, lambda: call(libc.setns(os.open('/proc/1/ns/' + kind, os.O_RDONLY), 0)))
print(os.statvfs('/usr/bin').f_flag & os.ST_NOSUID > 0)
"""
    lines = (await attempt(runtime, script)).splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("[]", "True", "True")
    assert not any("SUCCEEDED" in line for line in lines), lines


async def test_other_processes_cannot_be_seen_or_hit(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("other"))
    await runtime.start_container("other", container("sh", "-c", "echo ready; sleep 1000"))
    await until_logged(runtime, "other", b"ready")
    script = f"""{TRY}
print(len([name for name in os.listdir('/proc') if name.isdigit()]) < 6)
trying('kill', os.kill, {os.getpid()}, 0)
trying('ptrace', lambda: call(libc.ptrace(16, {os.getpid()}, 0, 0)))
"""
    lines = (await attempt(runtime, script)).splitlines()
    assert lines == ["True", "kill failed", "ptrace failed"]
    assert (await state(runtime, "other", "main")).running  # type: ignore[union-attr]


async def test_signals_to_everybody_reach_the_container_only(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("other"))
    await runtime.start_container("other", container("sh", "-c", "echo ready; sleep 1000"))
    await until_logged(runtime, "other", b"ready")
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 1000", name="beside"))
    await until_logged(runtime, pod().uid, b"ready", "beside")
    ended, _ = await run(runtime, pod().uid, container("sh", "-c", "trap '' TERM; kill -9 1; kill -TERM -1; kill -KILL -1"))
    assert ended.exit_code is not None
    for uid, name in ((pod().uid, "beside"), ("other", "main")):
        assert (await state(runtime, uid, name)).running  # type: ignore[union-attr]


async def test_system_calls_are_filtered(runtime: SandboxRuntime) -> None:
    """Each fails with exactly what the filter answers, before the kernel looks at any argument."""
    machine, column = {"x86_64": ("x86_64", 0), "aarch64": ("aarch64", 1)}[platform.machine()]
    denied = {name: numbers[column] for name, numbers in seccomp.DENIED.items() if numbers[column] is not None}
    clone = seccomp._MACHINES[machine][2]["clone"]
    script = f"""{TRY}
import errno
def answer(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
print([name for name, number in {denied}.items() if answer(number, -1, -1, -1, -1, -1, -1) != 'EPERM'])
print([bit for bit in (17, 25, 26, 27, 28, 29, 30) if answer({clone}, 1 << bit, 0, 0, 0, 0) != 'EPERM'])
print(answer(435, 0, 0), answer({seccomp.NEWEST} + 1), answer(3000), answer(0x40000000 | 39))
for family in (1, 2, 10, 16, 17, 38, 40, 31):
    try:
        print(family, socket.socket(family, socket.SOCK_DGRAM).close())
    except OSError as error:
        print(family, errno.errorcode[error.errno])
"""
    lines = (await attempt(runtime, script)).splitlines()
    assert lines[:3] == ["[]", "[]", "ENOSYS ENOSYS ENOSYS ENOSYS"]
    assert lines[3:7] == ["1 None", "2 None", "10 None", "16 None"]
    assert {line.split()[1] for line in lines[7:]} == {"EAFNOSUPPORT"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86-64's way to another interface")
async def test_the_other_interface_of_the_kernel_is_closed(runtime: SandboxRuntime) -> None:
    script = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid as 32-bit programs call it
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    ended, said = await run(runtime, pod().uid, container("python3", "-c", script))
    assert said == "" and ended.message in ("ended by SIGSYS", "ended by SIGSEGV")


async def test_programs_do_not_notice_the_filter(runtime: SandboxRuntime) -> None:
    script = """
import asyncio, concurrent.futures, multiprocessing, os, pty, socket, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(lambda n: n, range(100))))
print(subprocess.run(["sh", "-c", "echo a | tr a b"], capture_output=True).stdout)
print(asyncio.run(asyncio.to_thread(socket.gethostname)))
context = multiprocessing.get_context("fork")
queue = context.Queue(); worker = context.Process(target=queue.put, args=(7,)); worker.start(); print(queue.get()); worker.join()
pid, fd = pty.fork()
if pid == 0: os.execvp("sh", ["sh", "-c", "test -t 0 && exit 3"])
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
with tempfile.TemporaryDirectory() as place: os.mkfifo(place + "/x"); os.symlink("x", place + "/y")
a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1))
print(len(os.urandom(8)), os.cpu_count() > 0, os.sched_getaffinity(0) != set())
"""
    said = await attempt(runtime, script)
    assert said.splitlines() == ["4950", "b'b\\n'", "web-0", "7", "3", "b'x'", "8 True True"]


async def test_a_terminal_takes_no_injected_input(runtime: SandboxRuntime) -> None:
    await runtime.start_container(pod().uid, container("sh", "-c", "echo ready; sleep 100"))
    await until_logged(runtime, pod().uid, b"ready")
    script = f"""{TRY}
import fcntl
for request in (0x5412, 0x541C, 0x5412 | 1 << 40):
    trying(request, lambda: call(libc.ioctl(0, ctypes.c_ulong(request), b'x')))
"""
    process = await runtime.exec(pod().uid, "main", ("python3", "-c", script), stdin=True, tty=True)
    said = b"".join([data async for _, data in process.output()])
    assert await process.wait() == 0 and said.count(b"failed") == 3 and b"SUCCEEDED" not in said


async def test_devices_are_few(runtime: SandboxRuntime) -> None:
    script = """
import os, stat
found = []
for base, directories, files in os.walk('/dev'):
    for name in files:
        about = os.lstat(os.path.join(base, name))
        if stat.S_ISBLK(about.st_mode) or stat.S_ISCHR(about.st_mode): found.append(name)
print(sorted(found))
print(os.path.exists('/sys'), os.path.exists('/dev/kmsg'), os.path.exists('/dev/fuse'), os.path.exists('/dev/net/tun'))
"""
    lines = (await attempt(runtime, script)).splitlines()
    assert lines == ["['full', 'null', 'ptmx', 'random', 'tty', 'urandom', 'zero']", "False False False False"]


async def test_process_1_gives_nothing_away(runtime: SandboxRuntime) -> None:
    """It is bubblewrap with our user id: a container may look at it, and finds what it has itself."""
    script = """
import os
for fd in sorted(os.listdir('/proc/1/fd')):
    try:
        target = os.readlink('/proc/1/fd/' + fd)
    except OSError:
        continue
    if not target.startswith(('/dev/null', 'anon_inode:[eventfd]', 'anon_inode:[signalfd]', 'pipe:', 'socket:')):
        print(target.rsplit('/', 1)[-1])
shown = open('/proc/1/environ').read() + open('/proc/1/cmdline').read()
print('NEMO_' + 'SANDBOX' in shown, 'hush' * 2 in shown)
"""
    await runtime.start_container(pod().uid, container("sleep", "1000", name="has", env={"TOKEN": "hushhush"}))
    said = await attempt(runtime, script)
    assert set(said.splitlines()) <= {"out", "False False"}


async def test_links_in_volumes_lead_nowhere(runtime: SandboxRuntime, tmp_path: Path) -> None:
    """The agent mounts, measures and removes what containers have written: never what a link of theirs points to."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("host secret")
    volume = Path(runtime._directory, "pods", pod().uid, "volumes", "data")
    other = Path(runtime._directory, "pods", "other", "volumes", "data")
    for each in (volume, other):
        each.mkdir(parents=True)
    mounts = ((str(volume), "/data", False),)
    script = f"""{TRY}
os.symlink({str(secret)!r}, '/data/link'); os.symlink('../../../other/volumes/data', '/data/other'); os.mkfifo('/data/fifo')
os.makedirs('/data/a/b'); os.symlink('/', '/data/a/b/root'); os.chmod('/data/a', 0)
for path in ('/etc/hosts', '/proc/self/exe', '/usr/bin/env', '/proc/self/fd/1', '/proc/1/exe'):
    trying('hard link', lambda: os.link(path, '/data/hard', follow_symlinks=True))
trying('look', os.listdir, '/data/link')
"""
    _, said = await run(runtime, pod().uid, container("python3", "-c", script, mounts=mounts))
    assert "SUCCEEDED" not in said and said.count("failed") == 6
    for name in ("link", "link/key", "other", "a/b/root", "a/b/root/etc"):
        with pytest.raises(ValueError, match=r"(may not|cannot) be mounted"):
            await runtime.start_container(
                pod().uid, container("true", name="second", mounts=((str(volume / name), "/x", False),))
            )
    await runtime.stop_pod(pod().uid)
    assert not volume.exists() and other.exists() and (secret / "key").read_text() == "host secret"


async def test_a_link_put_in_at_the_last_moment_is_not_followed(runtime: SandboxRuntime, tmp_path: Path) -> None:
    """A directory and a link change places all the time while containers are started on it: mounted is the directory, or
    nothing."""
    (tmp_path / "key").write_text("host secret")
    volume = Path(runtime._directory, "pods", pod().uid, "volumes", "data")
    volume.mkdir(parents=True)
    swap = f"""
import ctypes, os, time
os.mkdir('/data/sub'); open('/data/sub/good', 'w').close(); os.symlink({str(tmp_path)!r}, '/data/evil')
print('ready', flush=True)
libc = ctypes.CDLL(None)
while True:
    # Bursts, and rests in either state, about as long as a start takes.
    for _ in range(301): libc.renameat2(-100, b'/data/sub', -100, b'/data/evil', 2)
    time.sleep(0.05)
"""
    await runtime.start_container(
        pod().uid, container("python3", "-c", swap, name="swap", mounts=((str(volume), "/data", False),))
    )
    await until_logged(runtime, pod().uid, b"ready", "swap")
    mounted = refused = 0
    # A refusal takes no time, so they are not counted against those that are mounted.
    deadline = time.monotonic() + 60
    while (mounted + refused < 40 or not (mounted and refused)) and time.monotonic() < deadline:
        config = container("ls", "/x", attempt=mounted + refused, mounts=((str(volume / "sub"), "/x", False),))
        try:
            ended, said = await run(runtime, pod().uid, config)
        except ValueError:
            refused += 1
            continue
        if ended.exit_code == 0:
            assert said == "good\n"
            mounted += 1
        else:
            assert ended.reason == "ContainerCannotRun", (ended, said)
            refused += 1
    assert mounted and refused


async def test_other_networks_cannot_be_reached(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("other", address="100.64.9.2"))
    server = "import socket; s = socket.socket(); s.bind(('', 8080)); s.listen(); print('up', flush=True); s.accept()"
    await runtime.start_container("other", container("python3", "-c", server))
    await until_logged(runtime, "other", b"up")
    with socket.socket() as own, socket.socket(socket.AF_UNIX) as abstract:
        own.bind(("127.0.0.1", 0))
        own.listen()
        abstract.bind(f"\0nemo-{os.getpid()}")
        abstract.listen()
        script = f"""{TRY}
print([name for _, name in socket.if_nameindex()])
for address in ('127.0.0.1', {own.getsockname()[1]}), ('127.0.0.1', 8080), ('8.8.8.8', 53), ('10.0.0.1', 80):
    trying(address, lambda: socket.create_connection(address, 1))
for host in '100.64.9.2', '169.254.1.1', '100.64.0.1':  # another pod, the gateway, what may be a Service
    trying(host, lambda: socket.create_connection((host, 8080), 1))
trying('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
trying('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
trying('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0nemo-{os.getpid()}'))
trying('name', lambda: socket.getaddrinfo('example.org', 80))
"""
        lines = (await attempt(runtime, script)).splitlines()
    assert lines[0] == ("['lo', 'eth0']" if runtime.network().separate else "['lo']")
    assert not any("SUCCEEDED" in line for line in lines), lines
    made = await runtime.connect("other", 8080)
    made.close()


async def test_what_the_kernel_keeps_by_name_is_each_pods_own(runtime: SandboxRuntime) -> None:
    """Abstract sockets, shared memory, message queues and keys: of another pod, and of the host."""
    share = f"""{TRY}
libc.shmat.restype = ctypes.c_void_p
made = libc.shmget(4242, 4096, 0o1666)
ctypes.memmove(libc.shmat(made, None, 0), b'of the neighbour', 16)
libc.mq_open(b'/nemo-queue', os.O_CREAT | os.O_RDWR, 0o666, None)
s = socket.socket(socket.AF_UNIX); s.bind('\\0neighbour'); s.listen()
open('/dev/shm/neighbour', 'w').write('here')
print('up', made >= 0, flush=True)
s.accept()
"""
    await runtime.start_pod(pod("other", address="100.64.9.3"))
    await runtime.start_container("other", container("python3", "-c", share))
    assert await until_logged(runtime, "other", b"\n") == b"up True\n"
    script = f"""{TRY}
trying('shared memory', lambda: call(libc.shmget(4242, 4096, 0o666)))
trying('queue', lambda: call(libc.mq_open(b'/nemo-queue', os.O_RDWR)))
trying('socket', lambda: socket.socket(socket.AF_UNIX).connect('\\0neighbour'))
trying('file in memory', open, '/dev/shm/neighbour')
KEYS = {{'x86_64': (248, 249, 250), 'aarch64': (217, 218, 219)}}[os.uname().machine]  # add_key, request_key, keyctl
trying('add a key', lambda: call(libc.syscall(KEYS[0], b'user', b'nemo', b'x', 1, -4)))
trying('ask for a key', lambda: call(libc.syscall(KEYS[1], b'user', b'nemo', None, -4)))
for ring in (-1, -2, -3, -4, -5):  # of the thread, process, session, user and user's session
    trying('read a ring', lambda: call(libc.syscall(KEYS[2], 11, ring, None, 0)))
trying('join a session', lambda: call(libc.syscall(KEYS[2], 1, None)))
"""
    lines = (await attempt(runtime, script)).splitlines()
    assert len(lines) == 12 and not any("SUCCEEDED" in line for line in lines), lines
    assert (await state(runtime, "other", "main")).running  # type: ignore[union-attr]


async def test_nothing_of_ours_is_open_in_a_container(runtime: SandboxRuntime) -> None:
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        script = "import os; print([fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)])"
        said = await attempt(runtime, script)
        assert said == "['0', '1', '2']\n"
