"""Paths of which no part may be a link."""

import errno
import os
from pathlib import Path

import pytest

from host import nolinks
from host.openfile import Closing

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def test_a_plain_path_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with Closing(nolinks.open_at(f"{tmp_path}/a/b", FOLDER)) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "a/b").stat())
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("path", ["link/b", "a/link", "a/absolute/b", "above"])
def test_a_link_anywhere_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "a/absolute").symlink_to(tmp_path / "a")
    (tmp_path / "above").symlink_to("..")
    assert (tmp_path / path).is_dir()
    with pytest.raises(OSError, match=str(tmp_path / path)) as refused:
        nolinks.open_at(f"{tmp_path}/{path}", FOLDER)
    assert refused.value.errno == errno.ELOOP


def test_what_is_not_there_or_no_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        nolinks.open_at(f"{tmp_path}/absent", FOLDER)
    with pytest.raises(NotADirectoryError):
        nolinks.open_at(f"{tmp_path}/file", FOLDER)
