"""What can't be seen is not gone."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host import presence

PROJECT = Path(__file__).parents[3]
DISKS = ("command", "daemon", "host", "lvm")
"""Packages that look at disks."""
BLIND = frozenset(
    {
        *("exists", "is_dir", "is_file", "is_symlink", "is_mount", "is_block_device", "is_char_device", "is_fifo"),
        *("is_socket", "lexists", "isdir", "isfile", "islink", "ismount"),
    }
)
"""Methods of pathlib and functions of os.path that take some error for absence, in one version of Python or another."""
OURS = frozenset({"presence", "luks", "blockdevice"})
"""Modules that have functions of the same names."""


def test_present_and_absent(tmp_path: Path) -> None:
    file, link, lost, circle = (tmp_path / name for name in ("file", "link", "lost", "circle"))
    file.touch()
    link.symlink_to(tmp_path)
    lost.symlink_to(tmp_path / "nowhere")
    circle.symlink_to(circle)
    looked_at = (tmp_path, file, link, lost, circle, file / "below", tmp_path / "absent")
    told = {
        look: [path.name for path in looked_at if look(path)]
        for look in (presence.exists, presence.is_there, presence.is_folder, presence.is_link)
    }
    assert told == {
        presence.exists: [tmp_path.name, "file", "link"],
        presence.is_there: [tmp_path.name, "file", "link", "lost", "circle"],
        presence.is_folder: [tmp_path.name, "link"],
        presence.is_link: ["link", "lost", "circle"],
    }


@pytest.mark.parametrize("look", [presence.exists, presence.is_there, presence.is_folder, presence.is_link])
def test_what_can_not_be_seen_is_an_error(tmp_path: Path, look: Callable[[Path], bool]) -> None:
    with pytest.raises(OSError, match="File name too long"):
        look(tmp_path / ("n" * 256))


def test_no_other_way_is_used_to_look_for_what_is_on_disks() -> None:
    used = [use for package in DISKS for source in sorted((PROJECT / package).rglob("*.py")) for use in uses(source)]
    assert not used, "host.presence has what tells an error from absence"


def uses(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Attribute) or node.attr not in BLIND:
            continue
        if not isinstance(node.value, ast.Name) or node.value.id not in OURS:
            yield f"{source.relative_to(PROJECT)}:{node.lineno}: {node.attr}"
