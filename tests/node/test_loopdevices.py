"""Files as block devices, on the real loop driver."""

import fcntl
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from host import blockdevice, loopdevice
from tests.waiting import eventually

MIB = 1024**2
_LOOP_CTL_GET_FREE = 0x4C82


def image(folder: Path, name: str = "image") -> Path:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(MIB)
    return path


def test_attached_once_and_gone_afterwards(tmp_path: Path) -> None:
    file = image(tmp_path)
    assert loopdevice.find(file) is None
    with loopdevice.attached(file) as device:
        assert blockdevice.is_block_device(device)
        assert blockdevice.size(device) == MIB
        with loopdevice.attached(file) as again:
            assert again == device
        assert loopdevice.find(file) == device
    eventually(lambda: loopdevice.find(file) is None)


def test_its_likely_device_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And taken only if it shows the file."""
    file = image(tmp_path)
    with loopdevice.attached(file) as device, loopdevice.attached(image(tmp_path, "other")) as other:
        for likely in (other, Path("/dev/null"), Path("/dev/zero")):
            descriptor, found = loopdevice.hold(file, likely.stat().st_rdev)
            os.close(descriptor)
            assert found == device
        monkeypatch.setattr(loopdevice, "backing_files", dict)
        descriptor, found = loopdevice.hold(file, device.stat().st_rdev)
        os.close(descriptor)
        assert found == device


def test_a_file_of_the_same_name_is_another(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with loopdevice.attached(image(tmp_path)) as one, loopdevice.attached(image(tmp_path / "other")) as other:
        assert one != other


@pytest.mark.parametrize("words", [("--offset", "4096"), ("--sizelimit", "4096"), ("--read-only",)])
def test_what_somebody_attached_to_look_into_it_is_not_taken(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It would be a device with nothing on it, or one that can't be written."""
    file = image(tmp_path)
    losetup = ("losetup", "--find", "--show", *words, str(file))
    theirs = Path(subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip())
    try:
        with loopdevice.attached(file) as device:
            assert device != theirs
            assert blockdevice.size(device) == MIB
            assert loopdevice.find(file, whole=True) == device
        eventually(lambda: loopdevice.find(file, whole=True) is None)
        assert loopdevice.find(file) == theirs, "the file is in use all the same"
    finally:
        loopdevice.detach(theirs)


def test_attached_once_by_a_link_too(tmp_path: Path) -> None:
    """As one makes who moves an image to a larger disk."""
    file, link = image(tmp_path), tmp_path / "link"
    link.symlink_to(file)
    with loopdevice.attached(link) as device, loopdevice.attached(link) as again:
        assert device == again == loopdevice.find(file)


def test_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    file = image(tmp_path)
    with loopdevice.attached(file) as device:
        descriptor = os.open(device, os.O_WRONLY)
        os.pwrite(descriptor, b"data", 512 * 1024)
        os.fsync(descriptor)
        os.close(descriptor)
    assert os.pread(os.open(file, os.O_RDONLY), 4, 512 * 1024) == b"data"


def test_the_write_protection_of_the_device_s_last_user_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`blockdev --setro` outlives the file that was attached, and the kernel offers the free device of the lowest
    number first: without this a node with such a device makes no volume any more."""
    former, file = image(tmp_path, "former"), image(tmp_path)
    device = loopdevice.attach(former)
    subprocess.run(["blockdev", "--setro", device], check=True)
    loopdevice.detach(device)
    eventually(lambda: loopdevice.find(former) is None)
    monkeypatch.setattr(fcntl, "ioctl", _offering(int(device.name.removeprefix("loop"))))
    try:
        with loopdevice.attached(file) as again:
            assert again == device
            again.write_bytes(b"writable")
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)


def _offering(number: int) -> Callable[..., Any]:
    """ioctl of a kernel whose next free loop device is of this number, also while tests beside this one take others."""
    ioctl = fcntl.ioctl

    def offering(descriptor: int, request: int, *rest: Any) -> Any:
        return number if request == _LOOP_CTL_GET_FREE else ioctl(descriptor, request, *rest)

    return offering


def test_grown_while_attached(tmp_path: Path) -> None:
    file = image(tmp_path)
    with loopdevice.attached(file) as device:
        os.truncate(file, 2 * MIB)
        loopdevice.set_capacity(device)
        assert blockdevice.size(device) == 2 * MIB


def test_many_at_once_get_a_device_each(tmp_path: Path) -> None:
    count = 16
    everybody_has_one = threading.Barrier(count, timeout=30)

    def attach(number: int) -> Path:
        with loopdevice.attached(image(tmp_path, f"image-{number}")) as device:
            everybody_has_one.wait()
            return device

    with ThreadPoolExecutor(count) as threads:
        assert len(set(threads.map(attach, range(count)))) == count


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), loopdevice.attached(tmp_path / "absent"):
        pass
