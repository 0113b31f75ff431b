"""One bucket of an S3-compatible store: objects put, read, listed and deleted, with bounds.

For the short-lived process that backs volumes up or restores them, never for the agent itself: urllib3 brings TLS, retries and
``Retry-After``. Requests are signed with AWS Signature Version 4 (the public specification, "Authenticating Requests:
Using the Authorization Header"); addresses have the bucket in their path, which every store understands. Credentials go into
no message. Raises :class:`StoreError`.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Retry, Timeout

from metaos.data.backups import never_a_store

#: Of one object that is read or written, and of a listing's page.
MAX_OBJECT, MAX_PAGE = 64 << 20, 4 << 20
#: A listing that has more pages than this is refused: a thousand names each.
MAX_PAGES = 10_000
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 30.0
#: Each request is tried so often, after so long and then twice as long each time.
TRIES, BACK_OFF_SECONDS = 4, 0.25
_RETRY_AFTER_MOST = 20
_PIECE = 1 << 18

UNREACHABLE, FORBIDDEN, MISSING, FULL = "StoreUnreachable", "WrongCredentials", "BucketMissing", "StoreFull"
REFUSED, WRONG_CLOCK, DAMAGED = "StoreRefused", "WrongClock", "ChecksumWrong"
#: What stores say, as reasons of ours.
_CODES = {
    "NoSuchBucket": MISSING,
    "AccessDenied": FORBIDDEN,
    "AllAccessDisabled": FORBIDDEN,
    "InvalidAccessKeyId": FORBIDDEN,
    "SignatureDoesNotMatch": FORBIDDEN,
    "ExpiredToken": FORBIDDEN,
    "RequestTimeTooSkewed": WRONG_CLOCK,
    "QuotaExceeded": FULL,
    "InsufficientStorage": FULL,
    "XMinioStorageFull": FULL,
    "EntityTooLarge": REFUSED,
}


class StoreError(OSError):
    """``reason`` for programs, in CamelCase; ``message`` for people, with the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True, slots=True)
class Credentials:
    """``region``: part of what is signed; stores that have none take any."""

    key_id: str
    secret: str
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True)
class Listed:
    """``modified``: when it was written, by the store's clock (seconds since the epoch)."""

    key: str
    size: int
    modified: float


