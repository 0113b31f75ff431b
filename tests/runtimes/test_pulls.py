"""Images from real registries, and from one that lies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from metaos.clock import SystemClock
from metaos.plugins.points import ContainerConfig, ImageError, Pull
from metaos.runtimes import pulling, signatures
from metaos.runtimes.credentials import for_image
from metaos.runtimes.images import ImageStore, normalise, split
from metaos.runtimes.sandbox import SandboxRuntime
from tests.runtimes.conformance import pod, run
from tests.runtimes.registries import MANIFEST, Registry, digest_of, pem, running
from tests.runtimes.test_images import MACHINE, config_of, docker_archive, layer, shell_layer

DIGEST = "sha256:" + "a" * 64


# --- decisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "image", "fits"),
    [
        ("https://index.docker.io/v1/", "docker.io/library/python:3", True),
        ("docker.io", "docker.io/team/app:1", True),
        ("registry.example", "registry.example/team/app:1", True),
        ("registry.example:5000", "registry.example/team/app:1", False),
        ("registry.example/team", "registry.example/team/app:1", True),
        ("registry.example/team/app", "registry.example/team/app:1", True),
        ("registry.example/te", "registry.example/team/app:1", False),
        ("*.example", "registry.example/app:1", True),
        ("*.example", "a.registry.example/app:1", False),
        ("*", "registry.example/app:1", False),
    ],
)
def test_credentials_are_for_their_registry_alone(server: str, image: str, fits: bool) -> None:
    assert for_image(image, [(server, "u", "p")]) == ([("u", "p")] if fits else [])


def test_the_closest_credentials_are_tried_first() -> None:
    known = [("*.example", "any", "1"), ("r.example", "host", "2"), ("r.example/team", "team", "3"), ("r.example", "host", "2")]
    assert [user for user, _ in for_image("r.example/team/app:1", known)] == ["team", "host", "any"]


@given(st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}", fullmatch=True), st.sampled_from([":1.2", f"@{DIGEST}", ""]))
def test_a_name_is_split_into_what_it_is_made_of(repository: str, end: str) -> None:
    full = normalise(f"r.example:5000/{repository}{end}")
    registry, name, reference = split(full)
    assert (registry, name, reference) == ("r.example:5000", repository, end[1:] or "latest")


def test_the_first_rule_about_an_image_holds_and_what_none_is_about_is_refused() -> None:
    key = pem(ec.generate_private_key(ec.SECP256R1()))
    policy = signatures.rules(
        [
            {"images": "r.example/team/*", "action": "Signed", "keys": [key]},
            {"images": "r.example/old/*", "action": "Refuse"},
            {"images": "r.example/*", "action": "Accept"},
        ]
    )
    assert signatures.rule_for("r.example/team/app", policy) == policy[0]
    assert signatures.rule_for("r.example/app", policy) == policy[2]
    assert signatures.rule_for("anything", ()) is None
    for repository, why in (("r.example/old/app", "r.example/old"), ("docker.io/library/python", "no rule")):
        with pytest.raises(ImageError, match=why) as caught:
            signatures.rule_for(repository, policy)
        assert caught.value.reason == "SignatureValidationFailed"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"action": "Accept"}, r"imagePolicy\[0\].images"),
        ({"images": "*", "action": "Maybe"}, "one of Accept, Signed, Refuse"),
        ({"images": "*", "action": "Signed"}, "keys: give public keys"),
        ({"images": "*", "action": "Accept", "keys": ["x"]}, "keys: give public keys"),
        ({"images": "*", "action": "Signed", "keys": ["ssh-rsa AAAA"]}, "PUBLIC KEY in PEM"),
        ({"images": "*", "action": "Signed", "keys": ["-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----"]}, "damaged"),
    ],
)
def test_a_bad_policy_names_the_field(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signatures.rules([entry])


def test_a_signature_is_of_one_digest_by_one_key() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    said = {"image": {"docker-manifest-digest": DIGEST}, "type": "cosign container image signature", "identity": {}}
    payload = json.dumps({"critical": said}).encode()
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    keys = [pem(other), pem(key)]
    assert signatures.simple(payload, signature, DIGEST, keys) == signatures.key_id(pem(key))
    assert signatures.simple(payload, signature, DIGEST, keys[:1]) is None
    assert signatures.simple(payload, signature, DIGEST[:-1] + "b", keys) is None
    assert signatures.simple(payload + b" ", signature, DIGEST, keys) is None
    assert signatures.simple(payload, "no base64", DIGEST, keys) is None


_ANY = st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(st.binary(max_size=200) | _ANY.map(lambda each: json.dumps(each).encode()))
def test_no_document_passes_for_a_signature(document: bytes) -> None:
    assert signatures.simple(document, "AAAA", DIGEST, []) is None
    assert signatures.bundled(document, DIGEST, []) is None


def bundle(key: ec.EllipticCurvePrivateKey, digest: str) -> bytes:
    subject = [{"name": "", "digest": {"sha256": digest[7:]}}]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
    }
    payload, kind = json.dumps(statement).encode(), "application/vnd.in-toto+json"
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = base64.b64encode(key.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [{"sig": signature}]}
    return json.dumps({"mediaType": signatures.BUNDLE, "dsseEnvelope": envelope}).encode()


# --- a real registry ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


BASE = layer({"bin": None, "bin/said": b"old", "etc/gone": b"x", "kept/a": b"a", "opaque/b": b"b"})
TOP = layer({"bin/said": b"new", "etc/.wh.gone": b"", "opaque/.wh..wh..opq": b"", "opaque/c": b"c"})


def make(place: Path, registry: Registry, policy: list[dict[str, Any]] | None = None) -> SandboxRuntime:
    return SandboxRuntime(str(place / "runtime"), clock=SystemClock(), registries=[registry.settings], image_policy=policy or ())


async def refused(runtime: SandboxRuntime, image: str, pull: Pull) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await runtime.fetch_image(image, pull)
    return caught.value


def rootfs(runtime: SandboxRuntime, image: str) -> Path:
    found = runtime._images.find(image).rootfs
    assert found is not None
    return Path(found)


@pytest.mark.system
async def test_an_image_is_fetched_with_credentials_for_this_machine(registry: Registry, tmp_path: Path) -> None:
    ours = registry.push("team/app", "", [BASE, TOP], config_of([BASE, TOP], Cmd=["/bin/said"]))
    other = registry.push("team/app", "", [BASE], config_of([BASE]).replace(MACHINE.encode(), b"s390x"))
    digest = registry.index("team/app", "1", [("linux", "s390x", other), ("linux", MACHINE, ours)])
    runtime, image = make(tmp_path, registry), f"{registry.host}/team/app:1"
    error = await refused(runtime, image, Pull())
    assert error.reason == "ErrImagePull" and "imagePullSecrets" in error.message and "without credentials" in error.message
    wrong = Pull(credentials=((registry.host, "maria", "wrong"),))
    error = await refused(runtime, image, wrong)
    assert "as user 'maria'" in error.message and "wrong" not in error.message.replace("wrong number", "")
    pull = Pull(credentials=((registry.host, "maria", "wrong"), *registry.credentials))
    assert not await runtime.image_ready(image, pull)
    await asyncio.gather(*[runtime.fetch_image(image, pull) for _ in range(3)])
    assert await runtime.image_ready(image, pull) and not await runtime.image_ready(image, Pull("Always"))
    root = rootfs(runtime, image)
    assert (root / "bin/said").read_bytes() == b"new" and not (root / "etc/gone").exists() and (root / "kept/a").exists()
    assert [each.name for each in (root / "opaque").iterdir()] == ["c"]
    for pinned in (digest, ours):
        await runtime.fetch_image(f"{registry.host}/team/app@{pinned}", pull)
        assert rootfs(runtime, f"{registry.host}/team/app@{pinned}") == root
    assert not [each for each in (tmp_path / "runtime/pulls").iterdir() if each.is_dir()], "what was fetched is not kept twice"
    for missing in (f"{registry.host}/team/app:2", f"{registry.host}/team/app@{DIGEST}", f"{registry.host}/none:1"):
        assert "look at its name" in (await refused(runtime, missing, pull)).message
    foreign = await refused(runtime, f"{registry.host}/team/app@{other}", pull)
    assert "built for s390x" in foreign.message
    await runtime.close()


@pytest.mark.system
async def test_always_follows_the_tag_and_fetches_only_what_is_new(registry: Registry, tmp_path: Path) -> None:
    registry.push("team/moves", "latest", [BASE], config_of([BASE]))
    runtime, image = make(tmp_path, registry), f"{registry.host}/team/moves"
    pull = Pull("Always", registry.credentials)
    await runtime.fetch_image(image, pull)
    first = rootfs(runtime, image)
    stamp = first.stat().st_mtime_ns
    await runtime.fetch_image(image, pull)
    assert rootfs(runtime, image) == first and first.stat().st_mtime_ns == stamp
    registry.push("team/moves", "latest", [BASE, TOP], config_of([BASE, TOP]))
    await runtime.fetch_image(image, pull)
    assert (rootfs(runtime, image) / "bin/said").read_bytes() == b"new"
    assert not first.exists(), "nobody uses it any more"
    await runtime.close()


@pytest.mark.system
async def test_only_what_a_key_of_the_policy_has_signed_starts(registry: Registry, tmp_path: Path) -> None:
    key, other, newer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    digest = registry.push("signed/app", "1", [BASE], config_of([BASE]))
    image, pull = f"{registry.host}/signed/app:1", Pull(credentials=registry.credentials)
    policy = [{"images": f"{registry.host}/signed/*", "action": "Signed", "keys": [pem(key)]}]
    runtime = make(tmp_path, registry, policy)
    error = await refused(runtime, image, pull)
    assert (error.reason, "it is not signed" in error.message) == ("SignatureValidationFailed", True)
    registry.sign("signed/app", digest, other)
    assert "1 signatures were found, none of them by a key" in (await refused(runtime, image, pull)).message
    with pytest.raises(ImageError, match="not on this site"):
        runtime._images.find(image)
    registry.sign("signed/app", digest, key)
    await runtime.fetch_image(image, pull)
    assert await runtime.image_ready(image, pull)
    # Another tag of the same digest is signed, too; one of another digest is not.
    registry.push("signed/app", "2", [BASE, TOP], config_of([BASE, TOP]))
    assert (await refused(runtime, f"{registry.host}/signed/app:2", pull)).reason == "SignatureValidationFailed"
    assert "no rule of it is about them" in (await refused(runtime, f"{registry.host}/team/app:1", pull)).message
    await runtime.close()
    # The owner changes the keys: what is here does not start any more, and is not asked to be fetched where it must not be.
    later = make(tmp_path, registry, [policy[0] | {"keys": [pem(newer)]}])
    with pytest.raises(ImageError, match="none of its keys has signed"):
        later._images.find(image)
    assert not await later.image_ready(image, pull)
    with pytest.raises(ImageError, match="none of its keys has signed"):
        await later.image_ready(image, Pull("Never"))
    registry.sign("signed/app", digest, newer)
    await later.fetch_image(image, pull)
    assert later._images.find(image).rootfs
    await later.close()


@pytest.mark.system
async def test_a_bundle_is_found_by_its_referrers_tag(registry: Registry, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    digest = registry.push("signed/new", "1", [BASE], config_of([BASE]))
    row = registry.blob("signed/new", bundle(key, digest), signatures.BUNDLE)
    empty = registry.blob("signed/new", b"{}", "application/vnd.oci.empty.v1+json")
    document = {"mediaType": MANIFEST, "artifactType": signatures.BUNDLE, "config": empty, "layers": [row]}
    artifact = registry.manifest("signed/new", "bundle", document)
    size = len(registry.call("GET", f"signed/new/manifests/{artifact}", Accept=MANIFEST).data)
    entry = {"mediaType": MANIFEST, "digest": artifact, "size": size, "artifactType": signatures.BUNDLE}
    registry.manifest(
        "signed/new", digest.replace(":", "-"), {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    )
    runtime = make(tmp_path, registry, [{"images": "*", "action": "Signed", "keys": [pem(key)]}])
    await runtime.fetch_image(f"{registry.host}/signed/new:1", Pull(credentials=registry.credentials))
    assert runtime._images.find(f"{registry.host}/signed/new:1").rootfs
    await runtime.close()


@pytest.mark.system
async def test_an_imported_image_does_not_take_over_a_signature(registry: Registry, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    digest = registry.push("signed/swap", "1", [BASE], config_of([BASE]))
    registry.sign("signed/swap", digest, key)
    runtime = make(tmp_path, registry, [{"images": "*", "action": "Signed", "keys": [pem(key)]}])
    image = f"{registry.host}/signed/swap:1"
    await runtime.fetch_image(image, Pull(credentials=registry.credentials))
    await runtime.import_archive(str(docker_archive(tmp_path, [TOP], [image])))
    with pytest.raises(ImageError, match="imported from a file"):
        runtime._images.find(image)
    await runtime.close()


@pytest.mark.system
async def test_a_container_starts_from_what_was_fetched(registry: Registry, tmp_path: Path) -> None:
    layers = [shell_layer()]
    registry.push("team/run", "1", layers, config_of(layers, Cmd=["/bin/sh", "-c", "echo from a registry"]))
    runtime, image = make(tmp_path, registry), f"{registry.host}/team/run:1"
    try:
        await runtime.fetch_image(image, Pull(credentials=registry.credentials))
        await runtime.start_pod(pod())
        ended, said = await run(runtime, pod().uid, ContainerConfig("main", image, (), (), (), "", ()))
        assert (ended.exit_code, said) == (0, "from a registry\n")
    finally:
        await runtime.stop_pod(pod().uid)
        await runtime.close()


# --- a registry that lies -------------------------------------------------------------------------------------------


class Liar:
    """Answers what it was told to, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[tuple[str, str, str]] = []
        #: Path → answers that break off after so many bytes, or (negative) statuses, before it is answered well.
        self.trouble: dict[str, list[int]] = {}
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                where, span = self.headers.get("Authorization", ""), self.headers.get("Range", "")
                liar.asked.append((self.path, span, where))
                data, trouble = liar.answers.get(self.path), liar.trouble.get(self.path) or []
                status = -trouble.pop(0) if trouble and trouble[0] < 0 else 404 if data is None else 206 if span else 200
                body = b"" if data is None or status >= 300 else data[int(span[6:-1]) if span else 0 :]
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | liar.headers.get(self.path, {})).items():
                    self.send_header(key, value)
                self.end_headers()
                if status < 300 and trouble:
                    body = body[: trouble.pop(0)]
                    self.close_connection = True
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def image(self, layers: list[bytes], **more: Any) -> tuple[bytes, list[str]]:
        """Serves ``app:1``; its manifest and the digests of its layers."""
        packed = [gzip.compress(each, mtime=0) for each in layers]
        config = config_of(layers)
        blobs = [config, *packed]
        rows = [{"digest": digest_of(each), "size": len(each)} for each in blobs]
        manifest = json.dumps({"schemaVersion": 2, "config": rows[0], "layers": rows[1:]} | more).encode()
        self.answers["/v2/app/manifests/1"] = manifest
        for each in blobs:
            self.answers[f"/v2/app/blobs/{digest_of(each)}"] = each
        return manifest, [digest_of(each) for each in packed]


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(liar: Liar, place: Path, reference: str = ":1", credentials: list[list[str]] | None = None) -> dict[str, Any]:
    """As the process that fetches does it, in this one."""
    asked = {
        "image": f"{liar.host}/app{reference}",
        "credentials": credentials or [],
        "registry": {"plainHttp": True},
        "policy": [],
    }
    return pulling.fetch(asked | {"directory": str(place / "images"), "pulls": str(place / "pulls")})


