"""Who may mount what.

An inline flexVolume in a pod is written by its user: the name, the options, even the `kubernetes.io/` keys that the
kubelet passes on. Whoever believes a request lets any user who may create pods mount another tenant's data. So the
daemon believes only the folder, which the kubelet made, and asks the API server the rest:

- the pod of the folder's UID runs on this node,
- it names, as one of its volumes, the claim that the PersistentVolume of the folder's name is bound to,
- claim and PersistentVolume name each other, by UID, so neither can be forged by somebody who may write claims,
- the PersistentVolume is of our driver, is mounted by the volume source that it has, and lives on this node or nowhere
  yet.

The same holds for CSI, though there the kubelet names the volume itself and no pod can have an inline one: the rules
are one, so what a pod may do does not depend on the driver. What CSI asks for without a pod (staging, expanding) shows
nothing to anybody, and makes and extends no more than the PersistentVolume was granted: it is enough that there is one
and that it is for this node.

The decision is a pure function of what was found; the fetching around it is thin. Of the request's own arguments two
are used. "Read-only" can only take rights away. The pod's name is a hint where to look for a pod that the informer has
not seen yet: the UID of what is found there is compared.
"""

import asyncio
import logging
import re
from dataclasses import dataclass

from contract import volume as contract_volume
from contract.volume import BLOCK, CSI, PersistentVolume
from daemon.cluster.nodevolumes import NodeVolumes, other_node
from daemon.errors import NoSuchVolume, Refused, Undecided
from daemon.kubelet.poddevice import PodDevice
from daemon.kubelet.podfolder import PodFolder
from kube.client import Cluster
from kube.errors import ApiError, NotFound
from kube.informer import Informer
from kube.records import Claim, Node, Pod, PodVolume, read_claim, read_pod
from kube.resources import CLAIMS, PODS, VOLUMES

log = logging.getLogger(__name__)

READ_ONLY_MANY = "ReadOnlyMany"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""What the API server lets an object be called: nothing else of an untrusted hint becomes part of a request."""


@dataclass(frozen=True)
class PodHint:
    """What the request says that the pod is called. Untrusted; empty strings: it does not say."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Authorization:
    """The pod may mount the volume. `volume` is as the API server has it: the only source of size and options."""

    volume: PersistentVolume
    pod: Pod
    read_only: bool


def decide(
    folder: PodFolder,
    read_only: bool,
    pod: Pod | None,
    volume: PersistentVolume | None,
    claim: Claim | None,
    node: Node,
) -> Authorization:
    """`claim` is the one of the volume's claimRef. Raises Refused."""
    if pod is None or pod.uid != folder.pod_uid:
        raise Refused(f"no pod with uid {folder.pod_uid} is known to the API server: it was probably deleted just now")
    if pod.node_name != node.name:
        raise Refused(f"pod {pod.namespace}/{pod.name} runs on another node than {node.name}")
    mentions = _mentions(pod, volume)
    if volume is None or volume.claim is None or volume.source != folder.source or not mentions:
        raise (NoSuchVolume if volume is None else Refused)(_not_its_claim(folder, pod))
    if isinstance(folder, PodDevice) != (volume.volume_mode == BLOCK):
        raise Refused(f"volume {volume.name} has volumeMode {volume.volume_mode}, and is asked for as the other")
    _check_claim(volume, claim)
    if all(mention.ephemeral for mention in mentions) and (claim is None or claim.controller != pod.uid):
        raise Refused(
            f"claim {volume.claim} was not made for pod {pod.name}: delete it, and Kubernetes makes the pod's own, "
            "or name it under persistentVolumeClaim"
        )
    _check_node(volume, node)
    only_reads = bool(volume.access_modes) and set(volume.access_modes) == {READ_ONLY_MANY}
    return Authorization(volume, pod, read_only or only_reads or all(mention.read_only for mention in mentions))


def _check_claim(volume: PersistentVolume, claim: Claim | None) -> None:
    """`claim` is the one of the volume's claimRef. Raises Refused when it does not hold the volume."""
    if volume.claim is None:
        raise Refused(f"volume {volume.name} is bound to no claim: see `kubectl describe pv`")
    if claim is None or claim.uid != volume.claim.uid:
        raise Refused(f"claim {volume.claim} of volume {volume.name} is gone: a new claim gets a volume of its own")
    if claim.volume_name != volume.name:
        raise Refused(f"claim {volume.claim} is not bound to volume {volume.name}: see `kubectl describe pvc`")


def _check_node(volume: PersistentVolume, node: Node) -> None:
    """Raises Refused when the volume is on another one."""
    if other := other_node(volume, node):
        raise Refused(f"volume {volume.name} lives on node {other} and can't be mounted on {node.name}")


def _mentions(pod: Pod, volume: PersistentVolume | None) -> list[PodVolume]:
    """The volumes of the pod that name the claim of this PersistentVolume."""
    claim = volume.claim if volume else None
    if claim is None or claim.namespace != pod.namespace:
        return []
    return [mention for mention in pod.volumes if mention.claim == claim.name]


