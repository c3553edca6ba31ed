"""A PersistentVolume becomes one of the other driver, on the same data: what is to be done, and what comes next. Pure.

A PersistentVolume's source can't be changed, so it is deleted and made anew, with the same name and for the same claim.
What the claim holds meanwhile is the volume on the node, whose record says Retain by then, so nothing removes it. The
new PersistentVolume is noted in a ConfigMap before anything is done, and the note goes last: whatever cuts it off, the
next try finds out from the objects what was done, and does the rest.

1. note: the ConfigMap.
2. retain: the policy of the PersistentVolume becomes Retain.
3. await the record: the node's record of the volume says Retain, too. Up to here all can be taken back.
4. delete: the PersistentVolume, if no pod uses the claim; and release: its finalizers.
5. create: the new one. The claim was Lost, and is Bound again within seconds: the controller of volumes looks at each
   bound claim again, and finds a volume of its name that names it by uid (syncBoundClaim in
   pkg/controller/volume/persistentvolume/pv_controller.go).
6. hand over: the record names the uid of the new one (`elastic-local adopt`, on the node).
7. restore: the policy is what it was. Not if the claim went meanwhile: then the data is kept.
"""

import enum
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from command.volumerows import READY, Row
from contract import names
from contract import volume as contract_volume
from contract.parameters import ParameterError
from contract.snapshot import SnapshotContent
from contract.volume import BLOCK, BOUND, CSI, FLEX_VOLUME, PV_PROTECTION, RETAIN, PersistentVolume
from kube.records import Claim, Pod

Json = dict[str, Any]

_NOTE = "note.json"
NOTE_LABEL = "elastic-local.volumes.k8s.elastic.co/migration"
"""Of the ConfigMaps, whose value is the driver that is migrated to."""
_ENDED = ("Succeeded", "Failed")
_ONE_POD = "ReadWriteOncePod"


class Step(enum.StrEnum):
    RETAIN = "set its policy to Retain"
    AWAIT_RECORD = "wait until its node has recorded Retain"
    ABANDON = "set its policy back"
    DELETE = "delete the PersistentVolume"
    RELEASE = "remove its finalizers"
    CREATE = "create the new PersistentVolume"
    HAND_OVER = "hand the volume over to it"
    AWAIT_BOUND = "wait until the claim is bound again"
    RESTORE = "restore its policy"
    FINISH = "remove the note"


@dataclass(frozen=True)
class Note:
    """What is to become of a PersistentVolume."""

    pv: str
    uid: str
    """Of the one that is to go."""
    to: str
    """FLEX_VOLUME or CSI."""
    policy: str
    """The one that it had, and that the new one is to have."""
    claim: str
    """namespace/name."""
    claim_uid: str
    manifest: Json
    """Of the new one, with policy Retain."""


@dataclass(frozen=True)
class Plan:
    """What would be done with one volume."""

    claim: str
    volume: str
    node: str
    action: str
    why: str

    @property
    def doable(self) -> bool:
        return self.action in (MIGRATE, CONTINUE)


MIGRATE, CONTINUE, LEAVE = "migrate", "continue", "leave"
UNKNOWN = "unknown"
"""Its node did not answer."""


def note_name(pv: str) -> str:
    return f"elastic-local-migration-{hashlib.sha256(pv.encode()).hexdigest()[:32]}"


def note_manifest(note: Note, namespace: str) -> Json:
    fields = {key: getattr(note, key) for key in ("pv", "uid", "to", "policy", "claim", "claim_uid", "manifest")}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": note_name(note.pv), "namespace": namespace, "labels": {NOTE_LABEL: note.to}},
        "data": {_NOTE: json.dumps(fields)},
    }


def read_note(body: Json) -> Note:
    """Raises ValueError for one that is not ours or was changed."""
    try:
        note = Note(**json.loads(body["data"][_NOTE]))
        manifest = note.manifest
        read = contract_volume.read(
            {**manifest, "metadata": {"uid": "", "resourceVersion": "", **manifest["metadata"]}}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{error!r}") from error
    if read is None or note_name(note.pv) != body["metadata"]["name"] or read.name != note.pv:
        raise ValueError("it is not of the PersistentVolume that it names")
    if read.source != note.to or read.reclaim_policy != RETAIN or (read.claim and read.claim.uid) != note.claim_uid:
        raise ValueError("the PersistentVolume in it is not the one that was noted")
    return note


def note_of(body: Json, pv: PersistentVolume, to: str) -> Note:
    """`body` is the PersistentVolume as the API server has it, which is bound."""
    assert pv.claim
    metadata, spec = body["metadata"], body["spec"]
    kept = {key: value for key, value in spec.items() if key not in (FLEX_VOLUME, CSI, "mountOptions")}
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": pv.name,
            "labels": dict(metadata.get("labels") or {}),
            "annotations": dict(metadata.get("annotations") or {}),
            "finalizers": [names.FINALIZER],
        },
        "spec": {
            **kept,
            "persistentVolumeReclaimPolicy": RETAIN,
            "claimRef": {key: value for key, value in spec["claimRef"].items() if key != "resourceVersion"},
            **contract_volume.source_spec(to, pv.name, pv.filesystem, pv.options),
        },
    }
    return Note(pv.name, pv.uid, to, pv.reclaim_policy, str(pv.claim), pv.claim.uid, manifest)


def users(claim: str, pods: Iterable[Pod]) -> list[str]:
    """Names of the pods that use the claim, or are about to."""
    return sorted(pod.name for pod in pods if pod.phase not in _ENDED and claim in pod.claims)


