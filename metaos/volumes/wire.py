"""What sender and receiver of a volume say to each other, and how: TLS 1.3 with both sites' certificates, from end to end.

A frame is its kind (1 byte), its length (4 bytes, big endian) and so many bytes. The receiver asks, the sender answers::

    ROUND {"wait": s}   →  STATE {"final", "claims": [[name, bytes]]}, then one MANIFEST for each
    WANT digests        →  for each in order BLOCK (compressed), or GONE: it has changed since
    DONE {"digests"}    →  DONE: those are the digests of the last state

The hub carries the bytes. What it could do as the authority that made the certificates is told in docs/adr/0019.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

#: A block of 16 MiB and what compression adds; a manifest has more and comes in parts.
MAX_FRAME = (16 << 20) + (1 << 20)
#: Digests in one WANT.
BATCH = 1024
#: Claims of one workload.
MAX_CLAIMS = 256
#: A peer that says nothing for so long is gone; a look at a volume may take a while.
SILENCE_SECONDS = 300.0
USER_PREFIX = "system:cluster:"


class Kind(IntEnum):
    ROUND = 1
    STATE = 2
    MANIFEST = 3
    WANT = 4
    BLOCK = 5
    GONE = 6
    DONE = 7
    FAILED = 8


class PeerError(ConnectionError):
    """The other side is not who it should be, breaks the protocol, or says why it cannot go on."""


class Line:
    """One end. Blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sent = self.received = 0

    def send(self, kind: Kind, data: bytes = b"") -> None:
        self._sock.sendall(bytes((kind,)) + len(data).to_bytes(4, "big") + data)
        self.sent += 5 + len(data)

    def say(self, kind: Kind, said: dict[str, Any]) -> None:
        self.send(kind, json.dumps(said).encode())

    def receive(self) -> tuple[Kind, bytes]:
        """Raises :class:`PeerError`, also with what the other side says with ``FAILED``."""
        head = self._exactly(5)
        length = int.from_bytes(head[1:], "big")
        try:
            kind = Kind(head[0])
        except ValueError:
            raise PeerError(f"the other site sends a frame of unknown kind {head[0]}: is it of another release?") from None
        if length > MAX_FRAME:
            raise PeerError(f"the other site sends a frame of {length} bytes: at most {MAX_FRAME} are taken")
        data = self._exactly(length)
        self.received += 5 + length
        if kind is Kind.FAILED:
            raise PeerError(f"the other site: {data[:1000].decode(errors='replace')}")
        return kind, data

    def expect(self, *kinds: Kind) -> tuple[Kind, bytes]:
        kind, data = self.receive()
        if kind not in kinds:
            raise PeerError(f"the other site says {kind.name} where {' or '.join(k.name for k in kinds)} was due")
        return kind, data

    def hear(self, kind: Kind) -> dict[str, Any]:
        _, data = self.expect(kind)
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise PeerError(f"what the other site says with {kind.name} is no JSON object")
        return said

    def _exactly(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            part = self._sock.recv(min(length, 1 << 20))
            if not part:
                raise PeerError("the connection to the other site has ended")
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def secured(sock: socket.socket, identity: Path, peer: str, now: Callable[[], float], *, server: bool) -> ssl.SSLSocket:
    """TLS over a connected socket, with this site's certificate from ``identity``; the other end must be site ``peer``. Raises
    :class:`PeerError`, ``ssl.SSLError``.

    Sites have certificates of clients, and OpenSSL takes none of those from a server; so one end's is looked at here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity / "agent.pem")
    authorities = (identity / "ca.pem").read_bytes()
    if server:
        context.load_verify_locations(cadata=authorities.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    sock.settimeout(SILENCE_SECONDS)
    found = context.wrap_socket(sock, server_side=server)
    try:
        shown = found.getpeercert(binary_form=True)
        if not shown:
            raise PeerError(f"site {peer!r} shows no certificate")
        _check(shown, authorities, peer, now())
    except BaseException:
        found.close()
        raise
    return found


def _check(shown: bytes, authorities: bytes, peer: str, now: float) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    leaf = x509.load_der_x509_certificate(shown)
    names = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [USER_PREFIX + peer]:
        raise PeerError(f"the other end is {', '.join(names)[:200]!r}, not site {peer!r}")
    if not leaf.not_valid_before_utc.timestamp() <= now <= leaf.not_valid_after_utc.timestamp():
        raise PeerError(f"the certificate of site {peer!r} is not valid now: is its clock, or this site's, right?")
    for authority in x509.load_pem_x509_certificates(authorities):
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return
    raise PeerError(f"the certificate of site {peer!r} is of an authority that this site does not know")
