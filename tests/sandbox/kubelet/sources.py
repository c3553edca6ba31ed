"""What a pod's volume refers to, and the JSON that a driver gets for it. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contract import callout
from tests.sandbox.controlplane import selectors
from tests.sandbox.controlplane.caches import made_for

Json = dict[str, Any]

# Written by the kubelet, beside those that the contract names because the daemon reads them.
FS_TYPE_OPTION = "kubernetes.io/fsType"
PV_OR_VOLUME_NAME_OPTION = "kubernetes.io/pvOrVolumeName"
POD_UID_OPTION = "kubernetes.io/pod.uid"
SERVICE_ACCOUNT_OPTION = "kubernetes.io/serviceAccount.name"
FS_GROUP_OPTION = "kubernetes.io/mounterArgs.FsGroup"


class Unmountable(Exception):
    """The pod's volume can't be mounted; the text is the kubelet's, for an event."""


class NotYet(Exception):
    """The pod's volume can't be mounted yet, and the kubelet says nothing of it."""


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


Source = Flex | EmptyDir | HostPath | Local


def resolve(
    pod: Json, volume: Json, claims: Mapping[str, Json], volumes: Mapping[str, Json], node_labels: Mapping[str, str]
) -> Source:
    """The source of one of a pod's volumes. Raises NotYet while its claim is not bound, Unmountable with the reason."""
    name = volume["name"]
    if "emptyDir" in volume:
        return EmptyDir(name)
    if "hostPath" in volume:
        return HostPath(name, volume["hostPath"]["path"], volume["hostPath"].get("type") or "")
    if "flexVolume" in volume:
        return _flex(name, volume["flexVolume"], bool(volume["flexVolume"].get("readOnly")))
    if "persistentVolumeClaim" in volume:
        reference = volume["persistentVolumeClaim"]
        key = f"{pod['metadata']['namespace']}/{reference['claimName']}"
        return _claimed(key, bool(reference.get("readOnly")), claims, volumes, node_labels)
    if "ephemeral" in volume:
        key = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}-{name}"
        claim = claims.get(key)
        if claim is not None and not made_for(pod, claim):
            raise Unmountable(f'PVC "{key}" was not created for the pod')
        return _claimed(key, False, claims, volumes, node_labels)
    kinds = ", ".join(key for key in volume if key != "name")
    raise Unmountable(f"the sandbox's kubelet has no volumes of kind {kinds}")


def _claimed(
    key: str,
    read_only: bool,
    claims: Mapping[str, Json],
    volumes: Mapping[str, Json],
    node_labels: Mapping[str, str],
) -> Source:
    claim = claims.get(key)
    if claim is None or (claim.get("status") or {}).get("phase") != "Bound":
        raise NotYet
    volume = volumes.get(claim["spec"].get("volumeName") or "")
    if volume is None or (volume["spec"].get("claimRef") or {}).get("uid") != claim["metadata"]["uid"]:
        raise NotYet
    spec, name = volume["spec"], volume["metadata"]["name"]
    if (spec.get("volumeMode") or "Filesystem") != "Filesystem":
        # The plugin has no block mapper: the real kubelet waits for ever without an event.
        raise NotYet
    affinity = (spec.get("nodeAffinity") or {}).get("required")
    if affinity and not selectors.node_selector_matches(affinity, node_labels):
        raise Unmountable(f'MountVolume.NodeAffinity check failed for volume "{name}" : no matching NodeSelectorTerms')
    if "local" in spec:
        return Local(name, spec["local"]["path"], read_only, tuple(spec.get("mountOptions") or ()))
    if spec.get("mountOptions"):
        raise Unmountable(f'MountVolume.MountDevice failed for volume "{name}" : mount options are not supported for '
                          "this volume type")  # fmt: skip
    if "flexVolume" not in spec:
        raise Unmountable(
            f'the sandbox\'s kubelet mounts only flexVolume and local volumes, and "{name}" is another kind'
        )
    return _flex(name, spec["flexVolume"], read_only, claim=key)


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


def fs_group(pod: Json) -> int | None:
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    return None if group is None else int(group)
