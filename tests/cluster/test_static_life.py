"""A life of static volumes: real mounts and devices are offered, pods use them, what is released is cleaned and offered
anew, and Prometheus, the events and the API server's audit log tell it."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from contract import names
from daemon.static.volume import volume_name
from kube.resources import CLAIMS, CLASSES, NODES, PODS, VOLUMES
from tests.cluster.conftest import MakeSandbox
from tests.cluster.staticnode import (
    CLASS,
    MIB,
    STATIC,
    Offered,
    asked_of_volumes,
    configure,
    disk,
    folder,
    mount,
    served,
    unmount,
)
from tests.cluster.test_observability import fetch
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, storage_class
from tests.unit.daemon.static.gopv import go_pv
from tests.waiting import until

Json = dict[str, Any]

PREFIX = "local_volume_provisioner_"
BUCKETS = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"]
# Name as scraped, type, labels: the original's.
METRICS = {
    "persistentvolume_capacity_bytes": ("gauge", {"mode"}),
    "persistentvolume_discovery_total": ("counter", {"mode"}),
    "persistentvolume_discovery_duration_seconds": ("histogram", {"mode"}),
    "persistentvolume_delete_total": ("counter", {"mode", "type"}),
    "persistentvolume_delete_failed_total": ("counter", {"mode", "type"}),
    "persistentvolume_delete_duration_seconds": ("histogram", {"mode", "type", "capacity", "cleanup_command"}),
    "apiserver_requests_total": ("counter", {"method"}),
    "apiserver_requests_failed_total": ("counter", {"method"}),
    "apiserver_requests_duration_seconds": ("histogram", {"method"}),
    "proctable_running": ("gauge", set[str]()),
    "proctable_succeeded": ("gauge", set[str]()),
    "proctable_failed": ("gauge", set[str]()),
    # Ours.
    "stray_entries": ("gauge", {"storage_class"}),
    "changed_disks": ("gauge", {"storage_class"}),
    "configuration_reload_failed_total": ("counter", set[str]()),
}


async def test_offered_used_cleaned_and_offered_again(fresh_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", hostname="host-1", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    for name, policy in (("raw", "Delete"), ("kept", "Retain")):
        await sandbox.api.create(
            CLASSES, storage_class(name, provisioner="kubernetes.io/no-provisioner", reclaimPolicy=policy)
        )
    taken = volume_name("taken", node.name, CLASS)
    await sandbox.api.create(VOLUMES, go_pv(taken, "somebody-else", path="/elsewhere"))
    fast, raw, kept = (folder(node, name) for name in ("fast", "raw", "kept"))
    configure(
        node,
        "storageClassMap",
        {
            CLASS: served(fast),
            "raw": served(raw, volumeMode="Block", blockCleanerCommand=["/scripts/dd_zero.sh"]),
            "kept": served(kept),
        },
    )
    data, scratch = Offered(sandbox, node, "data"), Offered(sandbox, node, "scratch")
    device, archive = Offered(sandbox, node, "disk", "raw"), Offered(sandbox, node, "archive", "kept")
    with ExitStack() as disks:
        filesystem = disks.enter_context(disk(tmp_path / "ext4", 100 * MIB, filesystem="ext4"))
        block = disks.enter_context(disk(tmp_path / "block", 12 * MIB + 4096))
        mount(fast / "data", filesystem)
        mount(fast / "scratch")
        mount(fast / "taken")
        mount(kept / "archive")
        (raw / "disk").symlink_to(block)

        await _is_offered_as_the_original_does(sandbox, node, data, fast / "data")
        assert (await device.until("Available"))["spec"]["capacity"]["storage"] == "12Mi"
        async with Namespace(sandbox, "work") as namespace:
            await _retained(namespace, archive, kept / "archive")
            (fast / "scratch" / "of a neighbour").touch()
            await _used_by_a_pod(namespace, data, fast / "data")
            assert [path.name for path in (fast / "scratch").iterdir()] == ["of a neighbour"]
            await _used_as_a_device(namespace, device, block)
            await _unmounted_when_it_is_released(namespace, scratch, fast / "scratch")
        assert await archive.until("Released"), "Retain means that nobody touches it"
        assert (kept / "archive" / "file").read_text() == "kept"

        (raw / "disk").unlink()
        expected = f'path "{raw}/disk" is gone: restore the disk or link'
        assert expected in await device.until_event("VolumeVanished")
        assert len(await sandbox.api.list(VOLUMES)) == 5, "an entry has one PersistentVolume"
        await _scraped(node)
        _asked_little(sandbox)


async def _is_offered_as_the_original_does(sandbox: Sandbox, node: Node, data: Offered, path: Path) -> None:
    offered = await data.until("Available")
    owner = await sandbox.api.get(NODES, node.name)
    metadata, spec = offered["metadata"], offered["spec"]
    provisioner = f"local-volume-provisioner-{node.name}-{owner['metadata']['uid']}"
    assert metadata["annotations"]["pv.kubernetes.io/provisioned-by"] == provisioner
    assert (spec["local"], spec["volumeMode"]) == ({"path": str(path)}, "Filesystem")
    assert (spec["storageClassName"], spec["persistentVolumeReclaimPolicy"]) == (CLASS, "Delete")
    [term] = spec["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-1"]}]


async def _retained(namespace: Namespace, volume: Offered, path: Path) -> None:
    before = await volume.until("Available")
    await namespace.create(CLAIMS, claim("archive", "1Mi", "kept", volumeName=volume.name))
    await volume.until("Bound")
    (path / "file").write_text("kept")
    await namespace.delete(CLAIMS, "archive")
    assert (await volume.until("Released"))["metadata"]["uid"] == before["metadata"]["uid"]


async def _used_by_a_pod(namespace: Namespace, volume: Offered, path: Path) -> None:
    before = (await volume.until("Available"))["metadata"]["uid"]
    await namespace.create(CLAIMS, claim("data", "64Mi", CLASS))
    script = "mkdir /data/.d; echo secret > /data/.d/file; exec sleep infinity"
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script))
    await namespace.until_running("user")
    assert (await namespace.until_bound("data"))["metadata"]["name"] == volume.name
    await until(lambda: (path / ".d" / "file").exists(), what="the pod wrote onto the disk itself")
    await namespace.delete(PODS, "user")
    await namespace.delete(CLAIMS, "data")
    await volume.until("Available", not_uid=before)
    assert list(path.iterdir()) == [], "lost+found went too"


async def _used_as_a_device(namespace: Namespace, volume: Offered, device: Path) -> None:
    before = (await volume.until("Available"))["metadata"]["uid"]
    await namespace.create(CLAIMS, claim("device", "1Mi", "raw", volumeMode="Block", volumeName=volume.name))
    await volume.until("Bound")
    with device.open("wb") as written:
        written.write(b"secret" * MIB)
    await namespace.delete(CLAIMS, "device")
    await volume.until("Available", not_uid=before)
    assert not device.read_bytes().strip(b"\0")
    message = await volume.until_event("VolumeDelete")
    assert message == f'Starting cleanup of Block PV "{volume.name}", this may take a while'


async def _unmounted_when_it_is_released(namespace: Namespace, volume: Offered, path: Path) -> None:
    """It is not taken for clean, nor offered with its old data when it is mounted again."""
    before = (await volume.until("Available"))["metadata"]["uid"]
    await namespace.create(CLAIMS, claim("scratch", "1Mi", CLASS, volumeName=volume.name))
    await volume.until("Bound")
    unmount(path)
    await volume.until_event("VolumeUnmounted", "mount its filesystem again")
    await namespace.delete(CLAIMS, "scratch")
    await volume.until_event("VolumeFailedDelete", f"path {path} is not a mount point: mount the volume")
    mount(path)
    (path / "old data").touch()
    await volume.until("Available", not_uid=before)
    assert list(path.iterdir()) == []


async def _scraped(node: Node) -> None:
    status, text = await fetch(f"{node.url}/metrics")
    assert status == 200
    families = {}
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        # The library adds to each counter and histogram when it was made.
        if not family.name.startswith(PREFIX) or family.name.endswith("_created"):
            continue
        name, samples = family.name.removeprefix(PREFIX), family.samples
        assert samples, f"{name} was met in this life"
        labels = {frozenset(each.labels) - {"le"} for each in samples}
        families[name + ("_total" if family.type == "counter" else "")] = (family.type, *map(set, labels))
        if family.type == "histogram":
            first = samples[0].labels
            others = {key: value for key, value in first.items() if key != "le"}
            bounds = [each.labels["le"] for each in samples if others.items() < each.labels.items()]
            assert bounds == BUCKETS
        values |= {(each.name.removeprefix(PREFIX), tuple(sorted(each.labels.items()))): each.value for each in samples}
    assert families == METRICS

    def value(name: str, **labels: str) -> float:
        return values[name, tuple(sorted(labels.items()))]

    modes: Mapping[str, int] = {"Filesystem": 2, "Block": 1}
    for mode, cleaned in modes.items():
        assert value("persistentvolume_delete_total", mode=mode, type="process") == cleaned
    assert value("persistentvolume_discovery_total", mode="Filesystem") == 3 + 2
    assert value("persistentvolume_discovery_total", mode="Block") == 1 + 1
    assert value("persistentvolume_capacity_bytes", mode="Block") == 12 * MIB
    assert value("persistentvolume_delete_failed_total", mode="Filesystem", type="process") >= 1
    command = {"mode": "Block", "type": "process", "capacity": "500G", "cleanup_command": "/scripts/dd_zero.sh"}
    assert value("persistentvolume_delete_duration_seconds_count", **command) == 1
    assert value("apiserver_requests_failed_total", method="create") >= 1, "a name was taken"
    assert value("apiserver_requests_total", method="delete") == 3
    assert value("proctable_running") == 0
    assert value("proctable_succeeded") == 3
    assert value("stray_entries", storage_class=CLASS) == 1
    assert value("stray_entries", storage_class="raw") == 1


def _asked_little(sandbox: Sandbox) -> None:
    """The daemon holds this node's volumes alone: it lists all once, page by page, to find those to take over."""
    mine = f"labelSelector={names.NODE_LABEL}"
    listed = [request.uri for request in asked_of_volumes(sandbox, "list") if mine not in _plain(request.uri)]
    watched = [request.uri for request in asked_of_volumes(sandbox, "watch")]
    assert len(listed) == 1
    assert "limit=" in listed[0]
    assert watched
    assert all(mine in _plain(uri) for uri in watched)
    assert not [request for request in sandbox.requests() if request.asked.resource == "jobs"]


def _plain(uri: str) -> str:
    return uri.replace("%2F", "/").replace("%3D", "=")


async def test_without_storage_for_claims(fresh_sandbox: MakeSandbox) -> None:
    """As the chart's values-static-only.yaml has it: the daemon is ready without a volume group and without a driver,
    and the kubelet mounts local volumes by itself."""
    alone = {"CSI": "false", "FLEX_VOLUME": "false"}
    sandbox = await fresh_sandbox(NodeSpec("one", backend="folder", settings=alone, static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    disks = folder(node, "fast")
    mount(disks / "data", size=100 * MIB)
    configure(node, "storageClassMap", {CLASS: served(disks)})
    await Offered(sandbox, node, "data").until("Available")
    async with Namespace(sandbox, "work") as namespace:
        await _used_by_a_pod(namespace, Offered(sandbox, node, "data"), disks / "data")
    unmount(disks / "data")
