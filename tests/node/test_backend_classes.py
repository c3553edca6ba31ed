"""Two volume groups and a thin pool as three device classes of one node, and a fourth that it lacks."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.parameters import VolumeParameters
from contract.volume import DELETE
from daemon.backends.deviceclassbackend import DeviceClassBackend, backend_of_classes
from daemon.errors import NoSpace, PoolMissing
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.record import VolumeSpec
from host import command
from host.command import Completed
from lvm import Lvm
from tests.node.conftest import ByHand, MakeDisks, remove_group

pytestmark = pytest.mark.device_mapper

MIB = 2**20
RESERVE = 100 * MIB


@pytest.fixture
async def slow_group(lvm: Lvm, make_disks: MakeDisks, by_hand: ByHand) -> AsyncIterator[str]:
    name = f"slow-{uuid.uuid4().hex[:8]}"
    await lvm.create_group(name, make_disks(1, 256 * MIB))
    yield name
    await remove_group(by_hand, name)


@pytest.fixture
async def backend(volume_group: str, slow_group: str, tmp_path: Path) -> DeviceClassBackend:
    fast = DeviceClass("fast", LVM, group=volume_group, reserve=RESERVE)
    thin = DeviceClass("thin", LVM, group=volume_group, thin=True, thin_pool="pool")
    slow = DeviceClass("slow", LVM, group=slow_group)
    absent = DeviceClass("absent", LVM, group="absent", thin=True)
    classes = {"default": slow, "fast": fast, "thin": thin, "slow": slow, "absent": absent}
    backend = backend_of_classes(classes, tmp_path)
    await backend.establish()
    return backend


def spec(pv: str, device_class: str, size: int = 64 * MIB) -> VolumeSpec:
    return VolumeSpec(pv, f"uid-{pv}", size, DELETE, VolumeParameters(device_class=device_class))


async def test_groups_that_differ_and_one_that_is_missing(
    backend: DeviceClassBackend, volume_group: str, slow_group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {pool.name: pool.available() for pool in (await backend.inspect()).pools}
    pools = {"fast": volume_group, "thin": f"{volume_group}/pool", "default": slow_group}
    assert before.keys() == set(pools.values())
    volumes = [await backend.create(spec(f"pv-{name}", name)) for name in pools]
    assert [volume.pool for volume in volumes] == list(pools.values())
    with pytest.raises(PoolMissing, match="absent"):
        await backend.create(spec("pv-absent", "absent"))
    with pytest.raises(NoSpace, match=slow_group):
        await backend.create(spec("pv-large", "slow", 1024 * MIB))

    commands: list[Completed] = []
    monkeypatch.setattr(command, "observers", [*command.observers, commands.append])
    seen = await backend.inspect()
    assert [completed.argv[:2] for completed in commands] == [("lvm", "fullreport")]
    assert {pool.name: before[pool.name] - pool.available() for pool in seen.pools} == dict.fromkeys(before, 64 * MIB)
    group = seen.pool(volume_group)
    assert group
    assert group.free - group.available() == RESERVE

    for volume in volumes:
        await backend.remove(volume)
    assert {pool.name: pool.available() for pool in (await backend.inspect()).pools} == before
