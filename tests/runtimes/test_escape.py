"""A container that wants out: what it tries, and that it gets nothing. As hostile as a smoke test can be."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.runtimes import bubblewrap
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import container, execute, pod, run, until_logged

pytestmark = pytest.mark.system


@pytest.fixture
async def runtime() -> AsyncIterator[SandboxRuntime]:
    place = tempfile.mkdtemp(prefix="nemo-escape-")
    made = SandboxRuntime(os.path.join(place, "state"), clock=SystemClock())
    await made.check()
    await made.start_pod(pod())
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
    assert not {"home", "work", "srv", "var", "boot", "mnt"} & set(eval(listed))
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


async def test_other_networks_cannot_be_reached(runtime: SandboxRuntime) -> None:
    await runtime.start_pod(pod("other"))
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
trying('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0nemo-{os.getpid()}'))
trying('name', lambda: socket.getaddrinfo('example.org', 80))
"""
        lines = (await attempt(runtime, script)).splitlines()
    assert lines[0] == "['lo']"
    assert not any("SUCCEEDED" in line for line in lines), lines
    made = await runtime.connect("other", 8080)
    made.close()


async def test_nothing_of_ours_is_open_in_a_container(runtime: SandboxRuntime) -> None:
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        script = "import os; print([fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)])"
        said = await attempt(runtime, script)
        assert said == "['0', '1', '2']\n"
