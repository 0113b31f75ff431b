"""Who may do what: Kubernetes RBAC, and what a member's agent may touch. Pure functions over snapshots.

Source: Kubernetes, "Using RBAC Authorization" and "Using Node Authorization".
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from metaos.resources.meta import CLUSTER_LABEL, GROUP, Obj, cluster_namespace, labels, name, namespace, uid

#: Members of this group may do anything (Kubernetes' own name for it).
MASTERS = "system:masters"
#: The hub's own controllers.
CONTROLLER_MANAGER = "system:controller-manager"
#: The agents' group; a member's agent is the user ``system:cluster:NAME``.
CLUSTERS = "system:clusters"
CLUSTER_USER_PREFIX = "system:cluster:"
#: The bearer of a join token is the user ``system:bootstrap:ID``; it may ask for one certificate, and look at its request.
BOOTSTRAP_USER_PREFIX = "system:bootstrap:"
#: Who signs certificates of agents.
AGENT_SIGNER = "meta-os.eu/agent"
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"


@dataclass(frozen=True, slots=True)
class UserInfo:
    """An authenticated caller. A verified client certificate's CN is the name, its Os are the groups."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    #: What else is known of them: keys and their values.
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def shown(self) -> dict[str, Any]:
        """As the API writes it (``authentication.k8s.io/v1`` UserInfo)."""
        found: dict[str, Any] = {"username": self.name, "groups": list(self.groups)}
        if self.uid:
            found["uid"] = self.uid
        if self.extra:
            found["extra"] = {key: list(values) for key, values in self.extra}
        return found


@dataclass(frozen=True, slots=True)
class Attributes:
    """One request as authorisation sees it. ``resource`` is the plural; ``path`` is set instead for URLs that are no
    resource (``/version``). Verbs: get list watch create update patch delete deletecollection."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    #: The field selector of a list or watch.
    fields: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` says why, for the 403's message and for reviews."""

    allowed: bool
    reason: str = ""


ALLOWED = Decision(True)


def cluster_of(user: UserInfo) -> str | None:
    """The member whose agent ``user`` is, or ``None``. Both the name and the group must say so."""
    if CLUSTERS in user.groups and user.name.startswith(CLUSTER_USER_PREFIX):
        return user.name.removeprefix(CLUSTER_USER_PREFIX) or None
    return None


# -- RBAC --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``PolicyRule``. ``resource_names`` empty: all names."""

    verbs: frozenset[str]
    groups: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    resource_names: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rule: Mapping[str, Any]) -> Rule:
        return cls(
            frozenset(rule.get("verbs") or ()),
            frozenset(rule.get("apiGroups") or ()),
            frozenset(rule.get("resources") or ()),
            frozenset(rule.get("resourceNames") or ()),
            frozenset(rule.get("nonResourceURLs") or ()),
        )

    def allows(self, asked: Attributes) -> bool:
        if "*" not in self.verbs and asked.verb not in self.verbs:
            return False
        if asked.path:
            return any(p == "*" or p == asked.path or (p.endswith("*") and asked.path.startswith(p[:-1])) for p in self.paths)
        if "*" not in self.groups and asked.group not in self.groups:
            return False
        if not self._names_resource(asked):
            return False
        return not self.resource_names or asked.name in self.resource_names

    def _names_resource(self, asked: Attributes) -> bool:
        if "*" in self.resources:
            return True
        if not asked.subresource:
            return asked.resource in self.resources
        return f"{asked.resource}/{asked.subresource}" in self.resources or f"*/{asked.subresource}" in self.resources


