"""Claims that wait, by what each waits for (capacity, a class, a source). So an event wakes only the claims that it may
help: a cluster that is full may have thousands of others.
"""

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass

from contract.volume import ClaimReference
from kube.records import Claim
from provisioner.index import Index


@dataclass(frozen=True)
class _Stalled:
    claim: Claim
    since: float | None
    """Monotonic seconds: when it was first found to have to wait for a time, with the node that is chosen for it. None:
    it waits until something changes."""
    number: int
    """In the order in which they came."""
    lacks: int | None
    """See `refuse`."""


class StalledClaims:
    """Known by their keys, which are handed out in the order in which they came."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stalled: dict[str, _Stalled] = {}
        self._arrived = 0
        self._of_class = Index[str]()
        self._naming = Index[str]()
        self._copying = Index[tuple[bool, str, str]]()
        """By source: whether it is a snapshot, its namespace and its name."""
        self._lacking: dict[str, list[tuple[int, int, str]]] = {}
        """By class, in ascending order: what each lacks, its number and its key."""

    def __contains__(self, key: str) -> bool:
        return key in self._stalled

    def wait(self, claim: Claim) -> None:
        """The claim waits from now on, or still: `waited` counts its seconds."""
        self._put(claim, self._clock() - self.waited(claim), None)

    def refuse(self, claim: Claim, lacks: int | None = None) -> None:
        """It can't be served as things are. `lacks`: bytes that a node must have left at least. None: no capacity that
        is freed helps it."""
        self._put(claim, None, lacks)

    def _put(self, claim: Claim, since: float | None, lacks: int | None) -> None:
        before = self._stalled.get(claim.key)
        number = before.number if before else self._arrived
        self._arrived += before is None
        self._unlist(before)
        self._stalled[claim.key] = _Stalled(claim, since, number, lacks)
        self._of_class.put(claim.key, (claim.storage_class,))
        self._naming.put(claim.key, (claim.attributes_class,))
        source = claim.restores, claim.namespace, claim.data_source_name
        self._copying.put(claim.key, (source,) if claim.clones else ())
        if lacks is not None:
            insort(self._lacking.setdefault(claim.storage_class, []), (lacks, number, claim.key))

    def discard(self, key: str) -> None:
        self._unlist(self._stalled.pop(key, None))
        for index in (self._of_class, self._naming, self._copying):
            index.discard(key)

    def _unlist(self, stalled: _Stalled | None) -> None:
        if stalled is None or stalled.lacks is None:
            return
        entries = self._lacking[stalled.claim.storage_class]
        del entries[bisect_left(entries, (stalled.lacks, stalled.number, stalled.claim.key))]
        if not entries:
            del self._lacking[stalled.claim.storage_class]

    def waited(self, claim: Claim) -> float:
        """Seconds that it has waited so far, with the node that is chosen for it now."""
        stalled = self._stalled.get(claim.key)
        if stalled is None or stalled.since is None:
            return 0.0
        same = (stalled.claim.uid, stalled.claim.selected_node) == (claim.uid, claim.selected_node)
        return self._clock() - stalled.since if same else 0.0

    def of_class(self, storage_class: str) -> list[str]:
        return self._of_class.get(storage_class)

    def naming(self, attributes_class: str) -> list[str]:
        """Those that name this VolumeAttributesClass."""
        return self._naming.get(attributes_class)

    def copying(self, source: ClaimReference) -> list[str]:
        """Those that are to be copies of this claim."""
        return self._copying.get((False, source.namespace, source.name))

    def restoring(self, namespace: str, snapshot: str) -> list[str]:
        """Those that are to be restored from this VolumeSnapshot."""
        return self._copying.get((True, namespace, snapshot))

    def lacking(self, storage_class: str, most_free: Callable[[str], int]) -> list[str]:
        """Those of a class that lacked capacity and may be served now, with so many bytes left on the node of the class
        that has most."""
        entries = self._lacking.get(storage_class)
        if not entries:
            return []
        fitting = entries[: bisect_right(entries, most_free(storage_class), key=lambda entry: entry[0])]
        return [key for _, _, key in sorted(fitting, key=lambda entry: entry[1])]
