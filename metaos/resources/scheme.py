"""The kinds that are served, as data. Another native kind joins by one line here.

``schema`` names the definition in the Kubernetes OpenAPI document; NEMO's own kinds have theirs in
``metaos/resources/schemas/``. Source for names and scopes: the Kubernetes API reference.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from metaos.resources.meta import GROUP, VERSION


@dataclass(frozen=True, slots=True)
class Kind:
    """One served kind. ``subresources`` are those that the API server offers under each object."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    #: Verbs beside the usual eight are not offered; ``create`` alone means a review kind that is never stored.
    verbs: tuple[str, ...] = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """What goes to another process and comes back is the served kind itself there, too."""
        served = by_kind(self.api_version, self.kind)
        if served is self:
            return by_kind, (self.api_version, self.kind)
        return Kind, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"

    @property
    def resource(self) -> str:
        """``deployments.apps``: unique over all kinds, the first part of a store key."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def empty(self, name: str, namespace: str = "") -> dict[str, object]:
        """A fresh object of this kind, with type and name only."""
        metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata}


_SCALE = ("status", "scale")
_STATUS = ("status",)
_READ = ("get", "list", "watch")

NAMESPACE = Kind("", "v1", "Namespace", "namespaces", False, ("ns",), subresources=("status", "finalize"))
POD = Kind(
    "",
    "v1",
    "Pod",
    "pods",
    True,
    ("po",),
    ("all",),
    ("status", "log", "exec", "attach", "portforward", "proxy", "eviction", "binding", "ephemeralcontainers"),
)
SERVICE = Kind("", "v1", "Service", "services", True, ("svc",), ("all",), ("status", "proxy"))
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", True, ("cm",))
SECRET = Kind("", "v1", "Secret", "secrets")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts", True, ("sa",), subresources=("token",))
PERSISTENT_VOLUME_CLAIM = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", True, ("pvc",), (), _STATUS)
RESOURCE_QUOTA = Kind("", "v1", "ResourceQuota", "resourcequotas", True, ("quota",), (), _STATUS)
LIMIT_RANGE = Kind("", "v1", "LimitRange", "limitranges", True, ("limits",))
EVENT = Kind("", "v1", "Event", "events", True, ("ev",))
#: A view: every Cluster is shown as a Node too, so that ``kubectl cordon|drain|taint`` work on sites.
NODE = Kind("", "v1", "Node", "nodes", False, ("no",), subresources=("status", "proxy"))
#: Served, never there: clients look through them (``kubectl apply --prune``). EndpointSlices and Deployments took their place.
ENDPOINTS = Kind("", "v1", "Endpoints", "endpoints", True, ("ep",), verbs=_READ)
REPLICATION_CONTROLLER = Kind("", "v1", "ReplicationController", "replicationcontrollers", True, ("rc",), verbs=_READ)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments", True, ("deploy",), ("all",), _SCALE)
REPLICA_SET = Kind("apps", "v1", "ReplicaSet", "replicasets", True, ("rs",), ("all",), _SCALE)
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets", True, ("sts",), ("all",), _SCALE)
DAEMON_SET = Kind("apps", "v1", "DaemonSet", "daemonsets", True, ("ds",), ("all",), _STATUS)
CONTROLLER_REVISION = Kind("apps", "v1", "ControllerRevision", "controllerrevisions")
JOB = Kind("batch", "v1", "Job", "jobs", True, (), ("all",), _STATUS)
CRON_JOB = Kind("batch", "v1", "CronJob", "cronjobs", True, ("cj",), ("all",), _STATUS)
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
CERTIFICATE_SIGNING_REQUEST = Kind(
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
    False,
    ("csr",),
    (),
    ("status", "approval"),
)
_RBAC = "rbac.authorization.k8s.io"
ROLE = Kind(_RBAC, "v1", "Role", "roles")
ROLE_BINDING = Kind(_RBAC, "v1", "RoleBinding", "rolebindings")
CLUSTER_ROLE = Kind(_RBAC, "v1", "ClusterRole", "clusterroles", False)
CLUSTER_ROLE_BINDING = Kind(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", False)
_NET = "networking.k8s.io"
INGRESS = Kind(_NET, "v1", "Ingress", "ingresses", True, ("ing",), (), _STATUS)
INGRESS_CLASS = Kind(_NET, "v1", "IngressClass", "ingressclasses", False)
NETWORK_POLICY = Kind(_NET, "v1", "NetworkPolicy", "networkpolicies", True, ("netpol",))
#: Multi-Cluster Services API (KEP-1645).
_MCS = "multicluster.x-k8s.io"
SERVICE_EXPORT = Kind(_MCS, "v1alpha1", "ServiceExport", "serviceexports", True, ("svcex",), (), _STATUS)
SERVICE_IMPORT = Kind(_MCS, "v1alpha1", "ServiceImport", "serviceimports", True, ("svcim",), (), _STATUS)
POD_DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", True, ("pdb",), (), _STATUS)
PRIORITY_CLASS = Kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", False, ("pc",))
STORAGE_CLASS = Kind("storage.k8s.io", "v1", "StorageClass", "storageclasses", False, ("sc",))
PERSISTENT_VOLUME = Kind("", "v1", "PersistentVolume", "persistentvolumes", False, ("pv",), (), _STATUS)
HORIZONTAL_POD_AUTOSCALER = Kind(
    "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True, ("hpa",), ("all",), _STATUS
)
#: A view: the same objects in the form of the older version.
HORIZONTAL_POD_AUTOSCALER_V1 = Kind(
    "autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True, ("hpa",), ("all",), _STATUS
)
SELF_SUBJECT_ACCESS_REVIEW = Kind(
    "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False, verbs=("create",)
)
SELF_SUBJECT_RULES_REVIEW = Kind(
    "authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", False, verbs=("create",)
)
SUBJECT_ACCESS_REVIEW = Kind(
    "authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", False, verbs=("create",)
)
LOCAL_SUBJECT_ACCESS_REVIEW = Kind(
    "authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", verbs=("create",)
)
TOKEN_REVIEW = Kind("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", False, verbs=("create",))
SELF_SUBJECT_REVIEW = Kind("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", False, verbs=("create",))
#: What pods and sites use, measured by the agents and asked for when somebody looks; never stored.
POD_METRICS = Kind("metrics.k8s.io", "v1beta1", "PodMetrics", "pods", verbs=("get", "list"))
NODE_METRICS = Kind("metrics.k8s.io", "v1beta1", "NodeMetrics", "nodes", False, verbs=("get", "list"))

CUSTOM_RESOURCE_DEFINITION = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    False,
    ("crd", "crds"),
    ("api-extensions",),
    _STATUS,
)

_ADMISSION = "admissionregistration.k8s.io"
VALIDATING_ADMISSION_POLICY = Kind(
    _ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", False, subresources=_STATUS
)
VALIDATING_ADMISSION_POLICY_BINDING = Kind(
    _ADMISSION, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", False
)
MUTATING_WEBHOOK_CONFIGURATION = Kind(_ADMISSION, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", False)
VALIDATING_WEBHOOK_CONFIGURATION = Kind(
    _ADMISSION, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", False
)

CLUSTER = Kind(GROUP, VERSION, "Cluster", "clusters", False, ("site", "sites"), ("nemo",), ("status", "tunnel"))
PLACEMENT_POLICY = Kind(GROUP, VERSION, "PlacementPolicy", "placementpolicies", True, ("pp",), ("nemo",))
INTENT = Kind(GROUP, VERSION, "Intent", "intents", True, (), ("nemo",), _STATUS)
PLACEMENT = Kind(GROUP, VERSION, "Placement", "placements", True, ("pl",), ("nemo",), _STATUS)
PLACEMENT_REVIEW = Kind(GROUP, VERSION, "PlacementReview", "placementreviews", False, verbs=("create",))
WORK = Kind(GROUP, VERSION, "Work", "works", True, (), ("nemo",), _STATUS)
USAGE = Kind(GROUP, VERSION, "Usage", "usages", False, (), ("nemo",), _STATUS)
#: The hub's ledger: what enters it, and what is asked of it; never stored as objects.
BOOKING = Kind(GROUP, VERSION, "Booking", "bookings", False, verbs=("create",))
STATEMENT = Kind(GROUP, VERSION, "Statement", "statements", False, verbs=("create",))
BUDGET = Kind(GROUP, VERSION, "Budget", "budgets", True, (), ("nemo",), _STATUS)
TARIFF = Kind(GROUP, VERSION, "Tariff", "tariffs", False, (), ("nemo",))
DEVICE = Kind(GROUP, VERSION, "Device", "devices", True, ("dev",), ("nemo",), ("status", "command", "credential", "live"))
DEVICE_SET = Kind(GROUP, VERSION, "DeviceSet", "devicesets", True, (), ("nemo",), _STATUS)
DEVICE_CLAIM = Kind(GROUP, VERSION, "DeviceClaim", "deviceclaims", True, (), ("nemo",), ("status", "enrolment"))
#: Many Devices in one request; never stored as an object.
DEVICE_BATCH = Kind(GROUP, VERSION, "DeviceBatch", "devicebatches", verbs=("create",))
BACKUP_STORE = Kind(GROUP, VERSION, "BackupStore", "backupstores", True, (), ("nemo",))
BACKUP_SCHEDULE = Kind(GROUP, VERSION, "BackupSchedule", "backupschedules", True, (), ("nemo",), _STATUS)

KINDS: tuple[Kind, ...] = (
    NAMESPACE,
    POD,
    SERVICE,
    CONFIG_MAP,
    SECRET,
    SERVICE_ACCOUNT,
    PERSISTENT_VOLUME_CLAIM,
    PERSISTENT_VOLUME,
    RESOURCE_QUOTA,
    LIMIT_RANGE,
    EVENT,
    ENDPOINTS,
    REPLICATION_CONTROLLER,
    NODE,
    DEPLOYMENT,
    REPLICA_SET,
    STATEFUL_SET,
    DAEMON_SET,
    CONTROLLER_REVISION,
    JOB,
    CRON_JOB,
    LEASE,
    ENDPOINT_SLICE,
    CERTIFICATE_SIGNING_REQUEST,
    ROLE,
    ROLE_BINDING,
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    INGRESS,
    INGRESS_CLASS,
    NETWORK_POLICY,
    SERVICE_EXPORT,
    SERVICE_IMPORT,
    POD_DISRUPTION_BUDGET,
    PRIORITY_CLASS,
    STORAGE_CLASS,
    HORIZONTAL_POD_AUTOSCALER,
    HORIZONTAL_POD_AUTOSCALER_V1,
    CUSTOM_RESOURCE_DEFINITION,
    VALIDATING_ADMISSION_POLICY,
    VALIDATING_ADMISSION_POLICY_BINDING,
    MUTATING_WEBHOOK_CONFIGURATION,
    VALIDATING_WEBHOOK_CONFIGURATION,
    SELF_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_RULES_REVIEW,
    SELF_SUBJECT_REVIEW,
    SUBJECT_ACCESS_REVIEW,
    LOCAL_SUBJECT_ACCESS_REVIEW,
    TOKEN_REVIEW,
    POD_METRICS,
    NODE_METRICS,
    CLUSTER,
    PLACEMENT_POLICY,
    INTENT,
    PLACEMENT,
    PLACEMENT_REVIEW,
    WORK,
    USAGE,
    TARIFF,
    BUDGET,
    BOOKING,
    STATEMENT,
    DEVICE,
    DEVICE_SET,
    DEVICE_CLAIM,
    DEVICE_BATCH,
    BACKUP_STORE,
    BACKUP_SCHEDULE,
)

#: Kinds that show the objects of another kind (see ``metaos/apiserver/views.py``) or have none stored: who follows all objects
#: passes them over.
VIEWS: tuple[Kind, ...] = (NODE, HORIZONTAL_POD_AUTOSCALER_V1, POD_METRICS, NODE_METRICS, ENDPOINTS, REPLICATION_CONTROLLER)

#: What NEMO places. Everything else that a workload needs follows it.
WORKLOADS: tuple[Kind, ...] = (DEPLOYMENT, STATEFUL_SET, DAEMON_SET, JOB, CRON_JOB, POD)
#: What follows a workload because it refers to it.
DEPENDENCIES: tuple[Kind, ...] = (CONFIG_MAP, SECRET, SERVICE_ACCOUNT, PERSISTENT_VOLUME_CLAIM)

_BY_GVK = {(k.group, k.version, k.kind): k for k in KINDS}
_BY_PLURAL = {(k.group, k.version, k.plural): k for k in KINDS}


def by_kind(api_version: str, kind: str) -> Kind | None:
    """The served kind for an object's ``apiVersion`` and ``kind``."""
    group, _, version = api_version.rpartition("/")
    return _BY_GVK.get((group, version, kind))


def by_plural(group: str, version: str, plural: str) -> Kind | None:
    """The served kind for a URL's parts."""
    return _BY_PLURAL.get((group, version, plural))


def kind_of(obj: dict[str, object]) -> Kind:
    """The served kind of an object. Raises ``KeyError`` where it is not served."""
    found = by_kind(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
    if found is None:
        raise KeyError(f"no kind {obj.get('kind')!r} in {obj.get('apiVersion')!r}")
    return found
