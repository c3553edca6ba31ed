"""What a pod's volume refers to, and the JSON that a driver gets for it. Pure.

Source: createVolumeSpec of pkg/kubelet/volumemanager/populator, GenerateMountVolumeFunc of
pkg/volume/util/operationexecutor, and pkg/volume/flexvolume, of Kubernetes 1.36.2.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contract import callout
from contract.parameters import SecretReference
from tests.sandbox.controlplane import selectors
from tests.sandbox.controlplane.caches import claim_key, deleting, key_of, made_for, not_made_for, phase
from tests.sandbox.controlplane.protection import PVC_PROTECTION

Json = dict[str, Any]

# Written by the kubelet, beside those that the contract names because the daemon reads them.
FS_TYPE_OPTION = "kubernetes.io/fsType"
PV_OR_VOLUME_NAME_OPTION = "kubernetes.io/pvOrVolumeName"
POD_UID_OPTION = "kubernetes.io/pod.uid"
SERVICE_ACCOUNT_OPTION = "kubernetes.io/serviceAccount.name"
FS_GROUP_OPTION = "kubernetes.io/mounterArgs.FsGroup"


class Unmountable(Exception):
    """The pod's volume can't be mounted; the text is the kubelet's, for an event."""


class Unprocessed(Exception):
    """What the pod's volume is can't be told, or not yet; the text is what the kubelet puts into the event that names
    all such volumes of the pod."""


@dataclass(frozen=True)
class Flex:
    """A FlexVolume, of a PersistentVolume or written inline in the pod."""

    name: str
    """The spec name, which is the folder's: the PV's name, or the volume's name that the pod's author chose."""
    driver: str
    filesystem: str
    read_only: bool
    options: Mapping[str, str] = field(hash=False)
    claim: str = ""
    """namespace/name of the claim, empty for an inline volume."""


@dataclass(frozen=True)
class EmptyDir:
    name: str


@dataclass(frozen=True)
class HostPath:
    name: str
    path: str
    kind: str = ""


@dataclass(frozen=True)
class Local:
    """A PersistentVolume that a folder of this node is."""

    name: str
    path: str
    read_only: bool
    mount_options: tuple[str, ...]


@dataclass(frozen=True)
class Csi:
    """A PersistentVolume of a CSI driver."""

    name: str
    """The PersistentVolume's, which is the folder's."""
    driver: str
    handle: str
    filesystem: str
    read_only: bool
    attributes: Mapping[str, str] = field(hash=False)
    access_modes: tuple[str, ...]
    mount_options: tuple[str, ...]
    block: bool
    claim: str
    """namespace/name."""
    stage_secret: SecretReference | None = None
    publish_secret: SecretReference | None = None
    expand_secret: SecretReference | None = None


@dataclass(frozen=True)
class InlineCsi:
    """A CSI volume that is written into the pod: "ephemeral" to its driver."""

    name: str
    driver: str


Source = Flex | EmptyDir | HostPath | Local | Csi | InlineCsi


def resolve(
    pod: Json, volume: Json, claims: Mapping[str, Json], volumes: Mapping[str, Json], node_labels: Mapping[str, str]
) -> Source:
    """The source of one of a pod's volumes. Raises Unprocessed, as while its claim is not bound, and Unmountable."""
    name = volume["name"]
    if "emptyDir" in volume:
        return EmptyDir(name)
    if "hostPath" in volume:
        return HostPath(name, volume["hostPath"]["path"], volume["hostPath"].get("type") or "")
    if "flexVolume" in volume:
        return _flex(name, volume["flexVolume"], bool(volume["flexVolume"].get("readOnly")))
    if "csi" in volume:
        return InlineCsi(name, volume["csi"]["driver"])
    if "persistentVolumeClaim" in volume:
        reference = volume["persistentVolumeClaim"]
        claim = _bound_claim(claim_key(pod, volume), claims)
        return _claimed(pod, name, claim, bool(reference.get("readOnly")), volumes, node_labels)
    if "ephemeral" in volume:
        claim = _bound_claim(claim_key(pod, volume), claims)
        if not made_for(pod, claim):
            raise Unprocessed(not_made_for(pod, claim))
        return _claimed(pod, name, claim, False, volumes, node_labels)
    kinds = ", ".join(key for key in volume if key != "name")
    raise Unmountable(f"the sandbox's kubelet has no volumes of kind {kinds}")


def _bound_claim(key: str, claims: Mapping[str, Json]) -> Json:
    """Of getPVCExtractPV."""
    claim, name = claims.get(key), key.partition("/")[2]
    if claim is None:
        why = f'failed to fetch PVC from API server: persistentvolumeclaims "{name}" not found'
    elif deleting(claim) and PVC_PROTECTION not in (claim["metadata"].get("finalizers") or []):
        why = "PVC is being deleted"
    elif phase(claim) != "Bound":
        why = "PVC is not bound"
    elif not claim["spec"].get("volumeName"):
        why = "PVC has empty pvc.Spec.VolumeName"
    else:
        return claim
    raise Unprocessed(f"error processing PVC {key}: {why}")


