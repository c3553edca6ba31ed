"""Real filesystems on real (loop) devices: made, mounted, checked, grown, damaged."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.filesystems import FILESYSTEMS
from host import blockdevice, command, filesystem, kernellog, loopdevice, mounting, mounttable
from host.command import CommandFailed, Completed
from host.mounttable import Mount
from host.superblock import Fit

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


@every_kind
@pytest.mark.parametrize("option", ["nonsense", "nonsense=5", "x-of-us=1,nonsense"])
async def test_an_option_that_the_kernel_does_not_know(kind: str, option: str, device: Path, folder: Path) -> None:
    """Whatever mount(8) makes of it: the filesystem is sound, and the option is named."""
    await filesystem.make(kind, device)
    with pytest.raises(filesystem.OptionsRefused, match=f"mount options noatime,{option} for this {kind}"):
        await filesystem.mount(kind, device, folder, ("noatime", option))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Completed]:
    """The commands that were run."""
    commands: list[Completed] = []
    monkeypatch.setattr(command, "observers", [commands.append])
    return commands


@every_kind
async def test_what_was_unmounted_cleanly_is_mounted_without_a_command(
    kind: str, device: Path, image: Path, folder: Path, seen: list[Completed]
) -> None:
    """Also after the kernel has written its superblock; and until its device grows, or is too small."""
    await filesystem.make(kind, device)
    for text in ("first", "second"):
        seen.clear()
        assert filesystem.mount_sound(kind, device, folder, ("noatime",)) is Fit.FILLS
        assert seen == []
        assert filesystem.mount_sound(kind, device, folder) is None, "it is mounted"
        (folder / text).write_text(text)
        mounting.unmount(folder)
    os.truncate(image, image.stat().st_size + 40 * MIB)
    loopdevice.set_capacity(device)
    assert filesystem.mount_sound(kind, device, folder, smaller=False) is None
    assert filesystem.mount_sound(kind, device, folder) is Fit.SMALLER
    assert sorted(each.name for each in folder.iterdir() if each.is_file()) == ["first", "second"]
    mounting.unmount(folder)
    os.truncate(image, SIZES[kind] - 65536)
    loopdevice.set_capacity(device)
    assert filesystem.mount_sound(kind, device, folder) is None
    assert not os.path.ismount(folder)


def debugfs(*commands: str) -> Callable[[Path], None]:
    """Changes that keep the checksum of the superblock right."""

    def change(device: Path) -> None:
        for each in commands:
            subprocess.run(["debugfs", "-w", "-R", each, device], check=True, capture_output=True)

    return change


def flipped(offset: int, bits: int = 0xFF) -> Callable[[Path], None]:
    def change(device: Path) -> None:
        with device.open("r+b") as file:
            file.seek(offset)
            (before,) = file.read(1)
            file.seek(offset)
            file.write(bytes([before ^ bits]))
            file.flush()
            os.fsync(file.fileno())

    return change


def in_journal(offset: int, value: int) -> Callable[[Path], None]:
    """A big-endian number of the journal's superblock, which has no checksum before it was mounted."""

    def change(device: Path) -> None:
        said = subprocess.run(["debugfs", "-R", "blocks <8>", device], check=True, capture_output=True, text=True)
        flip = value.to_bytes(4, "big")
        for number, bits in enumerate(flip):
            flipped(int(said.stdout.split()[0]) * 1024 + offset + number, bits)(device)

    return change


def without_checksums(device: Path) -> None:
    subprocess.run(["tune2fs", "-O", "^metadata_csum", device], check=True)