def signed(
    credentials: Credentials,
    method: str,
    host: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    payload: str,
    now: float,
) -> dict[str, str]:
    """``headers`` with those that sign the request. ``path``: as it is sent, already quoted; ``payload``: SHA-256 of the body in
    hex; ``now``: seconds since the epoch. Pure."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    every = {**headers, "x-amz-content-sha256": payload, "x-amz-date": stamp}
    shown = sorted({"host": host, **{name.lower(): " ".join(value.split()) for name, value in every.items()}}.items())
    names = ";".join(name for name, _ in shown)
    asked = "&".join(f"{name}={value}" for name, value in sorted((_quoted(n), _quoted(v)) for n, v in query))
    canonical = "\n".join((method, path, asked, *(f"{name}:{value}" for name, value in shown), "", names, payload))
    scope = f"{stamp[:8]}/{credentials.region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    said = f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    return {**every, "Authorization": said}


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")


class Bucket:
    """``endpoint``: ``https://HOST[:PORT]`` or, where that is said on purpose, ``http://…``. ``authorities``: PEM; they alone are
    trusted, instead of the machine's. ``now``: seconds since the epoch."""

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        credentials: Credentials,
        *,
        now: Callable[[], float],
        authorities: str = "",
        tries: int = TRIES,
        silent_seconds: float = SILENT_SECONDS,
        back_off_seconds: float = BACK_OFF_SECONDS,
    ) -> None:
        where = urlsplit(endpoint)
        if where.scheme not in ("http", "https") or not where.hostname or where.query or where.path not in ("", "/"):
            raise StoreError(REFUSED, f"endpoint {endpoint!r} is no address of a store: write https://HOST or https://HOST:PORT")
        self.name, self.bucket = f"store {where.netloc}", bucket
        self._host, self._base = where.netloc, f"{where.scheme}://{where.netloc}"
        self._credentials, self._now = credentials, now
        retry = _Retry(
            total=tries - 1,
            redirect=False,
            allowed_methods=None,
            backoff_factor=back_off_seconds,
            backoff_jitter=0.2,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
        )
        options: dict[str, Any] = {
            "retries": retry,
            "timeout": Timeout(connect=CONNECT_SECONDS, read=silent_seconds),
            "maxsize": 4,
        }
        if where.scheme == "https":
            try:
                options["ssl_context"] = ssl.create_default_context(cadata=authorities or None)
            except ssl.SSLError as error:
                raise StoreError(REFUSED, f"caBundle of {self.name} holds no certificates in PEM: {error.reason}") from error
        proxy = "" if urllib.request.proxy_bypass(where.hostname) else urllib.request.getproxies().get(where.scheme, "")
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        if not proxy:
            self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def get(self, key: str, most: int = MAX_OBJECT) -> bytes | None:
        """An object of at most ``most`` bytes; ``None`` where there is none."""
        status, _, data = self._ask("GET", key, most=most)
        return None if status == 404 else data

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        """Whether it was written: with ``new`` not where there is one already (``If-None-Match: *``)."""
        status, _, _ = self._ask("PUT", key, data, {"If-None-Match": "*"} if new else {}, allowed=(409, 412) if new else ())
        return status not in (409, 412)

    def delete(self, key: str) -> None:
        """One that is not there is no error."""
        self._ask("DELETE", key)

    def list(self, prefix: str) -> Iterator[Listed]:
        """Every object whose key begins so, in the order of the keys' UTF-8."""
        after, last = "", ""
        for _ in range(MAX_PAGES):
            query = [("list-type", "2"), ("prefix", prefix)] + ([("continuation-token", after)] if after else [])
            _, _, data = self._ask("GET", "", query=query, most=MAX_PAGE)
            page = self._document(data)
            for each in page.iter("Contents"):
                key, size = each.findtext("Key") or "", each.findtext("Size") or ""
                if not key.startswith(prefix) or key <= last or not size.isdigit():
                    raise StoreError(
                        REFUSED, f"{self.name} lists {key[:200]!r}, which is not what was asked for: nothing of it is used"
                    )
                last = key
                yield Listed(key, int(size), _time(each.findtext("LastModified") or ""))
            after = page.findtext("NextContinuationToken") or ""
            if (page.findtext("IsTruncated") or "").strip() != "true":
                return
            if not after:
                raise StoreError(REFUSED, f"{self.name} says that its listing goes on, and not where")
        raise StoreError(REFUSED, f"{self.name} lists more than {MAX_PAGES} pages below {prefix!r}")

    def check(self) -> float:
        """Whether the bucket is there and ours to list; the store's time (seconds since the epoch)."""
        _, headers, _ = self._ask("GET", "", query=[("list-type", "2"), ("max-keys", "1")], most=MAX_PAGE)
        try:
            return parsedate_to_datetime(headers.get("Date", "")).timestamp()
        except ValueError:
            return self._now()

    # -- requests ------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        key: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        most: int = MAX_PAGE,
        allowed: Sequence[int] = (),
    ) -> tuple[int, Mapping[str, str], bytes]:
        path = quote(f"/{self.bucket}/{key}" if key else f"/{self.bucket}", safe="/-_.~")
        payload = hashlib.sha256(body).hexdigest()
        every = signed(self._credentials, method, self._host, path, query, headers or {}, payload, self._now())
        url = self._base + path + ("?" + "&".join(f"{_quoted(n)}={_quoted(v)}" for n, v in query) if query else "")
        for again in range(TRIES, 0, -1):
            try:
                answer = self._pool.request(method, url, body=body or None, headers=every, preload_content=False)
                try:
                    data = self._read(answer, most)
                finally:
                    answer.release_conn()
                break
            except _NoStore as error:
                raise StoreError(REFUSED, f"{self.name}: {error}: correct spec.endpoint, or what its name leads to") from error
            except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError) as error:
                # Broken off within the answer, which the library does not ask for again.
                if again == 1:
                    raise self._unreachable(error) from error
            except urllib3.exceptions.HTTPError as error:
                raise self._unreachable(error) from error
        if 200 <= answer.status < 300 or answer.status in allowed:
            return answer.status, answer.headers, data
        code = self._code(data)
        if answer.status == 404 and key and code != "NoSuchBucket":
            return 404, answer.headers, b""
        raise self._failed(answer.status, code, f"{method} {key or self.bucket}")

    def _read(self, answer: urllib3.BaseHTTPResponse, most: int) -> bytes:
        data = bytearray()
        while piece := answer.read(_PIECE, decode_content=False):
            data += piece
            if len(data) > most:
                answer.close()
                raise StoreError(REFUSED, f"{self.name} gave more than {most} bytes: nothing of it is used")
        return bytes(data)

    def _document(self, data: bytes) -> ElementTree.Element:
        """Without namespaces: some stores write none. Bounded; entities are bounded by expat, and the process by its limits."""
        try:
            root = ElementTree.fromstring(data)  # noqa: S314
        except ElementTree.ParseError as error:
            raise StoreError(REFUSED, f"{self.name} does not answer as S3 does: what it lists is no XML ({error})") from error
        for each in root.iter():
            each.tag = each.tag.rpartition("}")[2]
        return root

    def _code(self, data: bytes) -> str:
        try:
            return (self._document(data).findtext("Code") or "")[:100] if data else ""
        except StoreError:
            return ""

    def _failed(self, status: int, code: str, what: str) -> StoreError:
        reason = _CODES.get(code) or {401: FORBIDDEN, 403: FORBIDDEN, 404: MISSING, 507: FULL}.get(status, "")
        if not reason:
            reason = UNREACHABLE if status >= 500 or status == 429 else REFUSED
        said = f"HTTP {status} {code}".rstrip()
        remedy = {
            MISSING: f"bucket {self.bucket} is not there: make it, or correct spec.bucket",
            FORBIDDEN: f"it refuses {self.bucket} to us: correct the Secret's accessKeyId and secretAccessKey, or their rights",
            WRONG_CLOCK: "this site's clock and the store's differ by too much: set the clock, best with NTP",
            FULL: "it is full: give it room, or keep fewer backups",
            UNREACHABLE: f"it answers so for the {TRIES}th time: it is tried again later",
            REFUSED: f"it does not take {what[:200]!r}",
        }[reason]
        return StoreError(reason, f"{self.name}: {remedy} ({said})")

    def _unreachable(self, error: Exception) -> StoreError:
        cause = getattr(error, "reason", None) or error
        text = str(cause).rpartition(": ")[2] if isinstance(cause, urllib3.exceptions.HTTPError) else str(cause)
        said = f"{type(cause).__name__}: {text}"[:200]
        return StoreError(
            UNREACHABLE, f"{self.name} cannot be reached, {TRIES} times: {said}. Look at spec.endpoint and the network"
        )


class _NoStore(Exception):
    """Where a name has led to is never a store."""


def _checked(sock: socket.socket) -> socket.socket:
    """By the address to which it is connected, as a name can lead anywhere, and each time elsewhere."""
    if why := never_a_store(str(sock.getpeername()[0])):
        sock.close()
        raise _NoStore(why)
    return sock


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _SecureConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Retry(Retry):
    """As urllib3's, but a store cannot make us wait for hours."""

    def get_retry_after(self, response: Any) -> float | None:
        found = super().get_retry_after(response)
        return None if found is None else min(found, _RETRY_AFTER_MOST)


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
