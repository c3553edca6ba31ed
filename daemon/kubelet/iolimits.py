"""The I/O limits of a volume (class parameters readBandwidth, writeBandwidth, readIOPS, writeIOPS), in the control
group of each pod that mounts it.

Kubernetes has no limits of I/O, so they are written into the group that the kubelet makes for the pod: its containers
are in there, those that start later too. Nothing of it needs to be kept: it lives as long as the pod, whatever becomes
of this daemon, and the next mount writes it anew. Nobody else writes `io.max`: neither the kubelet nor a runtime does
for a pod, and systemd for units with such a property only.

Where the group is, by pkg/kubelet/cm of Kubernetes: `kubepods/burstable/pod<uid>` below the kubelet's --cgroup-root
with the driver cgroupfs; with systemd `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`, in
which the dashes of the uid are underscores, and a --cgroup-root of /kubelet makes it
`kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/...`. A guaranteed pod is in no folder of its QoS
class.

The kubelet makes the group and mounts the volumes in two loops, which begin at the same time, so it is waited for: a
few seconds by the mount, and beside it from then on, until the volume is unmounted.

The limits of a volume that exists change with its VolumeAttributesClass (provisioner/modification.py): what its
PersistentVolume says then is written into the groups of the pods that run, and again when this daemon starts.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path, PurePath

from contract.parameters import VolumeParameters
from daemon.cluster.nodevolumes import NodeVolumes, WrongOptions, checked_parameters
from daemon.errors import VolumeError
from daemon.storage.volumes import Volumes
from host import cgroup, presence
from host.cgroup import IoLimits, NoIoController, WrongVersion
from kube.backoff import Backoff
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Pod
from kube.workqueue import WorkQueue
from service.logs import about

log = logging.getLogger(__name__)

IO_LIMITS_NOT_SET, IO_LIMITS_SET = "VolumeIOLimitsNotSet", "VolumeIOLimitsSet"
_RUNNING = "Running"
_ENDED = ("Succeeded", "Failed")
_PARALLELISM = 4
"""Volumes looked at together."""
_QOS_CLASSES = ("", "burstable", "besteffort")
_SLICE = ".slice"
_PODS = "kubepods"
_DEEPEST = 3
"""Levels below the root at which the groups of all pods are looked for: --cgroup-root has one part, or two."""
_PATIENCE = 5.0
"""Seconds that the kubelet may take to make the group after it asked for the mount."""
_POLL = 0.1
_LATER = Backoff(first=1, factor=1.5, limit=30)
"""Between two tries when the mount has not waited any longer. What is written then holds for all that follows."""


def pod_groups(pods: PurePath, uid: str) -> tuple[PurePath, ...]:
    """Where the group of a pod can be: one for each QoS class. `pods` is that of all pods."""
    if not pods.name.endswith(_SLICE):
        return tuple(pods / qos / f"pod{uid}" for qos in _QOS_CLASSES)
    name, suffix = pods.name.removesuffix(_SLICE), f"pod{uid.replace('-', '_')}{_SLICE}"
    return tuple(
        pods / f"{name}-{qos}{_SLICE}" / f"{name}-{qos}-{suffix}" if qos else pods / f"{name}-{suffix}"
        for qos in _QOS_CLASSES
    )


def is_of_all_pods(name: str) -> bool:
    """Whether a group of that name is the kubelet's, for all pods of the node."""
    return name in (_PODS, f"{_PODS}{_SLICE}") or name.endswith(f"-{_PODS}{_SLICE}")


class PodIoLimits:
    """Those of one node. `root` is where the hierarchy is mounted."""

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root

    async def set(self, pod_uid: str, device: int, limits: IoLimits, *, patiently: bool = True) -> None:
        """Holds a pod to the limits on a device, whose group the kubelet is perhaps about to make. Raises
        NoIoController, where no time changes that WrongVersion, and OSError."""
        await asyncio.to_thread(cgroup.check_version, self._root)
        for _ in range(round(_PATIENCE / _POLL) if patiently else 1):
            if await asyncio.to_thread(self._set, pod_uid, device, limits):
                return
            await asyncio.sleep(_POLL)
        raise NoIoController(
            f"pod {pod_uid} has no control group below {self._root}: let the kubelet make them (cgroupsPerQOS), and "
            "mount the host's /sys/fs/cgroup into the daemon's container"
        )

    def _set(self, pod_uid: str, device: int, limits: IoLimits) -> bool:
        """False: the pod has no cgroup (yet), and nothing was set."""
        for pods in _of_all_pods(self._root, _DEEPEST):
            for group in pod_groups(pods, pod_uid):
                try:
                    cgroup.limit_io(Path(group), device, limits)
                except FileNotFoundError:
                    continue
                return True
        return False


