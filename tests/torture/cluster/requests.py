"""How the campaigns on a whole cluster ask for what they want: as a user or an administrator does, to whom the API
server answers."""

import contextlib
from dataclasses import replace
from typing import Any

from contract import names
from contract.snapshot import BEING_DELETED
from contract.volume import CSI, FLEX_VOLUME
from kube.errors import NotFound
from kube.resources import (
    ATTRIBUTES_CLASSES,
    CLAIMS,
    CLASSES,
    PODS,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    VOLUMES,
)
from tests.sandbox.controlplane.snapshots import OF_CLAIM
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.snapshots import content, from_snapshot, snapshot
from tests.sandbox.workloads import NAMESPACES, claim, pod, storage_class
from tests.torture.cluster import attributes
from tests.torture.cluster.cgroups import ControlGroups
from tests.torture.cluster.look import FILE, LINES
from tests.torture.cluster.model import Model
from tests.torture.cluster.operation import Operation

NAMESPACE = "work"
_DELETE, _RETAIN = "torture-delete", "torture-retain"
"""Beginnings of the names of classes, one for each driver."""
_SNAPSHOT_CLASSES = {False: "elastic-local", True: "elastic-local-retain"}
"""Of the component, by whether they retain."""

_WRITE = (
    f"test -e /data/{FILE} || cat /proc/sys/kernel/random/uuid > /data/.new && "
    f"{{ test -e /data/{FILE} || mv /data/.new /data/{FILE}; }}; "
    f"while :; do echo $HOSTNAME >> /data/{LINES}; sync /data/{LINES}; sleep 0.4; done"
)

Json = dict[str, Any]


def class_of(*, csi: bool, retain: bool) -> str:
    """The StorageClass of a claim."""
    return f"{_RETAIN if retain else _DELETE}-{(CSI if csi else FLEX_VOLUME).lower()}"


class NotReleased(Exception):
    """What had the volume, or the snapshot, has not gone yet."""


async def prepare(sandbox: Sandbox) -> None:
    """Namespace and classes."""
    api = sandbox.api
    await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for retain, policy in ((False, "Delete"), (True, "Retain")):
        for source in (FLEX_VOLUME, CSI):
            name = class_of(csi=source == CSI, retain=retain)
            body = storage_class(name, volume_source=source, reclaimPolicy=policy, allowVolumeExpansion=True)
            await api.create(CLASSES, body)
    for name in attributes.LIMITS:
        await api.create(
            ATTRIBUTES_CLASSES,
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "VolumeAttributesClass",
                "metadata": {"name": name},
                "driverName": names.CSI_DRIVER,
                "parameters": attributes.parameters_of(name),
            },
        )


