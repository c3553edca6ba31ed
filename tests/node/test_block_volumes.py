"""Volumes that are block devices to their pods: what is read from them, whose data is not, what stays of them."""

import os
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from contract import names
from contract.filesystems import RAW
from contract.volume import Original
from daemon.errors import BackendFailed, BeingCleared, InUse, NoSpace, NotABlockDevice, Occupied
from daemon.kubelet.poddevice import PodDevice
from daemon.storage import blockdevices
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from daemon.storage.volumes import Volumes
from host import blockdevice, loopdevice
from tests.node.volume_node import MIB, Node, image, on, started
from tests.waiting import until

SECRET = b"another tenant's" * 4096  # 64 KiB


def block_spec(node: Node, size: int = 16 * MIB, pv: str = "", **parameters: str) -> VolumeSpec:
    spec = node.spec(size, pv=pv, **parameters)
    return replace(spec, parameters=spec.parameters.as_block_device())


def device_of(node: Node, pv: str = "", pod: str = "") -> PodDevice:
    """Where a pod finds the volume, in the folder that the kubelet makes before it calls."""
    kubelet = node.root / "kubelet"
    path = kubelet / names.CSI_DEVICES / (pv or node.pv) / (pod or str(uuid.uuid4()))
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    device = PodDevice.parse(str(path), kubelet)
    device.make()
    return device


