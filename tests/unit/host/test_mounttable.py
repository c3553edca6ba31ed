from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host import mounttable
from host.mounttable import Mount

LINES = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
37 36 0:5 / /with\\040blank\\011tab\\012line\\134backslash ro - tmpfs  rw
"""


def test_fields_of_the_manual_page() -> None:
    proc, bound, odd = mounttable.parse(LINES)
    assert (proc.path, proc.root, proc.filesystem) == ("/proc", "/", "proc")
    assert bound == Mount(
        id=36,
        parent=35,
        device="98:0",
        root="/mnt1",
        path="/mnt2",
        options=frozenset({"rw", "noatime"}),
        filesystem="ext3",
        source="/dev/root",
        filesystem_options=frozenset({"rw", "errors=continue"}),
    )
    assert odd.path == "/with blank\ttab\nline\\backslash"
    assert odd.read_only
    assert odd.source == ""


@pytest.mark.parametrize("line", ["", "1 2 3:4 / /x rw", "a 2 3:4 / /x rw - ext4 x rw", "1 2 3:4 / /x rw - ext4"])
def test_a_line_of_another_format_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        mounttable.parse(line + "\n" if line else "nonsense\n")


def test_blanks_in_options_that_the_kernel_leaves_as_they_are() -> None:
    """As the 9p of WSL shows a path of Windows. One such mount must not hide all others."""
    line = "560 77 0:138 / /Docker/host rw - 9p drvfs rw,aname=drvfs;path=C:\\Program Files\\Docker,msize=65536\n"
    (mount,) = mounttable.parse(line)
    assert (mount.filesystem, mount.source, mount.path) == ("9p", "drvfs", "/Docker/host")
    assert mount.filesystem_options == {"rw", "aname=drvfs;path=C:\\Program Files\\Docker", "msize=65536"}


PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map("/".__add__)


def escaped(text: str) -> str:
    """As fs/proc_namespace.c writes it (seq_escape with " \\t\\n\\\\#")."""
    return "".join(f"\\{ord(character):03o}" if character in " \t\n\\#" else character for character in text)


@given(path=PATHS, root=PATHS, source=PATHS, tags=st.lists(st.sampled_from(["shared:1", "master:2", "unbindable"])))
def test_any_path_survives(path: str, root: str, source: str, tags: list[str]) -> None:
    line = " ".join(["1", "2", "3:4", escaped(root), escaped(path), "rw", *tags, "-", "xfs", escaped(source), "rw"])
    (mount,) = mounttable.parse(line + "\n")
    assert (mount.path, mount.root, mount.source) == (path, root, source)


@given(paths=st.lists(PATHS, min_size=1, max_size=6), sources=st.lists(PATHS, min_size=6, max_size=6))
def test_what_is_on_a_path_is_what_the_whole_table_says(paths: list[str], sources: list[str]) -> None:
    lines = [
        f"{number} 2 3:4 {escaped(source)} {escaped(path)} rw - xfs {escaped(source)} rw\n"
        for number, (path, source) in enumerate(zip((*paths, *paths), sources, strict=False))
    ]
    table = mounttable.parse("".join(lines))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "read_text", lambda self, **kwargs: "".join(lines))
        found = mounttable.read_at(*(Path(path) for path in (*paths, *sources)))
    for path, mounts in zip((*paths, *sources), found, strict=True):
        assert mounts == [mount for mount in table if mount.path == str(Path(path))]


def test_a_table_in_motion_is_read_until_it_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = LINES.splitlines(keepends=True)
    readings: Iterator[str] = iter([first, first + second, first + second, third])
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: next(readings))
    assert [mount.id for mount in mounttable.read()] == [22, 36]
    assert next(readings) == third
