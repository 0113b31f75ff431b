"""Fetches one image from its registry, in a process of its own that ends afterwards: ``python -m metaos.runtimes.pulling``.

Its standard input says what is wanted (:func:`main`), its output what came of it. So the agent never holds an HTTP library,
an archive or a signature in its memory, and what a hostile registry can exhaust is this process. Order: the rule, the
manifest, its signatures, the bounds, the blobs, and only then is anything unpacked. What was fetched when it was broken off
stays for the next attempt.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metaos.plugins.points import ImageError
from metaos.runtimes import signatures
from metaos.runtimes.archive import MACHINES, MAX_BYTES, MAX_DOCUMENT, weigh
from metaos.runtimes.images import ImageStore, Origin, normalise, split
from metaos.runtimes.registry import Repository, document, failed

#: All of one pull. It ends by itself, whatever becomes of who asked.
PULL_SECONDS = 1800
#: Of this process: what archives say of themselves may be long, and compressed to nothing.
MEMORY_BYTES = 1 << 30
MAX_LAYERS, MAX_DEPTH = 256, 4
#: What is left of pulls that were broken off: of so many, the oldest go first.
MAX_BEGUN = 8
#: The name of a layer's file (OCI image specification, annotations).
_TITLE = "org.opencontainers.image.title"
_LINUX, _WASM = ("linux",), ("wasip1", "wasip2", "wasi", "js")
#: Compressed layers unpack to about three times their size, and lie beside it meanwhile.
_GROWTH, _SPARE_BYTES = 4, 64 << 20


def fetch(asked: Mapping[str, Any]) -> dict[str, Any]:
    """See :func:`main`. Raises :class:`ImageError`."""
    image = normalise(asked["image"])
    registry, name, reference = split(image)
    rule = signatures.rule_for(f"{registry}/{name}", signatures.rules(asked["policy"]))
    settings = asked["registry"]
    credentials = [(str(user), str(password)) for user, password in asked["credentials"]]
    plain, ca_file = bool(settings.get("plainHttp")), str(settings.get("caFile") or "")
    source = Repository(registry, name, credentials=credentials, plain=plain, ca_file=ca_file)
    found = source.manifest(reference)
    if found is None:
        raise failed(f"registry {registry} has no {name} {reference}, or does not show it to us: look at its name and tag")
    digest, data = found
    keys = [] if rule is None or rule.action != "Signed" else [signed(source, digest, rule.keys)]
    result = {"digest": digest, "keys": keys}
    if (file := asked.get("file")) is not None:
        return result | {"data": base64.b64encode(one_file(source, data, file["name"], file["most"])).decode()}
    if not asked["pulls"]:
        return result
    if not asked["directory"]:
        with _place(asked["pulls"], image) as place:
            _download(source, data, place, image)
            disk = os.statvfs(place)
            try:
                weigh(place, disk.f_bavail * disk.f_frsize - _SPARE_BYTES)
            except ImageError:
                shutil.rmtree(place, ignore_errors=True)
                raise
            return result | {"archive": _packed(place)}
    store = ImageStore(asked["directory"])
    origin = Origin(digest, tuple(keys))
    if store.confirm(image, origin):
        return result
    with _place(asked["pulls"], image) as place:
        _download(source, data, place)
        store.import_archive(place, image, origin)
        shutil.rmtree(place, ignore_errors=True)
    return result


def signed(source: Repository, digest: str, keys: Sequence[str]) -> str:
    """The id of the key that signed a manifest. Raises :class:`ImageError` saying what was found instead."""
    looked = 0
    tag = digest.replace(":", "-") + ".sig"
    found = source.manifest(tag)
    for layer in (document(found[1], "its signatures").get("layers") or ())[: signatures.MAX_SIGNATURES] if found else ():
        text = (layer.get("annotations") or {}).get(signatures.SIGNATURE)
        if layer.get("mediaType") != signatures.SIMPLE_SIGNING or not text:
            continue
        looked += 1
        if signer := signatures.simple(source.small(layer), str(text), digest, keys):
            return signer
    for each in source.referrers(digest)[: signatures.MAX_SIGNATURES]:
        if each.get("artifactType") != signatures.BUNDLE:
            continue
        manifest = source.manifest(str(each.get("digest")))
        for layer in document(manifest[1], "its signatures").get("layers") or () if manifest else ():
            looked += 1
            if signer := signatures.bundled(source.small(layer), digest, keys):
                return signer
    what = f"{looked} signatures were found, none of them by a key of the policy" if looked else "it is not signed"
    raise ImageError(
        signatures.REFUSED,
        f"image {source.registry}/{source.name}@{digest} must be signed at this site by its imagePolicy, and {what}: sign it "
        "with 'cosign sign --key', or have its key added to the policy",
    )


def one_file(source: Repository, data: bytes, name: str, most: int) -> bytes:
    """A file of an OCI artifact: the layer with this title, or the only one. Raises :class:`ImageError`."""
    found = document(data, "its manifest")
    layers = found.get("layers")
    if not isinstance(layers, list) or not all(isinstance(each, dict) for each in layers):
        raise failed("its manifest has no layers: name the digest of an artifact's manifest, and not that of an index")
    titles = [str((each.get("annotations") or {}).get(_TITLE, "")) for each in layers]
    fitting = [each for each, title in zip(layers, titles, strict=True) if title == name] or (layers if len(layers) == 1 else [])
    if not fitting:
        raise failed(f"it has no file {name}: it has {', '.join(filter(None, titles[:10])) or 'none with a name'}")
    layer, size = fitting[0], fitting[0].get("size")
    if ".tar" in str(layer.get("mediaType")) or ".diff" in str(layer.get("mediaType")):
        raise failed(f"it is an image of layers, and not an artifact: push the file itself, as 'oras push NAME {name}' does")
    if not isinstance(size, int) or not 0 < size <= most:
        raise failed(f"its file {name} has {size} bytes: 1 to {most} are taken")
    code = source.small(layer)
    if len(code) != size:
        raise failed(f"its file {name} has {len(code)} bytes, and its manifest says {size}")
    return code


def chosen(source: Repository, data: bytes) -> bytes:
    """The manifest for this machine, of what may be an index."""
    machine = MACHINES.get(platform.machine(), platform.machine())
    for _ in range(MAX_DEPTH):
        found = document(data, "its manifest")
        if "manifests" not in found:
            return data
        entries = [each for each in found["manifests"] if isinstance(each, dict)]
        platforms = [(each, each.get("platform") or {}) for each in entries]
        fitting = [each for each, where in platforms if where.get("os") in _LINUX and where.get("architecture") == machine]
        fitting += [each for each, where in platforms if where.get("os") in _WASM and where.get("architecture") == "wasm"]
        if not fitting:
            has = ", ".join(sorted({f"{where.get('os')}/{where.get('architecture')}" for _, where in platforms})[:10])
            raise failed(f"it is not made for linux/{machine}: {source.registry} has it for {has or 'nothing'}")
        digest = str(fitting[0].get("digest"))
        nested = source.manifest(digest)
        if nested is None:
            raise failed(f"registry {source.registry} names manifest {digest} and does not have it")
        data = nested[1]
    raise failed("its index is nested too deeply")


def _packed(place: str) -> str:
    """The layout as one file, for who takes nothing else; the layout itself goes."""
    path = place + ".tar"
    with tarfile.open(path, "w") as archive:
        for name in ("oci-layout", "index.json", "blobs"):
            archive.add(os.path.join(place, name), name)
    shutil.rmtree(place, ignore_errors=True)
    return path


def _download(source: Repository, data: bytes, place: str, name: str = "") -> None:
    """As an OCI layout."""
    manifest = chosen(source, data)
    found = document(manifest, "its manifest")
    layers, config = found.get("layers"), found.get("config")
    if not isinstance(layers, list) or not isinstance(config, dict) or len(layers) > MAX_LAYERS:
        raise failed(f"its manifest is not one of an image with at most {MAX_LAYERS} layers (schema 1 is not supported)")
    wanted = {}
    for each in (config, *layers):
        digest, size = str(each.get("digest")), each.get("size")
        if not (digest.startswith("sha256:") and len(digest) == 71 and digest[7:].isalnum()) or not isinstance(size, int):
            raise failed(f"its manifest names a blob {digest[:100]!r} without sha256 digest or size")
        if each is config and not 0 <= size <= MAX_DOCUMENT:
            raise failed(f"its configuration has {size} bytes, more than {MAX_DOCUMENT}")
        wanted[digest] = max(0, size)
    total = sum(wanted.values())
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if total > MAX_BYTES or total * _GROWTH + _SPARE_BYTES > free:
        raise failed(
            f"it is too large: {total >> 20} MiB compressed, and the disk has {free >> 20} MiB; at most {MAX_BYTES >> 30} GiB "
            f"are taken, and {_GROWTH} times as much must be free"
        )
    blobs = os.path.join(place, "blobs", "sha256")
    os.makedirs(blobs, mode=0o700, exist_ok=True)
    for digest, size in wanted.items():
        source.blob(digest, size, os.path.join(blobs, digest[7:]))
    identity = hashlib.sha256(manifest).hexdigest()
    with open(os.path.join(blobs, identity), "wb") as file:
        file.write(manifest)
    with open(os.path.join(place, "index.json"), "w", encoding="utf-8") as text:
        kind = found.get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
        row: dict[str, Any] = {"mediaType": kind, "digest": f"sha256:{identity}", "size": len(manifest)}
        if name:
            row["annotations"] = {"org.opencontainers.image.ref.name": name}
        json.dump({"schemaVersion": 2, "manifests": [row]}, text)
    with open(os.path.join(place, "oci-layout"), "w", encoding="utf-8") as text:
        text.write('{"imageLayoutVersion": "1.0.0"}')


@contextlib.contextmanager
def _place(pulls: str, image: str) -> Iterator[str]:
    """A directory for one image's blobs, ours alone, with what an earlier attempt left in it."""
    os.makedirs(pulls, mode=0o700, exist_ok=True)
    path = os.path.join(pulls, hashlib.sha256(image.encode()).hexdigest()[:32])
    with open(path + ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.utime(path)
        begun = [entry.path for entry in os.scandir(pulls) if entry.is_dir()]
        for old in sorted(begun, key=lambda each: os.stat(each).st_mtime)[:-MAX_BEGUN]:
            with open(old + ".lock", "w") as other, contextlib.suppress(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
                os.unlink(old + ".lock")
        yield path


def main() -> int:
    """Input: ``{"image", "credentials": [[user, password]], "registry": {…}, "policy": […], "directory", "pulls"}``; with a
    ``file`` (``{"name", "most"}``) ``data`` in the answer is that file, in base64, and nothing is kept; without ``pulls`` nothing
    is fetched, and only the digest is found and the signature looked at; without ``directory`` the image is not unpacked, and
    ``archive`` in the answer is a file with its OCI layout. Output: ``{"digest", "keys"}``, or ``{"reason", "message"}``."""
    signal.alarm(PULL_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    asked = json.load(sys.stdin)
    try:
        said = fetch(asked)
    except ImageError as error:
        text = error.message if error.reason != "ErrImagePull" else f"image {asked['image']}: {error.message}"
        said = {"reason": error.reason, "message": text}
    except (OSError, ValueError) as error:
        said = {"reason": "ErrImagePull", "message": f"image {asked['image']} cannot be fetched: {error}"}
    except MemoryError:
        why = f"it takes more than {MEMORY_BYTES >> 20} MiB of memory to read, as an image made to do harm does"
        said = {"reason": "ErrImagePull", "message": f"image {asked['image']} cannot be fetched: {why}"}
    json.dump(said, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
