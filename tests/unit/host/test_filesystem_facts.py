"""The table of filesystems agrees with what a StorageClass may ask for: a new one is forgotten in neither."""

from pathlib import Path

import pytest

from contract.filesystems import FILESYSTEMS
from host import command, filesystem, mounting
from host.filesystem import FACTS


def test_a_class_may_ask_for_what_the_node_can_make() -> None:
    assert FACTS.keys() == FILESYSTEMS.keys()


@pytest.mark.parametrize("kind", FACTS)
def test_what_is_clonable_gets_a_uuid_of_its_own(kind: str) -> None:
    assert (FACTS[kind].renew_uuid is not None) == FILESYSTEMS[kind].clonable


@pytest.mark.parametrize("kind", FACTS)
def test_what_may_have_to_grow_before_a_mount_can_show_whether(kind: str) -> None:
    facts = FACTS[kind]
    assert (facts.can_grow is not None) == (facts.grow_capability is not None)


@pytest.mark.parametrize("kind", FACTS)
def test_each_program_that_is_run_names_its_package(kind: str) -> None:
    facts = FACTS[kind]
    run = {words[0] for words in (facts.make, facts.repair, facts.grow, facts.check, facts.check_all) if words}
    assert run <= facts.programs.keys()
    assert facts.programs.items() <= command.PACKAGES.items()


def options_of(kind: str) -> list[str]:
    """Each that a class may ask for, with a value if it takes one."""
    return [f"{word}=1" if pattern else word for word, pattern in FILESYSTEMS[kind].mount_options.items()]


@pytest.mark.parametrize("kind", FACTS)
def test_each_option_of_a_class_is_mounted_without_a_program(kind: str) -> None:
    assert [option for option in options_of(kind) if not mounting.is_mountable((option,))] == []


@pytest.mark.parametrize(
    "options",
    [
        ["x-gvfs-hide"], ["X-mount.mkdir"], ["ro"], ["loop=/dev/loop3"], ["offset=512"], ["user=me"], ["nofail"],
        ["helper=fuse"], ["verity.roothash=0"], ["context=system_u"], ["noatime=1"], ["noatime", "relatime"], [""],
        ['commit="5"'], ["a,b"], ["compress=zlib", "data=" + 4096 * "x"],
    ],
)  # fmt: skip
def test_what_mount_8_alone_understands_is_left_to_it(options: list[str]) -> None:
    assert not mounting.is_mountable(tuple(options))


async def test_one_that_grows_mounted_is_not_read_as_another_kind(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"\xff" * 4096)
    with pytest.raises(AssertionError, match="xfs grows mounted"):
        await filesystem.can_grow_unmounted("xfs", device)
