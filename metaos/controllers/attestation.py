"""Attestation: says of every site that ``spec.attestation`` asks for it whether its agent's software is what is expected.

The answer is the condition ``Attested`` with its reason, and ``status.attested``: the verifier, for as long as it holds. What
each verifier proves is its own: see ``metaos.security.attestation``.
"""

import logging
from collections.abc import Callable

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.plugins.points import AttestationVerifier, Verdict
from metaos.plugins.registry import names, provision
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, condition, deleting, ref, with_condition

NAME = "attestation"
GROUP = "metaos.attestation"
DEFAULT_AGE = 86400.0
#: A verifier that failed is asked again after this long.
FAILED_SECONDS = 60.0
#: So much of its error is told.
MAX_ERROR = 512

log = logging.getLogger(__name__)


class AttestationReconciler:
    """Keys are Clusters. ``roots``: the certificates of the hub's authorities, PEM."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, roots: Callable[[], bytes]) -> None:
        self._client, self._clock, self._roots = client, clock, roots
        self._clusters = manager.informer(scheme.CLUSTER)
        #: Made once each. Bounded by what is installed.
        self._verifiers: dict[str, AttestationVerifier] = {}

    async def reconcile(self, about: ObjectRef) -> Result:
        cluster = self._clusters.get(about.name)
        if cluster is None or deleting(cluster):
            return DONE
        asked, status = (cluster.get("spec") or {}).get("attestation"), cluster.get("status") or {}
        now = self._clock.now()
        if asked is None:
            if condition(cluster, "Attested") is None:
                return DONE
            kept = [c for c in status["conditions"] if c["type"] != "Attested"]
            found = {k: v for k, v in status.items() if k != "attested"} | {"conditions": kept}
            await self._client.update(cluster | {"status": found}, subresource="status")
            return DONE
        word = str(asked.get("verifier") or "software")
        verdict = self._verdict(cluster, word, now)
        conditions = status.get("conditions") or ()
        new = with_condition(conditions, "Attested", str(verdict.good), verdict.reason, verdict.message, now)
        found = {k: v for k, v in status.items() if k != "attested"} | {"conditions": new}
        found |= {"attested": word} if verdict.good else {}
        if found != status:
            await self._client.update(cluster | {"status": found}, subresource="status")
        return Result(requeue_after=max(1.0, verdict.until - now)) if verdict.until is not None else DONE

    def _verdict(self, cluster: Obj, word: str, now: float) -> Verdict:
        if word not in self._verifiers and word not in names(GROUP):
            known = ", ".join(names(GROUP))
            return Verdict(False, "NoVerifier", f"there is no verifier {word!r}: install it, or name one of {known}")
        asked, evidence = cluster["spec"]["attestation"], (cluster.get("status") or {}).get("attestation") or {}
        age = float(asked.get("maxAgeSeconds") or DEFAULT_AGE)
        expected = [str(m) for m in asked.get("measurements") or ()]
        site, roots = cluster["metadata"]["name"], self._roots()
        try:
            if word not in self._verifiers:
                self._verifiers[word] = provision(GROUP, word)
            verdict = self._verifiers[word].verify(site, evidence, expected, age, roots, now)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"its answer is a {type(verdict).__name__}, not a Verdict")
        except Exception as error:
            # Others wrote it, and what a site shows is anything: what nobody could judge is not good, whatever was said before.
            log.exception("the verifier %r failed with what %s shows", word, site)
            text = f"the verifier {word!r} failed ({type(error).__name__}: {str(error)[:MAX_ERROR]}): the hub's log has the whole"
            return Verdict(False, "VerifierFailed", f"{text}; it is asked again in {FAILED_SECONDS:g} s", now + FAILED_SECONDS)
        return verdict


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: for sites whose evidence or whose expectations changed."""
    manager.add(AttestationReconciler(manager, client, clock, settings.roots), [])

    def basis(obj: Obj | None) -> object:
        spec, status = (obj or {}).get("spec") or {}, (obj or {}).get("status") or {}
        return spec.get("attestation"), status.get("attestation"), status.get("attested")

    def changed(old: Obj | None, new: Obj | None) -> None:
        if new is not None and (old is None or basis(old) != basis(new)):
            manager.enqueue(NAME, ref(new))

    manager.informer(scheme.CLUSTER).on_change(changed)
