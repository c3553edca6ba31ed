"""What the next tenant can read: the disk itself is searched, and a new volume on what the last one gave back.

On this kernel a loop image that is treated like a thick volume stands for one; the same on LVM runs in the guest.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.volume import DELETE, RETAIN
from daemon.backends.loop import LoopBackend
from daemon.errors import ApiUnavailable, BackendFailed, BeingErased, InUse, NotAuthorized
from daemon.storage import erasing
from daemon.storage.backend import StaleData
from daemon.storage.deletionguard import Owner
from daemon.storage.erasing import Method, steps
from daemon.storage.inventory import Inventory, Volume, VolumeHealth
from daemon.storage.record import Record, VolumeState
from daemon.storage.volumes import Volumes
from host import erasure, loopdevice
from lvm import Lvm
from tests.agreeing import Agreeing
from tests.node.conftest import ByHand, MakeDisks, remove_group
from tests.node.volume_node import MIB, Node, lvm_backend, started

SECRET = b"the last tenant's secret, again. "[:32] * 128
SIZE = 64 * MIB


class RawBackend(LoopBackend):
    """A sparse file as if its blocks came back as they were left."""

    async def stale_data(self, volume: Volume) -> StaleData:
        return StaleData.RAW


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, lambda: RawBackend(tmp_path / "data", 1024 * MIB))
    yield node
    node.unmount_all()


def secrets(path: Path) -> int:
    """How many blocks of the file or device still show the secret."""
    count = 0
    with path.open("rb") as file:
        while content := file.read(4 * MIB):
            count += content.count(SECRET)
    return count


async def used_by_a_tenant(node: Node, volumes: Volumes, erase: str = "zero") -> None:
    """A volume that was written to through its filesystem and, near its end, directly."""
    spec = node.spec(SIZE, erase=erase)
    folder = node.folder()
    await volumes.mount(spec, folder, read_only=False)
    with (folder.path / "file").open("wb") as file:
        file.write(SECRET * 512)
        os.fsync(file.fileno())
    await volumes.unmount(folder)
    volume = volumes.inventory.volume(node.pv)
    assert volume
    async with node.make_backend().device(volume) as device:
        descriptor = os.open(device, os.O_WRONLY)
        for offset in range(SIZE // 2, SIZE, MIB):
            os.pwrite(descriptor, SECRET, offset)
        os.fsync(descriptor)
        os.close(descriptor)


def image(node: Node) -> Path:
    return node.root / "data" / f"{node.pv}.img"


async def ended(volumes: Volumes, node: Node) -> None:
    """Asked until the erasure is over, but not for the removal that follows."""
    async with asyncio.timeout(20):
        await volumes._eraser.wait_idle(node.pv)


@pytest.mark.parametrize("erase", ["zero", "discard"])
async def test_nothing_is_left_before_the_volume_goes(node: Node, erase: str) -> None:
    volumes = await started(node)
    await used_by_a_tenant(node, volumes, erase=erase)
    assert secrets(image(node)) > 500
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    await ended(volumes, node)
    assert secrets(image(node)) == 0
    assert await volumes.reclaim(node.pv, "uid", node.pool)
    assert not image(node).exists()


async def test_what_is_erased_is_remembered_of_one_owner(node: Node) -> None:
    volumes = await started(node)
    await used_by_a_tenant(node, volumes)
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    await ended(volumes, node)
    backend = node.make_backend()
    volume = volumes.inventory.volume(node.pv)
    assert volume
    await backend.rewrite(volume, replace(volume.record, uid="heir"))
    await volumes.refresh()
    assert not await volumes.reclaim(node.pv, "heir", node.pool)
    await ended(volumes, node)
    assert await volumes.reclaim(node.pv, "heir", node.pool)


async def test_a_device_that_knows_no_discard_gets_zeroes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "discards", lambda descriptor: False)
    volumes = await started(node)
    await used_by_a_tenant(node, volumes, erase="discard")
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    await ended(volumes, node)
    assert secrets(image(node)) == 0


async def test_without_erasing_it_goes_as_it_is(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = await started(node)
    await used_by_a_tenant(node, volumes, erase="none")
    kept = node.root / "kept"
    os.link(image(node), kept)
    assert await volumes.reclaim(node.pv, "uid", node.pool)
    assert secrets(kept) > 500


async def test_a_loop_image_needs_no_erasing(tmp_path: Path) -> None:
    node = Node(tmp_path, lambda: LoopBackend(tmp_path / "data", 1024 * MIB))
    volumes = await started(node)
    await used_by_a_tenant(node, volumes)
    assert await volumes.reclaim(node.pv, "uid", node.pool)
    node.unmount_all()


async def test_while_it_is_erased_others_go_on_and_it_is_nobodys(node: Node) -> None:
    volumes = Volumes(node.make_backend(), node.staging, Agreeing(), erase_rate=MIB)  # a minute for the whole
    await volumes.start()
    await used_by_a_tenant(node, volumes)
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    other = node.folder(f"{node.pv}-other")
    await volumes.mount(node.spec(pv=other.name), other, read_only=False)
    await volumes.unmount(other)
    folder = node.folder()
    for daemon in (volumes, await started(node)):
        with pytest.raises(BeingErased, match="make a new claim"):
            await daemon.mount(node.spec(SIZE), folder, read_only=False)
        with pytest.raises(BeingErased, match="make a new claim"):
            await daemon.prepare(node.spec(SIZE, uid="next"))
        volume = daemon.inventory.volume(node.pv)
        assert volume
        assert volume.record.state is VolumeState.ERASING
        (pool,) = daemon.inventory.pools
        assert pool.ours == SIZE + 32 * MIB
    await volumes.close()
    await node.reclaim(await started(node))
    assert not image(node).exists()


async def test_what_somebody_uses_is_not_erased_but_reported_and_tried_again(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(node)
    await used_by_a_tenant(node, volumes)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with loopdevice.attached(image(node)) as device:
        subprocess.run(["mount", device, elsewhere], check=True)
    try:
        assert not await volumes.reclaim(node.pv, "uid", node.pool)
        with pytest.raises(InUse, match="is in use: stop what uses it on the node"):
            await node.reclaim(volumes)
        with pytest.raises(InUse):
            await volumes.reclaim(node.pv, "uid", node.pool)
        assert (elsewhere / "file").read_bytes() == SECRET * 512
    finally:
        subprocess.run(["umount", elsewhere], check=True)
    monkeypatch.setattr(erasing, "RETRY_SECONDS", 0)
    await node.reclaim(volumes)


@pytest.mark.parametrize(
    ("failure", "message"),
    [(OSError(5, "Input/output error"), "Input/output error"), (KeyError("x" * 900), "KeyError: 'x{399}[.]{3}; .*log")],
)
async def test_a_disk_that_fails_keeps_the_volume_and_its_space(
    node: Node, failure: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await started(node)
    await used_by_a_tenant(node, volumes)

    def fail(descriptor: int) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(erasure, "flush", fail)
        with pytest.raises(BackendFailed, match=f"can't be erased: .*{message}.*stays, with its space"):
            await node.reclaim(volumes)
    assert image(node).exists()
    monkeypatch.setattr(erasing, "RETRY_SECONDS", 0)
    await node.reclaim(volumes)


async def test_on_a_missing_disk_nothing_can_be_erased(node: Node) -> None:
    class OnMissingDisk(RawBackend):
        async def inspect(self) -> Inventory:
            seen = await super().inspect()
            return replace(seen, volumes=[replace(each, health=VolumeHealth.MISSING_DEVICE) for each in seen.volumes])

        async def reread(self, volume: Volume) -> Volume:
            return replace(await super().reread(volume), health=VolumeHealth.MISSING_DEVICE)

    await used_by_a_tenant(node, await started(node))
    volumes = Volumes(OnMissingDisk(node.root / "data", 1024 * MIB), node.staging, Agreeing())
    await volumes.start()
    with pytest.raises(BackendFailed, match="a disk that it lies on is missing: bring it back"):
        await volumes.reclaim(node.pv, "uid", node.pool)
    assert secrets(image(node)) > 500


def killed(work: Callable[[], object]) -> None:
    """Runs in a process of its own, which dies by a SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def dies_at(byte: int) -> None:
    """From here on this process dies before it erases this byte, and says after every step how far it is."""
    real = erasing._WORK

    def zero(descriptor: int, extent: range) -> None:
        if byte in extent:
            os.kill(os.getpid(), signal.SIGKILL)
        erasure.zero(descriptor, extent)

    erasing._WORK = {**real, Method.ZERO: zero}
    erasing.REMEMBER_SECONDS = 0


