"""Whether a pod of one site may connect to a pod of another: a Service must lead there, and NetworkPolicies must allow it.

Who the caller is comes from the agent of its site and is checked here against what the hub knows: the pod must be one of
that site's, and its labels are those of its mirror. The target's agent is told the checked identity, and decides again.
"""

from __future__ import annotations

from typing import Any

from metaos.network.policies import Peer, named_ports, refusal
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import CLUSTER_LABEL, Obj, cluster_namespace, labels, name, namespace
from metaos.resources.services import dialled

#: What a site may open streams to another site's pod for: one connection, or datagrams.
PROTOCOLS = {"dial": "TCP", "datagrams": "UDP"}
#: And for the volumes of work that moves to it.
VOLUMES = "volumes"


class Refused(Exception):
    """The message says why."""


class DialRule:
    """A site may dial a pod on another site if a Service leads there, in a namespace in which it has work."""

    def __init__(self, manager: Manager) -> None:
        self._slices = manager.informer(scheme.ENDPOINT_SLICE)
        self._works = manager.informer(scheme.WORK)
        self._pods = manager.informer(scheme.POD)
        self._policies = manager.informer(scheme.NETWORK_POLICY)
        self._namespaces = manager.informer(scheme.NAMESPACE)

    def __call__(self, source: str, target: str, header: dict[str, Any]) -> dict[str, Any]:
        """The header for the target. Raises ``Refused``."""
        if header.get("type") == VOLUMES:
            return self._volumes(source, target, header)
        where, pod = str(header.get("namespace") or ""), str(header.get("pod") or "")
        port, kind = header.get("port"), str(header.get("type"))
        protocol = PROTOCOLS[kind]
        if not any(labels(w).get(CLUSTER_LABEL) == source for w in self._works.by_index("workloadNamespace", where)):
            raise Refused(f"site {source} has no work in namespace {where}")
        if not isinstance(port, int) or not self._leads(where, pod, target, port, protocol):
            raise Refused(f"no service in namespace {where} leads to {protocol} port {port} of pod {pod} on site {target}")
        caller = self._caller(source, where, header.get("source"), protocol)
        policies = self._policies.list(where)
        if policies:
            mirror = self._pods.get(pod, where) or {"metadata": {"name": pod, "namespace": where}}
            why = refusal(policies, caller, self._peer(mirror, protocol), port, protocol)
            if why is not None:
                raise Refused(why)
        said = {
            "namespace": caller.namespace,
            "pod": caller.name,
            "labels": caller.labels,
            "namespaceLabels": caller.namespace_labels,
            **({"address": caller.address} if caller.address else {}),
        }
        return {"type": kind, "namespace": where, "pod": pod, "port": port, "source": said}

    def _volumes(self, receiver: str, sender: str, header: dict[str, Any]) -> dict[str, Any]:
        """Only where both sites' Works say so now, of the same attempt: so chunks go only where the work was decided to be."""
        key, attempt = str(header.get("work") or ""), header.get("attempt")
        told = [self._works.get(key, cluster_namespace(site)) for site in (receiver, sender)]
        takes, gives = (((found or {}).get("spec") or {}).get("volumes") or {} for found in told)
        receive, send = takes.get("receive") or {}, gives.get("send") or {}
        if (receive.get("from"), receive.get("attempt"), bool(receive.get("adopt"))) != (sender, attempt, False):
            raise Refused(f"site {receiver} is not to have the volumes of {key} from site {sender} now")
        if (send.get("to"), send.get("attempt")) != (receiver, attempt):
            raise Refused(f"site {sender} is not told yet to send the volumes of {key} to site {receiver}")
        return {"type": VOLUMES, "work": key, "attempt": attempt, "source": {"site": receiver}}

    def _leads(self, where: str, pod: str, target: str, port: int, protocol: str) -> bool:
        return any(
            endpoint.get("nodeName") == target and dialled(endpoint.get("targetRef") or {}) == pod
            for found in self._slices.list(where)
            if any(p.get("port") == port and (p.get("protocol") or "TCP") == protocol for p in found.get("ports") or ())
            for endpoint in found.get("endpoints") or ()
        )

    def _caller(self, site: str, where: str, claimed: Any, protocol: str) -> Peer:
        """Pods reach Services of their own namespace; those of a Kubernetes member others, too, where these are imported. One
        that the hub does not know has no labels, and what is from outside of the federation is of no namespace."""
        said = claimed if isinstance(claimed, dict) else {}
        if said.get("outside"):
            return Peer("", "", {}, {}, address=str(said.get("address") or ""))
        pod, home = str(said.get("pod") or ""), str(said.get("namespace") or where)
        mirror = self._pods.get(pod, home) if pod else None
        if mirror is not None and (mirror.get("spec") or {}).get("nodeName") == site:
            return self._peer(mirror, protocol)
        return Peer(where, "", {}, self._labels(where)) if home == where else Peer("", "", {}, {})

    def _peer(self, pod: Obj, protocol: str) -> Peer:
        # With the label that mirrors have, on a user's own Pod too, so that policies may speak of sites.
        site = (pod.get("spec") or {}).get("nodeName")
        own = labels(pod) | ({CLUSTER_LABEL: site} if site else {})
        return Peer(namespace(pod), name(pod), own, self._labels(namespace(pod)), named_ports(pod, protocol))

    def _labels(self, where: str) -> dict[str, str]:
        return dict(labels(self._namespaces.get(where) or {}))
