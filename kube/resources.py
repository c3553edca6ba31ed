"""The kinds of objects that we read and write, and where the API server has them."""

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Resource:
    """One collection of the API. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, across all namespaces if None is given, or of one object in it."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource("", "v1", "pods", namespaced=True)
CLAIMS = Resource("", "v1", "persistentvolumeclaims", namespaced=True)
VOLUMES = Resource("", "v1", "persistentvolumes", namespaced=False)
NODES = Resource("", "v1", "nodes", namespaced=False)
EVENTS = Resource("", "v1", "events", namespaced=True)
CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
CAPACITIES = Resource("storage.k8s.io", "v1", "csistoragecapacities", namespaced=True)
DRIVERS = Resource("storage.k8s.io", "v1", "csidrivers", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
JOBS = Resource("batch", "v1", "jobs", namespaced=True)