def prepared_by_a_tenant(node: Node) -> None:
    async def prepare() -> None:
        await used_by_a_tenant(node, await started(node))

    asyncio.run(prepare())


def erased_until_it_is_killed(node: Node, at: int) -> None:
    def erase() -> None:
        async def reclaim() -> None:
            await node.reclaim(await started(node))

        dies_at(at)
        asyncio.run(reclaim())

    killed(erase)


async def goes_on(node: Node, monkeypatch: pytest.MonkeyPatch, begin: int) -> None:
    """Another daemon finds it half erased, does the rest and nothing twice."""
    seen: list[range] = []

    def zero(descriptor: int, extent: range) -> None:
        seen.append(extent)
        erasure.zero(descriptor, extent)

    monkeypatch.setattr(erasing, "_WORK", {**erasing._WORK, Method.ZERO: zero})
    volumes = await started(node)
    volume = volumes.inventory.volume(node.pv)
    assert volume
    assert (volume.record.state, volume.record.erased) == (VolumeState.ERASING, begin)
    with pytest.raises(BeingErased):
        await volumes.mount(node.spec(SIZE), node.folder(), read_only=False)
    await node.reclaim(volumes)
    assert (seen[0].start, seen[-1].stop) == (begin, SIZE)
    assert sum(map(len, seen)) == SIZE - begin


