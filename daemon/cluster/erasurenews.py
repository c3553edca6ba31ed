"""Who hears of erasures: the metrics, the PersistentVolume when it takes its time, and whoever waits for the end.

A failure is told by those who ask for the removal and are refused: daemon.cluster.reconcile, daemon.cluster.orphans.
"""

from collections.abc import Callable

from contract import quantity
from daemon.errors import VolumeError
from daemon.metrics import Metrics
from daemon.storage.record import Volume
from kube.events import ObjectReference, Recorder

ERASING, ERASED = "VolumeErasing", "VolumeErased"

LARGE = 2**30
"""Bytes. What is smaller is gone before anybody reads of it."""


class ErasureNews:
    """See daemon.storage.erasing.Listener. `ended` is called with the name of a volume that can be looked at again."""

    def __init__(self, metrics: Metrics, events: Recorder, ended: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._events = events
        self._ended = ended

    def begun(self, volume: Volume) -> None:
        self._metrics.erasing(1)
        if left := _worth_telling(volume):
            words = f"the data of volume {volume.pv} is being erased, {quantity.humane(left)} are left to do"
            self._events.normal(_reference(volume), ERASING, f"{words}; until then its space is not free")

    def progressed(self, size: int) -> None:
        self._metrics.erased(size)

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        self._metrics.erasing(-1)
        if error is None and _worth_telling(volume):
            self._events.normal(_reference(volume), ERASED, f"the data of volume {volume.pv} is erased")
        self._ended(volume.pv)


def _worth_telling(volume: Volume) -> int:
    """The bytes that were left when it began, or 0."""
    return volume.size - volume.record.erased if volume.size >= LARGE else 0


def _reference(volume: Volume) -> ObjectReference:
    return ObjectReference("PersistentVolume", "v1", "", volume.pv, volume.record.uid)
