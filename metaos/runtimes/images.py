"""Images that a site has: *host images* (read-only views of the machine's own directories) and imported ones.

Names are normalised as Docker does it (``python:3`` is ``docker.io/library/python:3``).
The store: ``index.json`` maps names to image ids (the digest of the image's configuration), ``ID/rootfs`` holds the
merged layers and ``ID/config.json`` the configuration; ``origins.json`` says of names that came from a registry by which
digest, and who had signed it. Several processes may use it (the agent reads, the command line imports, ``pulling.py``
fetches); both files are replaced atomically under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.plugins.points import ImageError
from metaos.runtimes import signatures

#: What every host image that names no paths of its own shows of the machine. No keys, accounts or settings of it.
SYSTEM_PATHS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_IMAGE = "docker.io/library/python:3"
_PYTHON_LINKS = "/opt/python/bin"
_STAGING = "new-"

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+(?::\d+)?\Z")
_TAG = re.compile(r"\w[\w.-]{0,127}\Z", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Image:
    """What a container starts from. ``rootfs``: directory of an imported image; ``None``: a host image of ``paths``."""

    names: tuple[str, ...]
    rootfs: str | None = None
    paths: tuple[str, ...] = ()
    #: (path in the container, target) of symbolic links that a host image adds.
    links: tuple[tuple[str, str], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_dir: str = "/"
    user: int = 0
    group: int = 0
    size: int = 0

    def argv(self, command: Sequence[str], args: Sequence[str]) -> list[str]:
        """The command line, by the rules of Kubernetes: a command replaces both, arguments replace the image's own."""
        if command:
            return [*command, *args]
        return [*self.entrypoint, *(args or self.command)]


def normalise(name: str) -> str:
    """The full name, with registry and tag. Raises :class:`ImageError` ``InvalidImageName``."""
    rest, at, digest = name.partition("@")
    slash = rest.rfind("/")
    colon = rest.rfind(":")
    rest, tag = (rest[:colon], rest[colon + 1 :]) if colon > slash else (rest, "")
    registry, _, repository = rest.partition("/")
    if not repository or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, repository = "docker.io", rest
    if registry in ("index.docker.io", "docker.io"):
        registry = "docker.io"
        if "/" not in repository:
            repository = f"library/{repository}"
    good = _REPOSITORY.match(repository) and _REGISTRY.match(registry) and (not tag or _TAG.match(tag))
    if not good or (at and not _DIGEST.match(digest)) or len(name) > 512:
        raise ImageError(
            "InvalidImageName", f"image name {name!r} is not valid: it must look like python:3 or registry.example/team/app:1.2"
        )
    return f"{registry}/{repository}" + (f"@{digest}" if at else f":{tag or 'latest'}")


def split(full: str) -> tuple[str, str, str]:
    """(registry, repository, tag or digest) of a normalised name."""
    registry, _, rest = full.partition("/")
    repository, at, digest = rest.partition("@")
    if at:
        return registry, repository, digest
    repository, _, tag = rest.rpartition(":")
    return registry, repository, tag


@dataclass(frozen=True, slots=True)
class Origin:
    """By which digest (of the manifest, or of the index above it) a registry gave an image, and the ids of the keys that had
    signed that."""

    digest: str
    keys: tuple[str, ...] = ()


def host_image(entry: Mapping[str, Any]) -> Image:
    """A site file's ``hostImages`` entry: ``{name, paths, env, command}``; without paths it shows the system's."""
    name = normalise(str(entry.get("name") or ""))
    paths = tuple(os.path.normpath(str(path)) for path in entry.get("paths") or ())
    for path in paths:
        if not path.startswith("/") or path == "/":
            raise ImageError("InvalidImageName", f"host image {name}: path {path!r} must be absolute and must not be /")
    raw = entry.get("env") or {}
    pairs = raw.items() if isinstance(raw, Mapping) else ((item["name"], item.get("value", "")) for item in raw)
    env = {str(key): str(value) for key, value in pairs}
    links: tuple[tuple[str, str], ...] = ()
    if not paths:
        paths = system_paths()
        links = python_links()
        env.setdefault("PATH", f"{_PYTHON_LINKS}:{DEFAULT_PATH}")
    return Image(
        names=(name,),
        paths=paths,
        links=links,
        env=tuple(env.items()),
        command=tuple(str(word) for word in entry.get("command") or ()),
    )


