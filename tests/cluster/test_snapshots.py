"""VolumeSnapshots, from the object that a user makes to the data and back: all programs, the rights and the policy of
components/snapshots, in one cluster for this file."""

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contract import names
from contract.snapshot import Handle
from contract.volume import CSI, FLEX_VOLUME
from kube.errors import NotFound
from kube.resources import CLAIMS, CLASSES, EVENTS, PODS, SNAPSHOT_CONTENTS, SNAPSHOTS, VOLUMES
from tests.cluster import onnode
from tests.cluster.acceptance.test_snapshots import restore, take
from tests.cluster.acceptance.trial import LIMIT, Trial
from tests.cluster.test_command import as_administrator
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import COMPONENTS, Sandbox
from tests.sandbox.snapshots import content, from_snapshot, snapshot
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.waiting import patience, until

Json = dict[str, Any]

pytestmark = pytest.mark.xdist_group("snapshots")

MIB = 1024**2
WRITE = "echo {word} > /data/word; sync; touch /data/done; exec sleep infinity"
READ = "grep -q {word} /data/word; echo changed > /data/word; exec sleep infinity"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster_with_snapshots(short_folders: Callable[[], Path]) -> AsyncIterator[Sandbox]:
    nodes = [NodeSpec("one", hostname="ip-10-0-0-1.internal", device_classes={"slow": "256Mi"}), NodeSpec("two")]
    async with Sandbox(short_folders(), nodes, components=[COMPONENTS / "snapshots"], snapshots=True) as sandbox:
        classes = {
            "csi": {},
            "slow": {"device-class": "slow"},
            "xfs": {"fsType": "xfs"},
            "flex": {"volumeSource": FLEX_VOLUME},
        }
        for name, parameters in classes.items():
            body = storage_class(name, "Immediate", parameters={"volumeSource": CSI, **parameters})
            await sandbox.api.create(CLASSES, body)
        yield sandbox


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(cluster_with_snapshots: Sandbox) -> AsyncIterator[Namespace]:
    async with Namespace(cluster_with_snapshots, f"tenant-{secrets.token_hex(4)}") as namespace:
        yield namespace


async def written(tenant: Namespace, word: str = "precious") -> tuple[Node, Json]:
    """The claim `source` has a volume on node one, and a pod that runs wrote the word on it."""
    sandbox = tenant.sandbox
    node = sandbox.nodes["one"]
    await tenant.create(CLAIMS, claim("source", "32Mi", "csi"))
    selector = {"kubernetes.io/hostname": node.hostname}
    script = WRITE.format(word=word)
    await tenant.create(PODS, pod("writer", {"/data": "source"}, script=script, nodeSelector=selector))
    running = await tenant.until_running("writer", seconds=60)
    volume = await tenant.until_bound("source")
    done = node.volume_folder(running["metadata"]["uid"], volume["metadata"]["name"], CSI) / "done"
    await until(done.exists, what="the pod has written")
    return node, volume


async def test_doctor_finds_nothing_wrong_with_them(cluster_with_snapshots: Sandbox) -> None:
    answer = await as_administrator(cluster_with_snapshots, "doctor", "--cluster", "--output", "json")
    verdicts = {finding["check"]: finding["verdict"] for finding in answer.json}
    checks = ("snapshot-controller", "component snapshots", "VolumeSnapshotContents")
    assert [verdicts[check] for check in checks] == ["ok", "ok", "ok"], answer.output


async def until_ready(tenant: Namespace, name: str) -> Json:
    """The content of a VolumeSnapshot that is ready to use."""
    ready = await tenant.until(
        SNAPSHOTS, name, lambda body: (body.get("status") or {}).get("readyToUse"), what="is ready", seconds=60
    )
    return await tenant.sandbox.api.get(SNAPSHOT_CONTENTS, ready["status"]["boundVolumeSnapshotContentName"])


async def until_refused(sandbox: Sandbox, name: str, message: str) -> None:
    """The status of a content says why there is no snapshot for it, and so does an event."""

    async def said() -> bool:
        status = (await sandbox.api.get(SNAPSHOT_CONTENTS, name)).get("status") or {}
        assert not status.get("readyToUse")
        return message in (status.get("error") or {}).get("message", "")

    await until(said, what=f"{name} says {message!r}")

    async def reported() -> bool:
        selector = f"involvedObject.name={name},reason=SnapshotCreationFailed"
        return any(message in event["message"] for event in await sandbox.api.list(EVENTS, field_selector=selector))

    await until(reported, what=f"an event on {name} says {message!r}")


async def remove_content(sandbox: Sandbox, name: str) -> None:
    await sandbox.api.delete(SNAPSHOT_CONTENTS, name)

    async def gone() -> bool:
        try:
            await sandbox.api.get(SNAPSHOT_CONTENTS, name)
        except NotFound:
            return True
        return False

    await until(gone, what=f"content {name} is gone")


async def test_the_acceptance_test_of_snapshots_passes(cluster_with_snapshots: Sandbox) -> None:
    api = cluster_with_snapshots.api
    async with Trial(api, "busybox", LIMIT * patience()) as trial:
        await take(trial, "csi")
        await restore(trial, "csi")


