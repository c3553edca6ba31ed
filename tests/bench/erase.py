"""What it costs that the next tenant can't read the last one's bytes: from the wish to remove a volume to its end.

On loop images full of random bytes, erased like thick volumes, without a limit to the rate. The yardstick is what a
disk takes that has to be sent its zeroes: writing them over the image and waiting until they are on the disk. An image
can let its blocks go, as a solid-state disk can; a hard disk can't, and there the yardstick is the price.
"""

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from contract.parameters import DISCARD, NO_ERASE, ZERO, VolumeParameters
from contract.volume import DELETE
from daemon.backends.loop import LoopBackend
from daemon.storage.backend import StaleData
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec
from daemon.storage.volumes import Volumes
from tests.agreeing import Agreeing
from tests.bench import report

_MIB = 2**20
_SIZE = 256 * _MIB
_RUNS = 3

_KINDS = {
    "none": (NO_ERASE, StaleData.RAW),
    "discard": (DISCARD, StaleData.RAW),
    "zero (the default)": (ZERO, StaleData.RAW),
    "zero on a thin pool that zeroes not": (ZERO, StaleData.THIN_RAW),
    "zero on a thin pool that zeroes": (ZERO, StaleData.CLEAN),
}


class _Raw(LoopBackend):
    """Images whose blocks are taken to come back in a certain way."""

    def __init__(self, folder: Path, stale_data: StaleData) -> None:
        super().__init__(folder, 16 * _SIZE)
        self._stale_data = stale_data

    async def stale_data(self, volume: Volume) -> StaleData:
        return self._stale_data


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    try:
        rounds = [
            (_overwritten(folder), *[await _removed(folder, *kind) for kind in _KINDS.values()]) for _ in range(_RUNS)
        ]
    finally:
        shutil.rmtree(folder)
    overwritten, *kinds = zip(*rounds, strict=True)
    report.line("256 MiB overwritten with zeroes", overwritten)
    for name, seconds in zip(_KINDS, kinds, strict=True):
        report.line(f"256 MiB removed, erase {name}", seconds, overwritten)


def _overwritten(folder: Path) -> float:
    image = folder / "image"
    _fill(image)
    begin = time.perf_counter()
    with image.open("r+b") as file:
        zeroes = bytes(_MIB)
        for _ in range(_SIZE // _MIB):
            file.write(zeroes)
        file.flush()
        os.fsync(file.fileno())
    image.unlink()
    return time.perf_counter() - begin


async def _removed(folder: Path, policy: str, stale_data: StaleData) -> float:
    volumes = Volumes(_Raw(folder / "data", stale_data), folder / "staging", Agreeing())
    await volumes.start()
    pv = f"pvc-{uuid.uuid4()}"
    await volumes.prepare(VolumeSpec(pv, "uid", _SIZE, DELETE, VolumeParameters(erase=policy)))
    _fill(folder / "data" / f"{pv}.img")
    begin = time.perf_counter()
    while not await volumes.reclaim(pv, "uid", _Raw.POOL):
        await asyncio.sleep(0.002)
    return time.perf_counter() - begin


def _fill(image: Path) -> None:
    content = os.urandom(_MIB)
    with image.open("r+b" if image.exists() else "wb") as file:
        for _ in range(_SIZE // _MIB):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    asyncio.run(main())
