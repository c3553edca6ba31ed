"""The settings of the programs by topic, as `daemon --help`, `provisioner --help` and the manual page show them. A test
holds names and defaults to the README's table, and with it to what the programs read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typer.core import TyperCommand


@dataclass(frozen=True)
class Setting:
    name: str
    """The environment variable."""
    meaning: str
    default: str = ""
    """Empty: it is required, or the meaning tells it."""

    @property
    def described(self) -> str:
        return f"{self.meaning} Default: {self.default}." if self.default else self.meaning


Topics = Mapping[str, tuple[Setting, ...]]

_NAMESPACE = Setting("NAMESPACE", "Namespace of the published capacity and the leader's Lease.", "elastic-local")
_KUBECONFIG = Setting("KUBECONFIG", "Path of a kubeconfig. Default: the pod's service account, else as kubectl.")
_WATCHING = (
    Setting("LISTEN_ADDRESS", "Address of /metrics, /healthz and /readyz, as HOST:PORT.", ":8080"),
    Setting("LOG_FORMAT", "text or json.", "text"),
    Setting("LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR.", "INFO"),
)

DAEMON: Topics = {
    "Node and API server": (
        Setting("NODE_NAME", "Required: the name of this node, as `kubectl get nodes` has it."),
        Setting(
            "STARTUP_TAINT", "Key of the taint to remove from this Node once pods can have volumes. Default: none."
        ),
        _NAMESPACE,
        _KUBECONFIG,
    ),
    "Storage": (
        Setting("DRIVER_KIND", "LVM, LOOP (sparse files) or BINDMOUNT (folders, sizes not enforced).", "LVM"),
        Setting("LVM_VOLUME_GROUP", "The volume group.", "elastic-local-vg"),
        Setting("LVM_USE_THIN_VOLUMES", "Whether volumes are thin, unless the StorageClass says.", "false"),
        Setting(
            "LVM_THIN_POOL",
            "Name of the thin pool. With thin volumes it is created when missing.",
            "elastic-local-thinpool",
        ),
        Setting("CAPACITY", "LOOP, BINDMOUNT: size of all volumes together. Default: the filesystem's size."),
        Setting("RESERVE", "Space that is never allocated, in every pool, such as 10Gi.", "0"),
        Setting("DEVICE_CLASSES_FILE", "YAML file of further device classes. Default: none."),
        Setting("DATA_DIR", "The daemon's own files, loop files included.", "/var/lib/elastic-local"),
    ),
    "Kubelet": (
        Setting("CSI", "Whether the kubelet gets the CSI driver.", "true"),
        Setting("FLEX_VOLUME", "Whether the kubelet gets the FlexVolume driver.", "true"),
        Setting(
            "PLUGIN_DIR",
            "The kubelet's --volume-plugin-dir. Several, separated by colons.",
            "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
        ),
        Setting("KUBELET_ROOT", "The kubelet's --root-dir.", "/var/lib/kubelet"),
        Setting("STAGING_DIR", "Where volumes are staged before they are mounted into pods.", "/mnt/storage"),
        Setting("ELASTIC_LOCAL_SOCKET", "The socket of the FlexVolume driver.", "/var/run/elastic-local/socket"),
    ),
    "Life of volumes": (
        Setting("REFRESH_PERIOD", "How often storage is checked for changes made by others.", "30s"),
        Setting(
            "ORPHAN_GRACE",
            "How long a volume without a PersistentVolume is kept, if its policy is Delete; never: for good.",
            "1h",
        ),
        Setting("ERASE_RATE", "Bytes per second that erasing may write; 0: no limit.", "200Mi"),
    ),
    "Static volumes": (
        Setting("STATIC_CONFIG_DIR", "Directory of the mounted ConfigMap. Default: no static volumes."),
        Setting("DISCOVERY_PERIOD", "How often the folders are checked without a kernel event.", "10s"),
        Setting("CONFIG_SYNC_PERIOD", "How often the ConfigMap is checked for changes.", "5s"),
        Setting("JOB_CONTAINER_IMAGE", "Image of cleanup Jobs. Default: none."),
        Setting("MY_NODE_NAME", "As NODE_NAME, for a DaemonSet of the local static provisioner."),
        Setting("MY_NAMESPACE", "Namespace of cleanup Jobs. Default: NAMESPACE."),
    ),
    "Metrics, health and log": _WATCHING,
}

PROVISIONER: Topics = {
    "Cluster": (
        _NAMESPACE,
        _KUBECONFIG,
        Setting("POD_NAME", "This replica's name on the Lease. Default: the hostname."),
    ),
    "Lost nodes": (
        Setting(
            "NODE_LOSS_DELAY", "How long after its Node was deleted a volume is released; never: not at all.", "60s"
        ),
        Setting(
            "NODE_CLEANUP_CLASSES",
            "StorageClasses, comma-separated, whose claims and volumes are deleted with their node. Default: none.",
        ),
    ),
    "Metrics, health and log": _WATCHING,
}

TOPICS: Mapping[str, Topics] = {"daemon": DAEMON, "provisioner": PROVISIONER}


class ProgramCommand(TyperCommand):
    """A command that is a program: its help shows the settings below the options, as plain text."""

    @property
    def topics(self) -> Topics:
        return TOPICS[self.name or ""]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        for topic, settings in self.topics.items():
            with formatter.section(f"{topic} (environment)"):
                formatter.write_dl([(each.name, each.described) for each in settings])