async def restored(tenant: Namespace, name: str, word: str = "precious") -> str:
    """The node of a pod that finds the word on the volume of that claim, and writes to it."""
    await tenant.create(PODS, pod(f"reader-of-{name}", {"/data": name}, script=READ.format(word=word)))
    running = await tenant.until_running(f"reader-of-{name}", seconds=60)
    return str(running["spec"]["nodeName"])


async def test_a_snapshot_is_made_restored_and_erased(tenant: Namespace) -> None:
    """In the same class, in one of another device class, and in one of the other driver; larger ones too. A claim may
    be there before its snapshot is."""
    node, source = await written(tenant)
    await tenant.create(CLAIMS, claim("same", "32Mi", "csi", **from_snapshot("before")))
    await tenant.until_event("same", "ProvisioningFailed", "there is no VolumeSnapshot before (any more)")
    await tenant.create(SNAPSHOTS, snapshot("before", "source"))
    made = await until_ready(tenant, "before")
    name = Handle.parse(made["status"]["snapshotHandle"])
    assert name
    assert (name.node, made["status"]["restoreSize"]) == ("one", 32 * MIB)
    shown = (await tenant.get(SNAPSHOTS, "before"))["status"]
    assert (shown["restoreSize"], "error" in shown) == ("32Mi", False)
    assert onnode.sizes(node)[name.volume] == 32 * MIB
    await tenant.delete(PODS, "writer")
    await tenant.until_gone(PODS, "writer")
    await tenant.delete(CLAIMS, "source")

    await tenant.create(CLAIMS, claim("slow", "48Mi", "slow", **from_snapshot("before")))
    await tenant.create(CLAIMS, claim("flex", "64Mi", "flex", **from_snapshot("before")))
    for copy, size, kind in (("same", 32, CSI), ("slow", 48, CSI), ("flex", 64, FLEX_VOLUME)):
        assert await restored(tenant, copy) == "one"
        volume = await tenant.until_bound(copy)
        assert kind in volume["spec"]
        assert volume["spec"]["capacity"]["storage"] == f"{size}Mi"
    await until(lambda: source["metadata"]["name"] not in onnode.sizes(node), what="the source is gone")

    await tenant.delete(SNAPSHOTS, "before")
    await tenant.until_gone(SNAPSHOTS, "before")
    assert name.volume not in onnode.sizes(node)
    assert made["metadata"]["name"] not in [
        each["metadata"]["name"] for each in await tenant.sandbox.api.list(SNAPSHOT_CONTENTS)
    ]


def _error(body: Json) -> str:
    return str(((body.get("status") or {}).get("error") or {}).get("message", ""))


async def test_a_block_volume_is_restored_as_a_device(tenant: Namespace) -> None:
    def device_pod(name: str, claim_name: str, script: str) -> Json:
        body = pod(name, script=script, volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}])
        body["spec"]["containers"][0]["volumeDevices"] = [{"name": "data", "devicePath": "/dev/xvda"}]
        return body

    def log(running: Json) -> str:
        return tenant.sandbox.node_of(running).container_log(running["metadata"]["uid"], "main").read_text()

    await tenant.create(CLAIMS, claim("device", "16Mi", "csi", volumeMode="Block"))
    write = "echo precious | dd of=/dev/xvda conv=fsync; echo written; exec sleep infinity"
    await tenant.create(PODS, device_pod("writer", "device", write))
    running = await tenant.until_running("writer", seconds=60)
    await until(lambda: "written" in log(running), what="the pod has written")
    await tenant.create(SNAPSHOTS, snapshot("before", "device"))
    await tenant.until(
        SNAPSHOTS, "before", lambda body: "stop the pods" in _error(body), what="says what it waits for", seconds=60
    )
    await tenant.delete(PODS, "writer")
    await tenant.until_gone(PODS, "writer")
    await until_ready(tenant, "before")
    await tenant.create(CLAIMS, claim("folder", "16Mi", "csi", **from_snapshot("before")))
    await tenant.until_event("folder", "ProvisioningFailed", "VolumeSnapshot before has volumeMode Block")
    await tenant.delete(CLAIMS, "folder")
    await tenant.create(CLAIMS, claim("copy", "24Mi", "csi", volumeMode="Block", **from_snapshot("before")))
    read = "head -c 8 /dev/xvda; exec sleep infinity"
    await tenant.create(PODS, device_pod("reader", "copy", read))
    restored = await tenant.until_running("reader", seconds=60)
    await until(lambda: "precious" in log(restored), what="the pod has read what was written")


