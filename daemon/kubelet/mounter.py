"""Mounts, unmounts and expands for the kubelet: what both drivers, CSI and FlexVolume, call. A mount goes one way:
authorize, assign to this node, ensure the volume, mount.

Unmounting needs nothing but the folder. Mounting and growing need the API server, and so the daemon knows its own node
first; while it does not, because it starts or the API server is away, a mount waits a little and then fails with that
reason.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from contract import names, parameters, quantity
from contract.volume import CSI, PersistentVolume
from daemon.cluster.nodevolumes import NodeAssigner, record_made, volume_spec
from daemon.cluster.reconcile import GROWTH_FAILED
from daemon.errors import NotGranted, Undecided, VolumeError, WrongKey, WrongMode
from daemon.kubelet.authorization import Authorization, Authorizer, PodHint
from daemon.kubelet.iolimits import IoLimitController
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from host import luks, presence
from host.luks import Passphrase
from kube.client import Cluster
from kube.errors import ApiError
from kube.events import Recorder
from kube.records import Node
from service.logs import about

log = logging.getLogger(__name__)

READ_WRITE_ONCE_POD = "ReadWriteOncePod"

_PATIENCE = 20.0
"""Seconds that a call waits for the daemon to have started up: well within the kubelet's own deadline."""


@dataclass(frozen=True)
class NodeContext:
    """What mounting and growing need besides the volumes, known once the API server has shown us our Node."""

    cluster: Cluster
    node: Node
    authorizer: Authorizer
    assigner: NodeAssigner
    reconcile: Callable[[str], None]
    """Has the reconciler look at the PersistentVolume of a name."""
    events: Recorder
    io_limits: IoLimitController


class Mounter:
    """Mounts the volumes of one node for its kubelet. Methods raise VolumeError, worded for the pod's owner.
    `waits_for` says why the context is not set yet."""

    def __init__(self, volumes: Volumes, kubelet_root: Path, waits_for: Callable[[], str]) -> None:
        self.kubelet_root = kubelet_root
        self._waits_for = waits_for
        self._volumes = volumes
        self._context: asyncio.Future[NodeContext] = asyncio.get_running_loop().create_future()

    def set_context(self, context: NodeContext) -> None:
        self._context.set_result(context)

    async def lock_unstaged(self) -> None:
        """To be called at start: see Volumes.lock_unstaged."""
        await self._volumes.lock_unstaged(self._is_staged)

    def _is_staged(self, name: str) -> bool:
        root = self.kubelet_root
        return not presence.is_folder(root) or any(presence.exists(root / folder) for folder in names.csi_staging(name))

    async def node(self) -> Node:
        """Ours. Raises Undecided while the daemon has not started up."""
        return (await self._wait_for_context()).node

    async def mount(self, folder: PodFolder, pod: PodHint, *, read_only: bool) -> bool:
        """True when this call mounted the folder, False when it found it mounted."""
        with about(volume=folder.name):
            context = await self._wait_for_context()
            authorization = await context.authorizer.authorize(folder, pod, read_only=read_only)
            with _about(authorization):
                pv = await context.assigner.assign(authorization.volume)
                spec = volume_spec(pv)
                await self._ensure_made(context, pv, spec)
                if pv.source == CSI:
                    await asyncio.to_thread(folder.make)
                try:
                    exclusive = set(pv.access_modes) == {READ_WRITE_ONCE_POD}
                    mounted = await self._volumes.mount(spec, folder, authorization.read_only, exclusive=exclusive)
                except VolumeError:
                    if pv.source == CSI:
                        with contextlib.suppress(VolumeError):
                            await asyncio.to_thread(folder.remove)
                    raise
                if mounted.shortfall:
                    _report_smaller(context.events, pv, str(mounted.shortfall))
                await context.io_limits.mounted(authorization.pod, spec.pv, spec.parameters)
                log.info("mounted%s", " read-only" if authorization.read_only else "")
                return mounted.anew

    async def unmount(self, folder: PodFolder) -> None:
        if self._context.done():
            self._context.result().io_limits.unmounted(folder.pod_uid, folder.name)
        with about(volume=folder.name, pod=folder.pod_uid):
            await self._volumes.unmount(folder)
            if folder.source == CSI:
                await asyncio.to_thread(folder.remove)
            log.info("unmounted")
        if self._context.done():
            self._context.result().reconcile(folder.name)  # its removal may have waited for this

    async def expand(self, folder: PodFolder, pod: PodHint, size: int) -> int:
        """To what was granted. Returns the bytes that the volume has. For less than `size` bytes it fails with
        NotGranted: on a success the kubelet writes the size that it asked for into the claim's status, where everybody
        reads what the claim has."""
        with about(volume=folder.name):
            context = await self._wait_for_context()
            authorization = await context.authorizer.authorize(folder, pod, read_only=False)
            with _about(authorization):
                return await self._expand(context, authorization.volume, size)

    async def stage(self, name: str, mode: str, secrets: Mapping[str, str]) -> None:
        """The CSI volume of that name, and of that volume mode, is on this node, made and ready to be mounted in a
        pod; an encrypted one is open. `secrets`: what the kubelet read in the Secret that its PersistentVolume names.
        Raises WrongKey."""
        with about(volume=name):
            context = await self._wait_for_context()
            pv = await context.authorizer.authorize_staging(name)
            _check_mode(pv, mode)
            pv = await context.assigner.assign(pv)
            spec = volume_spec(pv)
            if not spec.parameters.encryption:
                await self._ensure_made(context, pv, spec)
                return
            volume = await self._volumes.unlock(spec, passphrase(pv, secrets))
            if not pv.made:
                await _record_made(context, pv, volume)

    async def unstage(self, name: str) -> None:
        """No pod uses the CSI volume of that name, and it is mounted nowhere. Raises InUse."""
        with about(volume=name):
            await self._volumes.release(name)
        if self._context.done():
            self._context.result().reconcile(name)

    async def expand_staged(self, name: str, size: int, mode: str = "") -> int:
        """As `expand`, for the CSI volume of that name, which needs no pod, and of that volume mode, if it is told."""
        with about(volume=name):
            context = await self._wait_for_context()
            pv = await context.authorizer.authorize_staging(name)
            if mode:
                _check_mode(pv, mode)
            return await self._expand(context, pv, size)

    async def _expand(self, context: NodeContext, pv: PersistentVolume, size: int) -> int:
        pv = await context.assigner.assign(pv)
        volume: Volume = await self._volumes.expand(volume_spec(pv))
        context.reconcile(volume.pv)  # the PersistentVolume is to say so
        if volume.size < size:
            raise NotGranted(
                f"volume {volume.pv} has {quantity.humane(volume.size)}, and {quantity.humane(size)} were not granted "
                f"to it (yet): the events of claim {pv.claim} say why (kubectl describe pvc)"
            )
        log.info("expanded to %d bytes", volume.size)
        return volume.size

    async def _wait_for_context(self) -> NodeContext:
        try:
            return await asyncio.wait_for(asyncio.shield(self._context), _PATIENCE)
        except TimeoutError:
            raise Undecided(
                f"the elastic-local daemon of this node has not started up yet: {self._waits_for()}; the kubelet tries "
                "again, and the daemon's log says more"
            ) from None

    async def _ensure_made(self, context: NodeContext, pv: PersistentVolume, spec: VolumeSpec) -> None:
        """Its volume was made, and its PersistentVolume says so for ever: before the pod can write to it."""
        if pv.made:
            return
        await _record_made(context, pv, await self._volumes.prepare(spec))


