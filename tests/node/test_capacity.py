"""Published room is what is there less what is reserved, after anything that can happen to a node."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from contract.parameters import DEFAULT_DEVICE_CLASS
from daemon.backends.deviceclassbackend import DeviceClassBackend, backend_of_classes
from daemon.backends.lvm import LvmBackend
from daemon.storage.deviceclasses import LOOP, LVM, DeviceClass
from lvm import Lvm
from tests.node.capacity_machine import CapacityMachine, Storage
from tests.node.volume_node import MIB, Node

EVERYWHERE = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def play(storages: type[CapacityMachine], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(storages, settings=settings(EVERYWHERE, max_examples=examples, stateful_step_count=steps))


def lvm_backend(tools: Lvm, here: DeviceClass) -> DeviceClassBackend:
    classes = {DEFAULT_DEVICE_CLASS: here}
    return DeviceClassBackend({DEFAULT_DEVICE_CLASS: LvmBackend(tools, classes)}, classes)


def loop_machine(tmp_path: Path) -> type[CapacityMachine]:
    number = itertools.count()
    room = 24 * MIB

    class Loop(CapacityMachine):
        @staticmethod
        def make_storage() -> Storage:
            root = tmp_path / str(next(number))
            data = root / "data"

            async def free() -> int:
                remembered = {json.loads(path.read_text())["pv"] for path in data.glob("*.json")}
                return room - sum(path.stat().st_size for path in data.glob("*.img") if path.stem in remembered)

            async def come(name: str, size: int) -> None:
                (data / f"{name}.img").write_bytes(bytes(size))

            async def go(name: str) -> None:
                (data / f"{name}.img").unlink()

            here = DeviceClass(DEFAULT_DEVICE_CLASS, LOOP, folder=data, own_folder=True, capacity=room, reserve=2 * MIB)
            node = Node(root, lambda: backend_of_classes({DEFAULT_DEVICE_CLASS: here}, root))
            return Storage(node, {"class": {"erase": "none"}}, reserve=here.reserve, free=free, come=come, go=go)

    return Loop


def test_loop(tmp_path: Path) -> None:
    play(loop_machine(tmp_path), examples=25, steps=15)


@pytest.mark.parametrize(("grows", "noticed"), [(0, "expand"), (0, "mount"), (1, "prepare")])
def test_growth_takes_nothing_that_is_reserved_for_another(tmp_path: Path, grows: int, noticed: str) -> None:
    """Of 22 MiB, 5 are made and 9 reserved, in this order. Chance seldom brings about what it takes."""
    machine = loop_machine(tmp_path)()
    try:
        machine.start(made=5, reserved=9)
        machine.provision(size=8, odd=0, choice=0)
        machine.claim_grows(choice=grows, more=8, then=noticed)
        machine.published_is_what_is_free_less_what_is_reserved()
        machine.nothing_is_given_away_twice()
        for choice in (1, 2):
            machine.prepare(choice)
    finally:
        machine.teardown()


def thick_machine(tools: Lvm, group: str, tmp_path: Path, classes: dict[str, dict[str, str]]) -> type[CapacityMachine]:
    whole = asyncio.run(tools.report()).group(group)
    assert whole
    here = DeviceClass(DEFAULT_DEVICE_CLASS, LVM, group=group, reserve=whole.free - 64 * MIB)

    class Thick(CapacityMachine):
        @staticmethod
        def make_storage() -> Storage:
            async def free() -> int:
                volume_group = (await tools.report()).group(group)
                assert volume_group
                return volume_group.free

            async def come(name: str, size: int) -> None:
                await tools.create_volume(group, name, size)

            async def go(name: str) -> None:
                await tools.remove(group, name)

            node = Node(tmp_path, lambda: lvm_backend(tools, here))
            return Storage(node, classes, reserve=here.reserve, free=free, come=come, go=go)

    return Thick


PLAIN = {"erase": "none"}
STRIPED = {**PLAIN, "stripes": "2"}
MIRRORED = {**PLAIN, "raid": "raid1"}


@pytest.mark.device_mapper
def test_thick(lvm: Lvm, volume_group: str, tmp_path: Path) -> None:
    play(thick_machine(lvm, volume_group, tmp_path, {"linear": PLAIN, "striped": STRIPED}), examples=2, steps=5)


@pytest.mark.device_mapper
def test_mirrored(lvm: Lvm, volume_group: str, tmp_path: Path) -> None:
    """Mirrors count twice, and with what they note of themselves."""
    play(thick_machine(lvm, volume_group, tmp_path, {"mirrored": MIRRORED, "plain": PLAIN}), examples=2, steps=5)


@pytest.mark.device_mapper
def test_a_mirror_gives_back_all_that_it_took(lvm: Lvm, volume_group: str, tmp_path: Path) -> None:
    """Made by this daemon or found by it."""
    machine = thick_machine(lvm, volume_group, tmp_path, {"mirrored": MIRRORED})()
    try:
        machine.start(made=5, reserved=9)
        machine.prepare(choice=1)
        for restarts in (False, True):
            if restarts:
                machine.restart()
            machine.published_is_what_is_free_less_what_is_reserved()
            machine.delete(choice=0)
            machine.published_is_what_is_free_less_what_is_reserved()
            machine.nothing_is_given_away_twice()
    finally:
        machine.teardown()


@pytest.mark.device_mapper
def test_thin(lvm: Lvm, volume_group: str, tmp_path: Path) -> None:
    asyncio.run(lvm.create_pool(volume_group, "pool", 48 * MIB))
    here = DeviceClass(DEFAULT_DEVICE_CLASS, LVM, group=volume_group, thin=True, thin_pool="pool", reserve=8 * MIB)

    class Thin(CapacityMachine):
        @staticmethod
        def make_storage() -> Storage:
            async def free() -> int:
                state = await lvm.report()
                pool = state.volume(volume_group, "pool")
                assert pool
                return pool.size - sum(volume.size for volume in state.thin_volumes(volume_group, "pool"))

            async def come(name: str, size: int) -> None:
                await lvm.create_thin_volume(volume_group, "pool", name, size)

            async def go(name: str) -> None:
                await lvm.remove(volume_group, name)

            node = Node(tmp_path, lambda: lvm_backend(lvm, here))
            classes = {"strict": {}, "generous": {"overprovisionRatio": "1.5"}}
            return Storage(node, classes, reserve=here.reserve, free=free, come=come, go=go)

    play(Thin, examples=2, steps=5)