@dataclass(frozen=True, slots=True)
class Roles:
    """A snapshot of roles and bindings: (subject kind, name) → (namespace or empty for everywhere, rules, whose role)."""

    grants: Mapping[tuple[str, str], tuple[tuple[str, tuple[Rule, ...], str], ...]]

    @classmethod
    def of(cls, roles: Iterable[Obj], bindings: Iterable[Obj]) -> Roles:
        """From Roles, ClusterRoles and both kinds of bindings. A binding to a missing role grants nothing."""
        rules: dict[tuple[str, str, str], tuple[Rule, ...]] = {}
        for role in roles:
            rules[(role["kind"], namespace(role), name(role))] = tuple(Rule.of(r) for r in role.get("rules") or ())
        grants: dict[tuple[str, str], list[tuple[str, tuple[Rule, ...], str]]] = {}
        for binding in bindings:
            where, to = namespace(binding), binding.get("roleRef") or {}
            kind, named = str(to.get("kind")), str(to.get("name"))
            if kind == "Role" and not where:
                continue  # A cluster-wide binding cannot refer to a namespace's role.
            found = rules.get((kind, where if kind == "Role" else "", named))
            if not found:
                continue
            for subject in binding.get("subjects") or ():
                grants.setdefault(_subject(subject, where), []).append((where, found, f'{kind} "{named}"'))
        return cls({subject: tuple(found) for subject, found in grants.items()})

    def rules_of(self, user: UserInfo, where: str) -> Iterator[tuple[Rule, str]]:
        """The rules that hold for a user in a namespace (empty: cluster-wide only)."""
        for subject in (("User", user.name), *(("Group", group) for group in user.groups)):
            for scope, rules, source in self.grants.get(subject, ()):
                if not scope or scope == where:
                    for rule in rules:
                        yield rule, source

    def decide(self, user: UserInfo, asked: Attributes) -> Decision:
        """Allowed where any rule allows; RBAC never denies."""
        if MASTERS in user.groups:
            return Decision(True, "member of system:masters")
        for rule, source in self.rules_of(user, asked.namespace):
            if rule.allows(asked):
                return Decision(True, f"RBAC: allowed by {source}")
        return Decision(False)

    def covers(self, user: UserInfo, wanted: Iterable[Rule], where: str) -> bool:
        """Whether a user holds every right in ``wanted``: nobody grants more than they have."""
        held = [rule for rule, _ in self.rules_of(user, where)]
        return MASTERS in user.groups or all(_covered(held, rule) for rule in wanted)


def _subject(subject: Mapping[str, Any], where: str) -> tuple[str, str]:
    if subject.get("kind") == "ServiceAccount":
        return "User", f"system:serviceaccount:{subject.get('namespace') or where}:{subject.get('name')}"
    return str(subject.get("kind")), str(subject.get("name"))


def _covered(held: list[Rule], wanted: Rule) -> bool:
    for verb in wanted.verbs:
        for path in wanted.paths:
            if not any(rule.allows(Attributes(verb, path=path)) for rule in held):
                return False
        for group in wanted.groups:
            for resource in wanted.resources:
                for named in wanted.resource_names or {""}:
                    if not any(_holds(rule, verb, group, resource, named) for rule in held):
                        return False
    return True


def _holds(rule: Rule, verb: str, group: str, resource: str, named: str) -> bool:
    if not ({"*", verb} & rule.verbs and {"*", group} & rule.groups):
        return False
    sub = resource.partition("/")[2]
    if not ({"*", resource} & rule.resources or (sub and f"*/{sub}" in rule.resources)):
        return False
    return not rule.resource_names or (bool(named) and named in rule.resource_names)


# -- agents ------------------------------------------------------------------------------------------------

_READ = frozenset({"get", "list", "watch"})
_WRITE = frozenset({"create", "update", "patch"})
#: What an agent may create and change in the namespaces where it has a Work, beside what is its own.
_MIRRORS = "pods"


def _discovers(asked: Attributes) -> Decision:
    """Of a URL that is no object's, for agents and join tokens: what says which interface this is, as ``system:discovery`` has
    it. Figures, the ledger and keys are no site's."""
    whole = asked.path in {"/version", "/healthz", "/livez", "/readyz", "/cacerts", "/api", "/apis", "/openapi"}
    allowed = asked.verb == "get" and (whole or asked.path.startswith(("/api/", "/apis/", "/openapi/")))
    return Decision(allowed, "" if allowed else f"{asked.path} is for administrators, and for whom a role lets at it")