def in_use(claim: str, pods: Iterable[Pod], row: Row | None) -> str:
    """By whom. Empty: nobody. `row`: what the node says of the volume."""
    if found := users(claim, pods):
        return f"pod {', '.join(found[:3])}{', ...' if len(found) > 3 else ''} uses it: stop it first"
    if row is not None and row.pods:
        return f"it is still mounted on its node for the pod of uid {row.pods[0]}: wait until that has ended"
    return ""


def obstacle(
    pv: PersistentVolume,
    claim: Claim | None,
    pods: Collection[Pod],
    row: Row | None,
    others: Iterable[PersistentVolume],
    contents: Iterable[SnapshotContent],
    to: str,
    *,
    registered: bool,
) -> str:
    """Why a volume can't be migrated as things are. Empty: it can. `registered`: the kubelet of its node knows the
    CSI driver; `others`, `contents`: all PersistentVolumes and VolumeSnapshotContents of ours."""
    if pv.deleting or pv.phase != BOUND or pv.claim is None:
        return f"its PersistentVolume is {'being deleted' if pv.deleting else pv.phase}, and not bound to a claim"
    if claim is None or claim.uid != pv.claim.uid or claim.volume_name != pv.name or claim.deleting:
        return "its claim is gone, or being deleted"
    if not pv.node_label or not pv.made:
        return "its volume was not made yet: start the pod that uses it"
    if claim.grows:
        return "its claim asks for more than it has: wait until it has grown, or lower the claim"
    if used := in_use(str(pv.claim), pods, row):
        return used
    try:
        pv.parameters()
    except ParameterError as error:
        return f"its options can't be served: {error}"
    if foreign := [each for each in pv.finalizers if each not in (PV_PROTECTION, names.FINALIZER)]:
        return f"somebody else holds its PersistentVolume, by the finalizer {foreign[0]}"
    if copies := sorted(
        each.name for each in others if not each.made and each.original and each.original.uid == pv.uid
    ):
        return f"{copies[0]} is to become a copy of it: wait until that was made"
    if taken := sorted(each.name for each in contents if each.source_volume == pv.name and not each.ready):
        return f"VolumeSnapshotContent {taken[0]} is to become a snapshot of it: wait until that is ready"
    if to == CSI and not registered:
        return "the kubelet of its node does not know the CSI driver: see `elastic-local doctor --cluster`"
    if to == FLEX_VOLUME and pv.volume_mode == BLOCK:
        return "a FlexVolume can't be a block device"
    if to == FLEX_VOLUME and _ONE_POD in pv.access_modes:
        return f"a FlexVolume can't be {_ONE_POD}"
    if to == FLEX_VOLUME and pv.secret:
        return "a FlexVolume can't be encrypted: the kubelet hands its passphrase to a CSI driver only"
    if to == FLEX_VOLUME and pv.attributes_class:
        return f"a FlexVolume can't have VolumeAttributesClass {pv.attributes_class}: the API server refuses it"
    return _unfit(row, pv.uid)


def _unfit(row: Row | None, uid: str) -> str:
    """Why the volume on the node is not the one that is to be handed over."""
    if row is None:
        return "its node does not show it: see `elastic-local volumes --cluster`"
    if row.uid != uid:
        return "the volume on its node is of another PersistentVolume: see `elastic-local adopt`"
    if row.state != READY or row.remark:
        return f"the volume on its node is {row.state}{f' ({row.remark})' if row.remark else ''}"
    return ""


def next_step(note: Note, pv: PersistentVolume | None, row: Row | None, *, claimed: bool, used: str) -> Step:
    """`pv` is what has the name now; `claimed`: the claim is there and holds the name; `used`: as `in_use` says. Raises
    ValueError with the reason when it can't go on before somebody did something."""
    if pv is None:
        return Step.CREATE
    if pv.uid != note.uid:
        return _step_of_new(note, pv, row, claimed=claimed)
    if pv.deleting:
        if pv.reclaim_policy != RETAIN:
            return Step.RETAIN
        if row is None or row.uid != note.uid or row.policy != RETAIN:
            return Step.AWAIT_RECORD
        if used and claimed:
            raise ValueError(used)
        if left := [each for each in pv.finalizers if each not in (PV_PROTECTION, names.FINALIZER)]:
            raise ValueError(f"somebody else holds its PersistentVolume, by the finalizer {left[0]}")
        return Step.RELEASE
    if not claimed or used:
        return Step.ABANDON
    if pv.reclaim_policy != RETAIN:
        return Step.RETAIN
    if row is None or row.uid != note.uid or row.policy != RETAIN:
        return Step.AWAIT_RECORD
    return Step.DELETE


def _step_of_new(note: Note, pv: PersistentVolume, row: Row | None, *, claimed: bool) -> Step:
    if pv.source != note.to or pv.claim is None or pv.claim.uid != note.claim_uid:
        raise ValueError(f"somebody else made a PersistentVolume {pv.name}: delete that, its volume is kept")
    if row is None or row.uid not in (note.uid, pv.uid):
        raise ValueError(f"its node does not show the volume of {pv.name}: see `elastic-local volumes --cluster`")
    if row.uid != pv.uid:
        return Step.HAND_OVER
    if not claimed or pv.deleting:
        return Step.FINISH
    if pv.phase != BOUND:
        return Step.AWAIT_BOUND
    return Step.RESTORE if pv.reclaim_policy != note.policy else Step.FINISH