def test_a_wrong_digest_is_refused_and_nothing_is_left(liar: Liar, tmp_path: Path) -> None:
    manifest, (blob,) = liar.image([BASE])
    path = f"/v2/app/blobs/{blob}"
    good = liar.answers[path]
    liar.answers[path] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(ImageError, match="another digest: nothing of it is used"):
        fetch(liar, tmp_path)
    assert not list((tmp_path / "pulls").rglob("*.part")) and not (tmp_path / "images/index.json").exists()
    liar.answers[path] = good
    liar.answers[f"/v2/app/manifests/{digest_of(b'pinned')}"] = manifest
    with pytest.raises(ImageError, match="not what was asked for"):
        fetch(liar, tmp_path, f"@{digest_of(b'pinned')}")
    liar.headers["/v2/app/manifests/1"] = {"Docker-Content-Digest": digest_of(b"else")}
    with pytest.raises(ImageError, match="not what was asked for"):
        fetch(liar, tmp_path)
    del liar.headers["/v2/app/manifests/1"]
    assert fetch(liar, tmp_path)["digest"] == digest_of(manifest)


def test_what_breaks_off_is_gone_on_with(liar: Liar, tmp_path: Path) -> None:
    _, (blob,) = liar.image([layer({"big": b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(20_000))})])
    path = f"/v2/app/blobs/{blob}"
    whole = len(liar.answers[path])
    liar.trouble[path] = [300_000, 100_000]
    fetch(liar, tmp_path)
    spans = [span for asked, span, _ in liar.asked if asked == path]
    assert spans == ["", "bytes=300000-", "bytes=400000-"] and whole > 500_000


