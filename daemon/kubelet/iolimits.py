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
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from host import cgroup
from host.cgroup import IoLimits, NoIoController
from kube.backoff import Backoff

log = logging.getLogger(__name__)

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
        self._trying: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By the pod's uid, and the volume."""

    async def set(self, pod_uid: str, device: int, limits: IoLimits) -> None:
        """Holds a pod to the limits on a device. Raises NoIoController, where no time changes that WrongVersion, and
        OSError."""
        await asyncio.to_thread(cgroup.check_version, self._root)
        for _ in range(round(_PATIENCE / _POLL)):
            if await asyncio.to_thread(self._set, pod_uid, device, limits):
                return
            await asyncio.sleep(_POLL)
        raise NoIoController(
            f"pod {pod_uid} has no control group below {self._root}: let the kubelet make them (cgroupsPerQOS), and "
            "mount the host's /sys/fs/cgroup into the daemon's container"
        )

    def keep_trying(
        self, pod_uid: str, volume: str, device: int, limits: IoLimits, succeeded: Callable[[], None]
    ) -> None:
        """Beside all else, until it succeeds or the volume is unmounted from the pod (`stop`)."""
        self.stop(pod_uid, volume)
        trying = self._keep_trying(pod_uid, device, limits, succeeded)
        self._trying[pod_uid, volume] = asyncio.create_task(trying, name=f"I/O limits of {volume}")

    def stop(self, pod_uid: str, volume: str) -> None:
        """The device may be another volume's in a moment."""
        if trying := self._trying.pop((pod_uid, volume), None):
            trying.cancel()

    async def _keep_trying(self, pod_uid: str, device: int, limits: IoLimits, succeeded: Callable[[], None]) -> None:
        for tried in itertools.count(1):
            await asyncio.sleep(_LATER.delay(tried))
            try:
                if await asyncio.to_thread(self._set, pod_uid, device, limits):
                    succeeded()
                    return
            except (NoIoController, OSError) as error:
                log.debug("pod %s still has no I/O limits: %s", pod_uid, error)

    def _set(self, pod_uid: str, device: int, limits: IoLimits) -> bool:
        """Whether there was a group."""
        for pods in _of_all_pods(self._root, _DEEPEST):
            for group in pod_groups(pods, pod_uid):
                try:
                    cgroup.limit_io(Path(group), device, limits)
                except FileNotFoundError:
                    continue
                return True
        return False


def _of_all_pods(folder: Path, levels: int) -> Iterator[Path]:
    try:
        below = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:  # a group that goes meanwhile
        return
    for entry in below:
        if is_of_all_pods(entry.name):
            yield entry
        elif levels > 1 and not entry.name.endswith((".service", ".scope")):
            yield from _of_all_pods(entry, levels - 1)
