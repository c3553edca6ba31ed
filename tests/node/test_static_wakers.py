"""What the real kernel tells of devices, folders and mounts."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.static import eventsources
from daemon.static.eventsources import Folders
from host import loopdevice
from tests.node.staticvolumes import mount, unmount
from tests.waiting import until


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    @contextlib.asynccontextmanager
    async def more(self) -> AsyncIterator[None]:
        """What is done inside wakes."""
        before = self.count
        yield
        await until(lambda: self.count > before)

    async def settle(self) -> None:
        """Returns when nothing more comes of what was done before."""
        before = -1
        while before != self.count:
            before = self.count
            await asyncio.sleep(0.1)


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


async def test_a_device_that_comes_and_goes(wakes: Wakes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    listening = asyncio.create_task(eventsources.uevents(wakes))
    try:
        async with asyncio.timeout(10):
            # The socket may not be open yet at the first ones.
            while not wakes.count:
                with loopdevice.attached(image):
                    await asyncio.sleep(0.02)
        await wakes.settle()
        async with wakes.more():
            attached = contextlib.ExitStack()
            attached.enter_context(loopdevice.attached(image))
        await wakes.settle()
        async with wakes.more():
            attached.close()
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def test_a_mount_and_its_end(wakes: Wakes, tmp_path: Path) -> None:
    with eventsources.mount_table(wakes):
        await asyncio.sleep(0)
        for _ in range(3):
            async with wakes.more():
                mount(tmp_path / "disk")
            async with wakes.more():
                unmount(tmp_path / "disk")
        await wakes.settle()
        assert wakes.count <= 6, "a table that stands still does not wake"
    mount(tmp_path / "disk")
    await asyncio.sleep(0)
    assert wakes.count <= 6


async def test_entries_of_a_folder(wakes: Wakes, tmp_path: Path) -> None:
    folder = tmp_path / "disks"
    folder.mkdir()
    with Folders(wakes) as folders:
        await folders.watch([folder])
        async with wakes.more():
            (folder / "link").symlink_to("/dev/null")
        async with wakes.more():
            (folder / "link").rename(folder / "renamed")
        async with wakes.more():
            (folder / "renamed").unlink()
        await wakes.settle()
        before = wakes.count
        await folders.watch([folder])
        list(folder.iterdir())
        await wakes.settle()
        assert wakes.count == before, "looking does not wake"


async def test_a_folder_that_is_made_anew_is_watched_again(
    wakes: Wakes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disks"
    with Folders(wakes) as folders:
        for _ in range(2):
            await folders.watch([folder])
        assert caplog.text.count("No such file or directory") == 1
        folder.mkdir()
        await folders.watch([folder])
        async with wakes.more():
            folder.rmdir()
        folder.mkdir()
        await folders.watch([folder])
        await wakes.settle()
        async with wakes.more():
            (folder / "entry").touch()
        await folders.watch([])
        await wakes.settle()
        before = wakes.count
        (folder / "another").touch()
        await wakes.settle()
        assert wakes.count == before


async def test_a_mount_over_a_watched_folder_is_followed(wakes: Wakes, tmp_path: Path) -> None:
    folder = tmp_path / "disks"
    folder.mkdir()
    with Folders(wakes) as folders:
        await folders.watch([folder])
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
        await folders.watch([folder])
        await wakes.settle()
        async with wakes.more():
            (folder / "entry").touch()
