"""The kinds of objects that we read and write, and where the API server has them."""

import re
from dataclasses import dataclass
from urllib.parse import quote

from kube.errors import Invalid


@dataclass(frozen=True)
class Resource:
    """One collection of the API. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, across all namespaces if None is given, or of one object in it. Raises
        Invalid for names that no object can have."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts += [name, *([subresource] if subresource else [])]
        return "/" + "/".join(map(_segment, parts))

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


def _segment(name: str) -> str:
    """A name as one segment of a path. Encoding alone does not do it: whoever reads the URL may take `..` for the way
    up, encoded or not, and decode a slash before it splits; and without a name the path is the collection's. Source:
    IsValidPathSegmentName of k8s.io/apimachinery, which the API server asks of each name."""
    if _PLAIN.fullmatch(name) and name not in (".", ".."):
        return name  # nearly all are
    if not name or name in (".", "..") or any(sign in name for sign in "/%\\") or not name.isprintable():
        raise Invalid(0, "", f"{name[:60]!r} is no name that an object can have")
    return quote(name, safe="")


PODS = Resource("", "v1", "pods", namespaced=True)
CLAIMS = Resource("", "v1", "persistentvolumeclaims", namespaced=True)
VOLUMES = Resource("", "v1", "persistentvolumes", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
NODES = Resource("", "v1", "nodes", namespaced=False)
SECRETS = Resource("", "v1", "secrets", namespaced=True)
CONFIG_MAPS = Resource("", "v1", "configmaps", namespaced=True)
EVENTS = Resource("", "v1", "events", namespaced=True)
CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
ATTRIBUTES_CLASSES = Resource("storage.k8s.io", "v1", "volumeattributesclasses", namespaced=False)
ATTRIBUTES_CLASSES_BETA = Resource("storage.k8s.io", "v1beta1", "volumeattributesclasses", namespaced=False)
"""Of Kubernetes 1.31 to 1.33, where it is off unless somebody turns it on."""
CAPACITIES = Resource("storage.k8s.io", "v1", "csistoragecapacities", namespaced=True)
CSI_NODES = Resource("storage.k8s.io", "v1", "csinodes", namespaced=False)
DRIVERS = Resource("storage.k8s.io", "v1", "csidrivers", namespaced=False)
SNAPSHOTS = Resource("snapshot.storage.k8s.io", "v1", "volumesnapshots", namespaced=True)
SNAPSHOT_CONTENTS = Resource("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", namespaced=False)
SNAPSHOT_CLASSES = Resource("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
JOBS = Resource("batch", "v1", "jobs", namespaced=True)
