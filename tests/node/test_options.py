"""Random options that a class may ask for: each set is refused at the claim, or by mkfs in its own words, or mounts on
a real new volume. None is called damage."""

import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import filesystems, parameters
from contract.filesystems import FILESYSTEMS
from contract.parameters import ParameterError, VolumeParameters
from daemon.errors import Damaged, MountRefused
from host import filesystem, loopdevice, mounting
from host.command import CommandFailed
from tests.node.volume_node import Node, on, started

MIB = 2**20
SIZES = {"ext4": 64 * MIB, "xfs": 400 * MIB, "btrfs": 400 * MIB}
NUMBERS = ("0", "1", "2", "3", "4", "7", "8", "9", "16", "64", "100", "128", "256", "512", "1024", "4096", "5000000000")
BYTES = (
    "0",
    "1",
    "3",
    "512",
    "4096",
    "1k",
    "2k",
    "4k",
    "12k",
    "16k",
    "32k",
    "64k",
    "128k",
    "256k",
    "512k",
    "16m",
    "1g",
)
LEVELS = ("", ":0", ":1", ":3", ":9", ":12", ":15", ":16", ":99")
QUOTAS = ("prjquota", "pquota", "quota", "project")
LACKS_QUOTA = ("not built with CONFIG_QUOTA", "quota support not available")


def values(pattern: str) -> tuple[str, ...]:
    """Some that an allow-list's pattern takes, right ones and wrong ones."""
    fixed = {
        "": ("",),
        filesystems._NUMBER: NUMBERS,
        filesystems._SIZE: BYTES,
        filesystems._SWITCH: ("0", "1"),
        r"\d{1,2}(\.\d{1,3})?": ("0", "1", "5.5"),
        r"[a-z0-9]+(,[a-z0-9]+)*": ("default", "small", "news,largefile"),
        r"[012]": ("0", "1", "2"),
        r"(zlib|lzo|zstd)(:\d{1,2})?": tuple(kind + level for kind in ("zlib", "lzo", "zstd") for level in LEVELS),
    }
    return fixed.get(pattern) or tuple(word.replace("\\", "") for word in pattern.split("|"))


def item(chance: random.Random, allowed: dict[str, str]) -> tuple[str, str]:
    word = chance.choice(sorted(allowed))
    value = chance.choice(values(allowed[word]))
    assert re.fullmatch(allowed[word], value)
    return word.lstrip("^"), f"{word}={value}" if value else word


def mkfs_words(chance: random.Random, kind: str) -> list[str]:
    facts, message = FILESYSTEMS[kind], []
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        if facts.lists and chance.random() < 0.75:
            flag = chance.choice(sorted(facts.lists))
            message += [flag, ",".join(dict(item(chance, dict(facts.lists[flag])) for _ in range(2)).values())]
        else:
            flag = chance.choice(sorted(facts.flags))
            message += [flag, *filter(None, [chance.choice(values(facts.flags[flag]))])]
    return message


def spec(chance: random.Random, kind: str) -> Iterator[VolumeParameters]:
    """Options that are not refused at the claim."""
    while True:
        allowed = dict(FILESYSTEMS[kind].mount_options)
        mount = dict(item(chance, allowed) for _ in range(chance.choice((0, 1, 1, 2, 3))))
        mkfs = mkfs_words(chance, kind)
        try:
            yield parameters.parse({"fsType": kind, "mkfsOptions": shlex.join(mkfs)}, list(mount.values()))
        except ParameterError:
            continue


async def mount(kind: str, device: Path, folder: Path, options: tuple[str, ...]) -> str:
    """Why it can't be, empty if it can."""
    try:
        await filesystem.mount(kind, device, folder, options)
    except (filesystem.OptionsRefused, filesystem.DamagedFilesystem) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("seed", [1])
async def test_what_is_not_refused_at_the_claim_can_be_mounted(kind: str, seed: int, tmp_path: Path) -> None:
    chance, folder, mounted = random.Random(f"{kind} {seed}"), tmp_path / "folder", 0
    folder.mkdir()
    asked = spec(chance, kind)
    for number in range(30):
        image, options = tmp_path / f"image-{number}", next(asked)
        image.touch()
        with image.open("r+b") as file:
            file.truncate(SIZES[kind])
        with loopdevice.attached(image) as device:
            try:
                await filesystem.make(kind, device, options.mkfs_options)
            except CommandFailed:
                continue  # mkfs says why, and so does the event
            refused = await mount(kind, device, folder, options.mount_options)
            if refused:
                # A kernel without quotas refuses them; that can't be known at the claim.
                assert any(message in refused for message in LACKS_QUOTA), (options, refused)
                assert any(word in f"{options.mkfs_options} {options.mount_options}" for word in QUOTAS)
            else:
                mounting.unmount(folder)
                mounted += 1
        image.unlink()
    assert mounted >= 10


@on("loop")
async def test_options_that_the_kernel_refuses_are_named_and_never_called_damage(node: Node) -> None:
    """Those of a class that was written before they were refused at the claim; also by a daemon that did not make the
    volume, and one day by another kernel."""
    asked = node.spec(64 * MIB, mkfs_options=("-O", "^has_journal"), mount_options=("noatime", "commit=10"))
    for _ in range(2):
        volumes = await started(node)
        with pytest.raises(MountRefused, match=r"options noatime,commit=10 .*(without|w/o) journal.*new StorageClass"):
            await volumes.mount(asked, node.folder(), read_only=False)
        await volumes.close()
    assert not node.mounts()


@on("loop")
async def test_a_filesystem_unknown_to_this_kernel_is_reported_as_that(node: Node) -> None:
    asked = node.spec(256 * MIB, filesystem="btrfs", mkfs_options=("-s", "64k"))
    volumes = await started(node)
    with pytest.raises(MountRefused, match="is new and empty"):
        await volumes.mount(asked, node.folder(), read_only=False)
    await volumes.close()
    again = await started(node)
    with pytest.raises(Damaged, match="or was made with what this kernel does not know"):
        await again.mount(asked, node.folder(), read_only=False)
    await again.close()
