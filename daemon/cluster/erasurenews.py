"""Who hears of erasures: the metrics, the PersistentVolume, and whoever waits for the end.

A failure is told by those who ask for the removal and are refused: daemon.cluster.reconcile, daemon.cluster.orphans.
"""

from collections.abc import Callable

from contract import quantity
from daemon.errors import VolumeError
from daemon.metrics import Metrics
from daemon.storage.inventory import Volume
from kube.events import ObjectReference, Recorder

ERASING, ERASED = "VolumeErasing", "VolumeErased"


class ErasureNews:
    """See daemon.storage.erasing.Listener. `ended` is called with the name of a volume that can be looked at again."""

    def __init__(self, metrics: Metrics, events: Recorder, ended: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._events = events
        self._ended = ended

    def begun(self, volume: Volume) -> None:
        self._metrics.erasing(1)
        left = quantity.humane(volume.size - volume.record.erased)
        words = f"the data of volume {volume.pv} is being erased, {left} are left to do"
        self._tell(volume, ERASING, f"{words}; until then its space is not free")

    def progressed(self, size: int) -> None:
        self._metrics.erased(size)

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        self._metrics.erasing(-1)
        if error is None:
            self._tell(volume, ERASED, f"the data of volume {volume.pv} is erased")
        self._ended(volume.pv)

    def _tell(self, volume: Volume, reason: str, words: str) -> None:
        """A snapshot has no PersistentVolume that anybody would look at."""
        if not volume.record.snapshot_of:
            reference = ObjectReference("PersistentVolume", "v1", "", volume.pv, volume.record.uid)
            self._events.normal(reference, reason, words)