class IoLimitController:
    """Holds the pods of this node to the limits of their volumes: each when it mounts one, and all of a volume when
    what its PersistentVolume says changes. `pods` are those of this node."""

    def __init__(
        self,
        node_volumes: NodeVolumes,
        pods: Informer[Pod],
        volumes: Volumes,
        events: Recorder,
        io_limits: PodIoLimits | None = None,
    ) -> None:
        self._node_volumes = node_volumes
        self._pods = pods
        self._volumes = volumes
        self._events = events
        self._io_limits = io_limits or PodIoLimits()
        self._unset: dict[tuple[str, str], int] = {}
        """Uid of a pod and volume whose limits could not be set yet, with how often that was tried."""
        self._queue = WorkQueue(self._apply, parallelism=_PARALLELISM, of="volume")
        pods.subscribe(self._pod_changed)

    def enqueue(self, name: str) -> None:
        """Something about the PersistentVolume of that name changed."""
        self._queue.add(name)

    async def run(self) -> None:
        await self._queue.run()

    async def mounted(self, pod: Pod, name: str, parameters: VolumeParameters) -> None:
        """To be called when a pod has mounted the volume. Where it can't be limited, the pod starts without limits, an
        event says so, and it goes on being tried: a node of another kind is no reason to keep a database down."""
        if parameters.limits_io:
            await self._hold(pod, name, parameters, at_mount=True)
            self.enqueue(name)  # they may have changed meanwhile

    def unmounted(self, pod_uid: str, name: str) -> None:
        """To be called when a pod no longer has the volume mounted."""
        self._unset.pop((pod_uid, name), None)

    def _pod_changed(self, key: str, old: Pod | None, new: Pod | None) -> None:
        """One that mounted a volume before we knew of it, or of its limits."""
        if new is None or (old is not None and old.phase == new.phase):
            return
        claims = set(new.claims)
        for pv in self._node_volumes.all():
            if str(pv.claim) in claims:
                self.enqueue(pv.name)

    async def _apply(self, name: str) -> None:
        pv = self._node_volumes.get(name)
        claim = str(pv.claim) if pv is not None and pv.claim is not None else ""
        users = [pod for pod in self._pods.values() if claim in pod.claims and pod.phase not in _ENDED]
        for pod_uid, volume in {key for key in self._unset if key[1] == name} - {(pod.uid, name) for pod in users}:
            self.unmounted(pod_uid, volume)
        if pv is None or not users:
            return
        try:
            parameters = checked_parameters(pv)
        except WrongOptions:
            return  # who mounts it is told
        if parameters.limits_io or pv.io_limits:
            with about(volume=name, claim=claim):
                for pod in users:
                    await self._hold(pod, name, parameters, at_mount=False)

    async def _hold(self, pod: Pod, name: str, parameters: VolumeParameters, *, at_mount: bool) -> None:
        limits = IoLimits(
            parameters.read_bandwidth, parameters.write_bandwidth, parameters.read_iops, parameters.write_iops
        )
        try:
            device = await self._volumes.device_number(name)
            await self._io_limits.set(pod.uid, device, limits, patiently=at_mount)
        except (NoIoController, VolumeError, OSError) as error:
            self._not_set(pod, name, error, at_mount=at_mount)
            return
        if not at_mount:
            log.info("pod %s is held to its I/O limits: %s", pod.key, limits.line(device))
        if self._unset.pop((pod.uid, name), None):
            self._events.normal(pod.reference, IO_LIMITS_SET, f"volume {name} has its I/O limits from now on")

    def _not_set(self, pod: Pod, name: str, error: Exception, *, at_mount: bool) -> None:
        """After its mount, a pod that does not have the volume mounted, or does not run (any more), needs nothing."""
        tried = self._unset.get((pod.uid, name), 0)
        unused = isinstance(error, VolumeError) or not (tried or (pod.phase == _RUNNING and not pod.deleting))
        if unused and not at_mount:
            self.unmounted(pod.uid, name)
            return
        again = not isinstance(error, VolumeError | WrongVersion)
        if at_mount or not tried:
            rest = "; it is tried again while the pod runs" if again else ""
            message = f"volume {name} is mounted without its I/O limits: {error}{rest}"
            with about(pod=pod.key):
                log.warning("%s", message)
            self._events.warning(pod.reference, IO_LIMITS_NOT_SET, message)
        if again:
            self._unset[pod.uid, name] = tried + 1
            self._queue.add_after(name, _LATER.delay(tried + 1))


def _of_all_pods(folder: Path, levels: int) -> Iterator[Path]:
    try:
        below = [entry for entry in folder.iterdir() if presence.is_folder(entry) and not presence.is_link(entry)]
    except OSError:  # a group that goes meanwhile
        return
    for entry in below:
        if is_of_all_pods(entry.name):
            yield entry
        elif levels > 1 and not entry.name.endswith((".service", ".scope")):
            yield from _of_all_pods(entry, levels - 1)
