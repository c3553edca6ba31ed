"""What is refused before any command is started: a program named lvm is not even looked for."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from host import command
from lvm import BadName, Lvm

GIB = 2**30


@pytest.fixture
def lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lvm:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Lvm(tmp_path / "configuration")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda lvm: lvm.create_volume("vg", "--force", GIB),
        lambda lvm: lvm.create_volume("--force", "data", GIB),
        lambda lvm: lvm.create_volume("vg", "data", GIB, {"two words"}),
        lambda lvm: lvm.create_thin_volume("vg", "pool/../x", "data", GIB),
        lambda lvm: lvm.create_pool("vg", "pool_tdata", GIB),
        lambda lvm: lvm.create_group("vg", ["--yes"]),
        lambda lvm: lvm.extend("vg", "", GIB),
        lambda lvm: lvm.retag("vg", {"data": ()}, add={"@"}),
        lambda lvm: lvm.retag("vg", {"data": ()}, remove={"-"}),
        lambda lvm: lvm.retag("vg", {"data": (), "--force": ()}, add={"tag"}),
        lambda lvm: lvm.retag("vg", {"data": (), "other": {'"}'}}, add={"tag"}),
        lambda lvm: lvm.activate("vg", "a b"),
        lambda lvm: lvm.remove("vg", "data/.."),
    ],
)
async def test_bad_names(lvm: Lvm, attempt: Callable[[Lvm], Awaitable[None]]) -> None:
    with pytest.raises(BadName, match=r"allowed are|keeps names|give one like"):
        await attempt(lvm)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda lvm: lvm.create_volume("vg", "data", 0), "0 bytes"),
        (lambda lvm: lvm.extend("vg", "data", -1), "-1 bytes"),
        (lambda lvm: lvm.create_volume("vg", "data", GIB, stripes=0), "0 stripes"),
        (lambda lvm: lvm.create_volume("vg", "data", GIB, raid="raid6"), "'raid6'"),
        (lambda lvm: lvm.create_volume("vg", "data", GIB, stripes=2, raid="raid1"), "not both"),
    ],
)
async def test_bad_sizes_and_layouts(lvm: Lvm, attempt: Callable[[Lvm], Awaitable[None]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await attempt(lvm)


async def test_missing_lvm_names_its_package(lvm: Lvm) -> None:
    with pytest.raises(command.MissingTool, match="apt-get install lvm2"):
        await lvm.report()


async def test_nothing_to_retag_is_no_command(lvm: Lvm) -> None:
    assert await lvm.retag("vg", {"data": ()}) == {}
    assert await lvm.retag("vg", {}, add={"tag"}) == {}