def decide_agent(member: str, asked: Attributes, namespaces: Container[str]) -> Decision:
    """What a member's agent may ask for, by URL. What it then writes is checked by :func:`agent_write_problem`.

    ``namespaces``: those in which the member has a Work. Source: Kubernetes' node authoriser. An agent may
    read and report its own Works, keep its own Lease, Cluster and Usage, mirror its own Pods, record Events about them."""
    if asked.path:
        return _discovers(asked)
    own, verb, what = cluster_namespace(member), asked.verb, (asked.group, asked.resource)
    allowed = False
    if what == (GROUP, "works"):
        allowed = asked.namespace == own and (
            (not asked.subresource and verb in _READ) or (asked.subresource == "status" and verb in {"get", "update", "patch"})
        )
    elif what == ("coordination.k8s.io", "leases"):
        allowed = (
            asked.namespace == own and not asked.subresource and (asked.name == member or (not asked.name and verb in _READ))
        )
        allowed = allowed and verb in _READ | _WRITE
    elif what == (GROUP, "clusters"):
        allowed = _own_cluster(member, asked)
    elif what == (GROUP, "usages"):
        # What is booked of it is the hub's to say: the agent reads its status with the object.
        allowed = not asked.subresource and asked.name == member and verb in _WRITE | {"get"}
    elif what == ("certificates.k8s.io", "certificatesigningrequests"):
        # Whose request it is, is seen on the object (read_problem).
        allowed = not asked.subresource and verb in {"create", "get"} and asked.name.startswith(f"{member}-")
    elif what == ("", _MIRRORS):
        allowed = _own_pods(member, asked, namespaces)
    elif what == ("", "serviceaccounts"):
        # Whose token it may have, and bound to what, is seen on the Pod (token_problem).
        allowed = asked.subresource == "token" and verb == "create" and asked.namespace in namespaces
    elif what in (("", "events"), ("events.k8s.io", "events")):
        allowed = not asked.subresource and verb in _WRITE and (asked.namespace == own or asked.namespace in namespaces)
    elif what == ("", "namespaces"):
        allowed = verb == "get" and asked.name == own and not asked.subresource
    elif asked.group in ("authorization.k8s.io", "authentication.k8s.io"):
        allowed = verb == "create" and asked.resource.startswith("selfsubject")
    return Decision(allowed, "" if allowed else f"the agent of {member} may touch only what belongs to its own site")


def _own_cluster(member: str, asked: Attributes) -> bool:
    if asked.verb in {"list", "watch"} and not asked.name:
        return not asked.subresource and asked.fields == f"metadata.name={member}"
    if asked.name != member:
        return False
    if asked.subresource == "status":
        return asked.verb in {"get", "update", "patch"}
    if asked.subresource == "tunnel":
        return asked.verb in {"get", "create"}
    return not asked.subresource and asked.verb in {"get", "watch", "create", "patch"}


def _own_pods(member: str, asked: Attributes, namespaces: Container[str]) -> bool:
    if asked.subresource not in ("", "status"):
        return False
    if asked.verb in {"list", "watch", "deletecollection"}:
        return f"spec.nodeName={member}" in asked.fields.split(",") and asked.verb != "deletecollection"
    if asked.verb == "create":
        return not asked.subresource and asked.namespace in namespaces
    # Whether the pod is its own is seen on the object; a namespace that it has left may still hold its last pods.
    return asked.verb in {"get", "update", "patch"} or (asked.verb == "delete" and not asked.subresource)


def decide_bootstrap(asked: Attributes) -> Decision:
    """What the bearer of a join token may ask for."""
    if asked.path:
        return _discovers(asked)
    requests = (asked.group, asked.resource, asked.subresource) == ("certificates.k8s.io", "certificatesigningrequests", "")
    allowed = requests and asked.verb in {"create", "get"}
    return Decision(allowed, "" if allowed else "a join token is good for one certificate request and nothing else")


def beyond_claim(asked: Attributes) -> str:
    """Why who shows a DeviceClaim's token or certificate may not ask for this, whatever everybody may; empty where a role may
    allow it."""
    enrols = (asked.group, asked.resource, asked.subresource, asked.verb) == (GROUP, "deviceclaims", "enrolment", "create")
    if _discovers(asked).allowed if asked.path else enrols:
        return ""
    return "a device claim is good for enrolment and nothing else"


def read_problem(user: UserInfo, resource: str, obj: Obj) -> str:
    """Why an agent or the bearer of a join token may not read this object, which the URL alone did not show."""
    member = cluster_of(user)
    if member is not None and resource == "pods" and (obj.get("spec") or {}).get("nodeName") != member:
        return f"the agent of {member} may read the pods of its own site only"
    if resource == "certificatesigningrequests.certificates.k8s.io" and (member is not None or is_bootstrap(user)):
        return "" if (obj.get("spec") or {}).get("username") == user.name else "this request is another's"
    return ""


def is_bootstrap(user: UserInfo) -> bool:
    return user.name.startswith(BOOTSTRAP_USER_PREFIX) and MASTERS not in user.groups