def written(path: Path, data: bytes, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, data, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content(path: Path) -> bytes:
    """All of a device, from its disk and no cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read()
    finally:
        os.close(descriptor)


async def filled_and_removed(node: Node, volumes: Volumes, size: int) -> None:
    """A volume whose data stays where it was when it goes, as its class asks for."""
    spec = block_spec(node, size, pv=f"pvc-{uuid.uuid4()}", erase="none")
    device = device_of(node, spec.pv)
    await volumes.mount(spec, device, read_only=False)
    for offset in range(0, size, len(SECRET)):
        written(device.path, SECRET, offset)
    await volumes.unmount(device)
    await node.reclaim(volumes, spec.pv)


async def test_one_that_is_write_protected_is_for_readers_only(loop_node: Node) -> None:
    volumes = await started(loop_node)
    spec, writer, reader = block_spec(loop_node), device_of(loop_node), device_of(loop_node)
    await volumes.prepare(spec)
    disk = loopdevice.attach(image(loop_node))
    try:
        subprocess.run(["blockdev", "--setro", disk], check=True)
        with pytest.raises(BackendFailed, match=f"write-protected.*`blockdev --setrw {disk}`"):
            await volumes.mount(spec, writer, read_only=False)
        await volumes.mount(spec, reader, read_only=True)
        await volumes.unmount(reader)
        disk = loopdevice.attach(image(loop_node))
        subprocess.run(["blockdev", "--setrw", disk], check=True)
        await volumes.mount(spec, writer, read_only=False)
        written(writer.path, b"mine")
        await volumes.unmount(writer)
    finally:
        if found := loopdevice.find(image(loop_node)):
            loopdevice.detach(found)


@on("loop", "lvm-thick", "lvm-thin")
async def test_its_life(node: Node) -> None:
    volumes = await started(node)
    spec, device = block_spec(node), device_of(node)
    assert (await volumes.mount(spec, device, read_only=False)).anew
    assert blockdevice.is_block_device(device.path)
    assert blockdevice.size(device.path) == 16 * MIB
    assert (await volumes.usage(spec.pv, device)).size == 16 * MIB
    assert not any(content(device.path))
    written(device.path, b"mine", 8 * MIB)

    daemon = await started(node)  # one that starts anew knows as much
    assert not (await daemon.mount(spec, device, read_only=False)).anew
    with pytest.raises(InUse):
        await node.reclaim(daemon)
    assert (await daemon.expand(replace(spec, size=24 * MIB))).size == 24 * MIB
    assert blockdevice.size(device.path) == 24 * MIB
    other = device_of(node)
    await daemon.mount(spec, other, read_only=False)
    await daemon.unmount(device)
    device.remove()
    assert content(other.path)[8 * MIB : 8 * MIB + 4] == b"mine"
    await daemon.unmount(other)
    assert node.mounts() == []
    assert not (node.staging / node.pv).exists()

    await daemon.mount(spec, other, read_only=False)
    assert content(other.path)[8 * MIB : 8 * MIB + 4] == b"mine"
    await daemon.unmount(other)
    await node.reclaim(daemon)
    assert node.mounts() == []
    assert not daemon.inventory.volumes


@on("lvm-thick")
async def test_no_byte_of_it_is_anybody_elses(node: Node) -> None:
    """Neither at its beginning nor in what it grows by, though the class of the one before erased nothing."""
    volumes = await started(node)
    await filled_and_removed(node, volumes, 48 * MIB)
    spec, device = block_spec(node), device_of(node)
    await volumes.mount(spec, device, read_only=False)
    assert not any(content(device.path))
    written(device.path, b"mine")
    await volumes.expand(replace(spec, size=32 * MIB))
    grown = content(device.path)
    assert len(grown) == 32 * MIB
    assert grown.startswith(b"mine")
    assert not any(grown[4:])
    await volumes.unmount(device)
    await node.reclaim(volumes)


async def extended_by_hand(node: Node, volumes: Volumes, device: PodDevice) -> None:
    """To 32 MiB, and its pod writes there."""
    volume = volumes.inventory.volume(node.pv)
    assert volume
    await node.make_backend().extend(volume, 32 * MIB)
    written(device.path, b"theirs", 24 * MIB)


@on("lvm-thick")
async def test_what_was_added_by_hand_is_not_cleared(node: Node) -> None:
    """Its pod has it at once, and may have written there when the volume is mounted again, or grows."""
    volumes = await started(node)
    spec, device = block_spec(node, 16 * MIB), device_of(node)
    await volumes.mount(spec, device, read_only=False)
    with pytest.raises(NoSpace):
        await volumes.expand(replace(spec, size=1 << 50))
    await extended_by_hand(node, volumes, device)
    await volumes.unmount(device)
    volumes = await started(node)
    await volumes.mount(spec, device, read_only=False)
    await volumes.expand(replace(spec, size=48 * MIB))
    grown = content(device.path)
    assert (len(grown), grown.find(b"theirs")) == (48 * MIB, 24 * MIB)
    await volumes.unmount(device)
    await node.reclaim(volumes)


@on("lvm-thick")
async def test_what_was_added_by_hand_after_a_failure_is_not_cleared(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator who sees that we can't extend it does it himself."""
    volumes = await started(node)
    spec, device = block_spec(node, 16 * MIB), device_of(node)
    await volumes.mount(spec, device, read_only=False)

    async def refused(volume: Volume, size: int) -> Volume:
        raise BackendFailed("LVM refused it")

    with monkeypatch.context() as patch:
        patch.setattr(volumes._backend, "extend", refused)
        with pytest.raises(BackendFailed, match="LVM refused it"):
            await volumes.expand(replace(spec, size=32 * MIB))
    await extended_by_hand(node, volumes, device)
    await volumes.expand(replace(spec, size=48 * MIB))
    grown = content(device.path)
    assert (len(grown), grown.find(b"theirs")) == (48 * MIB, 24 * MIB)
    await volumes.unmount(device)
    await node.reclaim(volumes)


@on("lvm-thick")
async def test_what_was_added_is_cleared_after_a_crash(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = await started(node)
    await filled_and_removed(node, volumes, 48 * MIB)
    spec, device = block_spec(node, 16 * MIB), device_of(node)
    await volumes.mount(spec, device, read_only=False)

    async def dies(volume: Volume) -> Volume:
        raise BackendFailed("killed")

    monkeypatch.setattr(volumes._block_devices, "ensure_clear", dies)
    with pytest.raises(BackendFailed):
        await volumes.expand(replace(spec, size=48 * MIB))
    await volumes.unmount(device)
    volumes = await started(node)
    await volumes.mount(replace(spec, size=48 * MIB), device, read_only=False)
    grown = content(device.path)
    assert len(grown) == 48 * MIB
    assert not any(grown)
    await volumes.unmount(device)
    await node.reclaim(volumes)


@on("lvm-thick")
async def test_clearing_goes_on_where_it_was(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns, between which nothing of the volume is shown."""
    monkeypatch.setattr(blockdevices, "_TURN_SECONDS", 0)
    volumes = await started(node)
    spec, device = block_spec(node, 40 * MIB), device_of(node)
    seen = []
    for _ in range(10):
        try:
            await volumes.mount(spec, device, read_only=False)
        except BeingCleared:
            volume = volumes.inventory.volume(spec.pv)
            assert volume
            assert volume.record.state is VolumeState.FORMATTING
            assert node.mounted_on(device) == []
            seen.append(volume.record.cleared)
            volumes = await started(node)
        else:
            break
    assert seen == [16 * MIB, 32 * MIB]
    volume = volumes.inventory.volume(spec.pv)
    assert volume
    assert (volume.record.filesystem, volume.record.cleared) == (RAW, 40 * MIB)
    await volumes.unmount(device)


@on("loop", "lvm-thick", "lvm-thin")
async def test_a_copy(node: Node) -> None:
    volumes = await started(node)
    source, device = block_spec(node), device_of(node)
    await volumes.mount(source, device, read_only=False)
    written(device.path, SECRET, 4 * MIB)
    if node.pool.startswith("loop"):
        await volumes.unmount(device)  # a device in use is copied from a snapshot, which there is of LVM only
    original = Original(source.pv, source.uid)
    copy = replace(source, pv=f"pvc-{uuid.uuid4()}", uid="copy", size=24 * MIB, original=original)
    shown = device_of(node, copy.pv)
    await volumes.mount(copy, shown, read_only=False)
    copied = content(shown.path)
    assert len(copied) == 24 * MIB
    assert copied[4 * MIB : 4 * MIB + len(SECRET)] == SECRET
    assert not any(copied[4 * MIB + len(SECRET) :])
    await volumes.unmount(shown)
    await volumes.unmount(device)


async def test_a_folder_is_none(folder_node: Node) -> None:
    volumes = await started(folder_node)
    with pytest.raises(NotABlockDevice, match="volumeMode Filesystem"):
        await volumes.mount(block_spec(folder_node), device_of(folder_node), read_only=False)
    assert not volumes.inventory.volumes


@on("loop")
async def test_the_loop_device_stays_its_own(node: Node) -> None:
    """A node that nobody has open would come to show another file, as soon as its number is given out again."""
    volumes = await started(node)
    spec, device = block_spec(node), device_of(node)
    await volumes.mount(spec, device, read_only=False)
    attached = loopdevice.find(image(node))
    assert attached
    assert attached.stat().st_rdev == device.path.stat().st_rdev
    await volumes.unmount(device)
    assert loopdevice.find(image(node)) is None


@on("loop")
async def test_a_staged_node_of_another_device_is_not_shown(node: Node, tmp_path: Path) -> None:
    volumes = await started(node)
    spec, device = block_spec(node), device_of(node)
    await volumes.mount(spec, device, read_only=False)
    attached = loopdevice.find(image(node))
    assert attached
    loopdevice.let_go(attached)  # as an administrator's `losetup --detach`
    foreign = tmp_path / "foreign"
    foreign.write_bytes(SECRET)

    def got() -> bool:
        """Another test may have it for a while."""
        return subprocess.run(["losetup", attached, foreign], capture_output=True, check=False).returncode == 0

    await until(got, what=f"{attached} is free and taken")
    with attached.open("rb"):
        loopdevice.let_go(attached)  # with its last user
        second = device_of(node)
        with pytest.raises((InUse, Occupied)):
            await volumes.mount(spec, second, read_only=False)
        assert node.mounted_on(second) == []
        await volumes.unmount(device)
        await volumes.mount(spec, second, read_only=False)
        assert not any(content(second.path))
        await volumes.unmount(second)
