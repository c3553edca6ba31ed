"""The PersistentVolumes that are tied to this node: what its daemon owes space to, prepares and reclaims.

The informer finds them by label. The affinity has the last word: an object whose label names this node and whose
affinity names another is somebody's mistake, and nothing here touches it. A PersistentVolume that this daemon pinned a
moment ago counts at once; until the informer shows it too, two mounts could otherwise be promised the same space.
"""

from contract.volume import PersistentVolume
from daemon.cluster.nodeassignment import is_assigned
from kube.informer import Informer
from kube.records import Node


class Holdings:
    def __init__(self, informer: Informer[PersistentVolume], node: Node) -> None:
        self._informer = informer
        self._node = node
        self._pinned: dict[str, PersistentVolume] = {}
        informer.subscribe(self._seen)

    def get(self, name: str) -> PersistentVolume | None:
        """As the informer shows it: what is to be done is decided on nothing else."""
        found = self._informer.get(name)
        return found if found and is_assigned(found, self._node) else None

    def all(self) -> list[PersistentVolume]:
        return [*(pv for pv in self._informer.values() if is_assigned(pv, self._node)), *self._pinned.values()]

    def related(self, one: str, other: str) -> bool:
        """Whether two PersistentVolumes of this node are for claims of one namespace: whoever may create a
        PersistentVolume can name any other as what it is to be a copy of."""
        first, second = self.get(one), self.get(other)
        return bool(
            first and second and first.claim and second.claim and first.claim.namespace == second.claim.namespace
        )

    def pinned(self, volume: PersistentVolume) -> None:
        """Counts a PersistentVolume that was pinned just now. Our finalizer keeps it until the informer showed it."""
        if self._informer.get(volume.name) is None:
            self._pinned[volume.name] = volume

    def _seen(self, key: str, _: PersistentVolume | None, new: PersistentVolume | None) -> None:
        self._pinned.pop(key, None)
