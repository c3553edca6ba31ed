"""The folder of one class that stands in the folder of another: it holds volumes and is none."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.static.configuration import ClassConfiguration
from daemon.static.plan import INVALID_ENTRY
from tests.node.staticvolumes import Discovery, class_config, configured, discovery, mount
from tests.node.test_static_deletion import Disks, disks, refusal
from tests.node.test_static_deletion import node as deleting
from tests.unit.daemon.nodecluster import NODE
from tests.unit.daemon.static.deleterharness import CLASS, HOST_DIR, DeleterHarness
from tests.unit.daemon.static.deleterharness import configured as cleaning

__all__ = ["deleting", "disks"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with discovery(tmp_path / "api") as discovered:
        yield discovered


@pytest.mark.parametrize("inner", ["inner", "inner/below"])
@pytest.mark.parametrize("seen", ["on the node", "in the container"])
async def test_the_folder_of_another_class_is_not_offered(
    node: Discovery, fast: Path, tmp_path: Path, inner: str, seen: str
) -> None:
    mount(fast / "inner")
    (fast / inner).mkdir(exist_ok=True)
    (fast / inner / "disk").symlink_to("/dev/pulled-out")
    mount(fast / "one")
    if seen == "on the node":
        other = ClassConfiguration("slow", f"/host/fast/{inner}", tmp_path)
    else:
        other = ClassConfiguration("slow", "/elsewhere", fast / inner)
    await node.look(configured(class_config(fast), other))
    assert set(await node.volumes()) == {"/host/fast/one"}
    assert (NODE, INVALID_ENTRY) in {(about, reason) for about, reason, _ in await node.recorded_events()}
    assert any("holds the folder of class slow" in message for *_, message in await node.recorded_events())


async def test_nor_is_it_cleaned(deleting: DeleterHarness, disks: Disks) -> None:
    """Its PersistentVolume is from before that class."""
    (disks.one / "disk").symlink_to("/dev/pulled-out")
    both = cleaning(disks.folder)
    both = type(both)(
        classes={CLASS: both.classes[CLASS], "slow": ClassConfiguration("slow", f"{HOST_DIR}/one", disks.one)}
    )
    await deleting.create("pv", f"{HOST_DIR}/one")
    assert "holds the folder of class slow" in await refusal(deleting, both)
    assert (disks.one / "disk").is_symlink()
