"""What is served, one frozen record for each resource. Everything else looks here instead of at kinds by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """One resource of the API. The flags are those of its strategy in k8s.io/kubernetes/pkg/registry."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    has_status: bool = False
    counts_generations: bool = False
    """Whether metadata.generation grows when the spec changes."""
    create_on_update: bool = False
    unconditional_update: bool = True
    """Whether a PUT without resourceVersion is taken."""
    returns_deleted: bool = False
    """Whether DELETE answers with the last state of the object instead of a Status."""
    more_subresources: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """Name, kind of its body, verbs."""
    custom: bool = False
    """It is served only while there is a CustomResourceDefinition called like `qualified`."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages name it: `pods`, `storageclasses.storage.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def verbs(self) -> tuple[str, ...]:
        return _VERBS

    @property
    def subresources(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self.more_subresources) | (
            {"status"} if self.has_status else frozenset()
        )


def _core(plural: str, kind: str, *short: str, **flags: Any) -> Resource:
    return Resource("", "v1", plural, kind, short_names=short, **flags)


def _apps(plural: str, kind: str, *short: str) -> Resource:
    return Resource(
        "apps", "v1", plural, kind, short_names=short, categories=("all",), has_status=True, counts_generations=True
    )


def _storage(plural: str, kind: str, *short: str, **flags: Any) -> Resource:
    return Resource("storage.k8s.io", "v1", plural, kind, short_names=short, returns_deleted=True, **flags)


def _rbac(plural: str, kind: str, namespaced: bool) -> Resource:
    return Resource("rbac.authorization.k8s.io", "v1", plural, kind, namespaced=namespaced)


def _snapshot(plural: str, kind: str, *short: str, **flags: Any) -> Resource:
    """As the CustomResourceDefinitions of kubernetes-csi/external-snapshotter have them (client/config/crd)."""
    return Resource(
        "snapshot.storage.k8s.io",
        "v1",
        plural,
        kind,
        short_names=short,
        counts_generations=True,
        unconditional_update=False,
        custom=True,
        **flags,
    )


def _admission(plural: str, kind: str, **flags: Any) -> Resource:
    group = "admissionregistration.k8s.io"
    return Resource(group, "v1", plural, kind, namespaced=False, unconditional_update=False, **flags)


NAMESPACES = _core(
    "namespaces",
    "Namespace",
    "ns",
    namespaced=False,
    has_status=True,
    more_subresources=(("finalize", "Namespace", ("update",)),),
)
NODES = _core("nodes", "Node", "no", namespaced=False, has_status=True)
PODS = _core(
    "pods",
    "Pod",
    "po",
    categories=("all",),
    has_status=True,
    counts_generations=True,
    returns_deleted=True,
    more_subresources=(("binding", "Binding", ("create",)), ("eviction", "Eviction", ("create",))),
)
VOLUMES = _core("persistentvolumes", "PersistentVolume", "pv", namespaced=False, has_status=True, returns_deleted=True)
CLAIMS = _core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", has_status=True, returns_deleted=True)
EVENTS = _core("events", "Event", "ev", create_on_update=True)
SERVICE_ACCOUNTS = _core("serviceaccounts", "ServiceAccount", "sa", returns_deleted=True)
JOBS = Resource("batch", "v1", "jobs", "Job", categories=("all",), has_status=True, counts_generations=True)
CLASSES = _storage("storageclasses", "StorageClass", "sc", namespaced=False)
ATTRIBUTES_CLASSES = _storage("volumeattributesclasses", "VolumeAttributesClass", "vac", namespaced=False)
CAPACITIES = _storage("csistoragecapacities", "CSIStorageCapacity", unconditional_update=False)
CUSTOM_RESOURCES = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    short_names=("crd", "crds"),
    categories=("api-extensions",),
    has_status=True,
    counts_generations=True,
    unconditional_update=False,
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", create_on_update=True, unconditional_update=False)

RESOURCES: tuple[Resource, ...] = (
    NAMESPACES,
    NODES,
    PODS,
    VOLUMES,
    CLAIMS,
    EVENTS,
    _core("configmaps", "ConfigMap", "cm"),
    _core("secrets", "Secret"),
    SERVICE_ACCOUNTS,
    _core("services", "Service", "svc", categories=("all",), has_status=True),
    _apps("deployments", "Deployment", "deploy"),
    _apps("daemonsets", "DaemonSet", "ds"),
    _apps("replicasets", "ReplicaSet", "rs"),
    _apps("statefulsets", "StatefulSet", "sts"),
    JOBS,
    CLASSES,
    ATTRIBUTES_CLASSES,
    _storage("csidrivers", "CSIDriver", namespaced=False, counts_generations=True, unconditional_update=False),
    CAPACITIES,
    _storage("csinodes", "CSINode", namespaced=False, unconditional_update=False),
    LEASES,
    _rbac("roles", "Role", namespaced=True),
    _rbac("rolebindings", "RoleBinding", namespaced=True),
    _rbac("clusterroles", "ClusterRole", namespaced=False),
    _rbac("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _admission("validatingadmissionpolicies", "ValidatingAdmissionPolicy", has_status=True, counts_generations=True),
    _admission("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", counts_generations=True),
    Resource(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        short_names=("pdb",),
        has_status=True,
        counts_generations=True,
        unconditional_update=False,
    ),
    CUSTOM_RESOURCES,
    _snapshot("volumesnapshotclasses", "VolumeSnapshotClass", "vsclass", "vsclasses", namespaced=False),
    _snapshot("volumesnapshots", "VolumeSnapshot", "vs", has_status=True),
    _snapshot("volumesnapshotcontents", "VolumeSnapshotContent", "vsc", "vscs", namespaced=False, has_status=True),
    _core("resourcequotas", "ResourceQuota", "quota", has_status=True),
    # As in a cluster with the Prometheus operator.
    Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor", short_names=("pmon",)),
    Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule", short_names=("promrule",)),
    Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False, short_names=("pc",)),
    Resource(
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        short_names=("netpol",),
        counts_generations=True,
    ),
)

BY_PATH = {(each.group, each.version, each.plural): each for each in RESOURCES}
BY_QUALIFIED = {each.qualified: each for each in RESOURCES}
BY_KIND = {(each.api_version, each.kind): each for each in RESOURCES}


Serves = Callable[[Resource], bool]
"""Whether a resource is served now: see Resource.custom."""


def groups(serves: Serves) -> dict[str, list[str]]:
    """The named groups that are served with their versions, in the order in which discovery lists them."""
    versions: dict[str, list[str]] = {}
    for each in filter(serves, RESOURCES):
        if each.group and each.version not in versions.setdefault(each.group, []):
            versions[each.group].append(each.version)
    return versions


def served_by(group: str, version: str, serves: Serves) -> list[Resource]:
    return [each for each in filter(serves, RESOURCES) if (each.group, each.version) == (group, version)]
