"""The directories behind a pod's volumes, and keeping what is projected into them up to date while containers run.

A projected volume is changed as a kubelet does it (``pkg/volume/util/atomic_writer.go``): its files are links through ``..data``,
which is replaced at once, so a reader sees the old files or the new ones, never a mixture. A ``subPath`` mount keeps what it had.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaos import trees
from metaos.agent import memoryvolumes
from metaos.agent.accounts import ROOT_CA, PodTokens, token_sources
from metaos.agent.containers import ConfigError, Find, MountError, Pending, data_of, expand, field, resource_field
from metaos.resources.meta import Obj, ObjectRef, annotations, controller_of, labels, name, namespace, uid

#: Relative path → content and mode.
Files = dict[str, tuple[bytes, int]]
#: What a volume's files are made from: compared by identity, as desired objects are replaced and not changed.
Sources = tuple[Any, ...]
MESSAGE_BYTES = 4096
_PROJECTED = ("configMap", "secret", "downwardAPI", "projected")


class Volumes:
    """``pods/UID/volumes/NAME`` (in memory: ``memory/UID/NAME``) goes with the pod, ``claims/NS/NAME`` stays. ``machine``: what
    the site has, as quantities."""

    def __init__(
        self, directory: Path, host_paths: tuple[str, ...], find: Find, machine: Mapping[str, str] | None = None
    ) -> None:
        self._directory, self._host_paths, self._find = directory, host_paths, find
        self.machine: Mapping[str, str] = machine or {}
        #: Whether emptyDir volumes may be in memory; an agent of a simulated machine mounts nothing.
        self.memory = False
        #: Why no container that uses a claim may start now; empty: it may.
        self.held: Callable[[Obj, str], str] = lambda pod, claim: ""
        #: Where tokens of ServiceAccounts come from; without it there are none.
        self.tokens: PodTokens | None = None
        #: Pod uid → what its projected volumes were written from last.
        self._written: dict[str, Sources] = {}

    def pod_directory(self, pod_uid: str) -> Path:
        return self._directory / "pods" / pod_uid

    def memory_directory(self, pod_uid: str) -> Path:
        """Of a pod's volumes in memory: apart, so that nobody removes a directory with one in it."""
        return self._directory / "memory" / pod_uid

    def claim_directory(self, where: str, claim: str) -> Path:
        return self._directory / "claims" / where / claim

    def remove(self, pod_uid: str) -> None:
        self._written.pop(pod_uid, None)
        if self.tokens is not None:
            self.tokens.forget(pod_uid)
        memoryvolumes.remove(self.memory_directory(pod_uid))
        trees.remove(str(self.pod_directory(pod_uid)))

    def clear_memory(self, pod_uid: str) -> None:
        """The pod has run to its end: what it has in memory is for others; files on disk stay as long as the pod."""
        memoryvolumes.remove(self.memory_directory(pod_uid))

    def clear(self, pod_uid: str) -> None:
        """Nothing of the pod runs any more: its emptyDir volumes give their bytes back; claims are not touched."""
        self.clear_memory(pod_uid)
        trees.remove(str(self.pod_directory(pod_uid) / "volumes"))

    # -- what a container says at its end -------------------------------------------------------------------

    def message_file(self, pod_uid: str, container: str) -> Path:
        """An empty file for its next start."""
        path = self._message(pod_uid, container)
        _made(path.parent)
        # A new file, not the old one emptied: the start before may still have that one mounted.
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o666)
        finally:
            os.close(fd)
        return path

    def _message(self, pod_uid: str, container: str) -> Path:
        return self.pod_directory(pod_uid) / f"message-{container}"

    def message(self, pod_uid: str, container: str) -> str:
        path = self._message(pod_uid, container)
        with suppress(OSError), path.open("rb") as file:
            return file.read(MESSAGE_BYTES).decode(errors="replace")
        return ""

    # -- mounting -------------------------------------------------------------------------------------------

    def mounts(self, pod: Obj, container: Mapping[str, Any], env: Mapping[str, str]) -> tuple[tuple[str, str, bool], ...]:
        """(host path, path in the container, read-only), made and filled where they have to be."""
        sources = {v["name"]: v for v in (pod["spec"].get("volumes") or ())}
        result = []
        for mount in container.get("volumeMounts") or ():
            volume = sources.get(mount["name"])
            if volume is None:
                raise ConfigError(f"volume {mount['name']!r} is not defined in the pod")
            try:
                path, read_only = self._prepare(pod, container, volume)
            except MountError:
                raise
            except ConfigError as error:
                raise MountError(f'MountVolume.SetUp failed for volume "{mount["name"]}" : {error}') from error
            sub = expand(str(mount["subPathExpr"]), env) if mount.get("subPathExpr") else str(mount.get("subPath") or "")
            if sub:
                inner = (path / sub).resolve()
                if os.path.isabs(sub) or not inner.is_relative_to(path.resolve()):
                    raise ConfigError(f"subPath {sub!r} leads out of volume {mount['name']!r}")
                if not inner.exists():
                    if read_only:
                        raise ConfigError(f"subPath {sub!r} does not exist in volume {mount['name']!r}")
                    try:
                        inner = Path(trees.make_below(str(path), str(inner.relative_to(path.resolve()))))
                    except OSError as error:
                        raise ConfigError(f"subPath {sub!r} of volume {mount['name']!r}: {error.strerror}") from error
                path = inner
            result.append((str(path), str(mount["mountPath"]), bool(mount.get("readOnly")) or read_only))
        return tuple(result)

    def _prepare(self, pod: Obj, container: Mapping[str, Any], volume: Mapping[str, Any]) -> tuple[Path, bool]:
        where = namespace(pod)
        if volume.get("persistentVolumeClaim"):
            claim = str(volume["persistentVolumeClaim"].get("claimName"))
            if not _of_template(pod, volume, claim) and self._find(ObjectRef("", "PersistentVolumeClaim", where, claim)) is None:
                raise ConfigError(f'persistentvolumeclaim "{claim}" not found')
            if why := self.held(pod, claim):
                raise MountError(why)
            return _made(self.claim_directory(where, claim)), bool(volume["persistentVolumeClaim"].get("readOnly"))
        if volume.get("hostPath"):
            path = os.path.realpath(str(volume["hostPath"].get("path")))
            if not any(path == allowed or path.startswith(allowed.rstrip("/") + "/") for allowed in self._host_paths):
                raise ConfigError(f"hostPath {path} is not allowed at this site: its owner lists allowed ones in spec.hostPaths")
            return Path(path), False
        directory = self.pod_directory(uid(pod)) / "volumes" / str(volume["name"])
        if any(kind in volume for kind in _PROJECTED):
            write_files(_made(directory), self._files(pod, container, volume))
            return directory, True
        if "emptyDir" not in volume:
            kinds = sorted(set(volume) - {"name"})
            raise ConfigError(f"volume {volume['name']!r}: {', '.join(kinds) or 'no source'} is not supported at this site")
        source = volume["emptyDir"] or {}
        in_memory = self.memory and source.get("medium") == "Memory" and not memoryvolumes.problem()
        if in_memory:
            directory = self.memory_directory(uid(pod)) / str(volume["name"])
        _made(directory)
        if in_memory:
            try:
                memoryvolumes.mount(directory, memoryvolumes.size(pod, volume, self.machine))
            except OSError as error:
                raise ConfigError(f"{error.strerror}: {error.filename}") from error
        # Shared by containers of any user; the directories above it are private.
        os.chmod(directory, _mode(source.get("mode"), 0o777))
        return directory, False

    # -- projected volumes ----------------------------------------------------------------------------------

    def refresh(self, pod: Obj) -> None:
        """Brings those projected volumes up to date that containers have mounted. Raises :class:`MountError` with what is
        missing; the volume keeps what it had."""
        volumes = [v for v in pod["spec"].get("volumes") or () if any(kind in v for kind in _PROJECTED)]
        if not volumes:
            return
        now: Sources = (labels(pod), annotations(pod), *(self._object(about) for v in volumes for about in _objects(pod, v)))
        if self.tokens is not None:
            now += tuple(self.tokens.token(pod, source) for source in token_sources(pod["spec"]))
        before = self._written.get(uid(pod))
        if before is not None and len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True)):
            return
        self._written[uid(pod)] = now
        problem = ""
        for volume in volumes:
            directory = self.pod_directory(uid(pod)) / "volumes" / str(volume["name"])
            if not directory.exists():
                continue
            try:
                write_files(directory, self._files(pod, {}, volume))
            except (ConfigError, OSError) as error:
                problem = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
        if problem:
            del self._written[uid(pod)]
            raise MountError(problem)

    def _object(self, about: ObjectRef) -> Obj | None:
        """What is projected. The authorities that vouch for the hub stand in a ConfigMap of no namespace's own."""
        found = self._find(about)
        if found is None and self.tokens is not None and (about.kind, about.name) == ("ConfigMap", ROOT_CA):
            return self.tokens.root_ca()
        return found

    def _files(self, pod: Obj, container: Mapping[str, Any], volume: Mapping[str, Any]) -> Files:
        if "projected" in volume:
            found: Files = {}
            mode = volume["projected"].get("defaultMode")
            for source in volume["projected"].get("sources") or ():
                token = source.get("serviceAccountToken")
                if token and self.tokens is not None:
                    found[str(token.get("path"))] = self._token(self.tokens, pod, volume, token), _mode(mode)
                else:
                    found |= self._source(pod, container, source, mode)
            return found
        return self._source(pod, container, volume, None)

    def _source(self, pod: Obj, container: Mapping[str, Any], source: Mapping[str, Any], mode: int | None) -> Files:
        for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
            if key in source:
                return _entries(kind, source[key] or {}, namespace(pod), self._object, mode)
        if "downwardAPI" in source:
            return self._downward(pod, container, source["downwardAPI"] or {}, mode)
        kinds = ", ".join(sorted(set(source) - {"name"}))
        raise ConfigError(f"a projection of {kinds} is not supported at this site")

    def _token(self, tokens: PodTokens, pod: Obj, volume: Mapping[str, Any], source: Mapping[str, Any]) -> bytes:
        """The present one; while there is none in memory, that which an earlier agent has left there."""
        found = tokens.token(pod, source)
        if not found:
            relative = _inside(str(source.get("path")))
            with suppress(OSError):
                found = (self.pod_directory(uid(pod)) / "volumes" / str(volume["name"]) / "..data" / relative).read_bytes()
        if found:
            return found
        problem = tokens.problem(pod, source)
        raise MountError(problem) if problem else Pending("a token of its ServiceAccount is asked for")

    def _downward(self, pod: Obj, container: Mapping[str, Any], source: Mapping[str, Any], mode: int | None) -> Files:
        found: Files = {}
        for item in source.get("items") or ():
            if item.get("fieldRef"):
                text = field(pod, item["fieldRef"].get("fieldPath", ""))
            else:
                text = resource_field(pod, container, item.get("resourceFieldRef") or {}, self.machine)
            found[str(item["path"])] = text.encode(), _mode(item.get("mode"), source.get("defaultMode"), mode)
        return found