async def test_what_can_not_be_restored(tenant: Namespace) -> None:
    await written(tenant)
    await tenant.create(SNAPSHOTS, snapshot("before", "source"))
    await until_ready(tenant, "before")
    for name, size, storage_class_name, message in (
        ("small", "16Mi", "csi", "asks for 16Mi, and before, which it is to be a copy of, has 32Mi"),
        ("xfs", "512Mi", "xfs", "VolumeSnapshot before has ext4, and a copy can't have xfs"),
        ("large", "2Gi", "csi", "asks for 2Gi, node one, where before lives"),
    ):
        await tenant.create(CLAIMS, claim(name, size, storage_class_name, **from_snapshot("before")))
        await tenant.until_event(name, "ProvisioningFailed", message)
    # What waits for it keeps a snapshot.
    for name in ("small", "xfs", "large"):
        await tenant.delete(CLAIMS, name)


async def test_a_retained_snapshot_is_taken_over_by_another_content(tenant: Namespace) -> None:
    api = tenant.sandbox.api
    node, _ = await written(tenant)
    await tenant.create(SNAPSHOTS, snapshot("before", "source", "elastic-local-retain"))
    first = await until_ready(tenant, "before")
    handle = first["status"]["snapshotHandle"]
    volume = handle.partition("/")[2]
    await tenant.delete(SNAPSHOTS, "before")
    await tenant.until_gone(SNAPSHOTS, "before")
    again = f"again-{tenant.name}"
    await api.create(SNAPSHOT_CONTENTS, content(again, tenant.name, "again", snapshotHandle=handle))
    await until_refused(tenant.sandbox, again, f"belongs to the VolumeSnapshotContent {first['metadata']['name']}")
    await remove_content(tenant.sandbox, first["metadata"]["name"])
    assert onnode.sizes(node)[volume] == 32 * MIB

    await remove_content(tenant.sandbox, again)
    await api.create(SNAPSHOT_CONTENTS, content(again, tenant.name, "again", snapshotHandle=handle))
    await tenant.create(SNAPSHOTS, snapshot("again", content=again))
    second = await until_ready(tenant, "again")
    assert (second["status"]["snapshotHandle"], second["status"]["restoreSize"]) == (handle, 32 * MIB)
    await tenant.create(CLAIMS, claim("copy", "32Mi", "csi", **from_snapshot("again")))
    assert await restored(tenant, "copy") == "one"
    await tenant.delete(SNAPSHOTS, "again")
    await tenant.until_gone(SNAPSHOTS, "again")
    assert volume not in onnode.sizes(node)


async def test_nobody_gets_a_snapshot_of_another_tenant(tenant: Namespace) -> None:
    """Not by a content that names its volume, nor by one that names its snapshot, nor by a volume that begins as its
    copy."""
    sandbox, api = tenant.sandbox, tenant.sandbox.api
    node, source = await written(tenant)
    await tenant.create(SNAPSHOTS, snapshot("before", "source"))
    theirs = await until_ready(tenant, "before")
    handle = theirs["status"]["snapshotHandle"]
    before = set(onnode.sizes(node))
    async with Namespace(sandbox, f"{tenant.name}-thief") as thief:
        attacks: tuple[tuple[str, Json, str], ...] = (
            (
                "volume",
                {"volumeHandle": source["metadata"]["name"]},
                "is none of elastic-local for a claim of namespace",
            ),
            (
                "snapshot",
                {"snapshotHandle": handle},
                f"belongs to the VolumeSnapshotContent {theirs['metadata']['name']}",
            ),
            ("anything", {"snapshotHandle": f"one/snap_{theirs['metadata']['uid']}x"}, "there is no snapshot one/"),
            ("elsewhere", {"snapshotHandle": "../../nodes/one"}, "is none of elastic-local: write <node>/<snapshot>"),
        )
        for kind, given, message in attacks:
            name = f"{kind}-{thief.name}"
            await api.create(SNAPSHOT_CONTENTS, content(name, thief.name, kind, **given))
            await until_refused(sandbox, name, message)
        await thief.create(CLAIMS, claim("copy", "32Mi", "csi", **from_snapshot("before")))
        await thief.until_event("copy", "ProvisioningFailed", "there is no VolumeSnapshot before (any more)")

        name = f"by-hand-{thief.name}"
        asking = await thief.create(CLAIMS, claim("forged", "32Mi", "csi", volumeName=name))
        forged: Json = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": source["metadata"]["labels"]},
            "spec": {
                **source["spec"],
                "claimRef": {"namespace": thief.name, "name": "forged", "uid": asking["metadata"]["uid"]},
            },
        }
        forged["spec"]["csi"]["volumeHandle"] = name
        forged["spec"]["csi"]["volumeAttributes"] |= {
            "cloneOf": handle.partition("/")[2],
            "cloneOfUid": theirs["metadata"]["uid"],
        }
        await api.create(VOLUMES, forged)
        await thief.create(PODS, pod("reader", {"/data": "forged"}))
        await thief.until_event(
            "reader", "FailedMount", "not (any more) on this node for a claim of the same namespace"
        )
        assert set(onnode.sizes(node)) == before
        await api.delete(VOLUMES, name)
        for kind, _, _ in attacks:
            await remove_content(sandbox, f"{kind}-{thief.name}")
    assert set(onnode.sizes(node)) == before
    assert (await tenant.get(SNAPSHOTS, "before"))["status"]["readyToUse"]
    assert names.NODE_LABEL in theirs["metadata"]["labels"]
