"""Events of this node's daemon: what `kubectl describe` shows of a PersistentVolume, its claim and the Node."""

from collections.abc import Callable

from contract import quantity
from contract.volume import ObjectReference, volume_reference
from daemon.errors import VolumeError
from daemon.metrics import Metrics
from daemon.storage.inventory import Volume
from kube.events import Recorder

ERASING, ERASED = "VolumeErasing", "VolumeErased"


class NodeEvents:
    """Events on the Node of this daemon, of which it knows the uid only after a while. Nothing is written before that:
    whoever has found something by then reports it again, by `on_known`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._node: ObjectReference | None = None
        self._reports: list[Callable[[], None]] = []

    def on_known(self, report: Callable[[], None]) -> None:
        """Has `report` called once the Node is known, at once if it is."""
        if self._node is None:
            self._reports.append(report)
        else:
            report()

    def set_node(self, node: ObjectReference) -> None:
        self._node = node
        for report in self._reports:
            report()
        self._reports.clear()

    def normal(self, reason: str, message: str) -> None:
        if self._node is not None:
            self._recorder.normal(self._node, reason, message)

    def warning(self, reason: str, message: str) -> None:
        if self._node is not None:
            self._recorder.warning(self._node, reason, message)


class ErasureEvents:
    """See daemon.storage.erasing.Listener. `ended` is called with the name of a volume whose erasure has ended.

    A failure is reported by those who ask for the removal and are refused: daemon.cluster.reconcile,
    daemon.cluster.orphancollector."""

    def __init__(self, metrics: Metrics, events: Recorder, ended: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._events = events
        self._ended = ended

    def begun(self, volume: Volume) -> None:
        self._metrics.erasing(1)
        left = quantity.humane(volume.device_size - volume.record.erased)
        message = f"the data of volume {volume.pv} is being erased, {left} are left to do"
        self._report(volume, ERASING, f"{message}; until then its space is not free")

    def progressed(self, size: int) -> None:
        self._metrics.erased(size)

    def ended(self, volume: Volume, error: VolumeError | None) -> None:
        self._metrics.erasing(-1)
        if error is None:
            self._report(volume, ERASED, f"the data of volume {volume.pv} is erased")
        self._ended(volume.pv)

    def _report(self, volume: Volume, reason: str, message: str) -> None:
        """A snapshot has no PersistentVolume that anybody would look at."""
        if not volume.record.snapshot_of:
            self._events.normal(volume_reference(volume.pv, volume.record.uid), reason, message)
