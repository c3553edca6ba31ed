"""Names that people and programs see: changing one of them breaks clusters that exist.

Constants only, so that the callout, which the kubelet starts for every mount, can import them for free.
"""

# What the kubelet calls.
DRIVER_VENDOR = "volumes.k8s.elastic.co"
DRIVER_NAME = "elastic-local"
DRIVER = f"{DRIVER_VENDOR}/{DRIVER_NAME}"
DRIVER_FOLDER = f"{DRIVER_VENDOR}~{DRIVER_NAME}"
"""Folder of the driver in the plugin directory, and of its volumes in a pod's folder (the kubelet escapes `/`)."""

CSI_FOLDER = "kubernetes.io~csi"
"""Folder of all CSI volumes in a pod's folder."""
CSI_MOUNT = "mount"
"""Folder in that of one volume, which the driver makes and mounts on."""

CSI_DEVICES = "plugins/kubernetes.io/csi/volumeDevices/publish"
"""Folder, below the kubelet's root, of the files that block volumes are shown on: <volume>/<pod uid>."""

# Whom a StorageClass names. A CSIDriver object must be called like the provisioner for the stock scheduler to
# honour capacity, and such a name can't hold a slash; the second name serves the clusters of elastic/local-volume.
PROVISIONER = "elastic-local.volumes.k8s.elastic.co"
PROVISIONER_OF_ELASTIC = DRIVER
PROVISIONERS = (PROVISIONER, PROVISIONER_OF_ELASTIC)
CSI_DRIVER = PROVISIONER
"""Name of the CSI driver, of its CSIDriver object and of its folder in the kubelet's `plugins`."""


def csi_staging(volume: str) -> tuple[str, ...]:
    """Folders, below the kubelet's root, of which there is one from before the kubelet stages a volume until after it
    has unstaged it: of a filesystem, also as kubelets before 1.24 had it, and of a block device
    (pkg/volume/csi/{csi_attacher,csi_block}.go)."""
    import hashlib

    plugin, digest = "plugins/kubernetes.io/csi", hashlib.sha256(volume.encode()).hexdigest()
    return (
        f"{plugin}/{CSI_DRIVER}/{digest}/globalmount",
        f"{plugin}/pv/{volume}/globalmount",
        f"{plugin}/volumeDevices/staging/{volume}",
    )


NAMESPACE = "elastic-local"
DATA_DIR = "/var/lib/elastic-local"
SOCKET = "/var/run/elastic-local/socket"
SOCKET_VARIABLE = "ELASTIC_LOCAL_SOCKET"
"""Environment variable of the kubelet (the callout inherits it) that names another socket."""

# On our PersistentVolumes.
NODE_LABEL = "volumes.k8s.elastic.co/node-affinity"
FINALIZER = "elastic-local.volumes.k8s.elastic.co/volume"
STATIC_FINALIZER = "elastic-local.volumes.k8s.elastic.co/static-volume"
"""On static PersistentVolumes: one that was deleted by hand while it had data stays until it is cleaned.
The daemon of its node puts it on and takes it off."""
DISK_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/disk"
"""On a static PersistentVolume: which disk it was made of (daemon/static/diskrecord.py). Its daemon writes it once,
when the entry is offered, or when it sees one without it Available or Bound. What stands at its path later is cleaned,
or offered anew, only if it is that disk. An administrator removes it to accept another one."""
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
MADE_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/made"
"""Its volume was created and may hold data: if it is not there, it is lost, and no empty one may replace it."""

GRANTED_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/granted"
"""Bytes that the provisioner granted to the volume, from its creation on. What spec.capacity has beyond that is only
requested: Kubernetes raises it as soon as the claim does."""
IO_LIMITS_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/io-limits"
"""The I/O limits of a volume whose VolumeAttributesClass was changed (parameters.render_limits): these count then, and
no longer those of its source, which can't be changed."""
PRE_RESIZE_ANNOTATION = "volume.alpha.kubernetes.io/pre-resize-capacity"
"""On a PersistentVolume whose spec.capacity was raised and whose claim does not have that yet: what the claim has. The
controller of volumes writes that, and not spec.capacity, into the status of a claim that it binds anew."""
SIZE_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/size"
"""Bytes that the volume really has, recorded by its node."""

# On the CSIStorageCapacity objects that a node's daemon publishes (contract/capacity.py).
POOL_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/pool"
ALLOCATABLE_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/allocatable"
GRANULARITY_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/granularity"
LAYOUT_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/layout"
"""The weight of other volumes for the class, and how many reserved bytes the node knew of."""
VOLUME_MODES_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/volume-modes"
"""Which volume modes its volumes can have, separated by spaces. Daemons that don't say know Filesystem only."""
ENCRYPTION_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/encryption"
"""How its volumes can be encrypted, empty where they can't. Daemons that don't say can't. On a VolumeSnapshotContent:
how the snapshot is, and by which Secret, `luks2 <namespace>/<name>`."""
SHARED_ANNOTATION = "elastic-local.volumes.k8s.elastic.co/shared"
"""What the pools of one filesystem may take together, and the other pools there."""

HOSTNAME_LABEL = "kubernetes.io/hostname"
OTHER_HOSTNAME_LABEL = "elastic-local.volumes.k8s.elastic.co/hostname"
"""On what a node publishes, where its hostname label is not its name: for the admission policies in deploy/base, which
know the name from the daemon's token."""


def node_label_value(node: str) -> str:
    """The value of NODE_LABEL for a node: its name, or for one over a label's 63 characters a stable digest."""
    if len(node) <= 63:
        return node
    import hashlib

    return f"{node[:46].rstrip('.-')}.{hashlib.sha256(node.encode()).hexdigest()[:16]}"


def labels_of(node: str, hostname: str) -> dict[str, str]:
    """Labels of what a node publishes. `hostname` is the value of its hostname label."""
    return {NODE_LABEL: node_label_value(node)} | ({OTHER_HOSTNAME_LABEL: hostname} if hostname != node else {})