def _claimed(
    pod: Json,
    outer_name: str,
    claim: Json,
    read_only: bool,
    volumes: Mapping[str, Json],
    node_labels: Mapping[str, str],
) -> Source:
    """`outer_name`: of the pod's volume."""
    key, name, uid = key_of(claim), claim["spec"]["volumeName"], claim["metadata"]["uid"]
    volume = volumes.get(name)
    promised = ((volume or {}).get("spec") or {}).get("claimRef")
    if volume is None:
        why = f'failed to fetch PV {name} from API server: persistentvolumes "{name}" not found'
        raise Unprocessed(f"error processing PVC {key}: {why}")
    if not promised:
        why = f"found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        raise Unprocessed(f"error processing PVC {key}: {why}")
    if promised.get("uid") != uid:
        why = (
            f"found PV object {name} but its pv.Spec.ClaimRef.UID {promised.get('uid') or ''} does not point to "
            f"claim.UID {uid}"
        )
        raise Unprocessed(f"error processing PVC {key}: {why}")
    spec = volume["spec"]
    mode = spec.get("volumeMode") or "Filesystem"
    for kind, names in (("volumeMounts", mounted(pod)), ("volumeDevices", mapped(pod))):
        if outer_name in names and mode != ("Filesystem" if kind == "volumeMounts" else "Block"):
            raise Unprocessed(f"volume {outer_name} has volumeMode {mode}, but is specified in {kind}")
    affinity = (spec.get("nodeAffinity") or {}).get("required")
    if affinity and not selectors.node_selector_matches(affinity, node_labels):
        verb = "MapVolume" if mode == "Block" else "MountVolume"
        raise Unmountable(f'{verb}.NodeAffinity check failed for volume "{name}" : no matching NodeSelectorTerms')
    if "csi" in spec:
        return _csi(name, spec, read_only, key)
    if mode == "Block":
        raise Unmountable(f'the sandbox\'s kubelet maps only devices of CSI volumes, and "{name}" is another kind')
    if "local" in spec:
        return Local(name, spec["local"]["path"], read_only, tuple(spec.get("mountOptions") or ()))
    if spec.get("mountOptions"):
        why = "mount options are not supported for this volume type"
        raise Unmountable(f'MountVolume.MountOptionSupport check failed for volume "{name}" : {why}')
    if "flexVolume" not in spec:
        raise Unmountable(
            f'the sandbox\'s kubelet mounts only csi, flexVolume and local volumes, and "{name}" is another kind'
        )
    return _flex(name, spec["flexVolume"], read_only, claim=key)


def _csi(name: str, spec: Json, read_only: bool, claim: str) -> Csi:
    source = spec["csi"]
    return Csi(
        name=name,
        driver=source["driver"],
        handle=source["volumeHandle"],
        filesystem=source.get("fsType") or "",
        read_only=read_only,
        attributes=source.get("volumeAttributes") or {},
        access_modes=tuple(spec.get("accessModes") or ()),
        mount_options=tuple(spec.get("mountOptions") or ()),
        block=spec.get("volumeMode") == "Block",
        claim=claim,
        stage_secret=_secret(source.get("nodeStageSecretRef")),
        publish_secret=_secret(source.get("nodePublishSecretRef")),
        expand_secret=_secret(source.get("nodeExpandSecretRef")),
    )


def _secret(reference: Json | None) -> SecretReference | None:
    return SecretReference(reference.get("namespace", ""), reference.get("name", "")) if reference else None


def _flex(name: str, source: Json, read_only: bool, *, claim: str = "") -> Flex:
    return Flex(
        name=name,
        driver=source["driver"],
        filesystem=source.get("fsType") or "",
        read_only=read_only,
        options=source.get("options") or {},
        claim=claim,
    )


def spec_options(source: Flex, extra: Mapping[str, str] | None = None) -> str:
    """The JSON for a driver. The user's options are written last, over the kubelet's own: so does the real one."""
    options = {
        FS_TYPE_OPTION: source.filesystem,
        callout.READ_WRITE_OPTION: "ro" if source.read_only else "rw",
        PV_OR_VOLUME_NAME_OPTION: source.name,
        **(extra or {}),
        **source.options,
    }
    return json.dumps(options, sort_keys=True, separators=(",", ":"))


def mount_options(source: Flex, pod: Json) -> str:
    """The JSON of a mount: of which volume, and for which pod."""
    metadata, spec = pod["metadata"], pod["spec"]
    extra = {
        callout.POD_NAME_OPTION: metadata["name"],
        callout.POD_NAMESPACE_OPTION: metadata["namespace"],
        POD_UID_OPTION: metadata["uid"],
        SERVICE_ACCOUNT_OPTION: spec.get("serviceAccountName") or "default",
    }
    group = fs_group(pod)
    if group is not None:
        extra[FS_GROUP_OPTION] = str(group)
    return spec_options(source, extra)


def mounted(pod: Json) -> set[str]:
    """Names of the pod's volumes that its containers mount."""
    return {mount["name"] for container in _containers(pod) for mount in container.get("volumeMounts") or []}


def mapped(pod: Json) -> set[str]:
    """Names of the pod's volumes that its containers have as devices."""
    return {device["name"] for container in _containers(pod) for device in container.get("volumeDevices") or []}


def _containers(pod: Json) -> list[Json]:
    return [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]


def fs_group(pod: Json) -> int | None:
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    return None if group is None else int(group)


def changes_on_root_mismatch(pod: Json) -> bool:
    """Whether fsGroup is applied only where the volume's root does not show that it was."""
    return (pod["spec"].get("securityContext") or {}).get("fsGroupChangePolicy") == "OnRootMismatch"
