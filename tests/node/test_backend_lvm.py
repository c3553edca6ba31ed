"""The LVM backend against real LVM."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.capacity import footprint
from contract.parameters import VolumeParameters
from daemon.backends.lvm import LvmBackend
from daemon.errors import BackendFailed, Damaged, Foreign, InUse, NoSpace, NotAuthorized, PoolMissing, VolumeNotFound
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from host import blockdevice, command, filesystem, mounting
from host.command import Completed
from lvm import Lvm, names
from tests.node.conftest import ByHand
from tests.node.volume_node import lvm_backend

pytestmark = pytest.mark.device_mapper

MIB, GIB = 2**20, 2**30
EXTENT = 4 * MIB
SPEC = VolumeSpec("pvc-1", "uid-1", GIB, "Delete", VolumeParameters())
THIN = replace(SPEC, parameters=VolumeParameters(thin=True))


@pytest.fixture
def backend(lvm: Lvm, volume_group: str) -> LvmBackend:
    return lvm_backend(lvm, volume_group, thin=False)


@pytest.fixture
def thin_backend(lvm: Lvm, volume_group: str) -> LvmBackend:
    return lvm_backend(lvm, volume_group, thin=True)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Completed]:
    seen: list[Completed] = []
    monkeypatch.setattr(command, "observers", [seen.append])
    return seen


async def present(backend: LvmBackend, pv: str = "pvc-1") -> Volume | None:
    return (await backend.inspect()).volume(pv)


async def test_life_of_a_volume_takes_few_commands(
    backend: LvmBackend, volume_group: str, commands: list[Completed]
) -> None:
    await backend.establish()
    before = (await backend.inspect()).pool(volume_group)
    assert before
    commands.clear()
    volume = await backend.create(SPEC)
    volume = await backend.rewrite(volume, SPEC.record(VolumeState.READY))
    async with backend.device(volume) as device:
        assert blockdevice.size(device) == volume.size == GIB
    assert [done.argv[1] for done in commands] == ["lvcreate", "lvchange"]
    after = await backend.inspect()
    assert after.volume("pvc-1") == volume
    pool = after.pool(volume_group)
    assert pool
    # Where the free extents lie, and what the metadata area has left, is what lvm/ has tests of its own for.
    changed = replace(before, free=before.free - GIB, ours=GIB)
    assert pool == replace(changed, extents=pool.extents, more_volumes=pool.more_volumes)
    assert pool.allocatable() == before.allocatable()
    commands.clear()
    await backend.remove(volume)
    assert [done.argv[1] for done in commands] == ["lvremove"]
    assert (await backend.inspect()).pool(volume_group) == before
    await backend.remove(volume)


@pytest.mark.parametrize(
    "parameters",
    [
        VolumeParameters(thin=False),
        VolumeParameters(stripes=3),
        VolumeParameters(raid="raid1"),
        VolumeParameters(thin=True),
    ],
    ids=["thick", "stripes", "raid1", "thin"],
)
async def test_a_new_volume_is_what_lvm_says_it_is(thin_backend: LvmBackend, parameters: VolumeParameters) -> None:
    if parameters.thin:
        await thin_backend.establish()
    before = await thin_backend.inspect()
    spec = replace(SPEC, size=100 * MIB + 1, parameters=parameters)
    volume = await thin_backend.create(spec)
    after = await thin_backend.inspect()
    assert after.volume("pvc-1") == volume
    pools = before.pool(volume.pool), after.pool(volume.pool)
    assert pools[0]
    assert pools[1]
    taken = footprint(spec.size, parameters, EXTENT)
    assert pools[0].free - pools[1].free == pools[1].ours == taken


@pytest.mark.parametrize("spec", [SPEC, THIN])
async def test_killed_between_creating_and_formatting(
    lvm: Lvm, thin_backend: LvmBackend, volume_group: str, spec: VolumeSpec
) -> None:
    await thin_backend.establish()
    await thin_backend.create(spec)
    restarted = lvm_backend(lvm, volume_group, thin=True)
    grown = replace(spec, size=2 * GIB, policy="Retain")
    volume = await restarted.create(grown)
    assert volume.record == grown.record(VolumeState.FORMATTING)
    assert volume.size == 2 * GIB
    assert await present(restarted) == volume


def metadata(folder: Path) -> list[bytes]:
    """What LVM keeps at the beginning of each disk."""
    found = []
    for path in sorted(folder.glob("disk-*")):
        with path.open("rb") as disk:
            found.append(disk.read(MIB))
    assert found
    return found


async def killed_when(step: str, work: Coroutine[Any, Any, object], folder: Path, device: str) -> None:
    """LVM's command is killed as soon as it has begun, as other metadata stand on the disks, or as there is a device of
    that name."""
    before = metadata(folder)

    def reached() -> bool:
        match step:
            case "begun":
                commands = Path("/proc").glob("[0-9]*/cmdline")
                return any(path.read_bytes().startswith(b"lvm\0lvcreate") for path in commands)
            case "written":
                return metadata(folder) != before
            case _:
                for path in Path("/sys/block").glob("dm-*/dm/name"):
                    with contextlib.suppress(OSError):  # it went meanwhile
                        if path.read_text().strip() == device:
                            return True
                return False

    running = asyncio.ensure_future(work)
    there = False
    while not there:
        assert not running.done(), f"{step}: it ended before"
        await asyncio.sleep(0)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone since it was listed
            there = reached()
    assert running.cancel(), f"{step}: it ended before it was killed"
    with contextlib.suppress(asyncio.CancelledError):
        await running


STEPS = ("begun", "written", "device")


@pytest.mark.parametrize(
    "parameters",
    [VolumeParameters(thin=False), VolumeParameters(raid="raid1"), VolumeParameters(thin=True)],
    ids=["thick", "raid1", "thin"],
)
async def test_killed_while_lvm_creates(
    thin_backend: LvmBackend, volume_group: str, tmp_path: Path, parameters: VolumeParameters
) -> None:
    """Nothing lacks our mark, and the same call makes a volume that works: what lvcreate left may be a thin volume that
    its pool does not know, or half a mirror."""
    if parameters.thin:
        await thin_backend.establish()
    whole = await thin_backend.create(replace(SPEC, pv="pvc-whole", size=64 * MIB, parameters=parameters))
    for step in STEPS:
        spec = replace(SPEC, pv=f"pvc-{step}", size=64 * MIB, parameters=parameters)
        await killed_when(step, thin_backend.create(spec), tmp_path, names.mapped(volume_group, spec.pv))
        inventory = await thin_backend.inspect()
        assert not [*inventory.foreign, *inventory.damaged]
        volume = await thin_backend.create(spec)
        assert volume == replace(whole, record=spec.record(VolumeState.FORMATTING))
        async with thin_backend.device(volume) as device:
            await filesystem.make("ext4", device)
        await thin_backend.remove(volume)


async def test_a_ready_volume_or_one_of_another_is_never_given_out(backend: LvmBackend) -> None:
    volume = await backend.create(SPEC)
    with pytest.raises(Foreign, match="pvc-1"):
        await backend.create(replace(SPEC, uid="uid-2"))
    volume = await backend.rewrite(volume, SPEC.record(VolumeState.READY))
    with pytest.raises(Foreign, match="pvc-1"):
        await backend.create(SPEC)
    namesake = replace(volume, record=replace(volume.record, uid="uid-2"))
    with pytest.raises(NotAuthorized, match="its record changed meanwhile"):
        await backend.remove(namesake)
    assert await present(backend) == volume


async def test_foreign_volumes_are_listed_and_untouched(lvm: Lvm, backend: LvmBackend, volume_group: str) -> None:
    await lvm.create_volume(volume_group, "pvc-1", GIB, {"of=somebody"})
    inventory = await backend.inspect()
    assert [foreign.name for foreign in inventory.foreign] == ["pvc-1"]
    with pytest.raises(Foreign, match="administrator"):
        await backend.create(SPEC)
    ours = Volume(SPEC.record(VolumeState.READY), GIB, volume_group)
    with pytest.raises(VolumeNotFound):
        await backend.reread(ours)
    with pytest.raises(NotAuthorized, match="its record changed meanwhile"):
        await backend.remove(ours)
    state = await lvm.report()
    volume = state.volume(volume_group, "pvc-1")
    assert volume
    assert volume.tags == {"of=somebody"}


async def test_a_volume_with_half_a_record_is_damaged_and_untouched(
    lvm: Lvm, backend: LvmBackend, volume_group: str
) -> None:
    volume = await backend.create(SPEC)
    await lvm.retag(volume_group, {"pvc-1": ()}, remove={"elastic-local/uid=uid-1"})
    assert [damaged.reason for damaged in (await backend.inspect()).damaged] == ["its tags say: it has no uid"]
    with pytest.raises(Damaged, match="no uid"):
        await backend.create(SPEC)
    with pytest.raises(Damaged, match="no uid"):
        await backend.reread(volume)
    with pytest.raises(NotAuthorized, match="its record changed meanwhile"):
        await backend.remove(volume)
    assert (await lvm.report()).volume(volume_group, "pvc-1")


async def test_a_volume_that_is_not_active_becomes_so(
    backend: LvmBackend, volume_group: str, by_hand: ByHand, commands: list[Completed]
) -> None:
    volume = await backend.create(SPEC)
    by_hand("lvchange", "--activate=n", f"{volume_group}/pvc-1")
    by_hand("lvchange", "--setactivationskip=y", f"{volume_group}/pvc-1")  # by an administrator
    commands.clear()
    await backend.establish()
    assert {done.argv[1] for done in commands} == {"fullreport"}, "as after a reboot: nothing was suspended"
    async with backend.device(volume) as device:
        assert blockdevice.is_block_device(device)
    await backend.remove(volume)
    with pytest.raises(VolumeNotFound):
        async with backend.device(volume):
            pass
    with pytest.raises(VolumeNotFound):
        await backend.rewrite(volume, SPEC.record(VolumeState.READY))
    with pytest.raises(VolumeNotFound):
        await backend.extend(volume, 2 * GIB)


async def test_volumes_that_are_ready_at_once_are_noted_together(
    lvm: Lvm, backend: LvmBackend, volume_group: str, commands: list[Completed]
) -> None:
    """And each hears of its own: one belongs to somebody else by now, and one is gone."""
    specs = [replace(SPEC, pv=f"pvc-{number}", uid=f"uid-{number}", size=EXTENT) for number in range(6)]
    volumes = [await backend.create(spec) for spec in specs]

    async def ready(number: int) -> Volume:
        return await backend.rewrite(volumes[number], specs[number].record(VolumeState.READY))

    commands.clear()
    noted = await asyncio.gather(ready(0), ready(1))
    assert [done.argv[1] for done in commands] == ["lvchange"]
    seen = await backend.inspect()
    assert [seen.volume(spec.pv) for spec in specs] == [*noted, *volumes[2:]]

    await lvm.retag(volume_group, {"pvc-3": ()}, remove={"elastic-local/uid=uid-3"}, add={"elastic-local/uid=other"})
    commands.clear()
    first, other, last = await asyncio.gather(ready(2), ready(3), ready(4), return_exceptions=True)
    assert [done.argv[1] for done in commands] == ["lvchange"]
    assert isinstance(other, NotAuthorized)
    seen = await backend.inspect()
    assert [seen.volume("pvc-2"), seen.volume("pvc-4")] == [first, last]
    assert (theirs := seen.volume("pvc-3"))
    assert theirs.record.state is VolumeState.FORMATTING

    await lvm.remove(volume_group, "pvc-4")
    commands.clear()
    gone, there = await asyncio.gather(ready(4), ready(5), return_exceptions=True)
    assert [done.argv[1] for done in commands] == ["lvchange"] * 3, "together, and each alone"
    assert isinstance(gone, VolumeNotFound)
    assert await present(backend, "pvc-5") == there


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
async def test_what_a_killed_command_left_suspended_goes_on(
    backend: LvmBackend, thin_backend: LvmBackend, volume_group: str, by_hand: ByHand, thin: bool, restarted: bool
) -> None:
    """As an lvextend leaves a volume, or an lvcreate the thin pool and so all volumes in it: who writes waits. After a
    restart of the node a pool is active for its volumes only, and LVM does not say that it is suspended."""
    killed = thin_backend if thin else backend
    await killed.establish()
    volume = await killed.create(THIN if thin else SPEC)
    if restarted:
        by_hand("lvchange", "--activate=n", volume_group)
    async with killed.device(volume) as device:
        suspend(volume_group, volume)
        assert is_suspended(volume_group, volume)
        await killed.establish()
        assert not is_suspended(volume_group, volume)
        await asyncio.to_thread(device.write_bytes, b"written")


def below(group: str, volume: Volume) -> str:
    """What is suspended when the volume, or its thin pool, is."""
    return names.mapped(group, volume.pv) if volume.pool == group else f"{names.mapped(group, 'pool')}-tpool"


def suspend(group: str, volume: Volume) -> None:
    subprocess.run(["dmsetup", "suspend", below(group, volume)], check=True)


def is_suspended(group: str, volume: Volume) -> bool:
    return blockdevice.is_suspended(Path("/dev/mapper", below(group, volume)))


@pytest.mark.parametrize("verb", ["lvcreate", "lvextend", "lvremove"])
async def test_what_a_command_leaves_suspended_that_is_killed_alone_goes_on_at_once(
    thin_backend: LvmBackend, volume_group: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """As by a kernel that is short of memory: the daemon lives, and would mend it when it starts."""
    await thin_backend.establish()
    first, second = [await thin_backend.create(replace(THIN, pv=pv)) for pv in ("pvc-1", "pvc-2")]
    run = command.run

    async def killed(*argv: str, **keywords: Any) -> Completed:
        if argv[1] != verb:
            return await run(*argv, **keywords)
        suspend(volume_group, first)
        raise command.CommandFailed(Completed(argv, -signal.SIGKILL, "", "", 0))

    monkeypatch.setattr(command, "run", killed)
    does: dict[str, Callable[[], Awaitable[object]]] = {
        "lvcreate": lambda: thin_backend.create(replace(THIN, pv="pvc-3")),
        "lvextend": lambda: thin_backend.extend(second, 2 * GIB),
        "lvremove": lambda: thin_backend.remove(second),
    }
    with pytest.raises(BackendFailed, match="was killed"):
        await does[verb]()
    assert not is_suspended(volume_group, first)
    async with thin_backend.device(first) as device:
        await asyncio.to_thread(device.write_bytes, b"written")


async def test_no_room_is_reported_with_the_figures(backend: LvmBackend, volume_group: str) -> None:
    volume = await backend.create(SPEC)
    free = (await backend.inspect()).pool(volume_group)
    assert free
    with pytest.raises(NoSpace) as caught:
        await backend.create(replace(SPEC, pv="pvc-2", size=9 * GIB))
    assert (caught.value.needed, caught.value.available) == (9 * GIB, free.free)
    with pytest.raises(NoSpace) as caught:
        await backend.extend(volume, 10 * GIB)
    assert caught.value.needed == 9 * GIB
    assert await present(backend) == volume


@pytest.mark.parametrize("spec", [SPEC, THIN])
async def test_in_use_it_stays_and_grows_with_its_filesystem(
    thin_backend: LvmBackend, tmp_path: Path, spec: VolumeSpec
) -> None:
    await thin_backend.establish()
    volume = await thin_backend.create(replace(spec, size=64 * MIB))
    folder = tmp_path / "folder"
    folder.mkdir()
    async with thin_backend.device(volume) as device:
        await filesystem.make("ext4", device)
        await filesystem.mount("ext4", device, folder)
    (folder / "file").write_text("data")
    with pytest.raises(InUse, match="pvc-1"):
        await thin_backend.remove(volume)
    volume = await thin_backend.extend(volume, 128 * MIB)
    assert volume.size == 128 * MIB
    async with thin_backend.device(volume) as device:
        await filesystem.grow("ext4", device, folder)
        await filesystem.grow("ext4", device, folder)
    assert int(subprocess.check_output(["df", "--output=size", "--block-size=1M", folder]).split()[1]) > 110
    mounting.unmount(folder)
    async with thin_backend.device(volume) as device:
        await filesystem.check("ext4", device)
    await thin_backend.remove(volume)
    assert await present(thin_backend) is None


async def test_the_thin_pool_is_made_once_with_room_to_spare(
    thin_backend: LvmBackend, lvm: Lvm, volume_group: str
) -> None:
    await thin_backend.establish()
    await thin_backend.establish()
    inventory = await thin_backend.inspect()
    pool, group = inventory.pool(f"{volume_group}/pool"), inventory.pool(volume_group)
    assert pool
    assert pool.thin
    assert group
    assert 0.88 < pool.size / group.size < 0.91
    assert group.free > 0.05 * group.size
    assert not inventory.foreign
    await thin_backend.create(replace(THIN, size=2 * pool.size))
    after = (await thin_backend.inspect()).pool(pool.name)
    assert after
    assert after.free == -pool.size
    assert after.allocatable(3.0) == pool.allocatable(3.0) == 3 * pool.size


async def test_killed_while_lvm_makes_the_thin_pool(
    thin_backend: LvmBackend, lvm: Lvm, volume_group: str, tmp_path: Path
) -> None:
    for step in STEPS:
        part = names.mapped(volume_group, "pool_tmeta")
        await killed_when(step, thin_backend.establish(), tmp_path, part)
        await thin_backend.establish()
        assert (await thin_backend.inspect()).pool(f"{volume_group}/pool")
        await lvm.remove(volume_group, "pool")


async def test_what_may_be_left_of_making_a_pool_is_named_until_it_has_a_name(
    thin_backend: LvmBackend, volume_group: str, by_hand: ByHand
) -> None:
    async def notices() -> tuple[str, ...]:
        group = (await thin_backend.inspect()).pool(volume_group)
        assert group
        return group.notices

    by_hand("lvcreate", "--size=4m", volume_group)  # as LVM makes the spare of a pool's metadata
    assert await notices() == ()
    await thin_backend.establish()
    (notice,) = await notices()
    assert f"volume {volume_group}/lvol0 (4Mi) may be left over from making a thin pool" in notice
    assert f"`lvremove {volume_group}/lvol0`" in notice
    by_hand("lvrename", f"{volume_group}/lvol0", "somebodys")
    assert await notices() == ()


async def test_somebody_elses_volume_with_the_name_of_the_pool_stays(
    thin_backend: LvmBackend, lvm: Lvm, volume_group: str
) -> None:
    await lvm.create_volume(volume_group, "pool", EXTENT)
    await thin_backend.establish()
    assert [foreign.name for foreign in (await thin_backend.inspect()).foreign] == ["pool"]


async def test_a_node_without_a_group_starts_and_says_what_it_needs(lvm: Lvm) -> None:
    backend = lvm_backend(lvm, "absent", thin=True)
    await backend.establish()
    inventory = await backend.inspect()
    assert inventory.pool("absent") is None
    for spec in (SPEC, THIN):
        with pytest.raises(PoolMissing, match="vg create"):
            await backend.create(spec)
    with pytest.raises(PoolMissing, match="bring its disks back"):
        await backend.remove(Volume(SPEC.record(VolumeState.READY), GIB, "absent"))


async def test_a_missing_thin_pool_of_a_class(backend: LvmBackend) -> None:
    with pytest.raises(PoolMissing, match="lvcreate --type thin-pool"):
        await backend.create(THIN)


async def test_a_thin_pool_that_was_renamed_is_not_replaced(
    lvm: Lvm, thin_backend: LvmBackend, volume_group: str, by_hand: ByHand
) -> None:
    await thin_backend.establish()
    volume = await thin_backend.create(THIN)
    before = {each.name for each in (await lvm.report()).volumes}
    by_hand("lvrename", volume_group, "pool", "old")
    restarted = lvm_backend(lvm, volume_group, thin=True)
    await restarted.establish()
    assert {each.name for each in (await lvm.report()).volumes} == before - {"pool"} | {"old"}
    seen = await restarted.inspect()
    assert f"`lvrename {volume_group} old pool`" in seen.why_unavailable(f"{volume_group}/pool")
    found = seen.volume(volume.pv)
    assert found
    assert found.pool == f"{volume_group}/old"
    with pytest.raises(PoolMissing, match=f"`lvrename {volume_group} old pool`"):
        await restarted.create(replace(THIN, pv="pvc-2"))
    by_hand("lvrename", volume_group, "old", "pool")
    await restarted.establish()
    assert await present(restarted) == volume
    await restarted.create(replace(THIN, pv="pvc-2"))


async def test_no_pool_where_nothing_is_free_and_the_rest_works(
    lvm: Lvm, thin_backend: LvmBackend, volume_group: str
) -> None:
    group = (await lvm.report()).group(volume_group)
    assert group
    await lvm.create_volume(volume_group, "all", group.free)
    await thin_backend.establish()
    inventory = await thin_backend.inspect()
    assert [pool.name for pool in inventory.pools] == [volume_group]
