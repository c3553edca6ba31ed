"""Whether something is there: no, yes, or it can't be seen.

os.path.exists and its kin take every error for absence, and so do Path.exists, is_dir, is_file and is_symlink from
Python 3.14 on: of a disk that gives nothing but EIO they say that nothing is on it. Path.glob shows a folder that can't
be read as an empty one. What can't be seen is not gone, so it is an OSError here.

Source: pathlib in the documentation of Python 3.14, "Querying file type and status".
"""

import errno
import os
import stat
from pathlib import Path

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""A link that leads nowhere, or in a circle, is no file."""


def exists(path: Path) -> bool:
    """Whether there is anything, links followed. Raises OSError."""
    return _status(path) is not None


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, be it a link that leads nowhere. Raises OSError."""
    return _status(path, follow=False) is not None


def is_folder(path: Path) -> bool:
    """Links followed. Raises OSError."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_link(path: Path) -> bool:
    """Raises OSError."""
    status = _status(path, follow=False)
    return status is not None and stat.S_ISLNK(status.st_mode)


def _status(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None
