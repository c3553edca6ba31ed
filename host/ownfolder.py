"""Folders that hold what users own: for root alone, whoever made them.

The kubelet makes one that is missing on the host (hostPath DirectoryOrCreate), and lets everybody look into it.
"""

import logging
import stat
from pathlib import Path

from host import presence

log = logging.getLogger(__name__)

_MODE = 0o700


def establish(folder: Path) -> None:
    """It is there, and nobody but its owner may enter. Raises OSError."""
    if not presence.is_folder(folder):
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & ~_MODE:
        log.warning("%s had mode %o and has %o now: it holds data of others", folder, mode, _MODE)
        folder.chmod(_MODE)
