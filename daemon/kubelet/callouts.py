"""What the kubelet asks for, put together: prove the right to it, tie the volume to this node, do it.

Unmounting needs nothing but the folder. Mounting and growing need the API server, and so the daemon knows its own node
first; while it does not, because the API server is away, a mount waits a little and then fails with that reason.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from contract import names, quantity
from contract import volume as contract_volume
from contract.capacity import footprint
from contract.parameters import VolumeParameters
from contract.volume import PersistentVolume
from daemon.cluster.demand import wanted
from daemon.cluster.holdings import Holdings
from daemon.cluster.nodeassignment import is_assigned, pin, remember_made
from daemon.cluster.promises import offer
from daemon.cluster.reconcile import GROWTH_FAILED, claim_reference, reference
from daemon.errors import NoSpace, NotGranted, PoolMissing, Undecided
from daemon.kubelet.authorise import Authoriser, Grant
from daemon.kubelet.calls import Expand, Mount, Unmount
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.staging import top
from daemon.storage.volumes import Volumes
from host import mounttable
from kube.client import VOLUMES, Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.records import Node
from service.logs import about

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds that a mount waits for the daemon to have found its node: well within the callout's own deadline."""


@dataclass(frozen=True)
class Home:
    """What is known once the API server has told us of our node."""

    cluster: Cluster
    node: Node
    authoriser: Authoriser
    holdings: Holdings
    look_at: Callable[[str], None]
    """Has the reconciler look at the PersistentVolume of a name."""
    events: Recorder

    def tell_short(self, volume: PersistentVolume, why: str) -> None:
        """That a volume was mounted though it is smaller than it should be."""
        for told in (reference(volume), claim_reference(volume)):
            if told:
                self.events.warning(told, GROWTH_FAILED, f"it was mounted with the size it has: {why}")


class NodeCallouts:
    """The callouts of one node (daemon.kubelet.api.Callouts). `pool_of` is that of its backend."""

    def __init__(self, volumes: Volumes, pool_of: Callable[[VolumeParameters], str], kubelet_root: Path) -> None:
        self._volumes = volumes
        self._pool_of = pool_of
        self._kubelet_root = kubelet_root
        self._home: asyncio.Future[Home] = asyncio.get_running_loop().create_future()
        self._pinning = asyncio.Lock()

    def settle(self, home: Home) -> None:
        self._home.set_result(home)

    async def mount(self, request: Mount) -> bool:
        folder = PodFolder.parse(request.dir, self._kubelet_root)
        with about(volume=folder.name):
            home = await self._at_home()
            grant = await home.authoriser.authorise(folder, request.options)
            with about(claim=str(grant.volume.claim), pod=grant.pod.key):
                volume = await self._pinned(home, grant)
                await self._ready(home, volume)
                mounted_before = top(await asyncio.to_thread(mounttable.read), folder.path) is not None
                shortfall = await self._volumes.mount(wanted(volume), folder, grant.read_only)
                if shortfall:
                    home.tell_short(volume, str(shortfall))
                log.info("mounted%s", " read-only" if grant.read_only else "")
                return not mounted_before

    async def unmount(self, request: Unmount) -> None:
        folder = PodFolder.parse(request.dir, self._kubelet_root)
        with about(volume=folder.name, pod=folder.pod_uid):
            await self._volumes.unmount(folder)
            log.info("unmounted")
        if self._home.done():
            self._home.result().look_at(folder.name)  # its removal may have waited for this

    async def expand(self, request: Expand) -> None:
        """To what was granted. For more than that it fails: on a success the kubelet writes the size that it asked for
        into the claim's status, where everybody reads what the claim has."""
        folder = PodFolder.parse(request.dir, self._kubelet_root)
        with about(volume=folder.name):
            home = await self._at_home()
            grant = await home.authoriser.authorise(folder, request.options)
            with about(claim=str(grant.volume.claim), pod=grant.pod.key):
                volume = await self._volumes.expand(wanted(await self._pinned(home, grant)))
                home.look_at(volume.pv)  # the PersistentVolume is to say so
                if volume.size < request.new_size:
                    raise NotGranted(
                        f"volume {volume.pv} has {quantity.humane(volume.size)}, and "
                        f"{quantity.humane(request.new_size)} were not granted to it (yet): the events of claim "
                        f"{grant.volume.claim} say why (kubectl describe pvc)"
                    )
                log.info("expanded to %d bytes", volume.size)

    async def _at_home(self) -> Home:
        try:
            return await asyncio.wait_for(asyncio.shield(self._home), _PATIENCE)
        except TimeoutError:
            raise Undecided(
                "the elastic-local daemon of this node can't reach the API server, so it can't tell who may mount: "
                "the kubelet tries again; the daemon's log says what is wrong"
            ) from None

    async def _ready(self, home: Home, volume: PersistentVolume) -> None:
        """It was made, and says so for ever: before the pod can write to it."""
        if volume.made:
            return
        made = await self._volumes.prepare(wanted(volume))
        try:
            await remember_made(home.cluster, volume, made.size)
        except ApiError as error:
            raise Undecided(f"volume {volume.name} is ready, and the API server does not take note: {error}") from error

    async def _pinned(self, home: Home, grant: Grant) -> PersistentVolume:
        """The PersistentVolume, tied to this node. One that no node was chosen for comes to live here, if it fits."""
        volume = grant.volume
        if is_assigned(volume, home.node):
            return volume
        async with self._pinning:
            try:
                pool = self._pool_with_room(home, volume, await _tied_to(home))
                volume = await pin(home.cluster, volume, home.node, pool)
            except ApiError as error:
                raise Undecided(f"volume {volume.name} can't be tied to node {home.node.name} now: {error}") from error
            home.holdings.pinned(volume)
        log.info("tied to node %s", home.node.name)
        return volume

    def _pool_with_room(self, home: Home, volume: PersistentVolume, others: Collection[PersistentVolume]) -> str:
        """The pool that the volume would take its space from, besides `others`. Raises PoolMissing and NoSpace."""
        asked = wanted(volume)
        inventory = self._volumes.inventory
        name = self._pool_of(asked.parameters)
        pool = inventory.pool(name)
        if pool is None:
            raise PoolMissing(
                f"volume {volume.name} can't live on node {home.node.name}, which has no {name}: run the pod elsewhere "
                "or have the node's administrator make it (`elastic-local vg create`)"
            )
        made = inventory.volume(volume.name)
        needed = footprint(asked.size, asked.parameters, pool.granularity)
        room = offer(pool, asked.parameters, inventory.volumes, others)
        if made is None and needed > room.available:
            raise NoSpace(volume.name, name, needed, room.available)
        return name


async def _tied_to(home: Home) -> list[PersistentVolume]:
    """All PersistentVolumes of this node as the API server has them now: the cache may lag behind what the provisioner
    placed here a moment ago, and an affinity that was set once can't be taken back."""
    selector = f"{names.NODE_LABEL}={names.node_label_value(home.node.name)}"
    found = map(contract_volume.read, await home.cluster.list(VOLUMES, label_selector=selector))
    return [volume for volume in found if volume is not None and is_assigned(volume, home.node)]
