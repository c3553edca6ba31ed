"""A claim may go while its volume is being made: then nobody would ever delete the volume, so we do.

With policy Delete the volume would be found Released and reclaimed. With Retain it would stay for ever, empty. So each
claim is read once more after its volume exists. That the volume was never used is certain: the claim was gone before
it could be bound.
"""

import logging
from dataclasses import dataclass

from contract.volume import ClaimReference
from kube.client import VOLUMES, Cluster, Conflict, NotFound
from kube.workqueue import Backoff, WorkQueue
from provisioner import live

_log = logging.getLogger(__name__)
_GOING = 1.0
"""Seconds between two looks at a claim that is being deleted: it may still be bound, or go."""


@dataclass(frozen=True)
class _Made:
    claim: ClaimReference
    uid: str


class Orphans:
    """Checks of volumes that were just made, each repeated until the API server answered."""

    def __init__(self, cluster: Cluster, *, parallelism: int) -> None:
        self._cluster = cluster
        self._made: dict[str, _Made] = {}
        self.queue = WorkQueue(self._check, parallelism=parallelism, backoff=Backoff(first=0.2, factor=2, limit=30))

    def check(self, name: str, uid: str, claim: ClaimReference) -> None:
        """To be called once the volume is known to exist."""
        self._made[name] = _Made(claim, uid)
        self.queue.add(name)

    async def _check(self, name: str) -> None:
        made = self._made.get(name)
        if made is None:
            return
        claim = await live.claim(self._cluster, made.claim)
        if claim is not None and claim.deleting and not claim.volume_name:
            self.queue.add_after(name, _GOING)
            return
        if claim is None:
            _log.info("volume %s: claim %s went while the volume was made, deleting it", name, made.claim)
            await self._delete(name, made.uid)
        if self._made.get(name) == made:
            del self._made[name]

    async def _delete(self, name: str, uid: str) -> None:
        try:
            await self._cluster.delete(VOLUMES, name, uid=uid)
        except (NotFound, Conflict):
            _log.info("volume %s: somebody else deleted it", name)
