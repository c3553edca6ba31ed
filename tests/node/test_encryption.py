"""Encrypted volumes (LUKS2), with real headers and mappings: what opens them, and what is on the disks."""

import dataclasses
import logging
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from contract import names
from contract.filesystems import RAW
from contract.parameters import DISCARD, LUKS2, LUKS_HEADER
from contract.volume import Original
from daemon.backends.loop import LoopBackend
from daemon.errors import Damaged, InUse, NoEncryption, NotCloned, NotUnlocked, WrongKey
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.encryption import mapping_name
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from host import blockdevice, command, filesystem, luks, mounttable
from host.luks import Passphrase
from lvm import Lvm
from tests.agreeing import CLUSTER
from tests.node.conftest import ByHand, MakeDisks, remove_group
from tests.node.snapshot_node import no_snapshots
from tests.node.test_volumes_killed import run, run_and_kill
from tests.node.volume_node import MIB, Node, image, lvm_backend, started
from tests.unit.daemon.csi.csinode import csi_node, refused
from tests.unit.daemon.nodecluster import read_pv

pytestmark = pytest.mark.device_mapper

KEY = Passphrase(b"correct horse battery staple", "encryptionPassphrase of Secret default/key")
WRONG = Passphrase(b"Tr0ub4dor&3", "encryptionPassphrase of Secret default/other")
PRECIOUS = b"what the pod has written, 32 B. " * 128
SIZE = 64 * MIB


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are derived in no time: what they cost is tried once."""
    monkeypatch.setattr(luks, "_DERIVATION", ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"))


@pytest.fixture
async def disk_node(
    request: pytest.FixtureRequest, lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path
) -> AsyncIterator[Node]:
    """With one group of one disk of so many MiB, small enough to be searched, and a thin pool in it if asked for."""
    size, thin = request.param
    group = f"encrypted-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(group, make_disks(1, size * MIB))
    node = Node(tmp_path, lambda: lvm_backend(lvm, group, thin=thin))
    yield node
    close_all(node)
    await remove_group(by_hand, group)


@pytest.fixture
def node(loop_node: Node) -> Any:
    yield loop_node
    close_all(loop_node)


def close_all(node: Node) -> None:
    node.unmount_all()
    for mapping in Path("/dev/mapper").glob("elastic_local_*"):
        subprocess.run(["cryptsetup", "close", mapping.name], check=True)


def encrypted(node: Node, size: int = SIZE, **more: Any) -> VolumeSpec:
    return node.spec(size, encryption=LUKS2, **more)


def copy_of(spec: VolumeSpec, **more: Any) -> VolumeSpec:
    original = Original(spec.pv, spec.uid)
    return dataclasses.replace(spec, pv=f"pvc-{uuid.uuid4()}", uid="copy", original=original, **more)


def is_open(spec: VolumeSpec) -> bool:
    return luks.exists(mapping_name(spec.pv))


async def mounted(node: Node, volumes: Volumes, spec: VolumeSpec, key: Passphrase = KEY) -> PodFolder:
    """The folder of a pod that has the volume: staged and published, as the kubelet does it."""
    await volumes.unlock(spec, key)
    folder = node.folder(spec.pv)
    await volumes.mount(spec, folder, read_only=False)
    return folder


def write(folder: PodFolder) -> None:
    path = folder.path / "precious"
    path.write_bytes(PRECIOUS)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


async def gone(node: Node, volumes: Volumes, spec: VolumeSpec, folder: PodFolder) -> None:
    """As the kubelet leaves it, and then reclaimed."""
    await volumes.unmount(folder)
    await volumes.release(spec.pv)
    await node.reclaim(volumes, spec.pv)


def found(node: Node, needle: bytes) -> list[str]:
    """Files below the node's folder, disks among them, in which that is."""
    return [
        str(path)
        for path in node.root.rglob("*")
        if path.is_file() and not path.is_relative_to(node.staging) and "/pods/" not in str(path)
        if needle in path.read_bytes()
    ]


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("disk_node", [(100, False)], ids=["thick"], indirect=True)
async def test_the_life_of_an_encrypted_volume_leaves_neither_data_nor_passphrase_behind(
    disk_node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    monkeypatch.setattr(command, "observers", [lambda completed: seen.append(repr(completed))])
    node, spec = disk_node, encrypted(disk_node)
    volumes = await started(node)
    folder = await mounted(node, volumes, spec)
    write(folder)
    volume = volumes.inventory.volume(spec.pv)
    assert volume
    assert volume.size == SIZE, "the header is on top of what the pod asked for"
    assert blockdevice.size(luks.path_of(mapping_name(spec.pv))) == SIZE
    free = node.free(volumes)
    await volumes.refresh()
    assert node.free(volumes) == free, "the header is counted as it is"
    with pytest.raises(WrongKey, match=r"Secret default/other.*not touched"):
        await volumes.unlock(spec, WRONG)
    assert (folder.path / "precious").read_bytes() == PRECIOUS

    again = await started(node)  # a daemon that starts finds what is open
    await again.mount(spec, node.folder(), read_only=False)
    with pytest.raises(InUse, match="delete the pod"):
        await again.release(spec.pv)
    for mount in node.mounts():
        if "/pods/" in mount.path:
            await again.unmount(PodFolder.parse(mount.path, node.root / "kubelet"))
    assert is_open(spec), "other pods may come"
    await again.release(spec.pv)
    assert not is_open(spec)
    with pytest.raises(NotUnlocked):
        await again.mount(spec, node.folder(), read_only=False)
    with pytest.raises(WrongKey):
        await again.unlock(spec, WRONG)
    assert not is_open(spec)
    folder = await mounted(node, again, spec)
    assert (folder.path / "precious").read_bytes() == PRECIOUS
    assert not found(node, PRECIOUS), "what is on the disks is not plain"

    device, backup = Path("/dev", node.pool, spec.pv), node.root / "header"
    subprocess.run(["cryptsetup", "luksHeaderBackup", device, "--header-backup-file", backup], check=True)
    key_area = backup.read_bytes()[32 << 10 :][: 256 << 10]  # of the first slot: cryptsetup luksDump
    assert len(set(key_area)) > 200
    backup.unlink()
    assert found(node, key_area), "it is on a disk"
    await gone(node, again, spec, folder)
    assert not found(node, key_area), "the key is gone with the header"
    assert not found(node, KEY.content)
    logged = [*seen, *(repr(each.__dict__) for each in caplog.records), *map(str, command.recorder)]
    said = "\n".join([*logged, repr(KEY), str(KEY), repr(spec)])
    assert "luksFormat" in said
    assert "correct horse" not in said
    assert "Tr0ub4dor" not in said


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("disk_node", [(300, False)], ids=["thick"], indirect=True)
async def test_a_copy_has_the_key_of_its_source_and_is_mounted_beside_it(disk_node: Node) -> None:
    """And made while its source is in use."""
    node, source = disk_node, encrypted(disk_node)
    volumes = await started(node)
    folder = await mounted(node, volumes, source)
    write(folder)
    with pytest.raises(NotCloned, match="both be encrypted or neither"):
        await volumes.prepare(copy_of(node.spec(SIZE)))
    copy = copy_of(source, size=96 * MIB)
    await volumes.prepare(copy)  # nobody needs the passphrase for that
    with pytest.raises(WrongKey):
        await volumes.unlock(copy, WRONG)
    copied = await mounted(node, volumes, copy)
    assert (copied.path / "precious").read_bytes() == PRECIOUS
    assert os.statvfs(copied.path).f_blocks > os.statvfs(folder.path).f_blocks, "it fills what it was given"
    uuids = {
        subprocess.run(["cryptsetup", "luksUUID", f"/dev/{node.pool}/{pv}"], check=True, capture_output=True).stdout
        for pv in (source.pv, copy.pv)
    }
    assert len(uuids) == 2
    assert not (await no_snapshots(volumes)).damaged
    assert not found(node, PRECIOUS), "nor did a snapshot keep anything plain"


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("disk_node", [(400, True)], ids=["thin"], indirect=True)
async def test_a_snapshot_shares_what_is_encrypted_and_is_restored_with_the_same_key(disk_node: Node) -> None:
    node, source = disk_node, encrypted(disk_node, erase=DISCARD)
    volumes = await started(node)
    folder = await mounted(node, volumes, source)
    write(folder)
    snapshot = dataclasses.replace(copy_of(source), pv=f"snap_{uuid.uuid4()}", content="snapcontent-1")
    taken = await volumes.prepare(snapshot)
    assert (taken.record.encryption, taken.size) == (LUKS2, SIZE)
    (folder.path / "later").write_text("not in it")
    restored = dataclasses.replace(copy_of(snapshot, size=96 * MIB), content="")
    assert (await volumes.prepare(restored)).size == 96 * MIB
    free = node.free(volumes)
    await volumes.refresh()
    assert node.free(volumes) == free, "headers are counted as they are"
    there = await mounted(node, volumes, restored)
    assert not (there.path / "later").exists()
    await gone(node, volumes, source, folder)
    assert (there.path / "precious").read_bytes() == PRECIOUS, "each has a header of its own"


@pytest.mark.usefixtures("cheap")
async def test_a_copy_of_xfs_is_mounted_beside_its_source(node: Node) -> None:
    """The kernel mounts no two of one UUID, and nobody renews that of an encrypted copy."""
    source = encrypted(node, 300 * MIB, filesystem="xfs")
    volumes = await started(node)
    folder = await mounted(node, volumes, source)
    write(folder)
    copy = copy_of(source)
    await volumes.prepare(copy)
    copied = await mounted(node, volumes, copy)
    assert (copied.path / "precious").read_bytes() == PRECIOUS
    await volumes.unmount(copied)
    await volumes.release(copy.pv)
    copied = await mounted(node, await started(node), copy)
    assert (copied.path / "precious").read_bytes() == PRECIOUS
    assert len([mount for mount in mounttable.read() if mount.source.startswith("/dev/mapper/elastic_local_")]) >= 4


@pytest.mark.usefixtures("cheap")
async def test_it_grows_under_its_pod_without_a_passphrase(node: Node) -> None:
    spec = encrypted(node)
    volumes = await started(node)
    folder = await mounted(node, volumes, spec)
    before = os.statvfs(folder.path).f_blocks
    larger = dataclasses.replace(spec, size=2 * SIZE)
    assert (await volumes.extend(larger)).size == 2 * SIZE  # as the reconciler does it, ahead of the kubelet
    assert (await volumes.expand(larger)).size == 2 * SIZE
    assert image(node).stat().st_size == 2 * SIZE + LUKS_HEADER
    assert blockdevice.size(luks.path_of(mapping_name(spec.pv))) == 2 * SIZE
    assert os.statvfs(folder.path).f_blocks > 1.8 * before


@pytest.mark.usefixtures("cheap")
async def test_a_block_volume_shows_what_is_behind_the_header(node: Node) -> None:
    spec = encrypted(node, filesystem=RAW)
    volumes = await started(node)
    with pytest.raises(NotUnlocked):
        await volumes.prepare(spec)
    await volumes.unlock(spec, KEY)
    mapping = luks.path_of(mapping_name(spec.pv))
    assert blockdevice.size(mapping) == SIZE
    with mapping.open("r+b", buffering=0) as device:
        device.write(PRECIOUS)
        os.fsync(device.fileno())
    await volumes.release(spec.pv)
    assert PRECIOUS not in image(node).read_bytes()
    await (await started(node)).unlock(spec, KEY)
    with mapping.open("rb", buffering=0) as device:
        assert device.read(len(PRECIOUS)) == PRECIOUS
    subprocess.run(["lvm", "vgcreate", "elastic-local-vg", mapping], check=True, capture_output=True)
    assert (await Lvm(node.root / "lvm").report()).group("elastic-local-vg") is None, "a pod's group hides none of ours"
    subprocess.run(["lvm", "vgremove", "elastic-local-vg"], check=True, capture_output=True)
    await node.reclaim(volumes, spec.pv)
    assert not is_open(spec), "who removes a volume closes it"
    assert not image(node).exists()


@pytest.mark.usefixtures("cheap")
async def test_the_kubelet_has_it_opened_and_closed(tmp_path: Path) -> None:
    secrets, owner = {"encryptionPassphrase": KEY.content.decode()}, {"encryption": LUKS2, "secret": "default/key"}
    async with csi_node(tmp_path, backend=LoopBackend, mounts=True) as csi:
        await csi.volume(mi=32, **owner)
        uid = await csi.pod()
        status, words = await refused(csi.node.NodePublishVolume(csi.publish(uid)))
        assert status is Status.FAILED_PRECONDITION
        assert "made when the kubelet stages it" in words
        await csi.node.NodeStageVolume(csi.stage(secrets=secrets))
        pv = await read_pv(csi.parts.cluster, "pv")
        assert pv
        assert (pv.made, pv.actual) == (True, 32 * MIB)
        status, words = await refused(csi.node.NodeStageVolume(csi.stage(secrets={"encryptionPassphrase": "wrong"})))
        assert status is Status.FAILED_PRECONDITION
        assert "is not opened by encryptionPassphrase of Secret default/key" in words
        await csi.node.NodePublishVolume(csi.publish(uid))
        assert csi.target(uid).is_mount()
        await csi.mounter.lock_unstaged()
        assert csi.target(uid).is_mount(), "it is in use, whatever the kubelet remembers"
        await csi.node.NodeUnpublishVolume(csi.unpublish(uid))
        folder = csi.kubelet / names.csi_staging("pv")[0]
        folder.mkdir(parents=True)
        await csi.mounter.lock_unstaged()
        assert luks.exists(mapping_name("pv"))
        folder.rmdir()
        await csi.mounter.lock_unstaged()
        assert not luks.exists(mapping_name("pv")), "no kubelet would ever unstage it"
        await csi.node.NodeStageVolume(csi.stage(secrets=secrets))
        assert luks.exists(mapping_name("pv"))
        for _ in range(2):
            await csi.node.NodeUnstageVolume(csi.unstage())
        assert not luks.exists(mapping_name("pv"))


@pytest.mark.usefixtures("cheap")
async def test_what_should_have_a_header_and_has_none_is_damaged_and_never_formatted(node: Node) -> None:
    spec = encrypted(node)
    volumes = await started(node)
    await volumes.unlock(spec, KEY)
    await volumes.release(spec.pv)
    with image(node).open("r+b") as file:
        header = file.read(LUKS_HEADER)
        file.seek(0)
        file.write(bytes(LUKS_HEADER))
    left = image(node).read_bytes()
    with pytest.raises(Damaged, match="luksHeaderRestore"):
        await (await started(node)).unlock(spec, KEY)
    assert image(node).read_bytes() == left
    with image(node).open("r+b") as file:
        file.write(header)
    await volumes.unlock(spec, KEY)
    await volumes.release(spec.pv)
    with pytest.raises(Damaged, match="says that it is not encrypted"):
        await volumes.mount(node.spec(SIZE), node.folder(), read_only=False)
    plain = node.spec(SIZE, pv=f"pvc-{uuid.uuid4()}")
    await volumes.prepare(plain)
    with pytest.raises(Damaged, match="is not encrypted on this node"):
        await volumes.unlock(encrypted(node, pv=plain.pv), KEY)


async def test_a_passphrase_costs_much_to_guess(make_disks: MakeDisks) -> None:
    [disk] = make_disks(1, 20 * MIB)
    await luks.make(Path(disk), KEY, LUKS_HEADER)
    dump = subprocess.run(["cryptsetup", "luksDump", disk], check=True, capture_output=True, text=True).stdout
    words = " ".join(dump.split())
    assert "PBKDF: argon2id Time cost: 4 Memory: 32768 Threads: 1" in words
    assert "cipher: aes-xts-plain64" in words
    assert f"offset: {LUKS_HEADER} [bytes]" in words


async def test_folders_are_not_encrypted(folder_node: Node) -> None:
    with pytest.raises(NoEncryption, match="folders only"):
        await (await started(folder_node)).unlock(encrypted(folder_node), KEY)
    assert not folder_node.mounts()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("step", [(luks, "make"), (filesystem, "make")], ids=["header", "filesystem"])
def test_a_daemon_killed_while_it_makes_one_begins_anew(node: Node, step: tuple[Any, str]) -> None:
    spec = encrypted(node)
    run_and_kill(node, lambda volumes: volumes.unlock(spec, KEY), step, "after")

    async def use(volumes: Volumes) -> None:
        [left] = volumes.inventory.volumes
        assert left.record.state is VolumeState.FORMATTING
        write(await mounted(node, volumes, spec))

    run(node, use)


def left_by_cryptsetup(node: Node, spec: VolumeSpec, name: str, *, steps: int) -> None:
    """One that is killed: it makes a device, gives it a table, and lets that be used."""
    table = f"0 2048 crypt aes-xts-plain64 {'0123456789abcdef' * 8} 0 /dev/{node.pool}/{spec.pv} 0"
    words = [f"create --notable --uuid CRYPT-TEMP-{name}", "load", "resume"][:steps]
    for step in words:
        verb, *options = step.split()
        arguments = [*options, name, *(["--table", table] if verb == "load" else [])]
        subprocess.run(["dmsetup", verb, "--noudevsync", *arguments], check=True)


def known_to_device_mapper(name: str) -> bool:
    return subprocess.run(["dmsetup", "info", name], capture_output=True, check=False).returncode == 0


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("disk_node", [(100, False)], ids=["thick"], indirect=True)
@pytest.mark.parametrize("steps", [2, 3], ids=["unused table", "in use"])
async def test_what_a_killed_cryptsetup_left_open_keeps_no_volume_from_being_made_anew(
    disk_node: Node, steps: int
) -> None:
    """It writes a header through a mapping of its own, under a name of its own."""
    node, spec = disk_node, encrypted(disk_node)
    backend = node.make_backend()
    await backend.inspect()
    await backend.create(dataclasses.replace(spec, cluster=CLUSTER))
    name = f"temporary-cryptsetup-{os.getpid()}"
    left_by_cryptsetup(node, spec, name, steps=steps)
    write(await mounted(node, await started(node), spec))
    assert not known_to_device_mapper(name)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("disk_node", [(100, False)], ids=["thick"], indirect=True)
@pytest.mark.parametrize("steps", [1, 2], ids=["no table", "unused table"])
async def test_a_volume_is_opened_and_removed_whose_cryptsetup_was_killed_while_it_opened(
    disk_node: Node, steps: int
) -> None:
    """To the next cryptsetup its mapping is neither open nor free to be opened."""
    node, spec = disk_node, encrypted(disk_node)
    volumes = await started(node)
    await volumes.unlock(spec, KEY)
    await volumes.release(spec.pv)
    left_by_cryptsetup(node, spec, mapping_name(spec.pv), steps=steps)
    folder = await mounted(node, volumes, spec)
    write(folder)
    await volumes.unmount(folder)
    await volumes.release(spec.pv)
    left_by_cryptsetup(node, spec, mapping_name(spec.pv), steps=steps)
    await node.reclaim(volumes)
    assert steps == 1 or not known_to_device_mapper(mapping_name(spec.pv))
