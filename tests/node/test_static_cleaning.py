"""The bundled cleaners on real devices and filesystems."""

import contextlib
import os
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.static import cleaners
from daemon.static.cleaners import folder
from daemon.static.cleaners.folder import NotCleaned
from host import foldertree, loopdevice, mounting

MIB = 1 << 20
PATTERN = b"what a user wrote into the volume"
ODD_SIZE = 5 * MIB + 512
"""A device that ends in the middle of a block, as disks do."""

Attach = Callable[[int], Path]


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    with contextlib.ExitStack() as attached:

        def make(size: int) -> Path:
            image = tmp_path / f"image-{size}"
            with image.open("wb") as file:
                file.truncate(size)
            return attached.enter_context(loopdevice.attached(image))

        yield make


def write_everywhere(device: Path, size: int) -> None:
    data = (PATTERN * (size // len(PATTERN) + 1))[:size]
    with device.open("r+b") as file:
        file.write(data)
        os.fsync(file.fileno())


def content(device: Path) -> bytes:
    """Past the page cache: the device and not what is remembered of it."""
    subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
    return device.read_bytes()


def clean(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    argv = cleaners.bundled(command)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)


def clean_device(device: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return clean(*command, LOCAL_PV_BLKDEVICE=str(device))


def test_zero_fill_leaves_zeros_alone(attach: Attach) -> None:
    device = attach(ODD_SIZE)
    write_everywhere(device, ODD_SIZE)
    done = clean_device(device, "/scripts/dd_zero.sh", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pass 2 of 2" in done.stdout
    assert content(device) == bytes(ODD_SIZE)


def test_shred_leaves_nothing_of_a_pattern(attach: Attach) -> None:
    device = attach(ODD_SIZE)
    write_everywhere(device, ODD_SIZE)
    done = clean_device(device, "/scripts/shred.sh", "2")
    assert (done.returncode, done.stderr) == (0, "")
    left = content(device)
    assert len(left) == ODD_SIZE
    # Eight bytes: of five million random ones, fewer would be found by chance.
    assert not any(PATTERN[start : start + 8] in left for start in range(len(PATTERN) - 8))
    unchanged = sum(now == PATTERN[position % len(PATTERN)] for position, now in enumerate(left))
    assert unchanged < ODD_SIZE // 128, "one byte in 256 is the same by chance"


def test_discard_where_the_device_takes_it(attach: Attach) -> None:
    device = attach(8 * MIB)
    write_everywhere(device, 8 * MIB)
    done = clean_device(device, "/scripts/blkdiscard.sh")
    assert done.returncode == 0, done.stderr
    assert content(device) == bytes(8 * MIB)


def gpt(device: Path) -> None:
    """A partition table with one partition, and its copy at the end of the device (UEFI specification, 5.3)."""
    last = device_size(device) // 512 - 1
    entry = struct.pack("<16s16sQQQ72s", uuid.uuid4().bytes, uuid.uuid4().bytes, 2048, 4095, 0, b"")
    entries = entry.ljust(128 * 128, b"\0")
    disk = uuid.uuid4().bytes

    def header(here: int, other: int, table: int) -> bytes:
        def packed(checksum: int) -> bytes:
            fields = (b"EFI PART", 0x10000, 92, checksum, 0, here, other, 34, last - 34, disk, table, 128, 128)
            return struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(entries))

        return packed(zlib.crc32(packed(0)))

    protective = struct.pack("<446xB3sB3sII48xH", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last, 0xAA55)
    with device.open("r+b") as file:
        for sector, data in (
            (0, protective),
            (1, header(1, last, 2)),
            (2, entries),
            (last - 32, entries),
            (last, header(last, 1, last - 32)),
        ):
            file.seek(sector * 512)
            file.write(data)
        os.fsync(file.fileno())


def device_size(device: Path) -> int:
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def signatures(device: Path) -> str:
    """The types of all there are."""
    argv = ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", str(device)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def run(*command: str) -> Callable[[Path], None]:
    def on(device: Path) -> None:
        subprocess.run([*command, device], check=True, capture_output=True)

    return on


@pytest.mark.parametrize(
    ("fill", "kind"),
    [
        (run("mkfs.ext4", "-q"), "ext4"),
        (run("mkfs.xfs", "-q"), "xfs"),
        (run("mkfs.btrfs", "-q"), "btrfs"),
        (run("mkswap"), "swap"),
        (gpt, "gpt"),
        (lambda device: write_everywhere(device, 8 * MIB), ""),
    ],
)
def test_quick_reset_leaves_no_signature(attach: Attach, fill: Callable[[Path], None], kind: str) -> None:
    device = attach(320 * MIB)
    fill(device)
    assert kind in signatures(device)
    done = clean_device(device, "/scripts/quick_reset.sh")
    assert done.returncode == 0, done.stderr
    assert signatures(device) == ""
    assert subprocess.run(["blkid", "--probe", device], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(("cleaner", "message"), [("quick_reset.sh", "in use"), ("blkdiscard.sh", "resource busy")])
def test_a_mounted_device_is_left_alone(attach: Attach, tmp_path: Path, cleaner: str, message: str) -> None:
    device, mounted = attach(16 * MIB), tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, mounted], check=True)
    (mounted / "data").write_bytes(PATTERN)
    try:
        done = clean_device(device, f"/scripts/{cleaner}")
        assert done.returncode == 1
        assert message in done.stderr
        assert (mounted / "data").read_bytes() == PATTERN
    finally:
        mounting.unmount(mounted)
    subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)


@dataclass(frozen=True)
class Volume:
    """A mounted filesystem, and another one beside it that must survive."""

    path: Path
    neighbour: Path

    def survived(self) -> bool:
        return (self.neighbour / "data").read_bytes() == PATTERN


@pytest.fixture
def volume(attach: Attach, tmp_path: Path) -> Iterator[Volume]:
    prepared = Volume(tmp_path / "volumes" / "one", tmp_path / "volumes" / "other")
    device = attach(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    for path in (prepared.path, prepared.neighbour):
        path.mkdir(parents=True)
    subprocess.run(["mount", device, prepared.path], check=True)
    (prepared.neighbour / "data").write_bytes(PATTERN)
    yield prepared
    with contextlib.suppress(OSError):
        mounting.unmount(prepared.path / "nested")
    mounting.unmount(prepared.path)


def test_folder_clean_removes_everything_but_the_folder(volume: Volume) -> None:
    (volume.path / ".hidden").write_bytes(PATTERN)
    (volume.path / "lost+found" / "#12").write_bytes(PATTERN)
    (volume.path / "a" / ".b" / "c").mkdir(parents=True)
    (volume.path / "a" / ".b" / "c" / "file").write_bytes(PATTERN)
    (volume.path / "a" / ".b" / "locked").mkdir(mode=0)
    (volume.path / os.fsdecode(b"\xff\n odd")).mkdir()
    os.mkfifo(volume.path / "fifo")
    (volume.path / "out").symlink_to(volume.neighbour)
    (volume.path / "a" / "out").symlink_to(volume.neighbour / "data")
    (volume.path / "a" / "up").symlink_to("../..")
    os.link(volume.path / ".hidden", volume.path / "a" / "twice")
    before = volume.path.stat()
    done = clean("/scripts/fsclean.sh", LOCAL_PV_FILESYSTEM=str(volume.path))
    assert done.returncode == 0, done.stderr
    assert list(volume.path.iterdir()) == []
    after = volume.path.stat()
    assert (after.st_ino, after.st_dev, after.st_mode) == (before.st_ino, before.st_dev, before.st_mode)
    assert volume.survived()


def test_depth_is_no_hiding_place(volume: Volume) -> None:
    """Deeper than paths are long, than descriptors are many and than Python calls itself."""
    depth = 3000
    at = os.open(volume.path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert folder.clean(volume.path) == depth + 1, "lost+found is the one more"
    assert list(volume.path.iterdir()) == []


def test_a_disk_that_is_full_to_the_last_block(attach: Attach, tmp_path: Path) -> None:
    """Then the top folder can't take the names of many folders, until some file is gone."""
    device, path = attach(8 * MIB), tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-m", "0", "-N", "1024", "-O", "^has_journal", device], check=True)
    subprocess.run(["mount", device, path], check=True)
    try:
        for number in range(200):
            (path / "folders" / f"{number:0200}").mkdir(parents=True)
        with (path / "folders" / f"{199:0200}" / "fill").open("wb", buffering=0) as fill:
            with contextlib.suppress(OSError):
                while True:
                    fill.write(bytes(1024))
            os.fsync(fill.fileno())
        assert folder.clean(path) == 200 + 3, "the folder of them, the file and lost+found are the three more"
        assert list(path.iterdir()) == []
    finally:
        mounting.unmount(path)


def test_a_quota_project_of_a_users_own(attach: Attach, tmp_path: Path) -> None:
    """Who owns the files may give them one, and have the top refuse what is of another."""
    device, path = attach(320 * MIB), tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mkfs.xfs", "-q", device], check=True)
    subprocess.run(["mount", device, path], check=True)
    try:
        (path / "a" / "b" / "c").mkdir(parents=True)
        subprocess.run(["xfs_io", "-c", "chattr +P", path], check=True)
        subprocess.run(["xfs_io", "-c", "chproj 7", path / "a" / "b"], check=True)
        with pytest.raises(OSError, match="cross-device"):
            (path / "a" / "b").rename(path / "lifted")
        folder.clean(path)
        assert list(path.iterdir()) == []
    finally:
        mounting.unmount(path)


def test_a_long_folder_is_emptied_in_pieces(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foldertree, "_AT_ONCE", 7)
    (volume.path / "below").mkdir()
    for number in range(50):
        (volume.path / f"file-{number}").touch()
        (volume.path / "below" / f"folder-{number}").mkdir()
    assert folder.clean(volume.path) == 102
    assert list(volume.path.iterdir()) == []


def test_a_nested_mount_is_an_error_before_anything_goes(volume: Volume) -> None:
    (volume.path / "data").write_bytes(PATTERN)
    (volume.path / "nested").mkdir()
    mounting.bind(volume.neighbour, volume.path / "nested")
    done = clean("/scripts/fsclean.sh", LOCAL_PV_FILESYSTEM=str(volume.path))
    assert done.returncode == 1
    assert f"another filesystem is mounted in it, at {volume.path}/nested: unmount that first" in done.stderr
    assert (volume.path / "data").read_bytes() == PATTERN
    assert volume.survived()


@pytest.mark.parametrize("nested", ["nested", "deep/nested"])
def test_what_is_mounted_meanwhile_survives(volume: Volume, nested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = volume.path / nested
    target.mkdir(parents=True)
    run = foldertree.Emptying.run

    def mount_then_run(emptying: foldertree.Emptying) -> int:
        mounting.bind(volume.neighbour, target)
        return run(emptying)

    monkeypatch.setattr(foldertree.Emptying, "run", mount_then_run)
    try:
        with pytest.raises(NotCleaned, match="another filesystem is mounted"):
            folder.clean(volume.path)
        assert volume.survived()
    finally:
        mounting.unmount(target)


def swap_for_link(path: Path, target: Path) -> None:
    path.rename(path.with_name(f"{path.name}-aside"))
    path.symlink_to(target)


def test_a_folder_swapped_for_a_link_after_it_was_listed(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.path / "victim").mkdir()
    names = foldertree._names
    swaps = iter([lambda: swap_for_link(volume.path / "victim", volume.neighbour)])

    def list_then_swap(descriptor: int) -> list[str]:
        listed = names(descriptor)
        if "victim" in listed:
            next(swaps, lambda: None)()
        return listed

    monkeypatch.setattr(foldertree, "_names", list_then_swap)
    folder.clean(volume.path)
    assert list(volume.path.iterdir()) == []
    assert volume.survived()


def test_a_folder_swapped_for_a_link_before_it_is_opened(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.path / "victim").mkdir()
    remove = foldertree.Emptying._remove_folder
    swapped = False

    def swap_then_remove(emptying: foldertree.Emptying, name: str) -> None:
        nonlocal swapped
        if name == "victim" and not swapped:
            swapped = True
            swap_for_link(volume.path / name, volume.neighbour)
        remove(emptying, name)

    monkeypatch.setattr(foldertree.Emptying, "_remove_folder", swap_then_remove)
    folder.clean(volume.path)
    assert swapped
    assert list(volume.path.iterdir()) == []
    assert volume.survived()


def test_a_link_is_no_volume(volume: Volume, tmp_path: Path) -> None:
    (volume.path / "data").write_bytes(PATTERN)
    link = tmp_path / "link"
    link.symlink_to(volume.path)
    with pytest.raises(NotCleaned, match="links are not followed"):
        folder.clean(link)
    assert (volume.path / "data").read_bytes() == PATTERN


def test_a_plain_folder_is_no_volume(volume: Volume) -> None:
    with pytest.raises(NotCleaned, match="is not a mount point: mount the volume there"):
        folder.clean(volume.neighbour)
    assert volume.survived()


def test_an_entry_that_can_not_be_removed_is_named(volume: Volume) -> None:
    stubborn = volume.path / "below" / "stubborn"
    stubborn.parent.mkdir()
    stubborn.touch()
    subprocess.run(["chattr", "+i", stubborn], check=True)
    try:
        with pytest.raises(NotCleaned, match=f"{stubborn} can't be removed .*chattr -i"):
            folder.clean(volume.path)
    finally:
        subprocess.run(["chattr", "-i", stubborn], check=True)


def test_a_cleaner_without_its_device_variable(tmp_path: Path) -> None:
    for name in ("quick_reset.sh", "dd_zero.sh", "shred.sh", "blkdiscard.sh"):
        for variables, message in (
            ({}, "LOCAL_PV_BLKDEVICE is not set"),
            ({"LOCAL_PV_BLKDEVICE": str(tmp_path / "gone")}, "which does not exist"),
            ({"LOCAL_PV_BLKDEVICE": str(tmp_path)}, "which is no block device"),
        ):
            done = clean(f"/scripts/{name}", **variables)
            assert done.returncode == 1
            assert f"{name}: " in done.stderr
            assert message in done.stderr


def test_a_folder_cleaner_without_its_folder_variable(tmp_path: Path) -> None:
    for variables, message in (
        ({}, "LOCAL_PV_FILESYSTEM is not set"),
        ({"LOCAL_PV_FILESYSTEM": str(tmp_path / "gone")}, "does not exist"),
        ({"LOCAL_PV_FILESYSTEM": "/dev/null"}, "is no folder"),
    ):
        done = clean("/scripts/fsclean.sh", **variables)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.parametrize("passes", [["0"], ["two"], ["-1"], ["1000"], ["1", "2"]])
def test_passes_that_are_no_number(attach: Attach, passes: list[str]) -> None:
    device = attach(MIB)
    write_everywhere(device, MIB)
    for name in ("dd_zero.sh", "shred.sh"):
        done = clean_device(device, f"/scripts/{name}", *passes)
        assert done.returncode == 1
        assert "number of passes" in done.stderr
    assert content(device)[:9] == PATTERN[:9]
