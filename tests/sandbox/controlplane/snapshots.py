"""The common snapshot controller: makes the contents of VolumeSnapshots, binds the two to each other, copies what the
driver says of one to the other, and takes both away again.

Source: pkg/common-controller of kubernetes-csi/external-snapshotter v8.6.0, without group snapshots, secrets and the
sidecar's part, which a driver does.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

from contract import quantity
from contract.snapshot import BEING_DELETED, CONTENT_KIND, FINALIZER, GROUP, SNAPSHOT_KIND, VERSION
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError, NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import CLAIMS, LEASES, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES, Resource
from kube.workqueue import WorkQueue
from tests.sandbox.controlplane.caches import Caches, annotations, deleting, key_of, phase, reference

Json = dict[str, Any]

AS_SOURCE = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
BOUND_PROTECTION = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
OF_CLAIM = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
_DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"
_LEASE, _LEASE_NAMESPACE, _RENEWED = "snapshot-controller-leader", "kube-system", 5.0
"""Of the one that leads, and the seconds between two renewals."""
_NO_SOURCE = "cannot find CSI PersistentVolumeSource for volume {}"


class NotYet(Exception):
    """It is tried again."""


class SnapshotController:
    """In a cluster without the kinds of snapshots it waits for them."""

    def __init__(self, cluster: Cluster, caches: Caches, recorder: Recorder) -> None:
        self._cluster = cluster
        self._caches = caches
        self._recorder = recorder
        self._classes: Informer[Json] = Informer(cluster, SNAPSHOT_CLASSES, _whole, optional=True)
        self._snapshots: Informer[Json] = Informer(cluster, SNAPSHOTS, _whole, optional=True)
        self._contents: Informer[Json] = Informer(cluster, SNAPSHOT_CONTENTS, _whole, optional=True)
        backoff = Backoff(first=0.05, factor=2, limit=5)
        expected = (ApiError, NotYet)
        self._snapshot_queue = WorkQueue(self._sync_snapshot, parallelism=4, backoff=backoff, expected=expected)
        self._content_queue = WorkQueue(self._sync_content, parallelism=4, backoff=backoff, expected=expected)

    async def run(self) -> None:
        """For ever; the caches must be synced."""
        self._snapshots.subscribe(self._snapshot_changed)
        self._contents.subscribe(self._content_changed)
        informers = self._classes, self._snapshots, self._contents
        async with asyncio.TaskGroup() as tasks:
            for informer in informers:
                tasks.create_task(informer.run())
            for informer in informers:
                await informer.wait_synced()
            tasks.create_task(self._snapshot_queue.run())
            tasks.create_task(self._content_queue.run())
            tasks.create_task(self._hold_lease())

    async def _hold_lease(self) -> None:
        """It leads alone, and shows it."""
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": "snapshot-controller", "leaseDurationSeconds": 15, "renewTime": now}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": _LEASE},
                "spec": spec,
            }
            try:
                await self._cluster.patch(LEASES, _LEASE, {"spec": spec}, _LEASE_NAMESPACE)
            except NotFound:
                await self._cluster.create(LEASES, lease, _LEASE_NAMESPACE)
            except ApiError:
                pass  # while the API server is away
            await asyncio.sleep(_RENEWED)

    def _snapshot_changed(self, key: str, old: Json | None, new: Json | None) -> None:
        self._snapshot_queue.add(key)
        if name := _bound_content(new or old or {}):
            self._content_queue.add(name)

    def _content_changed(self, name: str, old: Json | None, new: Json | None) -> None:
        self._content_queue.add(name)
        if new is None and old is not None:
            self._snapshot_queue.add(_snapshot_key(old))

    async def _sync_content(self, name: str) -> None:
        content = self._contents.get(name)
        if content is None or not content["spec"]["volumeSnapshotRef"].get("uid"):
            return
        if not deleting(content) and FINALIZER not in _finalizers(content):
            await self._set_finalizers(SNAPSHOT_CONTENTS, content, [*_finalizers(content), FINALIZER])
            return
        snapshot = self._snapshots.get(_snapshot_key(content))
        if snapshot is None or not _refers_to(content, snapshot):
            return
        self._snapshot_queue.add(key_of(snapshot))
        if _may_go(snapshot):
            await self._mark_being_deleted(content)

    async def _sync_snapshot(self, key: str) -> None:
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            return
        snapshot = await self._with_class(snapshot)
        await self._release_claim(snapshot, but_for_this=False)
        if deleting(snapshot):
            await self._delete(snapshot)
            return
        content = await self._content(snapshot)
        wanted = [AS_SOURCE]
        if content is not None and content["spec"]["deletionPolicy"] == "Delete":
            wanted.append(BOUND_PROTECTION)
        if missing := [each for each in wanted if each not in _finalizers(snapshot)]:
            snapshot = await self._set_finalizers(SNAPSHOTS, snapshot, [*_finalizers(snapshot), *missing])
        if not _status(snapshot).get("readyToUse") or not _bound_content(snapshot):
            await self._bind(snapshot, content)
        elif content is None:
            await self._fail(snapshot, "SnapshotContentMissing", "VolumeSnapshotContent is missing")
        elif not _refers_to(content, snapshot):
            message = "VolumeSnapshotContent is not bound to the VolumeSnapshot correctly"
            await self._fail(snapshot, "SnapshotMisbound", message)

    async def _with_class(self, snapshot: Json) -> Json:
        """The snapshot, with the name of its class. Raises NotYet when there is none."""
        name = snapshot["spec"].get("volumeSnapshotClassName")
        if name is not None:
            if self._classes.get(name) is None and not deleting(snapshot):
                why = f'volumesnapshotclass.snapshot.storage.k8s.io "{name}" not found'
                message = f"Failed to get snapshot class with error {why}"
                await self._fail(snapshot, "GetSnapshotClassFailed", message, ready=None)
                raise NotYet(why)
            return snapshot
        if "volumeSnapshotContentName" in snapshot["spec"]["source"]:
            return snapshot
        try:
            driver = (await self._volume_of(snapshot))["spec"]["csi"]["driver"]
            defaults = [
                each["metadata"]["name"]
                for each in self._classes.values()
                if each["driver"] == driver and annotations(each).get(_DEFAULT_CLASS) == "true"
            ]
            if len(defaults) != 1:
                none = "cannot find default snapshot class"
                raise NotYet(f"{len(defaults)} default snapshot classes were found" if defaults else none)
        except NotYet as error:
            message = f"Failed to set default snapshot class with error {error}"
            await self._fail(snapshot, "SetDefaultSnapshotClassFailed", message, ready=None)
            raise
        return await self._patch(SNAPSHOTS, snapshot, {"spec": {"volumeSnapshotClassName": defaults[0]}})

    async def _content(self, snapshot: Json) -> Json | None:
        """The content that is, or is to be, bound to the snapshot. Raises NotYet for one that can't be."""
        given = snapshot["spec"]["source"].get("volumeSnapshotContentName")
        name = given or _content_name(snapshot)
        content = self._contents.get(name)
        if content is None:
            return None
        if given and "snapshotHandle" not in content["spec"]["source"]:
            message = "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one"
            await self._fail(snapshot, "SnapshotContentMismatch", message)
            raise NotYet(message)
        if not given and "volumeHandle" not in content["spec"]["source"]:
            message = f"VolumeSnapshotContent {name} is pre-provisioned while expecting a dynamically provisioned one"
            await self._fail(snapshot, "SnapshotContentMismatch", message)
            raise NotYet(message)
        uid = content["spec"]["volumeSnapshotRef"].get("uid")
        if _snapshot_key(content) != key_of(snapshot) or (
            uid != snapshot["metadata"]["uid"] and not (given and not uid)
        ):
            message = f"VolumeSnapshotContent [{name}] is bound to a different snapshot"
            await self._fail(snapshot, "SnapshotContentMisbound", message)
            raise NotYet(message)
        return content

    async def _bind(self, snapshot: Json, content: Json | None) -> None:
        given = "volumeSnapshotContentName" in snapshot["spec"]["source"]
        if content is None and given:
            await self._fail(snapshot, "SnapshotContentMissing", "VolumeSnapshotContent is missing")
            raise NotYet(f"snapshot {key_of(snapshot)} requests an non-existing content")
        if content is None:
            try:
                content = await self._create_content(snapshot)
            except NotYet as error:
                message = f"Failed to create snapshot content with error {error}"
                await self._fail(snapshot, "SnapshotContentCreationFailed", message)
                raise
        elif given and not (
            content["spec"]["volumeSnapshotRef"].get("uid") and content["spec"].get("volumeSnapshotClassName")
        ):
            spec: Json = {"volumeSnapshotRef": {"uid": snapshot["metadata"]["uid"]}}
            if name := snapshot["spec"].get("volumeSnapshotClassName"):
                spec["volumeSnapshotClassName"] = name
            content = await self._patch(SNAPSHOT_CONTENTS, content, {"spec": spec})
        await self._copy_status(snapshot, content)

    async def _create_content(self, snapshot: Json) -> Json:
        """Whether the class is of the volume's driver, nobody asks. Raises NotYet."""
        claim = self._claim_of(snapshot)
        if OF_CLAIM not in _finalizers(claim):
            if deleting(claim):
                raise NotYet("cannot add finalizer on claim because it is being deleted")
            await self._set_finalizers(CLAIMS, claim, [*_finalizers(claim), OF_CLAIM])
        volume = await self._volume_of(snapshot)
        if "csi" not in volume["spec"]:
            raise NotYet(_NO_SOURCE.format(volume["metadata"]["name"]))
        class_name = snapshot["spec"]["volumeSnapshotClassName"]
        snapshot_class = self._classes.get(class_name)
        if snapshot_class is None:
            raise NotYet(f'volumesnapshotclass.snapshot.storage.k8s.io "{class_name}" not found')
        metadata = snapshot["metadata"]
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": CONTENT_KIND,
            "metadata": {"name": _content_name(snapshot)},
            "spec": {
                "volumeSnapshotRef": {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": SNAPSHOT_KIND,
                    **{key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")},
                },
                "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
                "volumeSnapshotClassName": class_name,
                "deletionPolicy": snapshot_class["deletionPolicy"],
                "driver": snapshot_class["driver"],
                "sourceVolumeMode": volume["spec"].get("volumeMode") or "Filesystem",
            },
        }
        try:
            content = await self._cluster.create(SNAPSHOT_CONTENTS, body)
        except AlreadyExists:
            content = await self._cluster.get(SNAPSHOT_CONTENTS, _content_name(snapshot))
        message = f"Waiting for a snapshot {key_of(snapshot)} to be created by the CSI driver."
        self._recorder.normal(reference(SNAPSHOT_KIND, snapshot), "CreatingSnapshot", message)
        return content

    def _claim_of(self, snapshot: Json) -> Json:
        name = snapshot["spec"]["source"]["persistentVolumeClaimName"]
        claim = self._caches.claims.get(f"{snapshot['metadata']['namespace']}/{name}")
        if claim is None:
            raise NotYet("cannot get claim from snapshot")
        return claim

    async def _volume_of(self, snapshot: Json) -> Json:
        claim = self._claim_of(snapshot)
        name = claim["metadata"]["name"]
        if phase(claim) != "Bound":
            raise NotYet(f"the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot")
        volume = await self._cluster.get(VOLUMES, claim["spec"]["volumeName"])
        promised = volume["spec"].get("claimRef") or {}
        if (promised.get("namespace"), promised.get("name"), promised.get("uid")) != (
            claim["metadata"]["namespace"],
            name,
            claim["metadata"]["uid"],
        ):
            raise NotYet("claim in dataSource not bound or invalid")
        return volume

    async def _copy_status(self, snapshot: Json, content: Json) -> None:
        """What the driver says. Time and size are copied once."""
        before, driver = _status(snapshot), _status(content)
        after = {
            "boundVolumeSnapshotContentName": content["metadata"]["name"],
            **before,
            "readyToUse": driver.get("readyToUse") is True,
            "error": driver.get("error"),
        }
        if driver.get("creationTime") and "creationTime" not in before:
            moment = datetime.fromtimestamp(driver["creationTime"] // 10**9, UTC)
            after["creationTime"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        if driver.get("restoreSize") and not quantity.parse(str(before.get("restoreSize") or "0")):
            after["restoreSize"] = quantity.render(driver["restoreSize"])
        if {key: value for key, value in after.items() if value is not None} == before:
            return
        about = reference(SNAPSHOT_KIND, snapshot)
        if "creationTime" in after and "creationTime" not in before:
            message = f"Snapshot {key_of(snapshot)} was successfully created by the CSI driver."
            self._recorder.normal(about, "SnapshotCreated", message)
        if after["readyToUse"] and not before.get("readyToUse"):
            self._recorder.normal(about, "SnapshotReady", f"Snapshot {key_of(snapshot)} is ready to use.")
        await self._patch(SNAPSHOTS, snapshot, {"status": after}, "status")

    async def _delete(self, snapshot: Json) -> None:
        if not _may_go(snapshot):
            return
        content = self._contents.get(_bound_content(snapshot) or _content_name(snapshot))
        if content is not None and not _refers_to(content, snapshot):
            content = None
        if content is not None and self._restores(snapshot):
            message = "Snapshot is being used to restore a PVC"
            self._recorder.warning(reference(SNAPSHOT_KIND, snapshot), "SnapshotDeletePending", message)
            raise NotYet(f"snapshot {key_of(snapshot)} is in use (being used to restore a PVC), will retry deletion")
        goes_along = content is not None and content["spec"]["deletionPolicy"] == "Delete"
        if content is not None:
            content = await self._mark_being_deleted(content)
            if goes_along and not deleting(content):
                await self._cluster.delete(SNAPSHOT_CONTENTS, content["metadata"]["name"])
        await self._release_claim(snapshot, but_for_this=True)
        kept = [each for each in _finalizers(snapshot) if each == BOUND_PROTECTION and goes_along]
        others = [each for each in _finalizers(snapshot) if each not in (AS_SOURCE, BOUND_PROTECTION)]
        if others + kept != _finalizers(snapshot):
            await self._set_finalizers(SNAPSHOTS, snapshot, others + kept)

    def _restores(self, snapshot: Json) -> bool:
        """Whether a claim that has no volume yet is to be restored from it."""
        for claim in self._caches.claims.values():
            source = claim["spec"].get("dataSource") or {}
            if (claim["metadata"]["namespace"], source.get("kind"), source.get("name"), phase(claim)) == (
                snapshot["metadata"]["namespace"],
                SNAPSHOT_KIND,
                snapshot["metadata"]["name"],
                "Pending",
            ):
                return True
        return False

    async def _release_claim(self, snapshot: Json, *, but_for_this: bool) -> None:
        """The claim that it is a snapshot of, when no other is being made of it."""
        name = snapshot["spec"]["source"].get("persistentVolumeClaimName")
        claim = self._caches.claims.get(f"{snapshot['metadata']['namespace']}/{name}") if name else None
        if claim is None or OF_CLAIM not in _finalizers(claim):
            return
        for other in self._snapshots.values():
            same = other["metadata"]["uid"] == snapshot["metadata"]["uid"]
            if (
                other["metadata"]["namespace"] == snapshot["metadata"]["namespace"]
                and other["spec"]["source"].get("persistentVolumeClaimName") == name
                and not _status(other).get("readyToUse")
                and not (same and but_for_this)
            ):
                return
        left = [each for each in _finalizers(claim) if each != OF_CLAIM]
        await self._set_finalizers(CLAIMS, claim, left)

    async def _mark_being_deleted(self, content: Json) -> Json:
        if BEING_DELETED in annotations(content):
            return content
        return await self._patch(SNAPSHOT_CONTENTS, content, {"metadata": {"annotations": {BEING_DELETED: "yes"}}})

    async def _fail(self, snapshot: Json, reason: str, message: str, ready: bool | None = False) -> None:
        if (_status(snapshot).get("error") or {}).get("message") == message:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status: Json = {"error": {"message": message, "time": now}}
        if ready is not None:
            status["readyToUse"] = ready
        self._recorder.warning(reference(SNAPSHOT_KIND, snapshot), reason, message)
        await self._cluster.patch(
            SNAPSHOTS, snapshot["metadata"]["name"], {"status": status}, snapshot["metadata"]["namespace"], "status"
        )

    async def _set_finalizers(self, resource: Resource, body: Json, finalizers: list[str]) -> Json:
        try:
            return await self._patch(resource, body, {"metadata": {"finalizers": finalizers}})
        except NotFound:
            return body

    async def _patch(self, resource: Resource, body: Json, patch: Json, subresource: str | None = None) -> Json:
        """Of this very version."""
        metadata = body["metadata"]
        versioned = {**(patch.get("metadata") or {}), "resourceVersion": metadata["resourceVersion"]}
        return await self._cluster.patch(
            resource, metadata["name"], {**patch, "metadata": versioned}, metadata.get("namespace"), subresource
        )


def _whole(body: Json) -> Json:
    return body


def _status(body: Json) -> Json:
    return body.get("status") or {}


def _finalizers(body: Json) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])


def _content_name(snapshot: Json) -> str:
    return f"snapcontent-{snapshot['metadata']['uid']}"


def _bound_content(snapshot: Json) -> str:
    return _status(snapshot).get("boundVolumeSnapshotContentName") or ""


def _snapshot_key(content: Json) -> str:
    about = content["spec"]["volumeSnapshotRef"]
    return f"{about['namespace']}/{about['name']}"


def _refers_to(content: Json, snapshot: Json) -> bool:
    uid = content["spec"]["volumeSnapshotRef"].get("uid")
    return _snapshot_key(content) == key_of(snapshot) and uid == snapshot["metadata"]["uid"]


def _may_go(snapshot: Json) -> bool:
    """IsSnapshotDeletionCandidate."""
    return deleting(snapshot) and bool({AS_SOURCE, BOUND_PROTECTION} & set(_finalizers(snapshot)))
