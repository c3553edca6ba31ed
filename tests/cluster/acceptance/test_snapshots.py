"""Snapshots of volumes, and claims restored from them. Run with `--snapshots` only, for not every cluster has them."""

from contract.snapshot import SNAPSHOT_KIND
from contract.volume import CSI
from kube.resources import CLAIMS, SNAPSHOT_CONTENTS, SNAPSHOTS
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import ClassesAlike
from tests.sandbox.snapshots import from_snapshot, snapshot
from tests.sandbox.workloads import Json, claim


async def take(namespace: Trial, storage_class: str) -> Json:
    """The VolumeSnapshotContent of the snapshot `before` of the claim `data`, which a pod uses meanwhile."""
    await namespace.create(CLAIMS, claim("data", "16Mi", storage_class))
    await namespace.run("writer", "echo precious > /data/word")
    await namespace.start("user", "touch /data/used; exec sleep infinity")
    await namespace.create(SNAPSHOTS, snapshot("before", "data"))
    ready = await namespace.until(
        SNAPSHOTS, "before", lambda body: (body.get("status") or {}).get("readyToUse"), what=f"{SNAPSHOT_KIND} is ready"
    )
    await namespace.end("user")
    return await namespace.api.get(SNAPSHOT_CONTENTS, ready["status"]["boundVolumeSnapshotContentName"])


async def restore(namespace: Trial, storage_class: str) -> None:
    """The claim `copy`, larger than the snapshot, has what its source had; the source has another life, and an end."""
    home = await namespace.run("changer", "echo other > /data/word")
    await namespace.create(CLAIMS, claim("copy", "32Mi", storage_class, **from_snapshot("before")))
    script = "grep -q precious /data/word; test $(df -Pk /data | awk 'NR == 2 {print $2}') -gt 20000"
    assert await namespace.run("reader", script, {"/data": "copy"}) == home
    for resource, name in ((CLAIMS, "data"), (SNAPSHOTS, "before")):
        await namespace.delete(resource, name)
        await namespace.until_gone(resource, name)
    await namespace.run("heir", "grep -q precious /data/word", {"/data": "copy"})


async def test_a_claim_begins_with_what_another_held_at_a_moment(namespace: Trial, classes_alike: ClassesAlike) -> None:
    storage_class = classes_alike[CSI, "elastic-local"]
    await take(namespace, storage_class)
    await restore(namespace, storage_class)
