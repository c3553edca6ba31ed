"""A claim that begins as a copy of another one's data, beside it."""

from typing import Any

import pytest

from contract.volume import CSI, FLEX_VOLUME
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, options_of, pod, source_of
from tests.waiting import until

Json = dict[str, Any]

WRITE = "echo precious > /data/word; sync; exec sleep infinity"
READ = "grep -q precious /data/word; echo other > /data/word; exec sleep infinity"
_COPY = {"dataSource": {"kind": "PersistentVolumeClaim", "name": "source"}}


async def source(sandbox: Sandbox, namespace: Namespace, node: str, storage_class: str = "elastic-local") -> Json:
    """The PersistentVolume of the claim `source`, which a pod on the node uses."""
    await namespace.create(CLAIMS, claim("source", "32Mi", storage_class))
    selector = {"kubernetes.io/hostname": sandbox.nodes[node].hostname}
    await namespace.create(PODS, pod("writer", {"/data": "source"}, script=WRITE, nodeSelector=selector))
    running = await namespace.until_running("writer")
    volume = await namespace.until_bound("source")
    word = sandbox.nodes[node].volume_folder(running["metadata"]["uid"], volume["metadata"]["name"]) / "word"
    await until(lambda: word.exists() and word.read_text() == "precious\n", what="the pod has written")
    return volume


@pytest.mark.parametrize(
    ("mode", "volume_source"), [("Immediate", FLEX_VOLUME), ("WaitForFirstConsumer", CSI)], indirect=["volume_source"]
)
async def test_a_copy_of_what_a_running_pod_uses(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass, mode: str, volume_source: str
) -> None:
    """Its pod comes to the node of the source, also when the scheduler would rather have it elsewhere. The copy may be
    mounted by another driver than its source."""
    node = sandbox.nodes["node-b"]
    original = await source(sandbox, namespace, "node-b")
    storage_class = await make_class(mode, volume_source=volume_source)
    await namespace.create(CLAIMS, claim("copy", "48Mi", storage_class, **_COPY))
    await namespace.create(PODS, pod("reader", {"/data": "copy"}, script=READ))
    running = await namespace.until_running("reader", seconds=60)
    assert running["spec"]["nodeName"] == "node-b"

    volume = await namespace.until_bound("copy")
    name, uid = volume["metadata"]["name"], running["metadata"]["uid"]
    assert onnode.sizes(node)[name] == 48 * 1024**2
    word = node.volume_folder(uid, name, volume_source) / "word"
    await until(lambda: word.read_text() == "other\n", what="the copy has been written to")
    assert (node.staging / original["metadata"]["name"] / "word").read_text() == "precious\n"

    await namespace.delete(PODS, "writer")
    await namespace.delete(CLAIMS, "source")
    await until(lambda: original["metadata"]["name"] not in onnode.sizes(node), what="the source is gone")
    assert word.read_text() == "other\n"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dataSource": {"kind": "PersistentVolumeClaim", "name": "other"}}, "there is no claim other (any more)"),
        ({**_COPY, "resources": {"requests": {"storage": "16Mi"}}}, "asks for 16Mi, and source, which it is to be"),
        ({**_COPY, "resources": {"requests": {"storage": "2Gi"}}}, "asks for 2Gi, node node-a, where source lives"),
    ],
)
async def test_what_can_not_be_copied(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass, spec: Json, message: str
) -> None:
    await source(sandbox, namespace, "node-a")
    await namespace.create(CLAIMS, claim("copy", "32Mi", await make_class("Immediate"), **spec))
    await namespace.until_event("copy", "ProvisioningFailed", message)
    assert (await namespace.get(CLAIMS, "copy"))["status"]["phase"] == "Pending"


async def test_a_copy_follows_when_its_source_is_made(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    storage_class = await make_class("Immediate")
    await namespace.create(CLAIMS, claim("source", "32Mi", storage_class))
    await namespace.until_bound("source")
    await namespace.create(CLAIMS, claim("copy", "32Mi", storage_class, **_COPY))
    await namespace.until_event("copy", "ProvisioningFailed", "is not made yet: the copy follows when it is")
    await namespace.create(PODS, pod("writer", {"/data": "source"}))
    await namespace.until_running("writer")
    await namespace.until_bound("copy")


async def test_who_writes_a_volume_by_hand_gets_no_copy_of_another_namespaces(
    sandbox: Sandbox, namespace: Namespace
) -> None:
    original = await source(sandbox, namespace, "node-a")
    async with Namespace(sandbox, f"{namespace.name}-thief") as thief:
        name = f"by-hand-{thief.name}"
        asking = await thief.create(CLAIMS, claim("copy", "32Mi", volumeName=name))
        forged: Json = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": original["metadata"]["labels"]},
            "spec": {
                **original["spec"],
                "claimRef": {"namespace": thief.name, "name": "copy", "uid": asking["metadata"]["uid"]},
            },
        }
        options_of(forged).update(cloneOf=original["metadata"]["name"], cloneOfUid=original["metadata"]["uid"])
        if CSI in forged["spec"]:
            source_of(forged)["volumeHandle"] = name
        await sandbox.api.create(VOLUMES, forged)
        await thief.create(PODS, pod("reader", {"/data": "copy"}))
        await thief.until_event(
            "reader", "FailedMount", "not (any more) on this node for a claim of the same namespace"
        )
        assert name not in onnode.sizes(sandbox.nodes["node-a"])
        await sandbox.api.delete(VOLUMES, name)


async def test_a_cluster_without_snapshots_serves_all_else_and_says_what_is_missing(
    sandbox: Sandbox, namespace: Namespace, make_class: MakeClass
) -> None:
    data = {"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "before"}}
    await namespace.create(CLAIMS, claim("copy", "32Mi", await make_class("Immediate"), **data))
    await namespace.until_event("copy", "ProvisioningFailed", "VolumeSnapshots can't be read")
    (provisioner,) = sandbox.provisioners
    said = [line for line in provisioner.log.read_text().splitlines() if "volumesnapshotcontents" in line]
    assert len(said) == 1, said
