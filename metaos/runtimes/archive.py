"""Reads docker archives (``docker save``) and OCI layouts, and unpacks their layers safely.

Untrusted input: every digest is verified, nothing is written outside of the new directory (paths are resolved inside
it, links included), no device nodes, no set-user-id, and what unpacks is bounded. Files belong to whoever imports.
Source: OCI image specification 1.1 (image layout, image index, layer: whiteouts), Docker image specification 1.2.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import platform
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, Protocol, cast

from metaos.plugins.points import ImageError

#: What one image may unpack to.
MAX_BYTES = 16 << 30
MAX_FILES = 1_000_000
#: A manifest, index or configuration.
MAX_DOCUMENT = 4 << 20
#: A WebAssembly file.
MAX_WASM = 256 << 20
#: The CNCF's artifact, and what was in use before it.
_WASM_LAYERS = ("application/wasm", "application/vnd.wasm.content.layer.v1+wasm")
_MAX_LINKS = 40
_CHUNK = 1 << 20
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
#: Where the sandbox mounts something: it must exist also in an image that lacks it.
_MOUNT_POINTS = ("proc", "dev", "tmp", "etc")
_MOUNT_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf")


def _bad(message: str) -> ImageError:
    return ImageError("ErrImagePull", f"the image cannot be imported: {message}")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An image in a directory of its own: ``rootfs`` and ``config.json``. ``identity``: hex digest of its configuration."""

    identity: str
    names: tuple[str, ...]
    directory: str


class _Source(Protocol):
    def open(self, name: str) -> IO[bytes]:
        """Raises ``KeyError`` where there is no such file."""
        ...


class _Directory:
    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)

    def open(self, name: str) -> IO[bytes]:
        path = os.path.realpath(os.path.join(self._path, name))
        if not path.startswith(self._path + os.sep) or not os.path.isfile(path):
            raise KeyError(name)
        return open(path, "rb")


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {os.path.normpath(member.name): member for member in archive}

    def open(self, name: str) -> IO[bytes]:
        member = self._members[os.path.normpath(name)]
        for _ in range(_MAX_LINKS):  # old archives link equal layers to each other
            if not (member.issym() or member.islnk()):
                break
            base = os.path.dirname(member.name) if member.issym() else ""
            member = self._members[os.path.normpath(os.path.join(base, member.linkname))]
        file = self._archive.extractfile(member)
        if file is None:
            raise KeyError(name)
        return file


@dataclass(frozen=True, slots=True)
class _Layer:
    path: str
    #: Of the file as it is stored; "" in docker archives, which do not say.
    digest: str


@dataclass(frozen=True, slots=True)
class _Found:
    names: tuple[str, ...]
    config: bytes
    layers: tuple[_Layer, ...]
    #: Whether its one layer is a WebAssembly file as it is, and not an archive.
    wasm: bool = False


def unpack(path: str, directory: str) -> Iterator[Unpacked]:
    """Each image of the archive for this machine, in a new directory below ``directory``. Raises :class:`ImageError`."""
    try:
        with contextlib.ExitStack() as stack:
            if os.path.isdir(path):
                source: _Source = _Directory(path)
            else:
                source = _Tar(stack.enter_context(tarfile.open(path)))
            found = _images(source)
            if not found:
                raise _bad(f"{path} is neither a docker archive nor an OCI layout with an image for this machine")
            for image in found:
                yield _unpack(source, image, directory)
    except FileNotFoundError as error:
        raise _bad(f"{error.filename} does not exist") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        # What tarfile says of each way that it tried is of no use to anybody.
        raise _bad(f"{path} is damaged, or no archive: {str(error).partition(':')[0]}") from error
    except KeyError as error:
        raise _bad(f"{path} lacks {error}") from error