class Requests:
    """Raises what the API server answers, and NotReleased."""

    def __init__(self, sandbox: Sandbox, groups: ControlGroups) -> None:
        self._api = sandbox.api
        self._groups = groups

    async def make(self, operation: Operation, model: Model) -> Operation:
        """The operation, with what was not known of it before."""
        api, name = self._api, operation.name
        match operation.kind:
            case "create":
                await self._create(operation, model)
            case "start":
                await self._start(name)
            case "stop":
                await api.delete(PODS, name, NAMESPACE)
            case "grow":
                request = {"spec": {"resources": {"requests": {"storage": str(operation.size)}}}}
                await api.patch(CLAIMS, name, request, NAMESPACE)
            case "modify":
                await api.patch(CLAIMS, name, {"spec": {"volumeAttributesClassName": operation.attributes}}, NAMESPACE)
            case "delete":
                with contextlib.suppress(NotFound):
                    await api.delete(PODS, name, NAMESPACE)
                await api.delete(CLAIMS, name, NAMESPACE)
            case "policy" | "free":
                policy = "Retain" if operation.kind == "policy" and operation.retain else "Delete"
                spec = {"persistentVolumeReclaimPolicy": policy}
                await api.patch(VOLUMES, model.workloads[name].volume, {"spec": spec})
            case "part":
                await api.delete(VOLUMES, model.workloads[name].volume)
            case "rebind":
                return await self._rebind(operation, model.workloads[operation.source].volume)
            case "snapshot":
                of_class = _SNAPSHOT_CLASSES[operation.retain]
                await api.create(SNAPSHOTS, snapshot(name, operation.source, of_class), NAMESPACE)
            case "unsnapshot":
                await api.delete(SNAPSHOTS, name, NAMESPACE)
            case "snapshotpolicy":
                await self._set_policy(model.snapshots[name].content, retain=operation.retain)
            case "partsnapshot" | "freesnapshot":
                await self._let_go(name, model.snapshots[name].content, free=operation.kind == "freesnapshot")
            case "regain":
                await self._regain(operation, model)
        return operation

    async def _create(self, operation: Operation, model: Model) -> None:
        name, more = operation.name, {}
        if operation.source in model.snapshots:
            more = from_snapshot(operation.source)
        elif operation.source:
            more = {"dataSource": {"kind": "PersistentVolumeClaim", "name": operation.source}}
        of_class = class_of(csi=operation.csi, retain=operation.retain)
        await self._api.create(CLAIMS, claim(name, str(operation.size), of_class, **more), NAMESPACE)
        await self._start(name)

    async def _start(self, name: str) -> None:
        made = await self._api.create(PODS, pod(name, {"/data": name}, script=_WRITE), NAMESPACE)
        self._groups.make(made["metadata"]["uid"])

    async def _rebind(self, operation: Operation, volume: str) -> Operation:
        """In one change of the PersistentVolume, so that its phase is older than all the rest for a moment."""
        api, name = self._api, operation.name
        body = await api.get(VOLUMES, volume)
        if body["status"]["phase"] != "Released":
            raise NotReleased(f"{volume} is {body['status']['phase']}")
        policy = "Retain" if operation.retain else "Delete"
        reserved = {"namespace": NAMESPACE, "name": name, "uid": None, "resourceVersion": None}
        spec = {"claimRef": reserved if operation.reserved else None, "persistentVolumeReclaimPolicy": policy}
        await api.patch(VOLUMES, volume, {"spec": spec})
        wanted = body["spec"].get("volumeAttributesClassName") or ""
        # They are bound only if they have the same one.
        more = {"volumeAttributesClassName": wanted} if wanted else {}
        storage_class = body["spec"]["storageClassName"]
        asked = claim(name, str(operation.size), storage_class, volumeName=volume, **more)
        await api.create(CLAIMS, asked, NAMESPACE)
        await self._start(name)
        return replace(operation, attributes=wanted)

    async def _set_policy(self, content: str, *, retain: bool) -> None:
        spec = {"deletionPolicy": "Retain" if retain else "Delete"}
        await self._api.patch(SNAPSHOT_CONTENTS, content, {"spec": spec})

    async def _let_go(self, name: str, content: str, *, free: bool) -> None:
        try:
            await self._api.get(SNAPSHOTS, name, NAMESPACE)
        except NotFound:
            pass
        else:
            raise NotReleased(f"{name} is there still")
        if free:
            await self._set_policy(content, retain=False)
        await self._api.delete(SNAPSHOT_CONTENTS, content)

    async def _regain(self, operation: Operation, model: Model) -> None:
        """Another content, of the same name as its VolumeSnapshot, names what the former one left."""
        former, name = model.snapshots[operation.source], operation.name
        policy = "Retain" if operation.retain else "Delete"
        handle = f"{former.node}/{former.volume}"
        await self._api.create(SNAPSHOT_CONTENTS, content(name, NAMESPACE, name, policy, snapshotHandle=handle))
        await self._api.create(SNAPSHOTS, snapshot(name, content=name), NAMESPACE)

    async def discard(self, content: str) -> None:
        """One whose VolumeSnapshot is gone, and that nobody said so of."""
        await self._set_policy(content, retain=False)
        marked = {"metadata": {"annotations": {BEING_DELETED: "yes"}}}
        await self._api.patch(SNAPSHOT_CONTENTS, content, marked)
        await self._api.delete(SNAPSHOT_CONTENTS, content)

    async def release(self, claim: str) -> None:
        """The source of a VolumeSnapshot that is gone, and that nobody said so of."""
        metadata = (await self._api.get(CLAIMS, claim, NAMESPACE))["metadata"]
        left = [each for each in metadata.get("finalizers") or [] if each != OF_CLAIM]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": left}}
        await self._api.patch(CLAIMS, claim, body, NAMESPACE)
