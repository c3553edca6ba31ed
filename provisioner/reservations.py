"""Ends what the books keep open: bookings that the watch never confirmed, and room that retained volumes left behind.

A booking is usually closed by the watch within milliseconds. What is left: a request whose answer was lost, and a
volume that came and went faster than the watch told. A "not found" says nothing while a lost request may still be on
its way, so it counts only after the time that a request can live.
"""

import logging
import time
from collections.abc import Callable

from contract import capacity, names, volume
from kube.client import CAPACITIES, VOLUMES, Cluster, NotFound
from kube.workqueue import Backoff, WorkQueue
from provisioner.capacityledger import charge_of
from provisioner.clusterstate import View

_log = logging.getLogger(__name__)

REQUEST_LIFETIME = 90.0
"""Seconds after which a lost request can't create anything any more: the API server itself gives up after 60."""
_CATCHING_UP = 0.3


class Doubts:
    """Two queues: names of booked volumes, uids of volumes whose charge is held."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        namespace: str,
        *,
        resolved: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`resolved` is called when a volume turned out not to exist, or its room became free."""
        self._cluster = cluster
        self._view = view
        self._books = view.books
        self._namespace = namespace
        self._resolved = resolved
        self._clock = clock
        backoff = Backoff(first=0.5, factor=2, limit=30)
        self.bookings = WorkQueue(self._booking, parallelism=8, backoff=backoff, of="volume")
        self.held = WorkQueue(self._held, parallelism=4, backoff=backoff)
        view.on_held(self.held.add)

    def booked(self, name: str) -> None:
        """Make sure, later, of a booking that was just made."""
        self.bookings.add_after(name, REQUEST_LIFETIME)

    async def _booking(self, name: str) -> None:
        booking = self._books.booking(name)
        if booking is None:
            return
        rest = booking.since + REQUEST_LIFETIME - self._clock()
        if rest > 0 and booking.uid:
            self.bookings.add_after(name, rest)
            return
        try:
            found = volume.read(await self._cluster.get(VOLUMES, name))
        except NotFound:
            found = None
        if self._books.booking(name) != booking:
            self.bookings.add_after(name, REQUEST_LIFETIME)
        elif found is not None and charge_of(found) is not None:
            self._books.settle(name, found.uid)
            self.bookings.add_after(name, REQUEST_LIFETIME)
        elif rest > 0:
            self.bookings.add_after(name, rest)
        else:
            _log.info("it was asked for and does not exist: its room is free again", extra={"volume": name})
            self._books.release(name)
            self._resolved()

    async def _held(self, uid: str) -> None:
        """Let go once the caches have the figures that the node publishes now: they are from after the volume went,
        because it went before we asked."""
        charge = self._books.held(uid)
        if charge is None:
            return
        node = charge.account.node
        objects = await self._cluster.list(CAPACITIES, self._namespace, label_selector=f"{names.NODE_LABEL}={node}")
        published = {
            body["storageClassName"]: body["metadata"]["resourceVersion"]
            for body in objects
            if capacity.read(body) is not None
        }
        if published == self._view.published(node):
            self._books.let_go(uid)
            self._resolved()
        else:
            self.held.add_after(uid, _CATCHING_UP)