def weigh(path: str, free: int) -> int:
    """Bytes that an OCI layout's layers unpack to, without writing any: for who has another program unpack them, which has no
    bounds. ``free``: of the disk. Raises :class:`ImageError` where they are too many, or too many files."""
    written = files = 0
    try:
        source = _Directory(path)
        for image in _images(source):
            for layer in image.layers if not image.wasm else ():
                with source.open(layer.path) as file, _plain(file) as plain:
                    counted = _Counted(plain, MAX_BYTES - written)
                    with tarfile.open(fileobj=cast(IO[bytes], counted), mode="r|") as archive:
                        for member in archive:
                            files += 1
                            # What is said to be sparse is written whole.
                            written += member.size if member.isreg() else 0
                            if files > MAX_FILES:
                                raise _bad(f"it has more than {MAX_FILES} files")
                            if written > MAX_BYTES or written > free:
                                least = min(MAX_BYTES, free)
                                raise _bad(f"it unpacks to more than {least >> 20} MiB, which is what may be or what is free")
                    while counted.read(_CHUNK):
                        pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, ValueError, KeyError, zlib.error) as error:
        raise _bad(f"one of its layers is damaged, or no archive: {str(error).partition(':')[0]}") from error
    return written


class _Counted:
    """A readable stream of which at most so many bytes are read: padding, and headers without files, count too."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _bad(f"it unpacks to more than {MAX_BYTES >> 30} GiB")
        return data


def _plain(file: IO[bytes]) -> IO[bytes]:
    start = file.read(4)
    file.seek(0)
    if start == b"\x28\xb5\x2f\xfd":
        from backports import zstd

        return cast(IO[bytes], zstd.ZstdFile(file))
    return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if start[:2] == b"\x1f\x8b" else file


def _read(source: _Source, name: str) -> bytes:
    with source.open(name) as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise _bad(f"{name} is larger than {MAX_DOCUMENT >> 20} MiB")
    return data


def _images(source: _Source) -> list[_Found]:
    try:
        index = json.loads(_read(source, "index.json"))
    except KeyError:
        index = None
    found = [image for entry in (index or {}).get("manifests") or () for image in _from_descriptor(source, entry, 0)]
    # docker save writes both forms; the names are complete in its own one.
    try:
        manifest = json.loads(_read(source, "manifest.json"))
    except KeyError:
        return found
    return [_from_docker(source, entry) for entry in manifest] or found


def _from_docker(source: _Source, entry: dict[str, Any]) -> _Found:
    config = _read(source, entry["Config"])
    digest = hashlib.sha256(config).hexdigest()
    name = os.path.basename(entry["Config"]).removesuffix(".json")
    if len(name) == 64 and name != digest:
        raise _bad(f"{entry['Config']} does not have the digest of its name")
    return _Found(tuple(entry.get("RepoTags") or ()), config, tuple(_Layer(path, "") for path in entry["Layers"]))


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not value.isalnum():
        raise _bad(f"digest {digest!r} is not sha256")
    return f"blobs/{algorithm}/{value}"


def _document(source: _Source, descriptor: dict[str, Any]) -> bytes:
    data = _read(source, _blob(descriptor["digest"]))
    if "sha256:" + hashlib.sha256(data).hexdigest() != descriptor["digest"]:
        raise _bad(f"{descriptor['digest']} does not have the content of its digest")
    return data


def _from_descriptor(source: _Source, descriptor: dict[str, Any], depth: int) -> list[_Found]:
    where = descriptor.get("platform") or {}
    machine = MACHINES.get(platform.machine(), platform.machine())
    if where and (where.get("os") not in (None, "linux") or where.get("architecture") not in (None, machine)):
        return []
    document = json.loads(_document(source, descriptor))
    if "manifests" in document:
        if depth > 4:
            raise _bad("its index is nested too deeply")
        nested = [image for entry in document["manifests"] for image in _from_descriptor(source, entry, depth + 1)]
    else:
        layers = tuple(_Layer(_blob(layer["digest"]), layer["digest"]) for layer in document["layers"])
        kinds = [str(layer.get("mediaType", "")) for layer in document["layers"]]
        wasm = len(kinds) == 1 and kinds[0] in _WASM_LAYERS
        if not wasm and (str(document["config"].get("mediaType", "")).endswith("empty.v1+json") or "artifactType" in document):
            return []
        nested = [_Found((), _document(source, document["config"]), layers, wasm)]
    names = _annotated(descriptor.get("annotations") or {})
    return [replace(image, names=names) if names else image for image in nested]


def _annotated(annotations: dict[str, str]) -> tuple[str, ...]:
    full = annotations.get("io.containerd.image.name")
    reference = annotations.get("org.opencontainers.image.ref.name")
    if full:
        return (full,)
    # The reference may be a bare tag, which names no image.
    return (reference,) if reference and ("/" in reference or ":" in reference) else ()


def _unpack(source: _Source, image: _Found, directory: str) -> Unpacked:
    config = json.loads(image.config)
    if image.wasm:
        return _unpack_wasm(source, image, directory)
    machine = MACHINES.get(platform.machine(), platform.machine())
    if config.get("architecture") not in (None, "", machine, "wasm"):
        raise _bad(f"it is built for {config['architecture']}, this machine is {machine}")
    expected = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(expected) != len(image.layers):
        raise _bad(f"its configuration lists {len(expected)} layers, the archive has {len(image.layers)}")
    target = tempfile.mkdtemp(prefix="new-", dir=directory)
    try:
        root = _Root(os.path.join(target, "rootfs"))
        for layer, diff_id in zip(image.layers, expected, strict=True):
            _apply(source, layer, diff_id, root)
        root.mount_points()
        config["unpackedBytes"] = root.written
        with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return Unpacked(hashlib.sha256(image.config).hexdigest(), image.names, target)


def _unpack_wasm(source: _Source, image: _Found, directory: str) -> Unpacked:
    """A root file system with the one file in it, which is what starts."""
    (layer,) = image.layers
    target = tempfile.mkdtemp(prefix="new-", dir=directory)
    try:
        root = os.path.join(target, "rootfs")
        os.mkdir(root, 0o755)
        with source.open(layer.path) as file, open(os.path.join(root, "module.wasm"), "xb") as out:
            stored = _Hashed(file)
            while data := stored.read(_CHUNK):
                if out.tell() + len(data) > MAX_WASM:
                    raise _bad(f"its WebAssembly file has more than {MAX_WASM >> 20} MiB")
                out.write(data)
            written, digest = out.tell(), stored.digest()
        if digest != layer.digest:
            raise _bad(f"{layer.path} does not have the content of its digest")
        config = {"config": {"Entrypoint": ["/module.wasm"]}, "unpackedBytes": written}
        with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as text:
            json.dump(config, text)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    # Configurations of artifacts need not say of what: several may have the same.
    return Unpacked(hashlib.sha256(image.config + layer.digest.encode()).hexdigest(), image.names, target)


class _Hashed:
    """A readable stream that hashes what passes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """After reading what is left."""
        while self.read(_CHUNK):
            pass
        return "sha256:" + self._hash.hexdigest()


