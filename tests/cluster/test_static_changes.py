"""What changes under a running daemon: its configuration, for the better and the worse, and its disks, all at once."""

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from contract import names
from kube.resources import CLAIMS
from tests.cluster.conftest import MakeSandbox
from tests.cluster.staticnode import CLASS, MIB, STATIC, Offered, configure, disk, folder, mount, served, until_event
from tests.cluster.test_observability import fetch, scrape
from tests.sandbox.nodes import Node, NodeSpec
from tests.sandbox.workloads import Namespace, claim
from tests.waiting import until

EVENTS = 1000


async def test_the_configuration_changes(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    fast, more = folder(node, "fast"), folder(node, "more")
    configure(node, "storageClassMap", {CLASS: served(fast)})
    mount(fast / "first")
    await Offered(sandbox, node, "first").until("Available")

    configure(node, "useJobForCleaning", "perhaps")
    file = f"{node.static_config}/useJobForCleaning"
    message = await until_event(sandbox, node.name, "StaticConfigurationInvalid", file)
    assert "perhaps" in message
    assert message.endswith("(the last valid configuration stays)")
    assert (await scrape(node.url)).sum("local_volume_provisioner_configuration_reload_failed_total") == 1
    status, report = await fetch(f"{node.url}/ready/DiscovererReadyzCheck")
    assert status == 500
    assert file in report
    mount(fast / "second")
    await Offered(sandbox, node, "second").until("Available")

    (node.static_config / "useJobForCleaning").unlink()
    configure(node, "storageClassMap", {CLASS: served(more, labelsForPV={"disk": "new"})})
    await until_event(sandbox, node.name, "StaticConfigurationReloaded")
    mount(more / "third")
    third = await Offered(sandbox, node, "third").until("Available")
    assert third["metadata"]["labels"]["disk"] == "new"
    mount(fast / "forgotten")
    mount(more / "fourth")
    await Offered(sandbox, node, "fourth").until("Available")
    assert await Offered(sandbox, node, "forgotten").body() is None, "a key that was taken out has no effect"
    assert (await fetch(f"{node.url}/ready"))[0] == 200


async def test_a_class_in_a_reserved_folder_is_refused_alone(
    fresh_sandbox: MakeSandbox,
) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    fast = folder(node, "fast")
    configure(node, "storageClassMap", {"ours": served(node.staging), CLASS: served(fast)})
    mount(fast / "first")
    await Offered(sandbox, node, "first").until("Available")
    message = await until_event(sandbox, node.name, "VolumeDiscoveryFailed", "class ours: ")
    assert "(STAGING_DIR is " in message


async def test_a_storm_makes_few_passes(fresh_sandbox: MakeSandbox) -> None:
    sandbox = await fresh_sandbox(NodeSpec("one", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    # At this level each pass tells of the entries that it leaves as they are.
    await node.daemon.stop()
    node.daemon.environment = {**node.daemon.environment, "LOG_LEVEL": "DEBUG"}
    fast = folder(node, "fast")
    configure(node, "storageClassMap", {CLASS: served(fast)})
    mount(fast / "calm")
    await node.daemon.start()
    await Offered(sandbox, node, "calm").until("Available")
    passes, began = _passes(node), time.monotonic()
    for number in range(EVENTS // 4):
        # Made, mounted, unmounted, removed.
        mount(fast / f"disk-{number}")
        subprocess.run(["umount", fast / f"disk-{number}"], check=True)
        (fast / f"disk-{number}").rmdir()
    mount(fast / "last")
    await Offered(sandbox, node, "last").until("Available")
    seconds = time.monotonic() - began
    await until(lambda: _passes(node) > passes, what="the storm woke the daemon")
    assert _passes(node) - passes <= seconds / 0.5 + 5, "two in a second while it lasts, and a few at its begin and end"


def _passes(node: Node) -> int:
    """That the daemon has made: each tells once that the first disk has its volume."""
    return node.daemon.output.count("/calm is skipped: it is ")


async def test_a_link_that_leads_to_another_disk(fresh_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """Neither is what is there offered under the old name, nor is it erased when the claim is deleted."""
    sandbox = await fresh_sandbox(NodeSpec("one", static=True), manifests=STATIC)
    node = sandbox.nodes["one"]
    fast = folder(node, "fast")
    keys = {"volumeMode": "Block", "blockCleanerCommand": ["/scripts/dd_zero.sh"], "namePattern": "disk"}
    configure(node, "storageClassMap", {CLASS: served(fast, **keys)})
    offered = Offered(sandbox, node, "disk")
    with ExitStack() as disks:
        one, two = (disks.enter_context(disk(tmp_path / name, 12 * MIB)) for name in ("one", "two"))
        for device in (one, two):
            device.write_bytes(b"data" * 1000)

        def lead(device: Path) -> None:
            (fast / "draft").symlink_to(device)
            (fast / "draft").rename(fast / "disk")

        lead(two)
        unused = await offered.until("Available")
        lead(one)
        anew = await offered.until("Available", not_uid=unused["metadata"]["uid"])
        was, is_now = (body["metadata"]["annotations"][names.DISK_ANNOTATION] for body in (unused, anew))
        assert was != is_now
        async with Namespace(sandbox, "work") as namespace:
            await namespace.create(CLAIMS, claim("data", "1Mi", CLASS, volumeMode="Block", volumeName=offered.name))
            bound = await offered.until("Bound")
            lead(two)
            await offered.until_event("VolumeDiskChanged", "leads to another disk than PersistentVolume")
            assert (await scrape(node.url)).sum("local_volume_provisioner_changed_disks") == 1
            await namespace.delete(CLAIMS, "data")
            await offered.until_event("VolumeFailedDelete", "leads to another disk than PersistentVolume")
            assert two.read_bytes()[:4000] == b"data" * 1000
            lead(one)
            await offered.until("Available", not_uid=bound["metadata"]["uid"])
            assert not one.read_bytes().strip(b"\0")
            assert two.read_bytes()[:4000] == b"data" * 1000
