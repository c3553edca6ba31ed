"""Metrics of this node.

Gauges of pools and volumes are read from their sources at each scrape, so they are never stale, and what was removed
leaves no series behind. Operations and commands are counted as they end. docs/development.md says how to add a metric.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client import Counter as Counted
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.storage.deviceclasses import DeviceClass
from daemon.storage.inventory import Inventory, VolumeHealth
from daemon.storage.record import VolumeState
from host.command import Completed

ORPHAN, FOREIGN, DAMAGED, SNAPSHOT = "orphan", "foreign", "damaged", "snapshot"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True)
class Sources:
    """What the gauges are read from at each scrape. The defaults are those of a node without storage."""

    inventory: Callable[[], Inventory] = Inventory
    persistent_volumes: Callable[[], Collection[str] | None] = lambda: None
    """UIDs of the PersistentVolumes and VolumeSnapshotContents assigned to this node. None: not known yet."""
    unhealthy: Callable[[], Mapping[str, VolumeHealth]] = dict
    """Volumes that are not healthy, by name."""
    classes: Mapping[str, DeviceClass] = field(default_factory=dict)
    """Device classes by name."""


class Metrics:
    def __init__(self, sources: Sources | None = None) -> None:
        self.registry = CollectorRegistry()
        self._operations = Histogram(
            "elastic_local_operation_duration_seconds",
            "Time that operations on volumes took, by kind and by outcome: success or the class of the error.",
            ["operation", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._callouts = Histogram(
            "elastic_local_callout_duration_seconds",
            "Time that the kubelet's FlexVolume calls took, by verb and by outcome: success or the class of the error.",
            ["verb", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._csi = Histogram(
            "elastic_local_csi_duration_seconds",
            "Time that the kubelet's CSI calls took, by RPC and by gRPC code.",
            ["rpc", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._commands = Histogram(
            "elastic_local_command_duration_seconds",
            "Time that commands of the node took (LVM, mkfs, fsck), by name and by outcome: success or failure.",
            ["command", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._erased = Counted(
            "elastic_local_erase_bytes_total",
            "Bytes of removed volumes that were erased.",
            registry=self.registry,
        )
        self._erasing = Gauge(
            "elastic_local_erase_running",
            "Erasures that run: one for each pool at most. How many volumes are left to erase, elastic_local_volumes "
            "says.",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gauges(sources or Sources()))

    def operation(self, kind: str, outcome: str, seconds: float) -> None:
        self._operations.labels(kind, outcome).observe(seconds)

    def callout(self, verb: str, outcome: str, seconds: float) -> None:
        self._callouts.labels(verb, outcome).observe(seconds)

    def csi(self, rpc: str, code: str, seconds: float) -> None:
        self._csi.labels(rpc, code).observe(seconds)

    def erasing(self, more: int) -> None:
        """Adds to the number of running erasures; `more` may be negative."""
        self._erasing.inc(more)

    def erased(self, size: int) -> None:
        self._erased.inc(size)

    def command(self, completed: Completed) -> None:
        """An observer for host.command."""
        outcome = "failure" if completed.exit_code else "success"
        self._commands.labels(command_name(completed.argv), outcome).observe(completed.seconds)


def command_name(argv: tuple[str, ...]) -> str:
    """`lvm lvcreate ...` counts as lvcreate, /sbin/mkfs.ext4 as mkfs.ext4."""
    program = PurePath(argv[0]).name
    return argv[1] if program == "lvm" and len(argv) > 1 else program


class _Gauges(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        inventory = self._sources.inventory()
        yield from pool_gauges(inventory)
        yield from volume_gauges(inventory, self._sources.persistent_volumes())
        yield health_gauge(self._sources.unhealthy())
        yield class_gauge(inventory, self._sources.classes)


def pool_gauges(inventory: Inventory) -> Iterator[Metric]:
    size = GaugeMetricFamily("elastic_local_pool_size_bytes", "Size of a volume group or pool.", labels=["pool"])
    free = GaugeMetricFamily(
        "elastic_local_pool_free_bytes",
        "Space of a volume group or pool that no volume has. Negative: an overprovisioned thin pool.",
        labels=["pool"],
    )
    data = GaugeMetricFamily(
        "elastic_local_thin_pool_data_percent", "How full the data of a thin pool is.", labels=["pool"]
    )
    metadata = GaugeMetricFamily(
        "elastic_local_thin_pool_metadata_percent",
        "How full the metadata of a thin pool is: full metadata stops its volumes like full data.",
        labels=["pool"],
    )
    for pool in inventory.pools:
        size.add_metric([pool.name], pool.size)
        free.add_metric([pool.name], pool.free)
        if pool.thin and pool.thin.data_percent is not None:
            data.add_metric([pool.name], pool.thin.data_percent)
        if pool.thin and pool.thin.metadata_percent is not None:
            metadata.add_metric([pool.name], pool.thin.metadata_percent)
    yield from (size, free, data, metadata)


def volume_gauges(inventory: Inventory, persistent_volumes: Collection[str] | None) -> Iterator[Metric]:
    """Each volume counts in one state. An orphan has no PersistentVolume: kept under policy Retain, or left behind."""
    count = dict.fromkeys((*(state.value for state in VolumeState), ORPHAN, FOREIGN, DAMAGED, SNAPSHOT), 0)
    for volume in inventory.volumes:
        orphan = persistent_volumes is not None and volume.record.uid not in persistent_volumes
        count[ORPHAN if orphan else volume.record.state.value] += 1
    count[FOREIGN] = len(inventory.foreign)
    count[DAMAGED] = len(inventory.damaged)
    count[SNAPSHOT] = len(inventory.snapshots)
    states = GaugeMetricFamily(
        "elastic_local_volumes",
        "Volumes on this node by state. orphan: without a PersistentVolume. foreign: not ours, never touched. "
        "damaged: ours by its mark, with a record that can't be relied on. snapshot: ours, while a volume is "
        "copied and until it is erased.",
        labels=["state"],
    )
    for state, number in count.items():
        states.add_metric([state], number)
    yield states


def health_gauge(unhealthy: Mapping[str, VolumeHealth]) -> Metric:
    gauge = GaugeMetricFamily(
        "elastic_local_unhealthy_volumes",
        "Volumes on this node whose storage has a fault, by the fault, such as raid-degraded: a mirror lost a leg.",
        labels=["state"],
    )
    count = Counter(unhealthy.values())
    for state in VolumeHealth:
        if state is not VolumeHealth.OK:
            gauge.add_metric([state.value], count[state])
    return gauge


def class_gauge(inventory: Inventory, classes: Mapping[str, DeviceClass]) -> Metric:
    gauge = GaugeMetricFamily(
        "elastic_local_device_class_missing",
        "1 for a device class that this node has no storage for, else 0. Nodes may differ: alert on a change.",
        labels=["device_class", "pool"],
    )
    for name, each in classes.items():
        gauge.add_metric([name, each.pool], inventory.pool(each.pool) is None)
    return gauge