def _apply(source: _Source, layer: _Layer, diff_id: str, root: _Root) -> None:
    with source.open(layer.path) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"\x28\xb5\x2f\xfd":
            raise _bad(f"{layer.path} is compressed with zstd, which is not supported: export the image with gzip layers")
        stored = _Hashed(file)
        packed = start[:2] == b"\x1f\x8b"
        plain = _Hashed(gzip.GzipFile(fileobj=cast(IO[bytes], stored))) if packed else stored
        with tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|") as archive:
            root.apply(archive)
        if plain.digest() != diff_id:
            raise _bad(f"{layer.path} does not have the content that the configuration names ({diff_id})")
        if layer.digest and stored.digest() != layer.digest:
            raise _bad(f"{layer.path} does not have the content of its digest")


class _Root:
    """A root file system in the making. Paths are resolved inside it: ``..`` is refused, links lead nowhere else."""

    def __init__(self, path: str) -> None:
        os.mkdir(path, 0o755)
        self._path = os.path.realpath(path)
        self.written = 0
        self._files = 0

    def apply(self, archive: tarfile.TarFile) -> None:
        made: set[str] = set()
        modes: list[tuple[str, int]] = []
        for member in archive:
            self._files += 1
            if self._files > MAX_FILES:
                raise _bad(f"it has more than {MAX_FILES} files")
            parts = _parts(member.name)
            if not parts:
                continue
            parent = self._directory(parts[:-1])
            name = parts[-1]
            if name == ".wh..wh..opq":
                for entry in os.listdir(parent):
                    if os.path.join(parent, entry) not in made:
                        _remove(os.path.join(parent, entry))
            elif name.startswith(".wh."):
                hidden = os.path.join(parent, name[4:])
                if name[4:] in ("", ".", ".."):
                    raise _bad(f"whiteout {member.name!r} names nothing")
                if hidden not in made:
                    _remove(hidden)
            else:
                path = os.path.join(parent, name)
                self._make(archive, member, path)
                while path != self._path and path not in made:
                    made.add(path)
                    path = os.path.dirname(path)
                if member.isdir():
                    modes.append((os.path.join(parent, name), member.mode))
        for path, mode in reversed(modes):
            # A later entry may have made one of its parents a link, perhaps to outside.
            if os.path.isdir(path) and os.path.realpath(path) == path:
                os.chmod(path, 0o700 | mode & 0o777)

    def mount_points(self) -> None:
        for name in _MOUNT_POINTS:
            path = os.path.join(self._path, name)
            if not os.path.isdir(path) or os.path.islink(path):
                _remove(path)
                os.mkdir(path)
        for name in _MOUNT_FILES:
            path = os.path.join(self._path, name)
            if not os.path.isfile(path) or os.path.islink(path):
                _remove(path)
                with open(path, "x"):
                    pass

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not os.path.isdir(path) or os.path.islink(path):
                _remove(path)
                os.mkdir(path)
        elif member.issym():
            _remove(path)
            os.symlink(member.linkname, path)
        elif member.islnk():
            parts = _parts(member.linkname)
            if not parts:
                raise _bad(f"link {member.name!r} names nothing")
            origin = os.path.join(self._directory(parts[:-1]), parts[-1])
            if not os.path.lexists(origin):
                raise _bad(f"link {member.name!r} leads to {member.linkname!r}, which is not in the image")
            if origin != path:
                _remove(path)
                os.link(origin, path, follow_symlinks=False)
        elif member.isreg():
            _remove(path)
            self.written += member.size
            if self.written > MAX_BYTES:
                raise _bad(f"it unpacks to more than {MAX_BYTES >> 30} GiB")
            stream = archive.extractfile(member)
            assert stream is not None
            with open(path, "xb") as out:
                shutil.copyfileobj(stream, out, _CHUNK)
            os.chmod(path, 0o600 | member.mode & 0o777)
            os.utime(path, (member.mtime, member.mtime))
        # Devices and pipes are left out: the sandbox has its own /dev.

    def _directory(self, parts: list[str]) -> str:
        """The real path of a directory inside, made if missing; links are followed as they would be from inside."""
        path = self._path
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                path = os.path.dirname(path) if path != self._path else path
                continue
            step = os.path.join(path, part)
            if os.path.islink(step):
                links += 1
                if links > _MAX_LINKS:
                    raise _bad(f"too many links on the way to {'/'.join(parts)}")
                target = os.readlink(step)
                if target.startswith("/"):
                    path = self._path
                todo.extend(reversed([each for each in target.split("/") if each not in ("", ".")]))
                continue
            if not os.path.isdir(step):
                _remove(step)
                os.mkdir(step)
            path = step
        return path


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise _bad(f"path {name!r} leads outside")
    return parts


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
