"""Bind mounts as pods get them, on the real mount table."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host import mounting, mountpoint, mounttable
from host.mounting import Attribute
from tests.sandbox import mountspace


def on(path: Path) -> list[mounttable.Mount]:
    return [mount for mount in mounttable.read() if mount.path == str(path)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("data")
    return source


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "a target"
    target.mkdir()
    return target


def test_bound_and_unbound(source: Path, target: Path) -> None:
    mounting.bind(source, target)
    assert (target / "file").read_text() == "data"
    (target / "another").touch()
    (mount,) = on(target)
    assert not mount.read_only
    assert mount.root.endswith("/source")
    mounting.unmount(target)
    assert on(target) == []
    assert (source / "another").exists()


def test_read_only_for_this_mount_alone(source: Path, target: Path) -> None:
    mounting.bind(source, target, add=Attribute.READ_ONLY)
    assert on(target)[0].read_only
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "another").touch()
    (source / "another").touch()


def test_what_one_mount_has_another_gives_back(source: Path, target: Path, tmp_path: Path) -> None:
    mounting.bind(source, target, add=Attribute.NOSUID | Attribute.NODEV)
    assert {"nosuid", "nodev"} <= on(target)[0].options
    pod = tmp_path / "pod"
    pod.mkdir()
    mounting.bind(target, pod, drop=Attribute.NODEV)
    assert "nosuid" in on(pod)[0].options
    assert "nodev" not in on(pod)[0].options
    assert {"nosuid", "nodev"} <= on(target)[0].options


def test_an_open_folder_is_met_wherever_it_was_moved(source: Path, target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    folder = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    shown = os.open(source, os.O_PATH | os.O_DIRECTORY)
    try:
        moved = target.rename(tmp_path / "moved")
        target.symlink_to(victim)
        mounting.bind(shown, folder)
    finally:
        os.close(folder)
        os.close(shown)
    assert (moved / "file").exists()
    assert list(victim.iterdir()) == []


def test_what_is_at_a_path_is_asked_of_the_kernel(source: Path, target: Path, tmp_path: Path) -> None:
    """As the mount table has it, where something else may be mounted over it; a link is not what it leads to."""
    for nothing in (target, source / "file", tmp_path / "absent", source / "file" / "below"):
        assert mountpoint.at(nothing) is None
    bound = mounting.bind(source, target)
    assert bound == mountpoint.at(target)
    other = tmp_path / "other"
    other.touch()
    over = mounting.bind(source / "file", other)
    seen = mountpoint.at(other)
    assert bound
    assert over
    assert seen == over
    assert not over.is_same(bound)
    assert [mount.id for mount in (*on(target), *on(other))] == [bound.id, over.id]
    (tmp_path / "third").mkdir()
    mounting.bind(tmp_path / "third", target)
    upper = mountpoint.at(target)
    assert upper
    assert upper.id == on(target)[-1].id
    assert not upper.is_same(bound)
    (tmp_path / "link").symlink_to(target)
    assert mountpoint.at(tmp_path / "link") is None
    descriptor = os.open(target, os.O_PATH)
    try:
        assert mountpoint.at(descriptor) == upper
    finally:
        os.close(descriptor)
    for each in (target, target, other):
        mounting.unmount(each)


def test_unmounting_does_not_follow_a_link(source: Path, target: Path, tmp_path: Path) -> None:
    mounting.bind(source, target)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OSError, match="nothing is mounted"):
        mounting.unmount(link)
    assert len(on(target)) == 1


def test_unmounting_below_an_open_folder(source: Path, target: Path) -> None:
    mounting.bind(source, target)
    parent = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        mounting.unmount(Path(f"/proc/self/fd/{parent}", target.name))
    finally:
        os.close(parent)
    assert on(target) == []


def test_a_mount_in_use_is_kept_unless_detached(source: Path, target: Path) -> None:
    mounting.bind(source, target)
    with (target / "file").open():
        with pytest.raises(OSError, match="in use") as caught:
            mounting.unmount(target)
        assert caught.value.errno == errno.EBUSY
        assert len(on(target)) == 1
        mounting.unmount(target, detach=True)
        assert on(target) == []


def test_errors_say_what_and_where(source: Path, target: Path) -> None:
    with pytest.raises(OSError, match=r"can't unmount \(nothing is mounted there\).*a target"):
        mounting.unmount(target)
    with pytest.raises(FileNotFoundError, match="missing"):
        mounting.bind(source, target / "missing")
    with pytest.raises(FileNotFoundError, match="absent"):
        mounting.bind(source / "absent", target, add=Attribute.READ_ONLY)
    assert on(target) == []


_CONTAINER = ("unshare", "--mount", "--propagation", "unchanged", sys.executable, "-c")

_A_DAEMON = """
import os, subprocess, sys
from pathlib import Path
from host import mounting
staged, folder = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "none", str(staged)], check=True)
target = os.open(folder, os.O_PATH | os.O_DIRECTORY)
mounting.bind(os.open(staged, os.O_PATH | os.O_DIRECTORY), target, add=mounting.Attribute.READ_ONLY)
"""
_ITS_SUCCESSOR = """
import os, sys
from pathlib import Path
from host import mounting
for path in map(Path, reversed(sys.argv[1:])):
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    mounting.unmount(Path(f"/proc/self/fd/{parent}", path.name))
"""


def test_what_a_daemon_in_a_container_mounts_is_on_the_host_and_outlives_it(tmp_path: Path) -> None:
    """With folders that are mounted into it Bidirectional, which is to say shared."""
    node, pod, staged = tmp_path / "node", tmp_path / "node" / "pod", tmp_path / "node" / "staged"
    node.mkdir()
    mountspace.mount_memory(node)
    try:
        for folder in (pod, staged):
            folder.mkdir()
        subprocess.run([*_CONTAINER, _A_DAEMON, str(staged), str(pod)], check=True)
        (shown,), (source,) = on(pod), on(staged)
        assert (shown.device, shown.read_only) == (source.device, True)
        assert not source.read_only
        subprocess.run([*_CONTAINER, _ITS_SUCCESSOR, str(staged), str(pod)], check=True)
        assert on(pod) == on(staged) == []
    finally:
        mountspace.unmount_all(node)
        mounting.unmount(node)
