"""How long a disk that was just mounted waits for its PersistentVolume.

The yardstick is the original's loop, which looks every 10 s: the same discovery on that period alone, with disks that
are mounted evenly over one. Real ext4 on real loop devices, real kernel events; the API server runs in this process.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from prometheus_client import CollectorRegistry

from daemon.static.configuration import StaticSettings
from daemon.static.controller import StaticVolumeController
from daemon.static.metrics import StaticMetrics
from host import loopdevice, mounting
from kube.client import Cluster
from kube.events import Recorder
from kube.records import read_node
from kube.resources import NODES, VOLUMES
from tests.bench import report
from tests.node.staticvolumes import Idle, class_config, configured, discovery
from tests.sandbox import mountspace
from tests.unit.daemon.nodecluster import NODE, api
from tests.waiting import until

_PERIOD = 10.0
_DISKS = 8
_CALM = 1.5
"""Seconds between two disks: longer than the loop takes to find that all is quiet again."""

Made = dict[str, float]
"""When the PersistentVolume of a path was seen, by time.perf_counter()."""


async def main() -> None:
    # A folder without a mount is an invalid entry, which is logged: not of interest here.
    logging.getLogger("daemon.static").setLevel(logging.ERROR)
    mountspace.enter_private()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as mounted:
        by_event = await _by_event(Path(folder) / "event", mounted)
        by_period = await _by_period(Path(folder) / "period", mounted)
    report.line("disk mounted to volume, period of 10 s alone", by_period)
    report.line("disk mounted to volume, woken by the kernel (bound: 1 s)", by_event, by_period)


async def _by_event(folder: Path, mounted: contextlib.ExitStack) -> list[float]:
    disks, config = folder / "disks", folder / "config"
    disks.mkdir(parents=True)
    config.mkdir()
    (config / "storageClassMap").write_text(f"fast: {{hostDir: {disks}, mountDir: {disks}}}")
    async with api(folder) as cluster:
        static = StaticVolumeController(
            cluster,
            read_node(await cluster.get(NODES, NODE)),
            Recorder(cluster, "bench"),
            StaticMetrics(CollectorRegistry()),
            StaticSettings(config, "default", discovery_period=_PERIOD),
            lambda *_: Idle(),
        )
        async with _beside(static.run()):
            await until(lambda: not static.problem)
            return await _plug(cluster, disks, mounted, pause=_CALM)


async def _by_period(folder: Path, mounted: contextlib.ExitStack) -> list[float]:
    folder.mkdir()
    disks = folder / "disks"
    disks.mkdir()
    async with discovery(folder) as discovered:

        async def look_every_period() -> None:
            while True:
                await discovered.look(configured(class_config(disks)))
                await asyncio.sleep(_PERIOD)

        async with _beside(look_every_period()):
            return await _plug(discovered.cluster, disks, mounted, pause=_PERIOD / _DISKS)


async def _plug(cluster: Cluster, disks: Path, mounted: contextlib.ExitStack, pause: float) -> list[float]:
    """Mounts one disk after the other. The answer is how long each waited."""
    made: Made = {}
    begun: Made = {}
    async with _beside(_watch(cluster, made)):
        for number in range(_DISKS):
            image = disks.parent / f"image-{number}"
            with image.open("wb") as file:
                file.truncate(64 << 20)
            await _run("mkfs.ext4", "-q", image)
            (disks / f"disk-{number}").mkdir()
            await asyncio.sleep(pause)
            with loopdevice.attached(image) as device:
                await _run("mount", device, disks / f"disk-{number}")
            begun[f"disk-{number}"] = time.perf_counter()
            mounted.callback(mounting.unmount, disks / f"disk-{number}")
        await until(lambda: len(made) == _DISKS, seconds=3 * _PERIOD)
    return [made[name] - begun[name] for name in begun]


async def _watch(cluster: Cluster, made: Made) -> None:
    async for _, body in cluster.watch(VOLUMES, resource_version="0"):
        made.setdefault(Path(body["spec"]["local"]["path"]).name, time.perf_counter())


async def _run(*argv: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    if await process.wait():
        raise RuntimeError(f"{argv[0]} failed with {process.returncode}: its words are above")


@contextlib.asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Runs `work`, which does not end by itself, for as long as the context lasts."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