def _not_its_claim(folder: PodFolder, pod: Pod) -> str:
    """One message whether or not there is a volume of that name: a pod must not learn of other tenants' volumes."""
    if folder.name in pod.inline:
        return (
            f"volume {folder.name} is written into pod {pod.namespace}/{pod.name} as an inline flexVolume, whose name "
            "and options prove nothing: use a PersistentVolumeClaim of an elastic-local class, or a generic "
            "ephemeral volume (ephemeral.volumeClaimTemplate)"
        )
    return f"pod {pod.namespace}/{pod.name} has no claim that is bound to a volume {folder.name}"


@dataclass(frozen=True)
class _ReadAhead:
    """A claim that was asked for before it was known to be the right one."""

    name: str
    answer: Claim | ApiError | None


class Authorizer:
    """Finds what the decision needs: the pod by informer, the PersistentVolume and the claim by asking.

    Both are asked for live, because a stale PersistentVolume or claim could grant what was just taken away; the
    kubelet itself reads them before each mount too. Which claim it is, says the live PersistentVolume; but mostly that
    can be told before, and then they are asked for at the same time.
    """

    def __init__(self, cluster: Cluster, pods: Informer[Pod], node: Node, node_volumes: NodeVolumes) -> None:
        self._cluster = cluster
        self._pods = pods
        self._node = node
        self._node_volumes = node_volumes

    async def authorize(self, folder: PodFolder, hint: PodHint, *, read_only: bool) -> Authorization:
        """Whether the pod of the folder may mount the volume of its name. Raises Refused and Undecided."""
        try:
            volume, (pod, ahead) = await asyncio.gather(self._volume(folder.name), self._pod_and_claim(folder, hint))
            claim = None
            if pod and volume and volume.claim and _mentions(pod, volume):
                if ahead is None or ahead.name != volume.claim.name:
                    claim = await self._claim(pod.namespace, volume.claim.name)
                elif isinstance(ahead.answer, ApiError):
                    raise ahead.answer
                else:
                    claim = ahead.answer
        except ApiError as error:
            raise Undecided(
                f"can't ask the API server whether the pod may mount {folder.name}, the kubelet tries again: {error}"
            ) from error
        try:
            return decide(folder, read_only, pod, volume, claim, self._node)
        except Refused as refused:
            log.warning("refused: %s", refused, extra={"pod": pod.key if pod else folder.pod_uid})
            raise

    async def authorize_staging(self, name: str) -> PersistentVolume:
        """The CSI volume of that name, which this node may have. Raises NoSuchVolume, Refused, and Undecided."""
        try:
            volume = await self._volume(name) if _NAME.fullmatch(name) else None
        except ApiError as error:
            raise Undecided(
                f"can't ask the API server about volume {name}, the kubelet tries again: {error}"
            ) from error
        if volume is None or volume.source != CSI:
            raise NoSuchVolume(f"there is no PersistentVolume {name[:253]!r} of our CSI driver")
        if volume.claim is None:
            raise Refused(f"volume {volume.name} is for no claim: see `kubectl describe pv`")
        _check_node(volume, self._node)
        return volume

    async def _pod_and_claim(self, folder: PodFolder, hint: PodHint) -> tuple[Pod | None, _ReadAhead | None]:
        """The pod, and of its claims the one that the volume is probably for: what the PersistentVolume says has the
        last word."""
        pod = await self._pod(folder, hint)
        name = self._likely_claim(pod, folder.name) if pod else ""
        if pod is None or not name:
            return pod, None
        try:
            return pod, _ReadAhead(name, await self._claim(pod.namespace, name))
        except ApiError as error:
            return pod, _ReadAhead(name, error)

    def _likely_claim(self, pod: Pod, volume: str) -> str:
        """Empty: that can't be told, or would not be the pod's."""
        claims = {mention.claim for mention in pod.volumes}
        known = self._node_volumes.get(volume)
        if known and known.claim:
            return known.claim.name if known.claim.name in claims else ""
        return claims.pop() if len(claims) == 1 else ""  # at its first mount the volume has no node yet

    async def _pod(self, folder: PodFolder, hint: PodHint) -> Pod | None:
        known = next((pod for pod in self._pods.values() if pod.uid == folder.pod_uid), None)
        if known or not (_NAME.fullmatch(hint.namespace) and _NAME.fullmatch(hint.name)):
            return known
        try:
            return read_pod(await self._cluster.get(PODS, hint.name, hint.namespace))
        except NotFound:
            return None

    async def _volume(self, name: str) -> PersistentVolume | None:
        try:
            return contract_volume.read(await self._cluster.get(VOLUMES, name))
        except NotFound:
            return None

    async def _claim(self, namespace: str, name: str) -> Claim | None:
        try:
            return read_claim(await self._cluster.get(CLAIMS, name, namespace))
        except NotFound:
            return None
