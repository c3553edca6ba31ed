"""Metrics of static volumes: names, types, labels and buckets of the local static provisioner, so that its dashboards
and alerts go on working.

Gauges (volumes, process table, invalid entries) are read at each scrape; counters and histograms are updated as things
happen. docs/development.md says how to add a metric.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.static.configuration import BLOCK, FILESYSTEM
from daemon.static.volume import StaticVolume

PREFIX = "local_volume_provisioner"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
PROCESS, JOB = "process", "job"
UNKNOWN = "unknown"
"""The mode of a volume whose path can't be examined."""
CREATE, DELETE = "create", "delete"

_STEP_GIB = 500
_STEP = _STEP_GIB << 30


@dataclass(frozen=True)
class ProcessCounts:
    """Cleanups in the process table."""

    running: int
    """Now."""
    succeeded: int
    """Since the start of the daemon, as the next."""
    failed: int


def capacity_label(size: int) -> str:
    """Rounded up to a multiple of 500 GiB: 1 byte is 500G."""
    return f"{-(-size // _STEP) * _STEP_GIB}G"


class StaticMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", documentation, labels, buckets=BUCKETS, registry=registry)

        self._discovered = counter("persistentvolume_discovery_total", "PersistentVolumes created.", "mode")
        self._discovery_seconds = histogram(
            "persistentvolume_discovery_duration_seconds",
            "Time from the examination of an entry to the creation of its PersistentVolume.",
            "mode",
        )
        self._deleted = counter("persistentvolume_delete_total", "PersistentVolumes deleted.", "mode", "type")
        self._delete_failed = counter(
            "persistentvolume_delete_failed_total",
            "Failed cleanups and failed deletions of PersistentVolumes.",
            "mode",
            "type",
        )
        self._delete_seconds = histogram(
            "persistentvolume_delete_duration_seconds",
            "Time from the start of a cleanup to the deletion of its PersistentVolume.",
            "mode",
            "type",
            "capacity",
            "cleanup_command",
        )
        self._requests = counter(
            "apiserver_requests_total", "Requests to the API server for PersistentVolumes.", "method"
        )
        self._requests_failed = counter(
            "apiserver_requests_failed_total", "Failed requests to the API server for PersistentVolumes.", "method"
        )
        self._request_seconds = histogram(
            "apiserver_requests_duration_seconds",
            "Duration of requests to the API server for PersistentVolumes.",
            "method",
        )
        self._reload_failed = counter(
            "configuration_reload_failed_total", "Invalid changes of the configuration folder."
        )
        self._gauges = _Gauges()
        self.collect_from()
        registry.register(self._gauges)

    def collect_from(
        self,
        volumes: Callable[[], Iterable[StaticVolume]] = tuple,
        counts: Callable[[], ProcessCounts] = lambda: ProcessCounts(0, 0, 0),
        invalid_entries: Callable[[], Mapping[str, int]] = dict,
        changed_disks: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """The sources of the gauges, read at each scrape: the volumes, the process table, and by class the number of
        invalid entries and of volumes whose entry leads to another disk, which are among them."""
        self._gauges.volumes, self._gauges.counts = volumes, counts
        self._gauges.invalid_entries, self._gauges.changed_disks = invalid_entries, changed_disks

    def discovered(self, mode: str, seconds: float) -> None:
        self._discovered.labels(mode).inc()
        self._discovery_seconds.labels(mode).observe(seconds)

    def deleted(self, mode: str, cleanup_type: str, seconds: float, capacity: int, command: str) -> None:
        """`cleanup_type`: PROCESS or JOB. `capacity` in bytes. `command`: the program of the cleaner, or empty."""
        self._deleted.labels(mode, cleanup_type).inc()
        self._delete_seconds.labels(mode, cleanup_type, capacity_label(capacity), command).observe(seconds)

    def delete_failed(self, mode: str, cleanup_type: str) -> None:
        self._delete_failed.labels(mode, cleanup_type).inc()

    def reload_failed(self) -> None:
        self._reload_failed.inc()

    @contextmanager
    def request(self, method: str) -> Iterator[None]:
        """Measures the request for a PersistentVolume that is made inside. `method`: CREATE or DELETE."""
        begin = time.perf_counter()
        self._requests.labels(method).inc()
        try:
            yield
        except Exception:
            self._requests_failed.labels(method).inc()
            raise
        finally:
            self._request_seconds.labels(method).observe(time.perf_counter() - begin)


class _Gauges(Collector):
    def __init__(self) -> None:
        self.volumes: Callable[[], Iterable[StaticVolume]]
        self.counts: Callable[[], ProcessCounts]
        self.invalid_entries: Callable[[], Mapping[str, int]]
        self.changed_disks: Callable[[], Mapping[str, int]]

    def collect(self) -> Iterator[Metric]:
        sums = {FILESYSTEM: 0, BLOCK: 0}
        for volume in self.volumes():
            sums[volume.mode] += volume.capacity
        capacity = GaugeMetricFamily(
            f"{PREFIX}_persistentvolume_capacity_bytes", "Capacity of the static volumes of this node.", labels=["mode"]
        )
        for mode, size in sums.items():
            capacity.add_metric([mode], size)
        yield capacity
        counts = self.counts()
        yield GaugeMetricFamily(f"{PREFIX}_proctable_running", "Cleanups that are running.", counts.running)
        yield GaugeMetricFamily(f"{PREFIX}_proctable_succeeded", "Cleanups that succeeded.", counts.succeeded)
        yield GaugeMetricFamily(f"{PREFIX}_proctable_failed", "Cleanups that failed.", counts.failed)
        invalid_entries = GaugeMetricFamily(
            f"{PREFIX}_stray_entries",
            "Entries of discovery folders that can't be volumes, and volumes whose entry is missing.",
            labels=["storage_class"],
        )
        for name, number in self.invalid_entries().items():
            invalid_entries.add_metric([name], number)
        yield invalid_entries
        changed_disks = GaugeMetricFamily(
            f"{PREFIX}_changed_disks",
            "Volumes whose entry leads to another disk than they were made of.",
            labels=["storage_class"],
        )
        for name, number in self.changed_disks().items():
            changed_disks.add_metric([name], number)
        yield changed_disks
