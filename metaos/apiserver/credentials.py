"""The hub's own certificates while it serves: renewed before they end, and followed when the authority is replaced.

Connections that stand go on; every new handshake gets what is present. What is asked for stands in a ConfigMap
(``nemo-system/certificate-authority``): ``rotate`` and ``retire`` name authorities by fingerprint, so that an order that was
carried out already asks for nothing, also after a crash. ``current``, ``trusted`` and ``ca.crt`` are the hub's answer.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping

from metaos.files import write_private
from metaos.pki import ADMIN, Pki, render_kubeconfig
from metaos.security.identity import KeyPair

log = logging.getLogger(__name__)

RECORD = "certificate-authority"
#: The hub looks at its certificates so often, and whenever something is asked for.
CHECK_SECONDS = 3600.0


class Credentials:
    """``hosts`` are the names and addresses by which the hub is known; ``withdrawn_time`` of the administrator's
    certificates."""

    def __init__(self, pki: Pki, hosts: tuple[str, ...], withdrawn_time: Callable[[], float] = lambda: float("-inf")) -> None:
        self._pki, self._hosts, self._withdrawn_time = pki, hosts, withdrawn_time
        self._server: KeyPair | None = None
        self._trusted: dict[str, str] = {}
        self._present = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context = self._present
        self.refresh()
        #: For the listening socket: each handshake takes its certificate and whom it trusts from the present context.
        self.context = self._made()
        self.context.sni_callback = self._take_present

    def trusts(self, issuer: str) -> bool:
        """Whether certificates that this authority made still count."""
        return issuer in self._trusted

    def refresh(self) -> bool:
        """Renews what is due. Whether new handshakes see something else than before."""
        server = self._pki.server(self._hosts)
        if server == self._server and self._pki.trusted == self._trusted:
            return False
        self._server, self._trusted = server, self._pki.trusted
        self._present = self._made()
        return True

    def obey(self, asked: Mapping[str, str]) -> bool:
        """Does what the record asks for. Whether the authorities have changed."""
        changed = False
        if asked.get("rotate") == self._pki.authority.fingerprint:
            self._pki.rotate()
            log.warning("a new authority, %s, signs certificates from now on", self._pki.authority.name)
            changed = True
        for fingerprint in asked.get("retire", "").split(","):
            if fingerprint and self._pki.retire(fingerprint):
                log.warning("the authority with the fingerprint %s is trusted no more", fingerprint)
                changed = True
        return changed

    def record(self) -> dict[str, str]:
        """The hub's part of the record."""
        trusted = " ".join(self._pki.trusted.values())
        return {"current": self._pki.authority.fingerprint, "trusted": trusted, "ca.crt": self._pki.bundle.decode()}

    def write_kubeconfig(self, url: str) -> None:
        """The administrator's, where it is not what it should be."""
        admin = self._pki.admin(self._withdrawn_time())
        text = render_kubeconfig(url, self._pki.bundle, admin.certificate, admin.key, ADMIN).encode()
        path = self._pki.directory.parent / "admin.kubeconfig"
        if not path.exists() or path.read_bytes() != text:
            write_private(path, text)

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._pki.path("server"))
        context.load_verify_locations(cadata=self._pki.bundle.decode())
        # Optional: those who join have a token instead.
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _take_present(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._present
