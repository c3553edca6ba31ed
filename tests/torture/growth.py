"""ext4 that grows unmounted, and is cut off: by a kill at any write of resize2fs, or by a power cut, after which any
part is missing of what was written since its last fsync. The mending that follows may be cut off as well.

resize2fs runs once for each growth, with its writes noted (writelog.c); from these its disk, a file, is made as each of
the cuts would have left it.
"""

import asyncio
import os
import random
import subprocess
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

from host import filesystem, loopdevice, mounting
from tests.torture import writelog
from tests.torture.figures import Figures
from tests.torture.writelog import Log

_MIB = 2**20
_KIND = "ext4"
_CUTS = 24
"""Of each growth."""
_OPTIONS = (
    *((), (), (), ("-b", "4096"), ("-b", "2048"), ("-O", "^resize_inode"), ("-O", "^flex_bg"), ("-O", "sparse_super2")),
    *(("-O", "^metadata_csum"), ("-O", "^64bit"), ("-O", "^has_journal"), ("-I", "128"), ("-i", "2048")),
)
_OLD_MIB = (9, 40)
_MORE_MIB = ((4, 40), (100, 300), (1000, 2000))
_FILES = 150


class Growths:
    """In `folder`, from one seed."""

    def __init__(self, folder: Path, seed: int, figures: Figures) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._figures = figures
        self._library = writelog.library(folder)
        self._mounted = folder / "mounted"
        self._mounted.mkdir()
        self._image = folder / "image"
        self._growth = ""

    def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, or the first complaint. A round is a cut, or a growth that is refused."""
        while not enough() and not self._figures.complaints:
            asyncio.run(self._grow(enough))

    async def _grow(self, enough: Callable[[], bool]) -> None:
        old = self._chance.randint(*_OLD_MIB) * _MIB
        size = old + self._chance.randint(*self._chance.choice(_MORE_MIB)) * _MIB
        options = self._chance.choice(_OPTIONS)
        self._growth = f"ext4 {' '.join(options)} that grows from {old} to {size} bytes"
        self._image.unlink(missing_ok=True)
        self._extend(old)
        await filesystem.make(_KIND, self._image, options)
        files = await self._shown(fill=True)
        self._extend(size)
        await filesystem.check(_KIND, self._image)
        try:
            await filesystem.can_grow_unmounted(_KIND, self._image)
        except PermissionError:
            self._figures.counts["refused"] += 1
            self._figures.counts["rounds"] += 1
            await self._expect(files, "refused")
            return
        checked = self._copy("checked")
        log = await self._noted(filesystem.grow_unmounted(_KIND, self._image))
        await self._expect(files, "not cut off at all")
        self._figures.counts["growths"] += 1
        for _ in range(_CUTS):
            if enough() or self._figures.complaints:
                break
            await self._cut(checked, log, files)
        checked.unlink()

    async def _cut(self, before: Path, log: Log, files: dict[str, str]) -> None:
        what = self._left(before, log)
        if self._chance.random() < 0.3:
            half = self._copy("half")
            mending = await self._noted(filesystem.mend_growth(_KIND, self._image))
            what += f", then its mending by {self._left(half, mending)}"
            half.unlink()
        self._figures.counts["rounds"] += 1
        try:
            await filesystem.check(_KIND, self._image)
        except filesystem.DamagedFilesystem:
            self._figures.counts["refused by e2fsck -p"] += 1
        try:
            await filesystem.mend_growth(_KIND, self._image)
            await filesystem.check(_KIND, self._image)
            await self._expect(files, f"mended after {what}")
            if await filesystem.can_grow_unmounted(_KIND, self._image):
                await filesystem.grow_unmounted(_KIND, self._image)
            subprocess.run(["e2fsck", "-f", "-n", self._image], check=True, capture_output=True)
            await self._expect(files, f"mended and grown after {what}")
        except Exception as error:
            self._figures.complaints.append(f"{self._growth}, cut off by {what}: {error!r}")

    def _left(self, before: Path, log: Log) -> str:
        """The image is as a cut at a moment of chance leaves it. Says what was cut."""
        subprocess.run(["cp", "--sparse=always", before, self._image], check=True)
        end = self._chance.randint(0, len(log))
        kill = self._chance.random() < 0.5
        self._figures.counts["kills" if kill else "power cuts"] += 1
        cut = log[:end]
        surely = end if kill else writelog.flushed(cut)
        with self._image.open("r+b") as disk:
            writelog.apply(disk, cut, surely, writelog.any_part(cut, surely, self._chance))
        return f"{'a kill' if kill else 'a power cut'} at step {end} of {len(log)}"

    async def _noted(self, work: Awaitable[None]) -> Log:
        notes = self._folder / "writes"
        notes.unlink(missing_ok=True)
        own = {"LD_PRELOAD": str(self._library), "WRITE_LOG": str(notes)}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            await work
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        of_image = self._image.stat().st_ino
        parsed = writelog.parsed(notes.read_bytes() if notes.exists() else b"")
        return [entry for inode, entry in parsed if inode == of_image]

    async def _expect(self, files: dict[str, str], when: str) -> None:
        if await self._shown() != files:
            self._figures.complaints.append(f"{self._growth}, {when}: files are LOST or have OTHER CONTENT")

    async def _shown(self, *, fill: bool = False) -> dict[str, str]:
        """The digest of each file. `fill`: files are made first."""
        with loopdevice.attached(self._image) as device:
            await filesystem.mount(_KIND, device, self._mounted)
            try:
                if fill:
                    self._fill()
                return {
                    str(path.relative_to(self._mounted)): sha256(path.read_bytes()).hexdigest()
                    for path in self._mounted.rglob("*")
                    if path.is_file()
                }
            finally:
                mounting.unmount(self._mounted)

    def _fill(self) -> None:
        """Until all groups have some, and holes between."""
        made = []
        for number in range(_FILES):
            path = self._mounted / f"{number % 7}" / f"{number}"
            path.parent.mkdir(exist_ok=True)
            try:
                path.write_bytes(self._chance.randbytes(int(2 ** self._chance.uniform(0, 18))))
            except OSError:
                path.unlink()  # it is full
                break
            made.append(path)
        for path in made[::3]:
            path.unlink()

    def _extend(self, size: int) -> None:
        with self._image.open("ab") as file:
            file.truncate(size)

    def _copy(self, name: str) -> Path:
        copy = self._folder / name
        subprocess.run(["cp", "--sparse=always", self._image, copy], check=True)
        return copy
