"""What podman is asked to create for a container of ours. Pure: settings in, libpod's ``SpecGenerator`` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaos.plugins.points import ContainerConfig
from metaos.runtimes.images import DEFAULT_PATH, Image
from metaos.runtimes.isolation import Mount

OWNER, POD, CONTAINER, SEQUENCE = "eu.meta-os.owner", "eu.meta-os.pod", "eu.meta-os.container", "eu.meta-os.sequence"
#: Of one start's log; podman keeps the newest.
LOG_BYTES = 10 << 20
TMP_BYTES = 256 << 20
_PERIOD_US = 100_000


def holder(name: str, labels: dict[str, str], hostname: str, rootfs: str, paths: Sequence[str], files: int) -> dict[str, Any]:
    """The container that keeps a pod's namespaces: nothing of a user's runs in it."""
    return {
        "name": name,
        "labels": labels,
        "hostname": hostname,
        "rootfs": rootfs,
        "mounts": [_bind(path, path, True) for path in paths],
        "command": ["sleep", "infinity"],
        "netns": {"nsmode": "none"},
        "ipcns": {"nsmode": "shareable"},
        "use_image_hosts": True,
        "read_only_filesystem": True,
        "cap_drop": ["ALL"],
        "no_new_privileges": True,
        "log_configuration": {"driver": "none"},
        "r_limits": _limits(files),
    }


def container(
    name: str,
    config: ContainerConfig,
    image: Image | str,
    rootfs: str,
    mounts: Sequence[Mount],
    *,
    labels: dict[str, str],
    hostname: str,
    hosts: str,
    holder: int,
    cgroup: str,
    files: int,
) -> dict[str, Any]:
    """``image``: a host image, whose links are in ``rootfs``, or the id of one that podman has. ``holder``: the pid of
    the pod's."""
    binds = [_bind(mount.source, mount.target, mount.read_only) for mount in mounts]
    spec: dict[str, Any] = {
        "name": name,
        "labels": labels,
        "env": {"HOSTNAME": hostname, **({"TERM": "xterm"} if config.tty else {}), **dict(config.env)},
        "terminal": config.tty,
        "stdin": config.stdin,
        "init": True,  # a command that ignores no signal of its own ends by them, as everywhere else
        # By path: where podman knows of the dependence, a holder cannot go before what has ended.
        **{f"{kind}ns": {"nsmode": "path", "value": f"/proc/{holder}/ns/{kind}"} for kind in ("net", "ipc", "uts")},
        "use_image_hosts": True,
        "use_image_resolve_conf": True,
        "read_only_filesystem": config.read_only_root,
        "no_new_privileges": True,
        "cap_drop": ["NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "SETFCAP"],
        "log_configuration": {"driver": "k8s-file", "size": LOG_BYTES},
        "r_limits": _limits(files),
        "resource_limits": _resources(config),
    }
    if cgroup:
        spec["cgroup_parent"] = cgroup
    if config.run_as_user is not None:
        group = "" if config.run_as_group is None else f":{config.run_as_group}"
        spec["user"] = f"{config.run_as_user}{group}"
    if config.working_dir:
        spec["work_dir"] = config.working_dir
    binds.append(_bind(hosts, "/etc/hosts", True))
    tmp = {"type": "tmpfs", "destination": "/tmp", "options": ["mode=1777", f"size={TMP_BYTES}"]}  # noqa: S108
    if isinstance(image, str):
        spec["image"] = image
        # A command replaces both of the image's, arguments replace its own arguments alone.
        if config.command:
            spec["entrypoint"] = list(config.command)
        if config.command or config.args:
            spec["command"] = list(config.args)
        spec["mounts"] = [tmp, *binds] if config.read_only_root else binds
    else:
        spec["rootfs"], spec["rootfs_overlay"] = rootfs, not config.read_only_root
        spec["command"] = image.argv(config.command, config.args)
        spec["env"] = {"PATH": DEFAULT_PATH, **dict(image.env), **spec["env"]}
        spec["mounts"] = [tmp, *(_bind(path, path, True) for path in image.paths), *binds]
    return spec


def _bind(source: str, target: str, read_only: bool) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": target, "options": ["rbind", "ro" if read_only else "rw"]}


def _limits(files: int) -> list[dict[str, Any]]:
    return [
        {"type": "nofile", "soft": min(1024, files), "hard": files},
        {"type": "nproc", "soft": 4096, "hard": 4096},
    ]


def _resources(config: ContainerConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"pids": {"limit": 4096}}
    if config.memory_limit:
        found["memory"] = {"limit": config.memory_limit}
    if config.cpu_limit:
        found["cpu"] = {"quota": max(1000, config.cpu_limit * _PERIOD_US // 1000), "period": _PERIOD_US}
    return found
