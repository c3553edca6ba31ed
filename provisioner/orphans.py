"""A claim may go while its volume is being made: then nobody would ever delete the volume, so we do.

With policy Delete the volume would be found Released and reclaimed. With Retain it would stay for ever, empty. So each
claim is read once more right after its volume exists. Later it is too late: a volume whose claim is gone by then may
have been bound, written and released, nothing on it tells, and so its policy decides.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from contract.volume import ClaimReference
from kube.client import VOLUMES, Cluster, Conflict, NotFound
from kube.workqueue import Backoff, WorkQueue
from provisioner import live

_log = logging.getLogger(__name__)
_UNUSED = 1.0
"""Seconds after which a volume may have been bound, mounted, written and left by a pod that ended."""
_GOING = 0.5
"""Seconds between two looks at a claim that is being deleted. No new pod may use it, so it stays as unused as it is."""


@dataclass(frozen=True)
class _Made:
    claim: ClaimReference
    uid: str
    unused: float
    """Monotonic seconds at which nobody had used it for certain."""
    gone: bool = False
    """The claim went in time: all that is left is to delete the volume."""


class Orphans:
    """Checks of volumes that were just made, each repeated until the API server answered."""

    def __init__(self, cluster: Cluster, *, parallelism: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._made: dict[str, _Made] = {}
        backoff = Backoff(first=0.2, factor=2, limit=30)
        self.queue = WorkQueue(self._check, parallelism=parallelism, backoff=backoff, of="volume")

    def check(self, name: str, uid: str, claim: ClaimReference, since: float) -> None:
        """To be called once the volume is known to exist. `since`: monotonic seconds at which the
        claim was still unbound."""
        self._made[name] = _Made(claim, uid, since)
        self.queue.add(name)

    async def _check(self, name: str) -> None:
        made = self._made.get(name)
        if made is None:
            return
        if not made.gone:
            claim = await live.claim(self._cluster, made.claim)
            if self._made.get(name) is not made:
                return  # made anew meanwhile, and queued again
            if claim is not None and claim.deleting and not claim.volume_name:
                self._made[name] = replace(made, unused=self._clock())
                self.queue.add_after(name, _GOING)
                return
            if claim is not None or self._clock() - made.unused > _UNUSED:
                del self._made[name]
                return
            self._made[name] = made = replace(made, gone=True)
            named = {"volume": name, "claim": str(made.claim)}
            _log.info("the claim went while its volume was made: deleting the volume", extra=named)
        try:
            await self._cluster.delete(VOLUMES, name, uid=made.uid)
        except (NotFound, Conflict):
            _log.info("somebody else deleted it", extra={"volume": name})
        if self._made.get(name) is made:
            del self._made[name]
