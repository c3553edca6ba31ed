"""What stands in folders becomes PersistentVolumes: real mounts, real loop and LVM devices, and what else people leave
in a folder."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract import names
from daemon.static import entries
from daemon.static.configuration import BLOCK
from daemon.static.discovery import CLASS_FAILED
from daemon.static.entries import Kind
from daemon.static.looks import Looks
from daemon.static.naming import volume_name
from daemon.static.plan import NO_DEVICE, STRAY, UNMOUNTED, UNRESPONSIVE, VANISHED
from kube.client import VOLUMES, Unreachable
from lvm import Lvm
from tests.node.conftest import MakeDisks
from tests.node.staticvolumes import (
    Discovery,
    configured,
    discovery,
    mount,
    settings,
    unmount,
)
from tests.unit.daemon.nodecluster import HOSTNAME, NODE, until
from tests.unit.daemon.static.gopv import go_pv

MIB = 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as found:
        yield found


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    """The discovery folder of a class."""
    folder = tmp_path / "fast"
    folder.mkdir()
    return folder


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    folder = tmp_path / "slow"
    folder.mkdir()
    return folder


async def test_mounts_of_two_classes_become_volumes(node: Discovery, fast: Path, slow: Path) -> None:
    for folder in (fast / "one", fast / "two", slow / "one"):
        mount(folder)
    mount(slow / "two", size="10m")
    chosen = configured(settings(fast), settings(slow, "slow", fs_type="xfs"), set_owner=True, node_labels=("zone",))
    assert await node.look(chosen) == []
    found = await node.volumes()
    assert set(found) == {"/host/fast/one", "/host/fast/two", "/host/slow/one", "/host/slow/two"}
    body = found["/host/slow/one"]
    metadata = body["metadata"]
    assert metadata["name"] == volume_name("one", NODE, "slow")
    assert metadata["labels"] == {"zone": "a", names.NODE_LABEL: NODE}
    assert metadata["annotations"][names.PROVISIONED_BY] == f"local-volume-provisioner-{NODE}-{node.node.uid}"
    assert metadata["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node.node.uid}]
    hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [HOSTNAME]}
    assert body["spec"] == {
        "capacity": {"storage": "20Mi"},
        "local": {"path": "/host/slow/one", "fsType": "xfs"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "slow",
        "persistentVolumeReclaimPolicy": "Retain",
        "volumeMode": "Filesystem",
        "mountOptions": ["noatime"],
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
    }
    assert found["/host/fast/one"]["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert node.value("persistentvolume_discovery_total", mode="Filesystem") == 4
    assert node.value("persistentvolume_discovery_duration_seconds_count", mode="Filesystem") == 4
    assert node.value("persistentvolume_capacity_bytes", mode="Filesystem") == 70 * MIB


async def test_a_second_pass_creates_nothing_and_the_figures_stay(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    chosen = configured(settings(fast))
    for _ in range(3):
        assert await node.look(chosen) == []
    assert node.value("apiserver_requests_total", method="create") == 1
    assert node.value("persistentvolume_capacity_bytes", mode="Filesystem") == 20 * MIB


async def test_passes_that_the_informer_lags_behind_create_nothing_twice(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    for _ in range(2):
        assert await node.discoverer.discovery_pass(configured(settings(fast))) == []
    assert node.value("apiserver_requests_total", method="create") == 1


async def test_an_empty_folder_is_well(node: Discovery, fast: Path) -> None:
    assert await node.look(configured(settings(fast))) == []
    assert await node.volumes() == {}


async def test_a_folder_that_is_missing_is_the_classes_error_and_told_once(
    node: Discovery, fast: Path, slow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount(slow / "one")
    chosen = configured(settings(fast / "missing"), settings(slow, "slow"))
    words = (
        f"folder {fast}/missing can't be listed (No such file or directory): "
        "make /host/missing on the node and mount it there"
    )
    for _ in range(2):
        assert await node.look(chosen) == [f"class fast: {words}"]
    assert set(await node.volumes()) == {"/host/slow/one"}
    assert await node.told() == [(NODE, CLASS_FAILED, f"class fast: {words}")]
    assert caplog.text.count(words) == 1
    (fast / "missing").mkdir()
    assert await node.look(chosen) == []


async def test_volumes_that_come_later_are_found(node: Discovery, fast: Path) -> None:
    chosen = configured(settings(fast))
    mount(fast / "one")
    await node.look(chosen)
    mount(fast / "two")
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one", "/host/fast/two"}


async def test_a_volume_that_was_deleted_is_offered_again(node: Discovery, fast: Path) -> None:
    chosen = configured(settings(fast))
    mount(fast / "one")
    await node.look(chosen)
    name = volume_name("one", NODE, "fast")
    await node.cluster.patch(VOLUMES, name, {"metadata": {"finalizers": None}})
    await node.cluster.delete(VOLUMES, name)
    await until(lambda: node.cache.get(name) is None)
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one"}


async def test_a_creation_that_fails_is_tried_again(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(fast / "one")
    mount(fast / "two")
    create, failures = node.cluster.create, ["once"]

    async def failing(resource: Any, body: Any, *more: Any) -> Any:
        if resource is VOLUMES and failures:
            raise Unreachable(0, "", f"no answer {failures.pop()}")
        return await create(resource, body, *more)

    monkeypatch.setattr(node.cluster, "create", failing)
    chosen = configured(settings(fast))
    (error,) = await node.look(chosen)
    assert error.endswith("no answer once")
    assert len(await node.volumes()) == 1, "one failure is no reason to leave the others out"
    assert node.value("apiserver_requests_failed_total", method="create") == 1
    assert await node.look(chosen) == []
    assert len(await node.volumes()) == 2


async def test_strays_are_told_once_and_hinder_nobody(
    node: Discovery, fast: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount(fast / "good")
    (fast / "file").write_text("left behind")
    (fast / ".hidden").touch()
    os.mkfifo(fast / "fifo")
    (fast / "lost+found").mkdir()
    (fast / "dangling").symlink_to("nowhere")
    (fast / "link").symlink_to(fast / "good")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(fast, os.O_PATH)
        listening.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    chosen = configured(settings(fast))
    for _ in range(3):
        assert await node.look(chosen) == []
    assert set(await node.volumes()) == {"/host/fast/good"}
    neither = [
        f'Skipping file "{fast}/{name}": not a directory nor block device'
        for name in (".hidden", "dangling", "fifo", "file", "socket")
    ]
    remedy = "mount a filesystem on it, or take it out of the folder"
    no_mount = [f'path "{fast}/{name}" is not a valid mount point: {remedy}' for name in ("link", "lost+found")]
    told = await node.told()
    assert {(about, reason) for about, reason, _ in told} == {(NODE, STRAY)}
    assert sorted(words for *_, words in told) == sorted(neither + no_mount)
    assert all(caplog.text.count(words) == 1 for words in neither + no_mount)
    assert node.value("stray_entries", storage_class="fast") == 7
    (fast / "file").unlink()
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 6


async def test_one_path_under_two_classes_is_one_volume(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    chosen = configured(settings(fast), settings(fast, "slow"))
    for _ in range(2):
        assert await node.look(chosen) == []
    assert [body["spec"]["storageClassName"] for body in await node.cluster.list(VOLUMES)] == ["fast"]


async def test_what_is_being_cleaned_is_not_offered(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    node.deletions.names.add(volume_name("one", NODE, "fast"))
    chosen = configured(settings(fast))
    assert await node.look(chosen) == []
    assert await node.volumes() == {}
    node.deletions.names.clear()
    await node.look(chosen)
    assert set(await node.volumes()) == {"/host/fast/one"}


async def test_names_that_do_not_match_are_not_even_strays(node: Discovery, fast: Path) -> None:
    for name in ("nvme0", "sda", "other"):
        mount(fast / name)
    (fast / "README").touch()
    assert await node.look(configured(settings(fast, name_pattern="nvme*,sd[a-f]"))) == []
    assert set(await node.volumes()) == {"/host/fast/nvme0", "/host/fast/sda"}
    assert node.value("stray_entries", storage_class="fast") == 0


async def test_a_malformed_pattern_is_the_classes_error(node: Discovery, fast: Path) -> None:
    (error,) = await node.look(configured(settings(fast, name_pattern="[")))
    assert error == "class fast: malformed name pattern '[': a character class needs a closing bracket"


async def test_a_class_that_is_missing_in_the_cluster(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    (error,) = await node.look(configured(settings(fast, "nobody")))
    assert error == "class nobody: there is no StorageClass nobody: create it, or take it out of storageClassMap"


async def test_a_reclaim_policy_that_means_nothing(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = node.classes.get("fast")
    assert found
    monkeypatch.setattr(node.classes, "get", lambda name: replace(found, reclaim_policy="Recycle"))
    (error,) = await node.look(configured(settings(fast)))
    assert error == "class fast: reclaimPolicy of StorageClass fast is Recycle: allowed is Delete or Retain"


ODD = ["with blank", "tab\there", "line\nbreak", "back\\slash", "hash#tag", "-rf", "ünïcode", "..dots", "*", "a" * 255]


async def test_mounts_with_odd_names(node: Discovery, fast: Path) -> None:
    for name in ODD:
        mount(fast / name)
    assert await node.look(configured(settings(fast))) == []
    assert set(await node.volumes()) == {f"/host/fast/{name}" for name in ODD}


async def test_a_name_that_is_not_utf8_is_stray(node: Discovery, fast: Path) -> None:
    mount(fast / os.fsdecode(b"disk\xff"))
    assert await node.look(configured(settings(fast))) == []
    assert await node.told() == [(NODE, STRAY, "the name 'disk\\udcff' is not UTF-8: rename it")]


async def test_a_folder_reached_through_a_link(node: Discovery, fast: Path, tmp_path: Path) -> None:
    mount(fast / "one")
    (tmp_path / "linked").symlink_to(fast)
    assert await node.look(configured(settings(tmp_path / "linked"))) == []
    assert set(await node.volumes()) == {"/host/linked/one"}


@pytest.mark.parametrize(("mode", "expected"), [(BLOCK, "Block"), ("Filesystem", "Filesystem")])
async def test_block_devices_linked_or_made_there(
    node: Discovery, fast: Path, make_disks: MakeDisks, mode: str, expected: str
) -> None:
    linked, made = make_disks(2, 12 * MIB + 512)
    (fast / "linked disk").symlink_to(linked)
    os.mknod(fast / "made", 0o660 | 0o060000, Path(made).stat().st_rdev)
    assert await node.look(configured(settings(fast, volume_mode=mode))) == []
    found = await node.volumes()
    assert set(found) == {"/host/fast/linked disk", "/host/fast/made"}
    for body in found.values():
        assert body["spec"]["volumeMode"] == expected
        assert body["spec"]["capacity"]["storage"] == "12Mi"
    assert node.value("persistentvolume_capacity_bytes", mode=expected) == 24 * MIB


async def test_a_folder_in_a_class_of_block_volumes_is_stray(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    assert await node.look(configured(settings(fast, volume_mode=BLOCK))) == []
    ((about, reason, words),) = await node.told()
    assert (about, reason) == (NODE, STRAY)
    assert words.startswith(f'path "{fast}/one" of filesystem mode cannot be used to create block volume')


async def test_a_device_without_a_medium_is_stray(node: Discovery, fast: Path, make_disks: MakeDisks) -> None:
    (fast / "empty").symlink_to(make_disks(1, 0)[0])
    assert await node.look(configured(settings(fast, volume_mode=BLOCK))) == []
    ((*_, words),) = await node.told()
    assert words == f'"{fast}/empty" has no capacity: see whether its device has a medium'


async def test_a_device_that_became_a_folder_is_told_on_its_volume(
    node: Discovery, fast: Path, make_disks: MakeDisks
) -> None:
    chosen = configured(settings(fast, volume_mode=BLOCK))
    (fast / "disk").symlink_to(make_disks(1, 12 * MIB)[0])
    await node.look(chosen)
    (fast / "disk").unlink()
    mount(fast / "disk")
    assert await node.look(chosen) == []
    name = volume_name("disk", NODE, "fast")
    ((about, reason, words),) = await node.told()
    assert (about, reason) == (name, NO_DEVICE)
    assert "bring the device back, or delete the PersistentVolume" in words


async def test_volumes_of_the_go_provisioner_go_on_under_their_names(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    mount(fast / "two")
    provisioner = f"local-volume-provisioner-{NODE}-{node.node.uid}"
    for name in ("one", "two"):
        body = go_pv(volume_name(name, NODE, "fast"), provisioner, path=f"/host/fast/{name}", hostname=HOSTNAME)
        await node.cluster.create(VOLUMES, body)
    # They came after our start, out of a backup perhaps, so they are met when their names are taken.
    assert await node.look(configured(settings(fast))) == []
    await until(lambda: len(node.cache.volumes()) == 2)
    assert await node.look(configured(settings(fast))) == []
    assert node.value("apiserver_requests_total", method="create") == 2
    assert node.value("persistentvolume_discovery_total", mode="Filesystem") is None
    assert await node.told() == []


async def test_a_name_that_a_node_of_yesterday_took(node: Discovery, fast: Path) -> None:
    mount(fast / "one")
    name = volume_name("one", NODE, "fast")
    await node.cluster.create(
        VOLUMES, go_pv(name, f"local-volume-provisioner-{NODE}-olduid", path="/host/fast/one", hostname=HOSTNAME)
    )
    assert await node.look(configured(settings(fast))) == []
    ((*_, words),) = await node.told()
    assert words == (
        f"PersistentVolume {name} of /host/fast/one exists and is not of this Node: delete it, or set useNodeNameOnly "
        "when the Node was registered anew"
    )
    assert await node.look(configured(settings(fast), use_node_name_only=True)) == []
    await until(lambda: [known.name for known in node.cache.volumes()] == [name])


async def test_a_filesystem_that_was_unmounted_is_told_on_its_volume(node: Discovery, fast: Path) -> None:
    chosen = configured(settings(fast))
    mount(fast / "one")
    await node.look(chosen)
    unmount(fast / "one")
    assert await node.look(chosen) == []
    name = volume_name("one", NODE, "fast")
    words = f'path "{fast}/one" of PersistentVolume {name} is not a valid mount point: mount its filesystem again'
    assert await node.told() == [(name, UNMOUNTED, words)]
    mount(fast / "one")
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 0
    assert node.value("apiserver_requests_total", method="create") == 1


@pytest.mark.parametrize("left", ["nothing", "a link that leads nowhere"])
async def test_a_disk_that_is_gone_is_told_once_on_its_volume(
    node: Discovery, fast: Path, make_disks: MakeDisks, left: str
) -> None:
    chosen = configured(settings(fast, volume_mode=BLOCK))
    link = fast / "disk"
    [device] = make_disks(1, 12 * MIB)
    link.symlink_to(device)
    await node.look(chosen)
    link.unlink()
    if left != "nothing":
        link.symlink_to("/dev/pulled-out")
    for _ in range(2):
        assert await node.look(chosen) == []
    words = (
        f'path "/host/{fast.name}/disk" is gone: bring the disk or link back, or delete the PersistentVolume if it is '
        "gone for good"
    )
    assert await node.told() == [(volume_name("disk", NODE, "fast"), VANISHED, words)]
    assert node.value("stray_entries", storage_class="fast") == 1
    link.unlink(missing_ok=True)
    link.symlink_to(device)
    await node.look(chosen)
    assert node.value("stray_entries", storage_class="fast") == 0


async def test_a_disk_that_hangs_is_stray_and_hinders_nobody(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = configured(settings(fast))
    mount(fast / "was offered")
    await node.look(chosen)
    let_go, looked = threading.Event(), list[str]()
    kind_of = entries._kind

    def slow(path: Path) -> Kind:
        if path.name != "alive":
            looked.append(path.name)
            let_go.wait()
        return kind_of(path)

    monkeypatch.setattr(entries, "_kind", slow)
    node.discoverer._looks = Looks(deadline=0.1)
    mount(fast / "new")
    mount(fast / "alive")
    try:
        for _ in range(5):
            assert await node.look(chosen) == [], "the node stays ready"
        assert set(await node.volumes()) == {"/host/fast/alive", "/host/fast/was offered"}
        assert sorted(looked) == ["new", "was offered"], "one look each, and so one thread"
        told = {(about, reason) for about, reason, _ in await node.told()}
        assert told == {(NODE, UNRESPONSIVE), (volume_name("was offered", NODE, "fast"), UNRESPONSIVE)}
        assert node.value("stray_entries", storage_class="fast") == 2
    finally:
        let_go.set()

    async def offered() -> bool:
        await node.look(chosen)
        return len(await node.volumes()) == 3 and node.value("stray_entries", storage_class="fast") == 0

    await until(offered)


async def test_a_disk_whose_size_can_not_be_had_hinders_nobody(
    node: Discovery, fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, size_of = threading.Event(), entries._capacity

    def slow(entry: entries.Entry) -> int:
        if entry.name == "dead":
            let_go.wait()
        return size_of(entry)

    monkeypatch.setattr(entries, "_capacity", slow)
    node.discoverer._looks = Looks(deadline=0.1)
    mount(fast / "dead")
    mount(fast / "later in the list")
    try:
        for _ in range(2):
            assert await node.look(configured(settings(fast))) == []
        assert set(await node.volumes()) == {"/host/fast/later in the list"}
        assert [(about, reason) for about, reason, _ in await node.told()] == [(NODE, UNRESPONSIVE)]
    finally:
        let_go.set()


async def test_a_folder_that_hangs_is_the_classes_error(
    node: Discovery, fast: Path, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, list_of = threading.Event(), entries._list

    def hanging(folder: Path, wanted: Callable[[str], bool]) -> dict[str, bool]:
        if folder == fast:
            let_go.wait()
        return list_of(folder, wanted)

    monkeypatch.setattr(entries, "_list", hanging)
    node.discoverer._looks = Looks(deadline=0.1)
    mount(slow / "one")
    try:
        [error] = await node.look(configured(settings(fast), settings(slow, "slow")))
        assert f'class fast: path "{fast}" gives no answer' in error
        assert set(await node.volumes()) == {"/host/slow/one"}
    finally:
        let_go.set()


@pytest.mark.device_mapper
async def test_logical_volumes(lvm: Lvm, volume_group: str, fast: Path) -> None:
    await lvm.create_volume(volume_group, "data", 64 * MIB, ())
    (fast / "by path").symlink_to(f"/dev/{volume_group}/data")
    (entry,) = await entries.look(fast, lambda name: True, Looks())
    assert entry.kind is Kind.BLOCK
    assert await entries.capacity(entry, Looks()) == 64 * MIB