class Share(Container[str], Protocol):
    """What belongs to a member, as the hub knows it. It contains the namespaces in which the member has a Work."""

    def workload(self, kind: str, where: str, named: str) -> Obj | None:
        """A workload as it was given to the member, ``None`` where it was not."""
        ...

    def templates(self, workload: Obj) -> Iterable[Obj]:
        """A workload's pod template, and its earlier ones."""
        ...

    def owner_of_pod(self, where: str, named: str) -> str | None:
        """The site whose Pod this is, ``None`` where there is none of this name."""
        ...

    def pods_of(self, where: str, stem: str) -> int:
        """How many of the member's Pods in a namespace have names that begin so."""
        ...

    def requests(self) -> int:
        """How many requests for certificates the member has at the hub."""
        ...


#: Of one site: Pods of one workload, and requests for certificates (finished ones go after a while).
MAX_MIRRORS = 2000
MAX_REQUESTS = 32
#: How an agent calls itself as the manager of fields.
AGENT_MANAGER = "nemo-agent"
#: Of a Cluster's spec what decides which work and which data may come to a site. Its owner says it when it joins; from then on
#: only those who may edit Clusters do, so that a site that was taken over does not let itself be given more.
SETTLED = frozenset({"attestation", "datasets", "jurisdictions", "location", "owner", "taints", "trust", "unschedulable"})
#: Labels that say so too: they count before what the spec says.
_SETTLED_LABELS = frozenset({"kubernetes.io/hostname", "meta-os.eu/country", "topology.kubernetes.io/region"})
#: Of labels that administrators alone give, also as a site joins. Source: Kubernetes' admission rule ``NodeRestriction``.
RESTRICTED = "node-restriction.kubernetes.io"
#: What a Cluster's status says that is not the site's to say.
_HUBS_STATUS = ("conditions", "carbon", "attested")


def agent_write_problem(member: str, resource: str, obj: Obj | None, old: Obj | None, share: Share) -> str:
    """Why a member's agent may not write ``obj`` over ``old`` (``None``: it deletes, or creates); empty where it may."""
    held = obj or old or {}
    for key in ("finalizers", "ownerReferences") if resource != "pods" else ("finalizers",):
        said, before = ((each or {}).get("metadata", {}).get(key) or [] for each in (obj, old))
        if obj is not None and any(each not in before for each in said):
            # Who may add them decides when other objects can go.
            return f"an agent may not add metadata.{key}"
    if resource == "pods":
        return _pod_problem(member, obj, old, share)
    if resource == "events":
        return _event_problem(member, obj or {}, share) or (_event_problem(member, old, share) if old else "")
    if resource == "clusters.meta-os.eu":
        said, before = ((each or {}).get("status") or {} for each in (obj, old))
        if obj is not None and any(said.get(key) != before.get(key) for key in _HUBS_STATUS):
            return "conditions, carbon and attested of a Cluster are the hub's; report agentConditions"
        if obj is not None and old is None and (obj.get("spec") or {}).get("attestation") is not None:
            return "spec.attestation says what others expect of a site: leave it out of the site file, an operator states it"
        if obj is not None and (given := [key for key in _relabelled(obj, old) if _restricted(key)]):
            return f"metadata.labels {', '.join(given)}: labels of {RESTRICTED} are for the hub's administrators to give"
        if obj is not None and old is not None and (problem := _declaration_problem(obj, old)):
            return problem
        return "" if name(held) == member else f"the agent of {member} may write no other Cluster"
    if resource == "usages.meta-os.eu":
        said, before = ((each or {}).get("status") or {} for each in (obj, old))
        if obj is not None and said != before:
            return "status of a Usage is the hub's; report spec.periods"
        return "" if name(held) == member else f"the agent of {member} may write no other Usage"
    if resource == "certificatesigningrequests.certificates.k8s.io" and obj is not None:
        if (obj.get("spec") or {}).get("signerName") != AGENT_SIGNER:
            return f"an agent may have certificates of the signer {AGENT_SIGNER} only"
        if old is None and share.requests() >= MAX_REQUESTS:
            return f"{member} has {MAX_REQUESTS} requests already; they go an hour after they are answered"
        return "" if name(obj).startswith(f"{member}-") else f'requests of this agent have names that begin with "{member}-"'
    if resource in ("works.meta-os.eu", "leases.coordination.k8s.io"):
        return "" if namespace(held) == cluster_namespace(member) else "this belongs to another site"
    return f"the agent of {member} may not write {resource}"