def test_killed_half_way_it_goes_on_where_it_was(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared_by_a_tenant(node)
    erased_until_it_is_killed(node, at=40 * MIB)
    kept = node.root / "kept"
    os.link(image(node), kept)
    assert secrets(kept) > 0
    asyncio.run(goes_on(node, monkeypatch, begin=32 * MIB))
    assert secrets(kept) == 0


async def test_only_what_was_written_is_overwritten(tmp_path: Path) -> None:
    """A thin volume takes space where it is written to."""
    file = tmp_path / "sparse"
    with file.open("wb") as opened:
        opened.truncate(SIZE)
        opened.seek(MIB)
        opened.write(SECRET)
    before = file.stat().st_blocks
    with loopdevice.attached(file) as device:
        descriptor = erasure.open_alone(device)
        try:
            erasure.zero_written(descriptor, range(SIZE))
            erasure.flush(descriptor)
        finally:
            os.close(descriptor)
    assert secrets(file) == 0
    assert file.stat().st_blocks <= max(before, erasure.PIECE // 512)


@pytest.fixture
async def lvm_node(
    lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Node]:
    """A node with one disk, small enough to be searched. Thin where the test has a pool."""
    group = f"erase-{os.getpid()}"
    await lvm.create_group(group, make_disks(1, 96 * MIB))
    thin = "zeroing" in request.fixturenames
    node = Node(tmp_path, lambda: lvm_backend(lvm, group, thin=thin))
    yield node
    node.unmount_all()
    await remove_group(by_hand, group)


def disk(node: Node) -> Path:
    (file,) = node.root.glob("disk-*")
    return file


@pytest.mark.device_mapper
@pytest.mark.parametrize(("erase", "left"), [("zero", False), ("discard", False), ("none", True)])
async def test_the_disk_under_a_group_is_searched(lvm_node: Node, erase: str, left: bool) -> None:
    node = lvm_node
    volumes = await started(node)
    await used_by_a_tenant(node, volumes, erase=erase)
    assert secrets(disk(node)) > 500
    await node.reclaim(volumes)
    assert bool(secrets(disk(node))) is left
    (pool,) = (await started(node)).inventory.pools
    assert pool.ours == 0


@pytest.mark.device_mapper
async def test_killed_half_way_on_lvm(lvm_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node = lvm_node
    await asyncio.to_thread(prepared_by_a_tenant, node)
    await asyncio.to_thread(erased_until_it_is_killed, node, 40 * MIB)
    assert secrets(disk(node)) > 0
    await goes_on(node, monkeypatch, begin=32 * MIB)
    assert secrets(disk(node)) == 0


@pytest.mark.device_mapper
@pytest.mark.parametrize(("zeroing", "erase", "shown"), [("y", "zero", 0), ("n", "zero", 0), ("n", "none", 1)])
async def test_a_new_thin_volume_shows_nothing_of_the_last(
    lvm_node: Node, by_hand: ByHand, zeroing: str, erase: str, shown: int
) -> None:
    node = lvm_node
    volumes = await started(node)
    if zeroing == "n":
        by_hand("lvchange", "--zero", "n", node.pool)
    await used_by_a_tenant(node, volumes, erase=erase)
    used = await percent(node)
    # Where the pool sees to it, or nobody, there is nothing to wait for.
    assert await volumes.reclaim(node.pv, "uid", node.pool) is (zeroing == "y" or erase == "none")
    await node.reclaim(volumes)
    assert (await percent(node)) < used

    # It takes every block that the pool has: which of them were the last tenant's nobody can tell.
    pool = volumes.inventory.pool(node.pool)
    assert pool
    volume = await volumes.prepare(node.spec(pool.size, uid="next"))
    async with node.make_backend().device(volume) as device:
        descriptor = os.open(device, os.O_WRONLY)
        for offset in range(0, pool.size, 64 * 1024):
            os.pwrite(descriptor, bytes(4096), offset)
        os.fsync(descriptor)
        os.close(descriptor)
        assert min(secrets(device), 1) == shown


async def percent(node: Node) -> float:
    pool = (await node.make_backend().inspect()).pool(node.pool)
    assert pool
    assert pool.thin
    assert pool.thin.data_percent is not None
    return pool.thin.data_percent


class Asked(Agreeing):
    """An API server that a test makes change its mind."""

    def __init__(self) -> None:
        self.policy = DELETE
        self.away = False
        self.times = 0

    async def owner(self, pv: str, content: str = "") -> Owner | None:
        self.times += 1
        if self.away:
            raise ApiUnavailable("the API server can't be asked")
        agreed = await super().owner(pv)
        assert agreed
        return replace(agreed, policy=self.policy)


async def under_way(node: Node, server: Asked, monkeypatch: pytest.MonkeyPatch) -> Volumes:
    """The erasure of a volume has begun, and asks before each step whether it may go on."""
    monkeypatch.setattr(erasing, "REMEMBER_SECONDS", 0)
    volumes = Volumes(node.make_backend(), node.staging, server, erase_rate=16 * MIB)
    await volumes.start()
    await used_by_a_tenant(node, volumes)
    assert not await volumes.reclaim(node.pv, "uid", node.pool)
    async with asyncio.timeout(20):
        while not volumes.inventory.volume(node.pv).record.erased:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    return volumes


async def stands_still(volumes: Volumes, node: Node) -> Record:
    """What is left is left: the record of the volume."""
    async with asyncio.timeout(20):
        while volumes._eraser._running:
            await asyncio.sleep(0.01)
    await volumes.refresh()
    (volume,) = volumes.inventory.volumes
    assert 0 < volume.record.erased < SIZE
    assert secrets(image(node)) > 0
    return volume.record


async def test_an_erasure_ends_when_the_volume_is_to_be_retained(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Asked()
    volumes = await under_way(node, server, monkeypatch)
    await volumes.retain(node.pv, "uid", node.pool, made=True)
    record = await stands_still(volumes, node)
    assert (record.state, record.policy) == (VolumeState.ERASING, RETAIN)
    server.policy = RETAIN
    with pytest.raises(NotAuthorized, match="its record says Retain"):
        await volumes.reclaim(node.pv, "uid", node.pool)


async def test_a_stopped_erasure_goes_on_when_the_policy_is_delete_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Asked()
    volumes = await under_way(node, server, monkeypatch)
    server.policy = RETAIN
    await volumes.retain(node.pv, "uid", node.pool, made=True)
    erased = (await stands_still(volumes, node)).erased
    server.policy = DELETE
    monkeypatch.setattr(erasing, "RETRY_SECONDS", 0)
    begun = []
    monkeypatch.setattr(erasing, "steps", lambda *how: begun.append(how[1]) or steps(*how))  # type: ignore[func-returns-value]
    await node.reclaim(volumes)
    assert begun == [erased]
    assert not volumes.inventory.volumes


async def test_an_erasure_ends_when_its_persistent_volume_changed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Asked()
    volumes = await under_way(node, server, monkeypatch)
    server.policy = RETAIN
    await stands_still(volumes, node)
    with pytest.raises(NotAuthorized, match="reclaim policy Retain"):
        await volumes.reclaim(node.pv, "uid", node.pool)


async def test_an_erasure_ends_when_the_volume_was_given_to_another(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, as `adopt` is one."""
    volumes = await under_way(node, Asked(), monkeypatch)
    volume = volumes.inventory.volume(node.pv)
    assert volume
    backend = node.make_backend()
    present = await backend.reread(volume)
    await backend.rewrite(present, replace(present.record, uid="heir"))
    record = await stands_still(volumes, node)
    assert record.uid == "heir"
    assert await volumes.reclaim(node.pv, "uid", node.pool)  # of the old one nothing is left, and the heir's stays
    assert secrets(image(node)) > 0


async def test_an_erasure_waits_for_the_api_server_and_goes_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Asked()
    volumes = await under_way(node, server, monkeypatch)
    server.away = True
    await stands_still(volumes, node)
    with pytest.raises(ApiUnavailable):
        await volumes.reclaim(node.pv, "uid", node.pool)
    server.away = False
    await node.reclaim(volumes)
    assert not image(node).exists()