def system_paths() -> tuple[str, ...]:
    """The system's programs and libraries, and the Python that runs this, wherever it lives."""
    base = os.path.realpath(sys.base_prefix)
    inside = any(base == path or base.startswith(path + "/") for path in ("/usr", "/bin", "/lib"))
    return tuple(path for path in SYSTEM_PATHS if os.path.lexists(path)) + (() if inside else (base,))


def python_program() -> str:
    return os.path.join(os.path.realpath(sys.base_prefix), "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def python_links() -> tuple[tuple[str, str], ...]:
    """``python`` and ``python3`` are this very Python, also where the system names it otherwise."""
    names = ("python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return tuple((f"{_PYTHON_LINKS}/{name}", python_program()) for name in names)


class ImageStore:
    """The images of one site. ``directory`` is made when the first image is imported. ``policy``: which may start."""

    def __init__(
        self, directory: str, host_images: Sequence[Mapping[str, Any]] = (), policy: Sequence[signatures.Rule] = ()
    ) -> None:
        self._directory, self._policy = directory, policy
        entries = list(host_images) or [{"name": DEFAULT_IMAGE, "command": ["python3"]}]
        self._host: dict[str, Image] = {}
        for entry in entries:
            image = host_image(entry)
            self._host[image.names[0]] = image
        self._index: dict[str, str] = {}
        self._stamp: tuple[int, int] | None = None
        self._read: dict[str, Image] = {}

    def find(self, name: str) -> Image:
        """Raises :class:`ImageError`: ``InvalidImageName``, ``ErrImagePull``, ``SignatureValidationFailed``, with the remedy."""
        full = normalise(name)
        if full in self._host:
            return self._host[full]
        index = self._names()
        if full in index:
            self._permit(full)
            return self._imported(index[full])
        known = ", ".join(sorted([*self._host, *index])[:10]) or "none"
        raise ImageError(
            "ErrImagePull",
            f"image {full} is not on this site, and was not fetched. Import it with "
            f"'nemo image import FILE' (from 'docker save' or an OCI layout), or list it under hostImages in the site file. "
            f"This site has: {known}",
        )

    def ready(self, name: str, policy: str) -> bool:
        """Whether a container may start from what is here, by its ``imagePullPolicy``; else it is to be fetched. ``Always`` asks
        about images that came from a registry: host images and imported ones are the site's own. Raises :class:`ImageError`."""
        full = normalise(name)
        if full in self._host:
            return True
        if full not in self._names():
            if policy == "Never":
                raise ImageError("ErrImageNeverPull", f'Container image "{name}" is not present with pull policy of Never')
            return False
        origin = self._origins().get(full)
        if origin is None:
            return True
        try:
            self._permit(full)
        except ImageError:
            if policy == "Never":
                raise
            return False  # it may be signed by now
        return policy != "Always"

    def confirm(self, name: str, origin: Origin) -> bool:
        """Whether the image with this digest is here already; then it is known from now on who has signed it."""
        full = normalise(name)
        with self._locked():
            known = self._origins()
            if full not in self._names() or full not in known or known[full].digest != origin.digest:
                return False
            if known[full] != origin:
                self._write_origins(known | {full: origin})
            return True

    def _permit(self, full: str) -> None:
        """Raises :class:`ImageError` where the policy forbids what is here under this name."""
        registry, repository, _ = split(full)
        rule = signatures.rule_for(f"{registry}/{repository}", self._policy)
        if rule is None or rule.action != "Signed":
            return
        origin = self._origins().get(full)
        if origin is None or not {signatures.key_id(key) for key in rule.keys} & set(origin.keys):
            what = "it was imported from a file" if origin is None else "none of its keys has signed what is here"
            raise ImageError(
                signatures.REFUSED,
                f"image {full} must be signed at this site by its imagePolicy, and {what}: have it fetched from a registry that "
                "has its signature, or add a rule with action Accept for it",
            )

    def all(self) -> list[Image]:
        """Host images first."""
        names: dict[str, list[str]] = {}
        for name, identity in self._names().items():
            names.setdefault(identity, []).append(name)
        imported = [self._imported(identity) for identity in sorted(names)]
        return [*self._host.values(), *imported]

    def remove(self, name: str) -> None:
        """Takes the name away; the files go with the last name and the last container. Raises :class:`ImageError`."""
        full = normalise(name)
        if full in self._host:
            raise ImageError("ImageInspectError", f"image {full} is a host image of the site file: take it out there")
        with self._locked():
            index = self._names()
            identity = index.pop(full, None)
            if identity is None:
                raise ImageError("ImageInspectError", f"image {full} is not on this site")
            self._write_origins({key: value for key, value in self._origins().items() if key != full})
            self._write(index)
            self._sweep()

    def hold(self, image: Image, user: str) -> None:
        """Keeps an imported image's files for as long as the directory ``user`` exists (a container's own)."""
        if image.rootfs is None:
            return
        import hashlib

        users = os.path.join(os.path.dirname(image.rootfs), "users")
        with self._locked():
            if not os.path.isdir(image.rootfs):
                raise ImageError("ErrImagePull", f"image {image.names[0]} has just been removed: import it again")
            os.makedirs(users, exist_ok=True)
            os.utime(os.path.dirname(image.rootfs))  # when it was used last
            with contextlib.suppress(FileExistsError):
                os.symlink(user, os.path.join(users, hashlib.sha256(os.fsencode(user)).hexdigest()[:32]))

    def collect(self, keep: Collection[str], wanted: int, older_than: float) -> list[str]:
        """Removes imported images until ``wanted`` bytes are free, those first that were used least recently: none that
        a container uses, that has a name in ``keep``, or that was imported or used after ``older_than``. The names that went."""
        import shutil

        if not os.path.isdir(self._directory):
            return []
        kept: set[str] = set()
        for name in keep:
            with contextlib.suppress(ImageError):  # not the name of any image that is here
                kept.add(normalise(name))
        removed: list[str] = []
        with self._locked():
            self._sweep()
            index = self._names()
            by_identity: dict[str, list[str]] = {}
            for name, identity in index.items():
                by_identity.setdefault(identity, []).append(name)
            places = {identity: os.path.join(self._directory, identity) for identity in by_identity}
            last = {identity: os.stat(place).st_mtime for identity, place in places.items()}
            for identity in sorted(by_identity, key=lambda each: (last[each], each)):
                if wanted <= 0:
                    break
                names = by_identity[identity]
                if last[identity] >= older_than or kept & set(names) or self._used(places[identity]):
                    continue
                wanted -= self._imported(identity).size
                for name in names:
                    del index[name]
                self._write(index)  # first: a name without files would be worse than files without a name
                shutil.rmtree(places[identity], ignore_errors=True)
                removed += names
        return removed

    def import_archive(self, path: str, name: str | None = None, origin: Origin | None = None) -> list[str]:
        """Takes in a docker archive or an OCI layout (file or directory); the full names that it has now. ``origin``: where its
        one image came from, if from a registry. Unpacks outside of the lock: nobody waits for that."""
        from metaos.runtimes import archive

        fallback = [normalise(name)] if name else []
        result: list[str] = []
        with self._staging() as staging:
            for found in archive.unpack(path, staging):
                names = fallback or [normalise(each) for each in found.names]
                if not names:
                    raise ImageError("InvalidImageName", f"the image in {path} has no name: give it one with --name")
                with self._locked():
                    target = os.path.join(self._directory, found.identity)
                    if not os.path.isdir(target):
                        os.rename(found.directory, target)
                    # Whoever is killed in between leaves a name without an origin, which no rule takes for signed.
                    origins = self._origins()
                    self._write_origins({key: value for key, value in origins.items() if key not in names})
                    self._write(self._names() | dict.fromkeys(names, found.identity))
                    if origin is not None:
                        self._write_origins(self._origins() | dict.fromkeys(names, origin))
                    self._sweep()
                result += names
        return result

    @contextlib.contextmanager
    def _staging(self) -> Iterator[str]:
        """A directory to unpack in, next to the images. It is held by a lock, so that others see whether it is in use."""
        import shutil
        import tempfile

        with contextlib.ExitStack() as stack:
            with self._locked():
                self._sweep()
                path = tempfile.mkdtemp(prefix=_STAGING, dir=self._directory)
                stack.callback(shutil.rmtree, path, ignore_errors=True)
                fcntl.flock(stack.enter_context(open(os.path.join(path, "lock"), "w")), fcntl.LOCK_EX)
            yield path

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        with open(os.path.join(self._directory, "lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Removes images without a name that no container uses, and what an interrupted import left. Only under the lock."""
        import shutil

        named = set(self._names().values())
        for entry in os.listdir(self._directory):
            place = os.path.join(self._directory, entry)
            if entry in named or not os.path.isdir(place):
                continue
            if not (_held(place) if entry.startswith(_STAGING) else self._used(place)):
                shutil.rmtree(place, ignore_errors=True)

    def _used(self, place: str) -> bool:
        users = os.path.join(place, "users")
        for entry in os.listdir(users) if os.path.isdir(users) else ():
            if os.path.isdir(os.path.join(users, entry)):
                return True
            os.unlink(os.path.join(users, entry))
        return False

    def _names(self) -> dict[str, str]:
        path = os.path.join(self._directory, "index.json")
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return {}
        if self._stamp != (found.st_ino, found.st_mtime_ns):
            with open(path, encoding="utf-8") as file:
                self._index = json.load(file)
            self._stamp = (found.st_ino, found.st_mtime_ns)
            self._read.clear()
        return dict(self._index)

    def _write(self, index: Mapping[str, str]) -> None:
        _replace(os.path.join(self._directory, "index.json"), index)

    def _origins(self) -> dict[str, Origin]:
        try:
            with open(os.path.join(self._directory, "origins.json"), encoding="utf-8") as file:
                return {name: Origin(each["digest"], tuple(each["keys"])) for name, each in json.load(file).items()}
        except FileNotFoundError:
            return {}

    def _write_origins(self, origins: Mapping[str, Origin]) -> None:
        path = os.path.join(self._directory, "origins.json")
        if origins or os.path.exists(path):
            _replace(path, {name: {"digest": each.digest, "keys": list(each.keys)} for name, each in origins.items()})

    def _imported(self, identity: str) -> Image:
        if identity in self._read:
            return self._read[identity]
        directory = os.path.join(self._directory, identity)
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            document = json.load(file)
        settings = document.get("config") or {}
        rootfs = os.path.join(directory, "rootfs")
        user, group = _ids(str(settings.get("User") or ""), rootfs)
        env = dict(entry.split("=", 1) for entry in settings.get("Env") or () if "=" in entry)
        env.setdefault("PATH", DEFAULT_PATH)
        image = Image(
            names=tuple(name for name, each in self._index.items() if each == identity),
            rootfs=rootfs,
            env=tuple(env.items()),
            entrypoint=tuple(settings.get("Entrypoint") or ()),
            command=tuple(settings.get("Cmd") or ()),
            working_dir=str(settings.get("WorkingDir") or "/"),
            user=user,
            group=group,
            size=int(document.get("unpackedBytes") or 0),
        )
        self._read[identity] = image
        return image


def _replace(path: str, document: Mapping[str, Any]) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


def _held(staging: str) -> bool:
    """Whether somebody unpacks there."""
    try:
        with open(os.path.join(staging, "lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _ids(text: str, rootfs: str) -> tuple[int, int]:
    """``USER[:GROUP]`` of an image configuration, by number or by the image's own passwd and group files."""
    user, _, group = text.partition(":")
    number, primary = 0, 0
    if user.isdigit():
        number = int(user)
    elif user:
        row = _row(os.path.join(rootfs, "etc/passwd"), user)
        if row is None:
            raise ImageError("ErrImagePull", f"the image runs as user {user!r}, who is not in its /etc/passwd")
        number, primary = int(row[2]), int(row[3])
    if group.isdigit():
        primary = int(group)
    elif group:
        row = _row(os.path.join(rootfs, "etc/group"), group)
        if row is None:
            raise ImageError("ErrImagePull", f"the image runs as group {group!r}, which is not in its /etc/group")
        primary = int(row[2])
    return number, primary


def _row(path: str, name: str) -> list[str] | None:
    try:
        # The image may have made the file a link to anywhere; it is only ever read as itself.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            if len(fields) >= 3 and fields[0] == name:
                return fields
    return None