def settled_label(key: str) -> bool:
    """Whether a label of a Cluster is not the site's to give or to change once it has joined."""
    return key in _SETTLED_LABELS or _restricted(key)


def _restricted(key: str) -> bool:
    prefix = key.rpartition("/")[0]
    return prefix == RESTRICTED or prefix.endswith(f".{RESTRICTED}")


def _relabelled(obj: Obj, old: Obj | None) -> list[str]:
    now, before = labels(obj), labels(old or {"metadata": {}})
    return sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))


def apply_problem(manager: str, *, applies: bool, force: bool) -> str:
    """Why an agent may not patch its Cluster so: what others own of it stays theirs, which is seen when it is applied."""
    if applies and not force and manager == AGENT_MANAGER:
        return ""
    return f"an agent declares its Cluster by server-side apply, as field manager {AGENT_MANAGER} and without force"


def _declaration_problem(obj: Obj, old: Obj) -> str:
    """What a site may say of itself after it has joined: what its agent brought, but for :data:`SETTLED`."""
    before, said = (each.get("spec") or {} for each in (old, obj))
    changed = sorted(key for key in before.keys() | said.keys() if before.get(key) != said.get(key))
    same = not changed and all(old["metadata"].get(key) == obj["metadata"].get(key) for key in ("labels", "annotations"))
    if same and _declared(obj) == _declared(old):
        return ""
    # Who applies what is there already changes nothing, and owns it too from then on.
    if not _declared(old):
        return (
            "it was not the site's agent that made this Cluster: its spec and labels are for the hub's administrators to change"
        )
    settled = [f"spec.{key}" for key in changed if key in SETTLED]
    if settled := settled + [f"metadata.labels {key}" for key in _relabelled(obj, old) if settled_label(key)]:
        return f"{', '.join(settled)}: once a site has joined, the hub's administrators say so: kubectl edit cluster {name(old)}"
    return ""


def _declared(cluster: Obj) -> bool:
    """Whether its agent owns something of it."""
    managers = cluster["metadata"].get("managedFields") or ()
    return any(each.get("manager") == AGENT_MANAGER and not each.get("subresource") for each in managers)


def _pod_problem(member: str, obj: Obj | None, old: Obj | None, share: Share) -> str:
    for held in (obj, old):
        if held is not None and (held.get("spec") or {}).get("nodeName") != member:
            return f"spec.nodeName must be {member}: an agent mirrors the pods of its own site only"
    if obj is None:
        return ""
    if labels(obj).get(CLUSTER_LABEL, member) != member:
        return f"label {CLUSTER_LABEL} must be {member}"
    if old is None:
        return _mirror_problem(member, obj, share)
    for part, now, before in (
        ("spec", obj.get("spec"), old.get("spec")),
        ("metadata.ownerReferences", obj["metadata"].get("ownerReferences"), old["metadata"].get("ownerReferences")),
    ):
        if now != before:
            return f"an agent may not change {part} of a pod; it reports status"
    return _label_problem(obj, {k: v for k, v in labels(obj).items() if labels(old).get(k) != v}, share)


def _mirror_problem(member: str, pod: Obj, share: Share) -> str:
    """A new Pod must stand for one of a workload that the member was given: otherwise it could name Secrets that are not sent
    to it, answer for Services that it does not run, or take the names of others' pods."""
    if namespace(pod) not in share:
        return f"{member} has no Work in namespace {namespace(pod)}"
    owners: list[Obj] = pod["metadata"].get("ownerReferences") or []
    owner = owners[0] if len(owners) == 1 and owners[0].get("controller") else {}
    given = share.workload(str(owner.get("kind")), namespace(pod), str(owner.get("name")))
    if given is None or uid(given) != owner.get("uid"):
        return f"metadata.ownerReferences must name the one workload of {member} that the pod is of"
    if not name(pod).startswith(name(given)[:_STEM]):
        return f"a pod of {name(given)} has a name that begins so, not {name(pod)!r}"
    if share.pods_of(namespace(pod), name(given)[:_STEM]) >= MAX_MIRRORS:
        return f"{member} shows {MAX_MIRRORS} pods of {name(given)} already"
    return _label_problem(pod, labels(pod), share)


