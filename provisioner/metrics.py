"""Figures for Prometheus. The `controller_` ones have the names, labels and buckets that every provisioner for
Kubernetes has, so that dashboards and alerts which exist work with this one.

The values of labels come from closed sets, whatever users write into their claims: a class that there is, a kind of
source that there is. The series of a class go with it.
"""

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from contract.volume import CLAIM_KIND
from kube.records import SNAPSHOT_SOURCE, StorageClass
from kube.workqueue import WorkQueue

M = TypeVar("M", bound=MetricWrapperBase)

_LABELS = ("class", "source")
_SOURCES = ("", CLAIM_KIND, SNAPSHOT_SOURCE)
_OTHER = "other"
"""Stands for a class that does not exist, or not any more, and for a source of any other kind."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""The default of Prometheus itself; that of its Python client is another one."""


class Metrics:
    """One registry per run. `source` is the kind of a claim's dataSource, empty without one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._classes: set[str] = set()
        self._by_class: list[MetricWrapperBase] = []
        """Metrics with a label `class`: their series go with the class."""
        self._provisioned = self._counter(
            "controller_persistentvolumeclaim_provision", "Volumes that were provisioned.", _LABELS
        )
        self._provision_failed = self._counter(
            "controller_persistentvolumeclaim_provision_failed",
            "Attempts to provision a volume that failed.",
            _LABELS,
        )
        self._provision_seconds = self._histogram(
            "controller_persistentvolumeclaim_provision_duration_seconds",
            "How long provisioning a volume took.",
            _LABELS,
        )
        self._deleted = self._counter("controller_persistentvolume_delete", "Volumes that were deleted.", _LABELS)
        self._delete_failed = self._counter(
            "controller_persistentvolume_delete_failed", "Attempts to delete a volume that failed.", _LABELS
        )
        self._delete_seconds = self._histogram(
            "controller_persistentvolume_delete_duration_seconds", "How long deleting a volume took.", _LABELS
        )
        self._finalizers_removed = self._counter(
            "elastic_local_provisioner_volumes_let_go",
            "Volumes whose finalizer was removed, because their node was deleted and did not come back.",
            ("class",),
        )
        cleanup = "local_volume_node_cleanup_persistentvolume"
        self._lost_deleted = self._counter(
            f"{cleanup}_delete", "Volumes of deleted nodes that were deleted.", ("phase",)
        )
        self._lost_delete_failed = self._counter(
            f"{cleanup}_delete_failed", "Attempts to delete a volume of a deleted node that failed.", ("phase",)
        )
        self._lost_claims_deleted = self._counter(
            f"{cleanup}claim_delete", "Claims of volumes of deleted nodes that were deleted."
        )
        self._lost_claims_delete_failed = self._counter(
            f"{cleanup}claim_delete_failed", "Attempts to delete the claim of a volume of a deleted node that failed."
        )
        self._leading = self._gauge("elastic_local_provisioner_leading", "1 while this replica leads.")
        self._depth = self._gauge(
            "elastic_local_provisioner_queue_depth", "Objects that wait for a free worker.", ("queue",)
        )
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Counter:
        return self._added(Counter(name, meaning, labels, registry=self.registry), labels)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Gauge:
        return self._added(Gauge(name, meaning, labels, registry=self.registry), labels)

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Histogram:
        return self._added(Histogram(name, meaning, labels, buckets=_BUCKETS, registry=self.registry), labels)

    def _added(self, metric: M, labels: tuple[str, ...]) -> M:
        if "class" in labels:
            self._by_class.append(metric)
        return metric

    def class_changed(self, name: str, old: StorageClass | None, new: StorageClass | None) -> None:
        """A subscriber of the classes that there are."""
        if new is not None:
            self._classes.add(name)
            return
        self._classes.discard(name)
        for metric in self._by_class:
            metric.remove_by_labels({"class": name})

    def _class(self, name: str) -> str:
        return name if name in self._classes else _OTHER

    def _labels(self, storage_class: str, source: str) -> tuple[str, str]:
        return self._class(storage_class), source if source in _SOURCES else _OTHER

    def provisioned(self, storage_class: str, source: str, seconds: float) -> None:
        labels = self._labels(storage_class, source)
        self._provisioned.labels(*labels).inc()
        self._provision_seconds.labels(*labels).observe(seconds)

    def provision_failed(self, storage_class: str, source: str) -> None:
        self._provision_failed.labels(*self._labels(storage_class, source)).inc()

    def deleted(self, storage_class: str, seconds: float) -> None:
        labels = self._labels(storage_class, "")
        self._deleted.labels(*labels).inc()
        self._delete_seconds.labels(*labels).observe(seconds)

    def delete_failed(self, storage_class: str) -> None:
        self._delete_failed.labels(*self._labels(storage_class, "")).inc()

    def finalizer_removed(self, storage_class: str) -> None:
        self._finalizers_removed.labels(self._class(storage_class)).inc()

    def lost_volume_deleted(self, phase: str) -> None:
        self._lost_deleted.labels(phase).inc()

    def lost_volume_delete_failed(self, phase: str) -> None:
        self._lost_delete_failed.labels(phase).inc()

    def lost_claim_deleted(self) -> None:
        self._lost_claims_deleted.inc()

    def lost_claim_delete_failed(self) -> None:
        self._lost_claims_delete_failed.inc()

    def leading(self, yes: bool) -> None:
        self._leading.set(yes)

    def observe_queue(self, name: str, queue: WorkQueue) -> None:
        """Asks the queue for its depth whenever the metrics are read."""
        self._depth.labels(name).set_function(lambda: queue.depth)
