"""What only our programs can remove, so it has to be gone before they are: `doctor --uninstall`, for people and for the
pre-delete hook of the chart. What is read is read first, the verdicts are pure functions of it."""

from collections.abc import Iterable, Sequence
from typing import Any

from command.checkup import Finding, ok, unknown, wrong
from contract import names, snapshot
from contract import volume as contract_volume
from contract.snapshot import SnapshotContent
from contract.volume import RETAIN, PersistentVolume
from kube.client import Cluster
from kube.errors import ApiError, is_unknown_kind
from kube.resources import SNAPSHOT_CONTENTS, VOLUMES

Json = dict[str, Any]

_STATIC = "docs/static-volumes.md, Uninstalling, has the command that takes the finalizer off them"


async def findings(cluster: Cluster) -> list[Finding]:
    """Raises ApiError when the PersistentVolumes can't be listed."""
    bodies = await cluster.list(VOLUMES)
    dynamic = [volume for body in bodies if (volume := contract_volume.read(body))]
    results = [*volumes(dynamic), *static_volumes(bodies)]
    try:
        contents = [read for body in await cluster.list(SNAPSHOT_CONTENTS) if (read := snapshot.read(body))]
    except ApiError as error:
        if is_unknown_kind(error):
            return results
        # They may be there.
        return [*results, wrong("snapshots", f"the API server does not list them: {error}", "ask as an administrator")]
    return [*results, *snapshots(contents)]


def volumes(present: Sequence[PersistentVolume]) -> list[Finding]:
    """One for each that is left: without its daemon its space is never free, and its finalizer stays."""
    if not present:
        return [ok("PersistentVolumes", "none is left")]
    return [_volume(each) for each in sorted(present, key=lambda each: each.name)]


def _volume(volume: PersistentVolume) -> Finding:
    check = f"PersistentVolume {volume.name}"
    where = f" on node {volume.node_label}" if volume.node_label else ""
    if volume.deleting:
        return wrong(check, f"it is being removed{where}", f"wait for it: kubectl describe pv {volume.name}")
    claim = volume.claim
    if claim and volume.phase == contract_volume.BOUND:
        remedy = f"kubectl -n {claim.namespace} delete pvc {claim.name}"
        return wrong(check, f"it has the data of claim {claim}{where}", remedy)
    kept = ", and its data is kept there" if volume.reclaim_policy == RETAIN else ""
    return wrong(check, f"it is {volume.phase or 'there'}{where}{kept}", f"kubectl delete pv {volume.name}")


def static_volumes(bodies: Iterable[Json]) -> list[Finding]:
    """They go on without us, so they are no reason to stay."""
    ours = sum(names.STATIC_FINALIZER in (body["metadata"].get("finalizers") or ()) for body in bodies)
    if not ours:
        return []
    return [unknown("static volumes", f"{ours} stay, are not cleaned any more and can't be deleted", _STATIC)]


def snapshots(present: Sequence[SnapshotContent]) -> list[Finding]:
    if not present:
        return [ok("VolumeSnapshotContents", "none is left")]
    return [_snapshot(each) for each in sorted(present, key=lambda each: each.name)]


def _snapshot(content: SnapshotContent) -> Finding:
    check = f"VolumeSnapshotContent {content.name}"
    where = f" on node {content.node_label}" if content.node_label else ""
    if content.deleting and content.reclaimable:
        remedy = f"wait for it: kubectl describe volumesnapshotcontent {content.name}"
        return wrong(check, f"it is being removed{where}", remedy)
    if content.snapshot_uid and not content.being_deleted:
        of = f"{content.snapshot_namespace}/{content.snapshot_name}"
        remedy = f"kubectl -n {content.snapshot_namespace} delete volumesnapshot {content.snapshot_name}"
        return wrong(check, f"it has the data of VolumeSnapshot {of}{where}", remedy)
    kept = ", and its data is kept there" if content.deletion_policy == RETAIN else ""
    return wrong(check, f"it is there{where}{kept}", f"kubectl delete volumesnapshotcontent {content.name}")
