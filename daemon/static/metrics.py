"""What Prometheus learns of static volumes: the original's names, types, labels and buckets, so that its dashboards
and alerts go on working.

Figures that are true at a moment (volumes, process table, stray entries) are read when somebody asks; the rest is
counted as it happens. Both halves, discovery and deletion, count here.
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
"""The mode of a volume whose path can't be read."""
CREATE, DELETE = "create", "delete"

_STEP_GIB = 500
_STEP = _STEP_GIB << 30


@dataclass(frozen=True)
class ProcessCounts:
    """The process table of cleanings in figures."""

    running: int
    """Now."""
    succeeded: int
    """Since the start, like the next."""
    failed: int


def capacity_label(size: int) -> str:
    """Sizes in steps of 500 GiB, rounded up: 1 byte is 500G."""
    return f"{-(-size // _STEP) * _STEP_GIB}G"


class StaticMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", words, labels, registry=registry)

        def histogram(name: str, words: str, *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", words, labels, buckets=BUCKETS, registry=registry)

        self._discovered = counter("persistentvolume_discovery_total", "PersistentVolumes created.", "mode")
        self._discovery_seconds = histogram(
            "persistentvolume_discovery_duration_seconds",
            "Time from looking at an entry to its PersistentVolume being created.",
            "mode",
        )
        self._deleted = counter("persistentvolume_delete_total", "PersistentVolumes deleted.", "mode", "type")
        self._delete_failed = counter(
            "persistentvolume_delete_failed_total", "Failed attempts to clean or delete.", "mode", "type"
        )
        self._delete_seconds = histogram(
            "persistentvolume_delete_duration_seconds",
            "Time from the start of a cleaning to its PersistentVolume being deleted.",
            "mode",
            "type",
            "capacity",
            "cleanup_command",
        )
        self._requests = counter("apiserver_requests_total", "Requests for PersistentVolumes.", "method")
        self._requests_failed = counter(
            "apiserver_requests_failed_total", "Requests for PersistentVolumes that failed.", "method"
        )
        self._request_seconds = histogram(
            "apiserver_requests_duration_seconds", "Time that requests for PersistentVolumes took.", "method"
        )
        self._reload_failed = counter(
            "configuration_reload_failed_total", "Changes of the configuration folder that could not be used."
        )
        self._figures = _Figures()
        registry.register(self._figures)

    def watch(
        self,
        volumes: Callable[[], Iterable[StaticVolume]],
        counts: Callable[[], ProcessCounts],
        strays: Callable[[], Mapping[str, int]],
    ) -> None:
        """Where to read, at every scrape, the volumes, the process table and the number of stray entries by class."""
        self._figures.volumes, self._figures.counts, self._figures.strays = volumes, counts, strays

    def discovered(self, mode: str, seconds: float) -> None:
        self._discovered.labels(mode).inc()
        self._discovery_seconds.labels(mode).observe(seconds)

    def deleted(self, mode: str, kind: str, seconds: float, capacity: int, command: str) -> None:
        """`kind` is PROCESS or JOB, `capacity` in bytes, `command` the first word of the cleaner or empty."""
        self._deleted.labels(mode, kind).inc()
        self._delete_seconds.labels(mode, kind, capacity_label(capacity), command).observe(seconds)

    def delete_failed(self, mode: str, kind: str) -> None:
        self._delete_failed.labels(mode, kind).inc()

    def reload_failed(self) -> None:
        self._reload_failed.inc()

    @contextmanager
    def request(self, method: str) -> Iterator[None]:
        """Counts the request for a PersistentVolume made inside, CREATE or DELETE."""
        begin = time.perf_counter()
        self._requests.labels(method).inc()
        try:
            yield
        except Exception:
            self._requests_failed.labels(method).inc()
            raise
        finally:
            self._request_seconds.labels(method).observe(time.perf_counter() - begin)


class _Figures(Collector):
    def __init__(self) -> None:
        self.volumes: Callable[[], Iterable[StaticVolume]] = tuple
        self.counts: Callable[[], ProcessCounts] = lambda: ProcessCounts(0, 0, 0)
        self.strays: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[Metric]:
        sums = {FILESYSTEM: 0, BLOCK: 0}
        for volume in self.volumes():
            sums[volume.mode] += volume.capacity
        capacity = GaugeMetricFamily(
            f"{PREFIX}_persistentvolume_capacity_bytes", "Capacity of the volumes of this node.", labels=["mode"]
        )
        for mode, size in sums.items():
            capacity.add_metric([mode], size)
        yield capacity
        counts = self.counts()
        yield GaugeMetricFamily(f"{PREFIX}_proctable_running", "Cleanings that run.", counts.running)
        yield GaugeMetricFamily(f"{PREFIX}_proctable_succeeded", "Cleanings that succeeded.", counts.succeeded)
        yield GaugeMetricFamily(f"{PREFIX}_proctable_failed", "Cleanings that failed.", counts.failed)
        strays = GaugeMetricFamily(
            f"{PREFIX}_stray_entries",
            "Entries of discovery folders that can't be volumes, and volumes that are gone.",
            labels=["storage_class"],
        )
        for name, number in self.strays().items():
            strays.add_metric([name], number)
        yield strays