#: So much of its workload's name, at least, is in a pod's.
_STEM = 46
#: Labels that a site adds to a pod beside those of its template.
_ADDED = frozenset(
    {
        *("pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index"),
        *("job-name", "batch.kubernetes.io/job-name", "controller-uid", "batch.kubernetes.io/controller-uid"),
        *("batch.kubernetes.io/job-completion-index", CLUSTER_LABEL),
    }
)
_POD_NAME = "statefulset.kubernetes.io/pod-name"


def _label_problem(pod: Obj, said: Mapping[str, str], share: Share) -> str:
    """Labels decide which Services lead to a pod: those of its template, of now or earlier, and what a site adds."""
    wrong = {k: v for k, v in said.items() if k not in _ADDED and not (k == _POD_NAME and v == name(pod))}
    if not wrong:
        return ""
    owner = (pod["metadata"].get("ownerReferences") or [{}])[0]
    given = share.workload(str(owner.get("kind")), namespace(pod), str(owner.get("name")))
    if given is not None and uid(given) == owner.get("uid"):
        for template in share.templates(given):
            if wrong.items() <= ((template.get("metadata") or {}).get("labels") or {}).items():
                return ""
    key, value = min(wrong.items())
    return f"label {key}={value} is not one of the pod's template"


def token_problem(member: str, account: str, audiences: Container[str], asked: Obj, pod: Obj | None, share: Share) -> str:
    """Why a member's agent may not have this token of a ServiceAccount; empty where it may. ``asked``: the TokenRequest's spec;
    ``audiences``: the API server's own; ``pod``: what it is to be bound to, as the hub has it. It must be bound to a Pod of the
    site, whose workload, as it was given to the site, runs as this account; a Pod that an agent has shown says nothing of
    itself. Source: Kubernetes' NodeRestriction, and its ServiceAccountNodeAudienceRestriction."""
    bound = asked.get("boundObjectRef") or {}
    if bound.get("kind") != "Pod" or not bound.get("uid"):
        return "an agent's token must be bound to a Pod: say spec.boundObjectRef with kind, name and uid"
    if pod is None or (pod.get("spec") or {}).get("nodeName") != member:
        return f"spec.boundObjectRef: pod {bound.get('name')} is not one of {member}"
    owners: list[Obj] = [{"kind": "Pod", "name": name(pod), "uid": uid(pod)}, *(pod["metadata"].get("ownerReferences") or ())]
    works = ((share.workload(str(each.get("kind")), namespace(pod), str(each.get("name"))), each) for each in owners)
    given = next((work for work, each in works if work is not None and uid(work) == each.get("uid")), None)
    if given is None:
        return f"spec.boundObjectRef: the workload of pod {name(pod)} was not given to {member}"
    # What makes no pods (a ConfigMap, a Service) has none, and nobody's account.
    specs = [template.get("spec") or {} for template in share.templates(given) if template]
    if all((spec.get("serviceAccountName") or "default") != account for spec in specs):
        return f"pod {name(pod)} does not run as ServiceAccount {account}"
    meant = {str(source.get("audience")) for spec in specs for source in _token_sources(spec)}
    wrong = [each for each in asked.get("audiences") or () if each not in audiences and each not in meant]
    return f"spec.audiences: pod {name(pod)} has no volume with a token for {wrong[0]!r}" if wrong else ""


def _token_sources(spec: Obj) -> Iterator[Obj]:
    for volume in spec.get("volumes") or ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if source.get("serviceAccountToken"):
                yield source["serviceAccountToken"]


def _event_problem(member: str, event: Obj, share: Share) -> str:
    about = event.get("involvedObject") or event.get("regarding") or {}
    sources = {(event.get("source") or {}).get("host"), event.get("reportingInstance")} - {None, ""}
    if sources != {member}:
        return f"source.host must be {member}"
    kind, where, named = str(about.get("kind")), str(about.get("namespace") or namespace(event)), str(about.get("name"))
    if kind in ("Cluster", "Node"):
        return "" if named == member else f"an agent reports about its own site, {member}"
    if where != namespace(event) or (where not in share and where != cluster_namespace(member)):
        return f"{member} has no Work in namespace {where}"
    if kind == "Pod":
        return "" if share.owner_of_pod(where, named) in (None, member) else f"pod {named} is not one of {member}"
    return "" if share.workload(kind, where, named) is not None else f"{kind} {named} is no workload of {member}"