def test_what_breaks_off_every_time_ends_and_the_next_attempt_goes_on(liar: Liar, tmp_path: Path) -> None:
    _, (blob,) = liar.image([layer({"big": b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(20_000))})])
    path = f"/v2/app/blobs/{blob}"
    liar.trouble[path] = [50_000] * 5
    with pytest.raises(ImageError, match="broke off 5 times"):
        fetch(liar, tmp_path)
    fetch(liar, tmp_path)
    assert [span for asked, span, _ in liar.asked if asked == path][-1] == "bytes=250000-"


def test_more_than_the_manifest_says_is_not_taken(liar: Liar, tmp_path: Path) -> None:
    _, (blob,) = liar.image([BASE])
    liar.answers[f"/v2/app/blobs/{blob}"] += b"x" * 1000
    with pytest.raises(ImageError, match="gave more for blob"):
        fetch(liar, tmp_path)
    assert not list((tmp_path / "pulls").rglob("*.part"))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"[]", "no JSON object"),
        (b"{" * 100, "not JSON"),
        (b" " * (5 << 20), "more than 4194304 bytes"),
        (json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), "schema 1 is not supported"),
        (json.dumps({"config": {"digest": "sha256:../../etc", "size": 1}, "layers": []}).encode(), "without sha256 digest"),
        (json.dumps({"config": {"digest": DIGEST, "size": 1 << 40}, "layers": []}).encode(), "more than 4194304"),
        (
            json.dumps({"config": {"digest": DIGEST, "size": 1}, "layers": [{"digest": DIGEST, "size": 1 << 50}]}).encode(),
            "too large",
        ),
        (json.dumps({"config": {"digest": DIGEST, "size": 1}, "layers": [{}] * 257}).encode(), "at most 256 layers"),
        (
            json.dumps({"manifests": [{"digest": DIGEST, "platform": {"os": "windows", "architecture": "amd64"}}]}).encode(),
            "windows/amd64",
        ),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(liar: Liar, tmp_path: Path, manifest: bytes, message: str) -> None:
    liar.answers["/v2/app/manifests/1"] = manifest
    with pytest.raises(ImageError, match=message):
        fetch(liar, tmp_path)