HARM = {
    "an error that the kernel saw": debugfs("ssv state 3"),
    "an error that it counted": debugfs("ssv error_count 1"),
    "not unmounted": debugfs("ssv state 0"),
    "an inode to be deleted": debugfs("ssv last_orphan 12"),
    "a journal to be replayed": debugfs("feature needs_recovery"),
    "a journal with data that the superblock does not know of": in_journal(0x1C, 1),
    "a journal with an error": in_journal(0x20, 0xFFFFFFFB),
    "not a journal": in_journal(0x0, 0xFFFFFFFF),
    "a journal elsewhere": debugfs("ssv journal_inum 11"),
    "a superblock with a wrong checksum": flipped(1024 + 0x78),
    "a group with a wrong checksum": flipped(2048 + 0x1E),
    "a copy that does not agree": flipped(8193 * 1024 + 0x5C, 0x20),
    "no copy": flipped(8193 * 1024 + 0x38),
    "enough mounts": debugfs("ssv max_mnt_count 2", "ssv mnt_count 2"),
    "checks at intervals": debugfs("ssv checkinterval 1", "ssv lastcheck 20010101"),
    "larger than its device": debugfs("ssv blocks_count 99999"),
    "a feature of which little is known": debugfs("feature mmp"),
    "without checksums": without_checksums,
}


@pytest.mark.parametrize("harm", HARM)
async def test_an_ext4_that_may_not_be_sound_is_left_to_its_check(
    harm: str, device: Path, folder: Path, seen: list[Completed]
) -> None:
    """Nor does the kernel mount it: that would take away what e2fsck is to find."""
    await filesystem.make("ext4", device, ("-b", "1024"))
    assert filesystem.mount_sound("ext4", device, folder) is Fit.FILLS
    (folder / "file").write_text("data")
    mounting.unmount(folder)
    HARM[harm](device)
    before, log = device.read_bytes(), kernellog.begin()
    assert filesystem.mount_sound("ext4", device, folder) is None
    assert not os.path.ismount(folder)
    assert device.read_bytes() == before
    said = log.about(device)
    log.close()
    refused_by_kernel = {"a superblock with a wrong checksum", "a group with a wrong checksum"}
    assert bool(said) == (harm in refused_by_kernel), said
    seen.clear()
    with contextlib.suppress(filesystem.DamagedFilesystem):
        await filesystem.check("ext4", device)
    programs = [each.argv[0] for each in seen]
    if harm == "a superblock with a wrong checksum" and programs == ["blkid"]:
        assert seen[0].stdout == ""  # newer ones compare it, too, and e2fsck could do no more
    else:
        assert programs == ["blkid", "e2fsck"]


async def test_what_a_crash_leaves_is_checked_and_nothing_is_lost(
    device: Path, folder: Path, tmp_path: Path, seen: list[Completed]
) -> None:
    await filesystem.make("ext4", device)
    await filesystem.mount("ext4", device, folder)
    (folder / "file").write_text("data")
    subprocess.run(["sync", "-f", folder], check=True)
    crashed = tmp_path / "crashed"
    crashed.write_bytes(device.read_bytes())
    mounting.unmount(folder)
    with loopdevice.attached(crashed) as found:
        assert filesystem.mount_sound("ext4", found, folder) is None
        await filesystem.check("ext4", found)
        assert filesystem.mount_sound("ext4", found, folder) is Fit.FILLS
        assert (folder / "file").read_text() == "data"
        mounting.unmount(folder)


OPTIONS = {
    "ext4": ["commit=30", "data=journal", "errors=continue", "nobarrier", "discard", "stripe=4", "noauto_da_alloc"],
    "xfs": ["allocsize=64k", "inode32", "logbufs=4", "swalloc"],
    "btrfs": ["compress=zstd:3", "discard=async", "nodatacow", "max_inline=1k", "thread_pool=2"],
}
ANY = ["noatime", "relatime", "strictatime", "nodiratime", "lazytime", "noexec", "sync", "dirsync"]


@every_kind
async def test_the_system_call_mounts_as_the_program_does(kind: str, device: Path, folder: Path) -> None:
    await filesystem.make(kind, device)
    for option in (*ANY, *OPTIONS[kind]):
        options = ("nosuid", "nodev", option)
        assert mounting.is_mountable(options)
        mounting.mount(kind, device, folder, options)
        ours = mounted_on(folder)
        mounting.unmount(folder)
        subprocess.run(["mount", "-t", kind, "-o", ",".join(options), device, folder], check=True)
        assert ours == mounted_on(folder)
        mounting.unmount(folder)


def mounted_on(folder: Path) -> Mount:
    ((mount,),) = mounttable.read_at(folder)
    return replace(mount, id=0)


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