def _of_template(pod: Obj, volume: Mapping[str, Any], claim: str) -> bool:
    """Whether a claim comes from the templates of the pod's StatefulSet: it has no object of its own."""
    return (controller_of(pod) or {}).get("kind") == "StatefulSet" and claim == f"{volume['name']}-{name(pod)}"


def _objects(pod: Obj, volume: Mapping[str, Any]) -> Iterator[ObjectRef]:
    for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
        if source.get("configMap"):
            yield ObjectRef("", "ConfigMap", namespace(pod), str(source["configMap"].get("name")))
        if source.get("secret"):
            yield ObjectRef("", "Secret", namespace(pod), str(source["secret"].get("secretName") or source["secret"].get("name")))


def _mode(*choices: int | None) -> int:
    return next((int(mode) for mode in choices if mode is not None), 0o644)


def _entries(kind: str, source: Mapping[str, Any], where: str, find: Find, default: int | None) -> Files:
    entries = data_of(kind, source, where, find)
    mode = source.get("defaultMode")
    if entries is None:
        return {}
    items = source.get("items")
    if not items:
        return {key: (value, _mode(mode, default)) for key, value in entries.items()}
    found: Files = {}
    for item in items:
        if item["key"] not in entries:
            if source.get("optional"):
                continue
            raise ConfigError(f"references non-existent {kind.lower()} key: {item['key']}")
        found[str(item["path"])] = entries[item["key"]], _mode(item.get("mode"), mode, default)
    return found


