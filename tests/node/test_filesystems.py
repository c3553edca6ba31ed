"""Real filesystems on real (loop) devices: made, mounted, checked, grown, damaged."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.filesystems import FILESYSTEMS
from host import blockdevice, command, filesystem, loopdevice, mounting
from host.command import CommandFailed, Completed

MIB = 1024**2
SIZES = {kind: max(facts.minimum_size // MIB + 20, 16) * MIB for kind, facts in FILESYSTEMS.items()}
every_kind = pytest.mark.parametrize("kind", SIZES)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def device(image: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    kind = request.node.callspec.params.get("kind", "ext4") if hasattr(request.node, "callspec") else "ext4"
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    with loopdevice.attached(image) as device:
        yield device


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def bytes_of(folder: Path) -> int:
    figures = os.statvfs(folder)
    return figures.f_blocks * figures.f_frsize


def spoil(device: Path, offset: int, length: int) -> None:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)
        file.flush()
        os.fsync(file.fileno())


@every_kind
async def test_data_outlives_the_mount(kind: str, device: Path, folder: Path) -> None:
    await filesystem.make(kind, device)
    assert await blockdevice.signature(device) == kind
    await filesystem.check(kind, device)
    await filesystem.mount(kind, device, folder, ("noatime", "nodev"))
    (folder / "file").write_text("data")
    mounting.unmount(folder)
    await filesystem.check(kind, device)
    await filesystem.mount(kind, device, folder)
    assert (folder / "file").read_text() == "data"
    mounting.unmount(folder)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_growth_is_seen_while_mounted(kind: str, device: Path, image: Path, folder: Path) -> None:
    await grown_while_mounted(kind, device, image, folder)


async def test_ext4_that_is_not_mounted_grows(device: Path, image: Path, folder: Path) -> None:
    await filesystem.make("ext4", device)
    await filesystem.mount("ext4", device, folder)
    before = bytes_of(folder)
    (folder / "file").write_bytes(b"data" * MIB)
    mounting.unmount(folder)
    os.truncate(image, 3 * SIZES["ext4"])
    loopdevice.set_capacity(device)
    assert await filesystem.can_grow_unmounted("ext4", device)
    await filesystem.grow_unmounted("ext4", device)
    assert not await filesystem.can_grow_unmounted("ext4", device)
    await filesystem.mount("ext4", device, folder)
    assert bytes_of(folder) > 2.8 * before
    assert (folder / "file").read_bytes() == b"data" * MIB
    mounting.unmount(folder)


async def test_an_ext4_that_fills_its_device_is_not_checked_for_nothing(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Completed] = []
    await filesystem.make("ext4", device)
    monkeypatch.setattr(command, "observers", [seen.append])
    assert not await filesystem.can_grow_unmounted("ext4", device)
    assert seen == []


async def test_growth_that_is_killed_half_way_is_mended(device: Path, image: Path, folder: Path) -> None:
    await filesystem.make("ext4", device, ("-b", "1024"))
    await filesystem.mount("ext4", device, folder)
    (folder / "file").write_bytes(b"data" * 2 * MIB)
    mounting.unmount(folder)
    for size, seconds in ((64, 0.02), (128, 0.04), (256, 0.06), (512, 0.1)):
        os.truncate(image, size * MIB)
        loopdevice.set_capacity(device)
        assert await filesystem.can_grow_unmounted("ext4", device)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await filesystem.grow_unmounted("ext4", device)
        await filesystem.mend_growth("ext4", device)
        await filesystem.check("ext4", device)
        await filesystem.mount("ext4", device, folder)
        assert (folder / "file").read_bytes() == b"data" * 2 * MIB
        mounting.unmount(folder)
    if await filesystem.can_grow_unmounted("ext4", device):
        await filesystem.grow_unmounted("ext4", device)
    await filesystem.mount("ext4", device, folder)
    assert bytes_of(folder) > 400 * MIB
    mounting.unmount(folder)


@pytest.mark.parametrize(
    ("options", "size", "why"),
    [
        (("-b", "1024", "-O", "^resize_inode"), 2048, "data would have to be moved"),
        (("-b", "4096"), 64, "no copy of its superblock"),
        (("-O", "sparse_super2"), 64, "no copy of its superblock"),
    ],
)
async def test_what_could_not_be_mended_does_not_grow_unmounted(
    device: Path, image: Path, options: tuple[str, ...], size: int, why: str
) -> None:
    await filesystem.make("ext4", device, options)
    os.truncate(image, size * MIB)
    loopdevice.set_capacity(device)
    before = device.read_bytes()
    with pytest.raises(PermissionError, match=why):
        await filesystem.can_grow_unmounted("ext4", device)
    assert device.read_bytes() == before


async def test_only_what_may_be_a_half_grown_filesystem_is_mended(device: Path) -> None:
    with device.open("r+b") as file:
        subprocess.run(["mkswap", "-q", device], check=True)
        before = file.read()
        with pytest.raises(filesystem.DamagedFilesystem, match="found swap"):
            await filesystem.mend_growth("ext4", device)
        file.seek(0)
        assert file.read() == before


async def grown_while_mounted(kind: str, device: Path, image: Path, folder: Path) -> None:
    await filesystem.make(kind, device)
    await filesystem.mount(kind, device, folder)
    before = bytes_of(folder)
    os.truncate(image, 2 * SIZES[kind])
    loopdevice.set_capacity(device)
    await filesystem.grow(kind, device, folder)
    assert bytes_of(folder) > 1.8 * before
    await filesystem.grow(kind, device, folder)
    mounting.unmount(folder)


@every_kind
async def test_made_again_over_another(kind: str, device: Path) -> None:
    """A volume in state formatting may be half formatted, or have been meant for another filesystem."""
    for first in SIZES:
        if SIZES[first] <= SIZES[kind]:
            await filesystem.make(first, device)
    await filesystem.make(kind, device)
    await filesystem.check(kind, device)


async def test_our_words_of_mkfs_give_way_to_those_of_the_class(device: Path, folder: Path) -> None:
    await filesystem.make("ext4", device)
    await filesystem.mount("ext4", device, folder)
    before = os.statvfs(folder)
    mounting.unmount(folder)
    await filesystem.make("ext4", device, ("-m", "10"))
    await filesystem.mount("ext4", device, folder)
    after = os.statvfs(folder)
    kept_for_root = (after.f_bfree - after.f_bavail) - (before.f_bfree - before.f_bavail)
    assert kept_for_root == pytest.approx(0.1 * SIZES["ext4"] / after.f_frsize, rel=0.01)
    mounting.unmount(folder)


@every_kind
async def test_nothing_or_another_filesystem_is_never_mounted(kind: str, device: Path) -> None:
    with pytest.raises(filesystem.DamagedFilesystem, match="found nothing that is known"):
        await filesystem.check(kind, device)
    other = "ext4" if kind != "ext4" else "btrfs"
    if SIZES[other] <= SIZES[kind]:
        await filesystem.make(other, device)
        with pytest.raises(filesystem.DamagedFilesystem, match=f"found {other}"):
            await filesystem.check(kind, device)


async def test_ext4_without_features_of_its_own_is_still_ext4(device: Path) -> None:
    await filesystem.make("ext4", device, ("-O", "^has_journal,^extent,^64bit,^metadata_csum,^flex_bg,^huge_file"))
    await filesystem.check("ext4", device)


async def test_ext4_after_a_crash_is_repaired(device: Path) -> None:
    await filesystem.make("ext4", device, ("-b", "1024", "-O", "^metadata_csum"))
    with device.open("r+b") as file:
        file.seek(1024 + 58)  # s_state of the superblock (ext4(5)): not unmounted cleanly, and with an error seen
        file.write(b"\x02\x00")
    await filesystem.check("ext4", device)


async def test_damaged_ext4_names_the_command_for_a_person(device: Path) -> None:
    await filesystem.make("ext4", device, ("-b", "1024", "-O", "^metadata_csum"))
    with device.open("r+b") as file:
        file.seek(1024 + 58)
        file.write(b"\x02\x00")
    spoil(device, 2 * 1024, 64 * 1024)
    with pytest.raises(filesystem.DamagedFilesystem, match=f"run `e2fsck -f {device}`"):
        await filesystem.check("ext4", device)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_what_is_damaged_is_refused_by_the_kernel_with_the_command_for_a_person(
    kind: str, device: Path, image: Path, folder: Path
) -> None:
    await filesystem.make(kind, device)
    if kind == "xfs":
        spoil(device, 512, 16 * 1024)  # the heads of the free space and inode trees
    else:
        spoil(device, 65536 + 4096, image.stat().st_size // 2)  # all trees; the superblock stays
    await filesystem.check(kind, device)
    with pytest.raises(filesystem.DamagedFilesystem, match=f"run `.* {device}`"):
        await filesystem.mount(kind, device, folder)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_what_can_not_be_read_when_it_is_mounted_is_not_called_damaged(
    kind: str, device: Path, image: Path, folder: Path
) -> None:
    await filesystem.make(kind, device)
    size = image.stat().st_size
    os.truncate(image, MIB)  # the device keeps its size, and its superblock
    with pytest.raises(OSError, match="Input/output error"):
        await filesystem.check(kind, device)  # blkid looks at the end, too
    os.truncate(image, size)
    assert await blockdevice.signature(device) == kind
    os.truncate(image, MIB)
    with pytest.raises(filesystem.FailingDisk, match="gives errors"):
        await filesystem.mount(kind, device, folder)


async def test_a_failure_that_says_nothing_of_the_filesystem(device: Path, folder: Path) -> None:
    await filesystem.make("ext4", device)
    with pytest.raises(CommandFailed, match="does not exist"):
        await filesystem.mount("ext4", device, folder / "missing")


async def test_a_check_that_is_killed_says_nothing_of_the_filesystem(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filesystem.make("ext4", device)
    killed = tmp_path / "bin" / "e2fsck"
    killed.parent.mkdir()
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{killed.parent}:{os.environ['PATH']}")
        with pytest.raises(CommandFailed, match="-9"):
            await filesystem.check("ext4", device)
    await filesystem.check("ext4", device)


@pytest.mark.device_mapper  # for its guest: growing a mounted ext4 takes CAP_SYS_RESOURCE, which not every root has
async def test_growth_of_ext4_is_seen_while_mounted(device: Path, image: Path, folder: Path) -> None:
    await grown_while_mounted("ext4", device, image, folder)