async def _record_made(context: NodeContext, pv: PersistentVolume, volume: Volume) -> None:
    try:
        await record_made(context.cluster, pv, volume.size)
    except ApiError as error:
        raise Undecided(f"volume {pv.name} is ready, and the API server does not take note: {error}") from error


def passphrase(pv: PersistentVolume, secrets: Mapping[str, str]) -> Passphrase:
    """That of an encrypted volume. Raises WrongKey when the Secret has none that could be one."""
    if pv.secret is None:
        raise WrongKey(
            f"volume {pv.name} is encrypted, and its PersistentVolume names no Secret (spec.csi.nodeStageSecretRef): "
            "make it anew with the reference that it had"
        )
    content = secrets.get(parameters.SECRET_KEY, "").encode()
    if not 0 < len(content) <= luks.LONGEST_PASSPHRASE:
        what = f"with {len(content)} bytes" if content else "empty or missing"
        raise WrongKey(
            f"volume {pv.name} is encrypted, and {parameters.SECRET_KEY} of Secret {pv.secret} is {what}: put 1 to "
            f"{luks.LONGEST_PASSPHRASE} bytes there"
        )
    return Passphrase(content, f"{parameters.SECRET_KEY} of Secret {pv.secret}")


def _check_mode(pv: PersistentVolume, mode: str) -> None:
    """Raises WrongMode."""
    if pv.volume_mode != mode:
        raise WrongMode(f"volume {pv.name} has volumeMode {pv.volume_mode}, and is asked for as {mode}")


def _about(authorization: Authorization) -> AbstractContextManager[None]:
    return about(claim=str(authorization.volume.claim), pod=authorization.pod.key)


def _report_smaller(events: Recorder, pv: PersistentVolume, why: str) -> None:
    """That a volume was mounted though it is smaller than it should be."""
    for subject in (pv.reference, pv.claim_reference):
        if subject:
            events.warning(subject, GROWTH_FAILED, f"it was mounted with the size it has: {why}")
