"""Which cluster this node belongs to, and what its API server says of a PersistentVolume right now.

Names and even whole disks move from one cluster to another: a group that two clusters see, a cluster that was built
anew over old disks. So each volume says of which cluster it is. A cluster has no name of its own that it could not
share; the uid of the namespace kube-system, which is as old as it is and never made anew, is its identity.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from contract import snapshot
from contract import volume as contract_volume
from contract.volume import RETAIN
from daemon.errors import ApiUnavailable
from daemon.storage.deletionguard import Owner
from kube.backoff import Backoff
from kube.claims import holding_claim
from kube.client import Cluster
from kube.errors import ApiError, Json, NotFound
from kube.records import read_volume_snapshot
from kube.resources import NAMESPACES, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES

log = logging.getLogger(__name__)

NAMESPACE = "kube-system"

_BACKOFF = Backoff(first=0.5, factor=2, limit=3)
_PATIENCE = 5.0
"""Seconds. Whoever asks holds up others who want the disks."""


async def read_cluster_uid(cluster: Cluster) -> str:
    """Raises ApiError."""
    return str((await cluster.get(NAMESPACES, NAMESPACE))["metadata"]["uid"])


class ApiOwnerLookup:
    """Asks the API server: see daemon.storage.deletionguard.OwnerLookup. `problem` says why the cluster is not known,
    for readiness. `on_known` is called once it is."""

    def __init__(self, api: Cluster, on_known: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self._on_known = on_known
        self.cluster = ""
        self.problem = "the cluster's identity is not read yet"
        self._is_known = asyncio.Event()

    async def run(self) -> None:
        """Until the cluster is known."""
        failures = 0
        while not self.cluster:
            try:
                self.cluster = await read_cluster_uid(self._api)
            except (ApiError, OSError, KeyError) as error:
                self.problem = (
                    f"the uid of namespace {NAMESPACE}, which identifies this cluster, can't be read, so no "
                    f"volume is made: {error}; apply the ClusterRole of this version (deploy/base/rbac-daemon.yaml)"
                )
                failures += 1
                log.warning("%s", self.problem)
                await asyncio.sleep(_BACKOFF.delay(failures))
        self.problem = ""
        self._is_known.set()
        self._on_known()

    async def wait_known(self) -> None:
        await self._is_known.wait()

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        resource, name = (SNAPSHOT_CONTENTS, content) if content else (VOLUMES, pv)
        try:
            async with asyncio.timeout(_PATIENCE):
                try:
                    body = await self._api.get(resource, name)
                except NotFound:
                    await self._check_cluster()
                    return await self._naming(pv) if content else None
                return await self._owner_of_snapshot(body) if content else await self._owner_of_volume(body)
        except (ApiError, OSError, TimeoutError) as error:
            raise ApiUnavailable(
                f"the API server can't be asked for {'VolumeSnapshotContent' if content else 'PersistentVolume'} "
                f"{name}, so nothing is done to its data until it can: {str(error) or 'it does not answer'}"
            ) from error

    async def _owner_of_volume(self, body: Json) -> Owner:
        owner = read_owner(body)
        if not owner.reclaimable:
            return owner
        volume = contract_volume.read_any(body)
        claim = await holding_claim(self._api, volume.claim, volume.name, volume.phase)
        return replace(owner, reclaimable=False, holder=f"claim {claim.key}") if claim else owner

    async def _owner_of_snapshot(self, body: Json) -> Owner:
        """Deleted by whomever: as long as there is the VolumeSnapshot that it is for, its data stays."""
        owner, content = read_content_owner(body), snapshot.read(body)
        if content is None or not owner.reclaimable or not content.snapshot_name:
            return owner
        try:
            found = await self._api.get(SNAPSHOTS, content.snapshot_name, content.snapshot_namespace)
        except NotFound:
            return owner
        if not read_volume_snapshot(found).holds(content):
            return owner
        holder = f"{snapshot.SNAPSHOT_KIND} {content.snapshot_namespace}/{content.snapshot_name}"
        return replace(owner, reclaimable=False, holder=holder)

    async def _naming(self, snapshot_volume: str) -> Owner | None:
        """The VolumeSnapshotContent that names by its handle the snapshot of one that is gone: an administrator made it
        to have that. Or the one that it was made for, where the API server went back to before it was another's. Its
        own it is only once the record says so."""
        async for page in self._api.pages(SNAPSHOT_CONTENTS):
            for content in map(snapshot.read, page.items):
                if content is not None and content.volume == snapshot_volume:
                    return Owner(content.uid, RETAIN, reclaimable=False)
        return None

    async def _check_cluster(self) -> None:
        """An API server that was set up anew at the address of another has nothing of what that had. Raises ApiError
        and ApiUnavailable."""
        uid = await read_cluster_uid(self._api)
        if self.cluster and uid != self.cluster:
            raise ApiUnavailable(
                f"the API server is that of another cluster ({uid}) than when this daemon started ({self.cluster}), so "
                "nothing is done to its data: restart the daemon"
            )


def read_owner(body: Json) -> Owner:
    """Whatever it is, also of another driver, its name is taken."""
    volume = contract_volume.read(body)
    if volume is None:
        return Owner(body["metadata"]["uid"], RETAIN, reclaimable=False)
    return Owner(volume.uid, volume.reclaim_policy, volume.reclaimable)


def read_content_owner(body: Json) -> Owner:
    """The same of a VolumeSnapshotContent."""
    content = snapshot.read(body)
    if content is None:
        return Owner(body["metadata"]["uid"], RETAIN, reclaimable=False)
    return Owner(content.uid, content.deletion_policy, content.reclaimable)
