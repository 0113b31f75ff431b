"""One repository of an OCI registry, read only: manifests and blobs, each checked against its digest, with bounds.

For the short-lived process that fetches an image (``fetching_images.py``), never for the agent itself: urllib3 brings redirects
(without the credentials, where they lead elsewhere), retries and ``Retry-After``. OCI distribution specification 1.1; Docker's
token authentication. Raises :class:`ImageError`; credentials go into no message.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.util import Retry, Timeout, make_headers

from metaos.plugins.points import ImageError

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
#: Of a manifest or index, as the distribution specification recommends; of a token.
MAX_MANIFEST, MAX_TOKEN = 4 << 20, 1 << 18
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 60.0
#: Each request is tried so often; a blob whose transfer breaks off is resumed so often.
TRIES, RESUMPTIONS = 4, 5
_RETRY_AFTER_MOST = 60
_CHUNK = 1 << 18
_DOCKER_HUB = "registry-1.docker.io"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


def failed(message: str) -> ImageError:
    return ImageError("ErrImagePull", message)


class Repository:
    """``registry`` and ``name`` as in a normalised image name. ``credentials``: (user, password), tried in turn where the
    registry refuses the one before. ``plain``: HTTP without TLS; ``ca_file``: further authorities, in PEM."""

    def __init__(
        self,
        registry: str,
        name: str,
        *,
        credentials: Sequence[tuple[str, str]] = (),
        plain: bool = False,
        ca_file: str = "",
    ) -> None:
        self.registry, self.name = registry, name
        host = _DOCKER_HUB if registry == "docker.io" else registry
        scheme = "http" if plain else "https"
        self._plain, self._base = plain, f"{scheme}://{host}/v2/{name}"
        self._untried: list[tuple[str, str]] = list(credentials)
        self._given: tuple[str, str] | None = self._untried.pop(0) if self._untried else None
        self._authorization = ""
        context = ssl.create_default_context()
        if ca_file:
            try:
                context.load_verify_locations(ca_file)
            except OSError as error:
                raise failed(f"the certificates of registry {registry} in {ca_file} cannot be read: {error}") from error
        # What is refused or not there is no reason to ask again; what is too much, or broken, is.
        retry = _Retry(
            total=TRIES - 1,
            redirect=5,
            backoff_factor=0.5,
            backoff_jitter=0.2,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
            raise_on_redirect=True,
        )
        options: dict[str, Any] = {
            "retries": retry,
            "timeout": Timeout(connect=CONNECT_SECONDS, read=SILENT_SECONDS),
            "ssl_context": context,
        }
        proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme, "")
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def manifest(self, reference: str) -> tuple[str, bytes] | None:
        """(digest, document) of a tag or digest; ``None`` where there is none."""
        answer = self._get(f"{self._base}/manifests/{reference}", {"Accept": ", ".join(MANIFESTS)})
        try:
            if answer.status == 404:
                return None
            self._good(answer, f"its manifest {reference}")
            data = self._read(answer, MAX_MANIFEST, f"its manifest {reference}")
        finally:
            answer.release_conn()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        said = answer.headers.get("Docker-Content-Digest", "")
        wanted = reference if reference.startswith("sha256:") else said if said.startswith("sha256:") else digest
        if wanted != digest:
            raise failed(
                f"registry {self.registry} gave a manifest of {self.name} with the digest {digest} for {wanted}: what it says is "
                "not what was asked for, and nothing of it is used"
            )
        return digest, data

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to a manifest: by the referrers API, else by its fallback tag."""
        answer = self._get(f"{self._base}/referrers/{digest}", {"Accept": MANIFESTS[0]})
        try:
            data = self._read(answer, MAX_MANIFEST, "its referrers") if answer.status == 200 else b""
        finally:
            answer.release_conn()
        if not data:
            found = self.manifest(digest.replace(":", "-"))
            data = b"{}" if found is None else found[1]
        return [each for each in document(data, "its referrers").get("manifests") or () if isinstance(each, dict)]

    def small(self, descriptor: Mapping[str, Any]) -> bytes:
        """A blob of at most ``MAX_MANIFEST`` bytes."""
        digest = str(descriptor.get("digest"))
        answer = self._get(f"{self._base}/blobs/{digest}", {})
        try:
            self._good(answer, f"its blob {digest}")
            data = self._read(answer, MAX_MANIFEST, f"its blob {digest}")
        finally:
            answer.release_conn()
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise self._lied(digest)
        return data

    def blob(self, digest: str, size: int, path: str) -> None:
        """Into the file, which appears when it is whole and has its digest. What an earlier attempt left is gone on with."""
        if os.path.exists(path):
            return
        part = path + ".part"
        tries = RESUMPTIONS
        while (have := os.path.getsize(part) if os.path.exists(part) else 0) < size:
            answer = self._get(f"{self._base}/blobs/{digest}", {"Range": f"bytes={have}-"} if have else {})
            try:
                self._good(answer, f"its blob {digest}")
                with open(part, "ab" if answer.status == 206 else "wb") as out:
                    while data := answer.read1(_CHUNK, decode_content=False):
                        if out.tell() + len(data) > size:
                            raise self._longer(digest, size, part)
                        out.write(data)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                    raise
                tries -= 1
                if not tries:
                    raise failed(
                        f"registry {self.registry} broke off {RESUMPTIONS} times in blob {digest}: {_said(error)}"
                    ) from error
                continue
            finally:
                answer.close()
            if os.path.getsize(part) < size:
                tries -= 1
                if not tries:
                    raise failed(
                        f"registry {self.registry} gave less of blob {digest} than its {size} bytes, {RESUMPTIONS} times"
                    )
        with open(part, "rb") as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest or os.path.getsize(part) != size:
            os.unlink(part)
            raise self._lied(digest)
        os.rename(part, path)

    def _longer(self, digest: str, size: int, part: str) -> ImageError:
        os.unlink(part)
        return failed(f"registry {self.registry} gave more for blob {digest} than the {size} bytes of its manifest")

    def _lied(self, digest: str) -> ImageError:
        return failed(
            f"registry {self.registry} gave something for {self.name}@{digest} that has another digest: nothing of it is used"
        )

    def _read(self, answer: urllib3.BaseHTTPResponse, most: int, what: str) -> bytes:
        data = bytearray()
        try:
            while piece := answer.read(_CHUNK):
                data += piece
                if len(data) > most:
                    raise failed(f"registry {self.registry}: {what} has more than {most} bytes")
        except urllib3.exceptions.HTTPError as error:
            raise failed(f"registry {self.registry} broke off in {what}: {_said(error)}") from error
        return bytes(data)

    def _good(self, answer: urllib3.BaseHTTPResponse, what: str) -> None:
        if answer.status in (200, 206):
            return
        if answer.status in (401, 403):
            known = "as one without credentials" if self._given is None else f"as user {self._given[0]!r}"
            raise failed(
                f"registry {self.registry} refuses {self.name} to us {known} (HTTP {answer.status}): name a Secret of type "
                "kubernetes.io/dockerconfigjson with credentials for it in imagePullSecrets"
            )
        raise failed(f"registry {self.registry} answered HTTP {answer.status} for {what}")

    def _get(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Signs in where the registry asks for it."""
        for _ in range(2 + len(self._untried)):
            signed = {**headers, **({"Authorization": self._authorization} if self._authorization else {})}
            answer = self._send(url, signed)
            if answer.status != 401:
                return answer
            if self._authorization and self._untried:
                self._given = self._untried.pop(0)
            elif self._authorization:
                return answer
            answer.release_conn()
            if asker := self._elsewhere(url, answer):
                raise failed(
                    f"registry {self.registry} led to {asker}, which wants credentials: those of a registry go nowhere else"
                )
            self._authorization = self._sign_in(answer.headers.get("WWW-Authenticate", ""))
            if not self._authorization:
                return answer
        return answer

    def _send(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request("GET", url, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise failed(
                f"registry {self.registry} cannot be reached, {TRIES} times: {_said(error)}. Where that is so for good, bring "
                "the image with 'nemo image import FILE', at sites that run podman with 'podman load'"
            ) from error

    def _elsewhere(self, url: str, answer: urllib3.BaseHTTPResponse) -> str:
        """The other host that a redirect led to; empty where there was none."""
        where = url
        for step in answer.retries.history if answer.retries else ():
            where = urljoin(where, step.redirect_location or "")
        there = urlsplit(where)
        return "" if where.startswith(f"{self._base.partition('/v2/')[0]}/") else f"{there.scheme}://{there.netloc}"

    def _sign_in(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return "" if self._given is None else make_headers(basic_auth=":".join(self._given))["authorization"]
        if scheme.lower() != "bearer":
            return ""
        asked = dict(_PARAMETER.findall(rest))
        realm = urlsplit(asked.get("realm", ""))
        if realm.scheme != "https" and not (self._plain and realm.scheme == "http"):
            raise failed(f"registry {self.registry} wants credentials sent to {realm.geturl()[:200]!r}, which is not https")
        query = {"scope": asked.get("scope") or f"repository:{self.name}:pull"}
        if asked.get("service"):
            query["service"] = asked["service"]
        headers = {} if self._given is None else make_headers(basic_auth=":".join(self._given))
        answer = self._send(f"{realm.geturl()}{'&' if realm.query else '?'}{urlencode(query)}", headers)
        try:
            self._good(answer, "a token")
            said = document(self._read(answer, MAX_TOKEN, "its token"), "its token")
        finally:
            answer.release_conn()
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise failed(f"registry {self.registry} gave no token")
        return f"Bearer {token}"


class _Retry(Retry):
    """As urllib3's, but a registry cannot make us wait for hours."""

    def get_retry_after(self, response: Any) -> float | None:
        found = super().get_retry_after(response)
        return None if found is None else min(found, _RETRY_AFTER_MOST)


def document(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise failed(f"{what} is not JSON") from error
    if not isinstance(found, dict):
        raise failed(f"{what} is no JSON object")
    return found


def _said(error: Exception) -> str:
    """Without the address, which a redirect may have signed."""
    reason = getattr(error, "reason", None) or error
    text = str(reason).rpartition(": ")[2] if isinstance(reason, urllib3.exceptions.HTTPError) else str(reason)
    return f"{type(reason).__name__}: {text}"[:200]