# -- writing ------------------------------------------------------------------------------------------------


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def write_files(directory: Path, files: Files) -> bool:
    """Makes the directory show exactly these files, all at once; whether anything has changed."""
    for relative in files:
        _inside(relative)
    link = directory / "..data"
    present = link.readlink().name if link.is_symlink() else ""
    if present and _same(directory / present, files):
        _show(directory, files)
        return False
    number = int(present.rpartition("-")[2]) + 1 if present.rpartition("-")[2].isdigit() else 1
    fresh = directory / f"..data-{number}"
    trees.remove(str(fresh))  # what a crash has left
    fresh.mkdir(mode=0o755)
    for relative, (content, mode) in files.items():
        target = fresh / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(target, mode)
    temporary = directory / "..data.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(fresh.name)
    temporary.replace(link)
    _show(directory, files)
    for entry in directory.iterdir():
        if entry.name.startswith("..data-") and entry.name != fresh.name:
            trees.remove(str(entry))
    return True


def _inside(relative: str) -> str:
    if not relative or os.path.isabs(relative) or ".." in Path(relative).parts or relative.startswith(".."):
        raise ConfigError(f"path {relative!r} leads out of its volume")
    return relative


def _show(directory: Path, files: Files) -> None:
    """A link for each first part of a path; those of files that are gone go."""
    wanted = {Path(relative).parts[0] for relative in files}
    for first in wanted:
        entry = directory / first
        if not entry.is_symlink():
            if entry.is_dir():
                trees.remove(str(entry))
            entry.unlink(missing_ok=True)
            entry.symlink_to(f"..data/{first}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..data") and entry.name not in wanted:
            if entry.is_dir() and not entry.is_symlink():
                trees.remove(str(entry))
            else:
                entry.unlink()


def _same(directory: Path, files: Files) -> bool:
    try:
        found = {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}
        return found == set(files) and all(
            (directory / relative).read_bytes() == content and (directory / relative).stat().st_mode & 0o777 == mode
            for relative, (content, mode) in files.items()
        )
    except OSError:
        return False
