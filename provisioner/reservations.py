"""Verifies what the ledger keeps open: reservations that the watch never confirmed, and what retained volumes still
take.

A reservation is usually closed by the watch within milliseconds. What is left: a request whose answer was lost, and a
volume that came and went faster than the watch showed. A "not found" says nothing while a lost request may still be on
its way, so it counts only after the time that a request can live.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from contract import capacity, names, volume
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import NotFound
from kube.resources import CAPACITIES, VOLUMES
from kube.workqueue import WorkQueue
from provisioner.capacityledger import Account, charge_of
from provisioner.clusterstate import ClusterCache

_log = logging.getLogger(__name__)

REQUEST_LIFETIME = 90.0
"""Seconds after which a lost request can't create anything any more: the API server itself gives up after 60."""


class ReservationVerifier:
    """Two queues: names of volumes that are reserved, uids of retained volumes that are gone."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        namespace: str,
        *,
        on_missing: Callable[[str], None] = lambda name: None,
        on_freed: Callable[[Account], None] = lambda account: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_missing` is called with the name of each volume that turned out not to exist, `on_freed` with the account
        of all capacity that was freed."""
        self._cluster = cluster
        self._cache = cache
        self._ledger = cache.ledger
        self._namespace = namespace
        self._on_missing = on_missing
        self._on_freed = on_freed
        self._clock = clock
        backoff = Backoff(first=0.5, factor=2, limit=30)
        self.reservations = WorkQueue(self._verify, parallelism=8, backoff=backoff, of="volume")
        self.retained = WorkQueue(self._verify_retained, parallelism=4, backoff=backoff)
        cache.on_retained(self.retained.add)

    def verify_later(self, name: str) -> None:
        """Verify, later, a reservation that was just made, if it is still open then."""
        asyncio.get_running_loop().call_later(REQUEST_LIFETIME, self._verify_open, name)

    def _verify_open(self, name: str) -> None:
        if self._ledger.reservation(name) is not None:
            self.reservations.add(name)

    async def _verify(self, name: str) -> None:
        reservation = self._ledger.reservation(name)
        if reservation is None:
            return
        rest = reservation.since + REQUEST_LIFETIME - self._clock()
        if rest > 0 and reservation.uid:
            self.reservations.add_after(name, rest)
            return
        try:
            created = volume.read(await self._cluster.get(VOLUMES, name))
        except NotFound:
            created = None
        if self._ledger.reservation(name) != reservation:
            self.reservations.add_after(name, REQUEST_LIFETIME)
        elif created is not None and charge_of(created) is not None:
            self._ledger.confirm(name, created.uid)
            self.reservations.add_after(name, REQUEST_LIFETIME)
        elif rest > 0:
            self.reservations.add_after(name, rest)
        else:
            _log.info("it was requested and does not exist: its reservation is released", extra={"volume": name})
            self._ledger.release(name)
            self._on_missing(name)
            self._on_freed(reservation.charge.account)

    async def _verify_retained(self, uid: str) -> None:
        """Let go once the caches have the figures that the node publishes now: they are from after the volume went,
        because it went before we asked."""
        charge = self._ledger.retained(uid)
        if charge is None:
            return
        node = charge.account.node
        objects = await self._cluster.list(CAPACITIES, self._namespace, label_selector=f"{names.NODE_LABEL}={node}")
        published = {
            body["storageClassName"]: body["metadata"]["resourceVersion"]
            for body in objects
            if capacity.read(body) is not None
        }
        if published == self._cache.published(node):
            self._ledger.release_retained(uid)
            self._on_freed(charge.account)
        else:
            self.retained.catch_up(uid)
