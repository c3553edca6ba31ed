"""What the real kernel tells of devices, folders and mounts."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.static import eventsources
from daemon.static.eventsources import FolderWatch
from host import loopdevice
from tests.node.staticvolumes import mount, unmount
from tests.waiting import until


class Triggers:
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
def triggers() -> Triggers:
    return Triggers()


async def test_a_device_that_is_attached_and_detached(triggers: Triggers, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    listening = asyncio.create_task(eventsources.watch_uevents(triggers))
    try:
        async with asyncio.timeout(10):
            # The socket may not be open yet at the first ones.
            while not triggers.count:
                with loopdevice.attached(image):
                    await asyncio.sleep(0.02)
        await triggers.settle()
        async with triggers.more():
            attached = contextlib.ExitStack()
            attached.enter_context(loopdevice.attached(image))
        await triggers.settle()
        async with triggers.more():
            attached.close()
    finally:
        listening.cancel()
        await asyncio.wait([listening])


async def test_a_mount_and_its_end(triggers: Triggers, tmp_path: Path) -> None:
    with eventsources.watch_mount_table(triggers):
        await asyncio.sleep(0)
        for _ in range(3):
            async with triggers.more():
                mount(tmp_path / "disk")
            async with triggers.more():
                unmount(tmp_path / "disk")
        await triggers.settle()
        assert triggers.count <= 6, "a table that stands still does not wake"
    mount(tmp_path / "disk")
    await asyncio.sleep(0)
    assert triggers.count <= 6


async def test_entries_of_a_folder(triggers: Triggers, tmp_path: Path) -> None:
    folder = tmp_path / "disks"
    folder.mkdir()
    with FolderWatch(triggers) as folders:
        await folders.watch([folder])
        async with triggers.more():
            (folder / "link").symlink_to("/dev/null")
        async with triggers.more():
            (folder / "link").rename(folder / "renamed")
        async with triggers.more():
            (folder / "renamed").unlink()
        await triggers.settle()
        before = triggers.count
        await folders.watch([folder])
        list(folder.iterdir())
        await triggers.settle()
        assert triggers.count == before, "looking does not wake"


async def test_a_recreated_folder_is_watched_again(
    triggers: Triggers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disks"
    with FolderWatch(triggers) as folders:
        for _ in range(2):
            await folders.watch([folder])
        assert caplog.text.count("No such file or directory") == 1
        folder.mkdir()
        await folders.watch([folder])
        async with triggers.more():
            folder.rmdir()
        folder.mkdir()
        await folders.watch([folder])
        await triggers.settle()
        async with triggers.more():
            (folder / "entry").touch()
        await folders.watch([])
        await triggers.settle()
        before = triggers.count
        (folder / "another").touch()
        await triggers.settle()
        assert triggers.count == before


async def test_a_mount_over_a_watched_folder_is_followed(triggers: Triggers, tmp_path: Path) -> None:
    folder = tmp_path / "disks"
    folder.mkdir()
    with FolderWatch(triggers) as folders:
        await folders.watch([folder])
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
        await folders.watch([folder])
        await triggers.settle()
        async with triggers.more():
            (folder / "entry").touch()