def test_a_token_is_fetched_and_credentials_follow_no_redirect(liar: Liar, tmp_path: Path) -> None:
    _, (blob,) = liar.image([BASE])
    elsewhere = Liar()
    try:
        path = f"/v2/app/blobs/{blob}"
        elsewhere.answers["/stored"] = liar.answers[path]
        liar.trouble[path] = [-307]
        liar.trouble["/v2/app/manifests/1"] = [-401]
        liar.headers[path] = {"Location": f"http://{elsewhere.host}/stored", "Content-Length": "0"}
        challenge = f'Bearer realm="http://{liar.host}/token",service="s",scope="repository:app:pull"'
        liar.headers["/v2/app/manifests/1"] = {"WWW-Authenticate": challenge}
        liar.answers["/token?scope=repository%3Aapp%3Apull&service=s"] = b'{"token": "abc"}'
        fetch(liar, tmp_path, credentials=[["maria", "secret"]])
        assert ("/v2/app/manifests/1", "", "Bearer abc") in liar.asked
        assert next(each for each in liar.asked if each[0].startswith("/token"))[2].startswith("Basic ")
        assert elsewhere.asked == [("/stored", "", "")]
    finally:
        elsewhere.server.shutdown()
        elsewhere.server.server_close()


def test_who_a_redirect_leads_to_is_given_no_credentials(liar: Liar, tmp_path: Path) -> None:
    _, (blob,) = liar.image([BASE])
    elsewhere = Liar()
    try:
        path = f"/v2/app/blobs/{blob}"
        liar.trouble[path] = [-307]
        liar.headers[path] = {"Location": f"http://{elsewhere.host}/stored", "Content-Length": "0"}
        elsewhere.trouble["/stored"] = [-401]
        elsewhere.headers["/stored"] = {"WWW-Authenticate": f'Bearer realm="http://{elsewhere.host}/token"'}
        with pytest.raises(ImageError, match=f"led to http://{elsewhere.host}, which wants credentials"):
            fetch(liar, tmp_path, credentials=[["maria", "secret"]])
        assert elsewhere.asked == [("/stored", "", "")]
    finally:
        elsewhere.server.shutdown()
        elsewhere.server.server_close()


