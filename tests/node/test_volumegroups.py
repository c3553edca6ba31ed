"""Groups that a node makes by itself: of empty disks that its class selects, once, never in the place of another."""

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from command import nodecheckup
from daemon.backends.volumegroups import GroupMaker, seen_file
from daemon.storage.deviceclasses import LVM, DeviceClass, DeviceSelector
from host import disks
from lvm import Lvm, NoSpace
from tests.node.conftest import ByHand, MakeDisks

pytestmark = pytest.mark.device_mapper

MIB = 2**20
GROUP = "by-itself"


@pytest.fixture
def node_disks(make_disks: MakeDisks, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The disks of the node: two of one size, one larger."""
    paths = [*make_disks(2, 64 * MIB), *make_disks(1, 128 * MIB)]
    monkeypatch.setattr(disks, "whole_disks", lambda: [Path(path) for path in paths])
    return paths


@pytest.fixture
def small() -> DeviceClass:
    return DeviceClass("hdd", LVM, group=GROUP, devices=DeviceSelector(paths=("/dev/loop*",), maximum_size=100 * MIB))


async def devices_of(tools: Lvm, group: str = GROUP) -> list[str]:
    state = await tools.report()
    return sorted(device.path for device in state.devices if device.group == group)


async def test_a_new_node_makes_its_group_once(
    lvm: Lvm, node_disks: list[str], small: DeviceClass, tmp_path: Path, by_hand: ByHand
) -> None:
    maker = GroupMaker(lvm, tmp_path)
    assert small.devices
    assert "makes it of" in await nodecheckup.planned_group(tmp_path, GROUP, small.devices)
    assert await devices_of(lvm) == []
    await maker.ensure([small], present=())
    assert await devices_of(lvm) == sorted(node_disks[:2])

    await maker.ensure([small], present={GROUP})  # as each time that it is asked
    assert await devices_of(lvm) == sorted(node_disks[:2])
    by_hand("vgremove", "--yes", GROUP)
    by_hand("pvremove", "--yes", *node_disks[:2])
    subprocess.run(["wipefs", "--all", *node_disks[:2]], check=True, capture_output=True)
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == []
    assert "This node had it" in await nodecheckup.planned_group(tmp_path, GROUP, small.devices)


async def test_a_group_that_was_made_by_hand_is_remembered_too(
    lvm: Lvm, node_disks: list[str], small: DeviceClass, tmp_path: Path
) -> None:
    """Its disks may be away at the next start, and come back."""
    maker = GroupMaker(lvm, tmp_path)
    await maker.ensure([small], present={GROUP})
    await maker.ensure([small], present=())
    assert await devices_of(lvm) == []


async def test_what_holds_anything_is_not_taken(
    lvm: Lvm, node_disks: list[str], small: DeviceClass, tmp_path: Path, by_hand: ByHand
) -> None:
    subprocess.run(["mkfs.ext4", "-q", node_disks[0]], check=True)
    before = Path(node_disks[0]).read_bytes()
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == [node_disks[1]]
    assert Path(node_disks[0]).read_bytes() == before
    by_hand("vgremove", "--yes", GROUP)


async def test_without_such_a_disk_nothing_is_made_nor_remembered(
    lvm: Lvm, node_disks: list[str], small: DeviceClass, tmp_path: Path
) -> None:
    other = replace(small, devices=DeviceSelector(rotational=None, minimum_size=1 << 40))
    await GroupMaker(lvm, tmp_path).ensure([other], present=())
    assert not seen_file(tmp_path, GROUP).exists()
    by_people = replace(small, devices=None)
    await GroupMaker(lvm, tmp_path).ensure([by_people], present=())
    assert await devices_of(lvm) == []


async def test_one_that_could_not_be_made_is_tried_again(
    lvm: Lvm,
    node_disks: list[str],
    small: DeviceClass,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_hand: ByHand,
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise NoSpace("vgcreate", 5, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(lvm, "create_group", fail)
        await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == []
    assert not seen_file(tmp_path, GROUP).exists()
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == sorted(node_disks[:2])
    by_hand("vgremove", "--yes", GROUP)


@pytest.mark.parametrize("labelled", [0, 1, 2], ids=["before vgcreate", "one label", "both labels"])
async def test_one_whose_making_was_killed_is_made_at_the_next_start(
    lvm: Lvm,
    node_disks: list[str],
    small: DeviceClass,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_hand: ByHand,
    labelled: int,
) -> None:
    """It was noted already that the node has the group, so that it was never made."""
    await killed_while_it_makes(lvm, node_disks[:labelled], small, tmp_path, monkeypatch, by_hand)
    assert await devices_of(lvm) == []
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == sorted(node_disks[:2])
    by_hand("vgremove", "--yes", GROUP)


async def test_one_whose_making_was_killed_is_not_made_while_a_disk_is_away_or_has_other_data(
    lvm: Lvm,
    node_disks: list[str],
    small: DeviceClass,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_hand: ByHand,
) -> None:
    """The one that is away may have the group."""
    selector = small.devices
    assert selector
    await killed_while_it_makes(lvm, node_disks[:1], small, tmp_path, monkeypatch, by_hand)
    with monkeypatch.context() as away:
        away.setattr(disks, "whole_disks", lambda: [Path(node_disks[0]), Path(node_disks[2])])
        await GroupMaker(lvm, tmp_path).ensure([small], present=())
        assert "is away" in await nodecheckup.planned_group(tmp_path, GROUP, selector)
    assert await devices_of(lvm) == []
    assert "begins anew" in await nodecheckup.planned_group(tmp_path, GROUP, selector)
    subprocess.run(["mkfs.ext4", "-q", node_disks[1]], check=True)
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == []
    assert f"{node_disks[1]}: it holds ext4" in await nodecheckup.planned_group(tmp_path, GROUP, selector)
    subprocess.run(["wipefs", "--all", node_disks[1]], check=True, capture_output=True)
    by_hand("vgcreate", "of-another", node_disks[0])
    await GroupMaker(lvm, tmp_path).ensure([small], present=())
    assert await devices_of(lvm) == []
    by_hand("vgremove", "--yes", "of-another")


async def killed_while_it_makes(
    lvm: Lvm,
    labelled: list[str],
    small: DeviceClass,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_hand: ByHand,
) -> None:
    async def die(*_: object, **__: object) -> None:
        for path in labelled:
            by_hand("pvcreate", path)
        raise asyncio.CancelledError

    with monkeypatch.context() as killed:
        killed.setattr(lvm, "create_group", die)
        with pytest.raises(asyncio.CancelledError):
            await GroupMaker(lvm, data_dir).ensure([small], present=())