def test_credentials_are_not_sent_in_the_clear(liar: Liar, tmp_path: Path) -> None:
    liar.image([BASE])
    repository = pulling.Repository(liar.host, "app", credentials=[("maria", "secret")])
    with pytest.raises(ImageError, match="not https"):
        repository._sign_in('Bearer realm="http://elsewhere.example/token"')


async def test_who_gives_up_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that wait the second goes on; with the last one the process ends."""
    from metaos.runtimes import pulls

    began, ended = asyncio.Event(), asyncio.Event()

    async def child(module: str, request: bytes, most: int) -> dict[str, Any]:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    monkeypatch.setattr(pulls.children, "ask", child)
    made = pulls.Pulls(str(tmp_path / "images"), (), ())
    first, second = (asyncio.create_task(made.fetch("r.example/app:1", Pull())) for _ in range(2))
    await began.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not ended.is_set()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asyncio.wait_for(ended.wait(), 10)
    assert not made._running


def test_an_image_cannot_take_the_memory_of_the_machine() -> None:
    script = "import metaos.runtimes.pulling as p; p.fetch = lambda asked: bytearray(p.MEMORY_BYTES); p.main()"
    done = subprocess.run([sys.executable, "-c", script], input='{"image": "a:1"}', capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["reason"] == "ErrImagePull" and "takes more than 1024 MiB of memory" in said["message"]


def test_what_is_here_is_not_swept_while_another_unpacks(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path / "images"))
    with store._staging() as staging, store._locked():
        store._sweep()
        assert Path(staging).is_dir()
    left = tmp_path / "images/new-left"
    left.mkdir()
    (left / "lock").touch()
    with store._locked():
        store._sweep()
    assert not left.exists()
