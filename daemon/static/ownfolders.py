"""No class may offer the folders that the daemon works in.

What it mounts there are volumes of pods. A class whose folder is above, or the same, or inside, would find them as
disks that stand ready, offer them a second time, and in the end clean them. Such a class is refused by itself: it has
no volumes, nothing in it is cleaned, and the other classes go on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from daemon.static.configuration import ClassConfiguration, Configuration

OwnFolders = Sequence[tuple[str, Path]]
"""What says where the folder is, such as STAGING_DIR, and the folder."""


def keep_apart(found: Configuration, own: OwnFolders) -> Configuration:
    """The configuration, with the classes refused that would offer one of our own folders."""
    judged = {name: replace(each, refused=_clash(each, own)) for name, each in found.classes.items()}
    return replace(found, classes=judged)


def _clash(settings: ClassConfiguration, own: OwnFolders) -> str:
    """By the path on the node and by the path in our container: each alone can lead there. Empty: there is none."""
    for key, folder in (("hostDir", Path(settings.host_dir)), ("mountDir", settings.mount_dir)):
        for source, ours in own:
            if place := _place(folder, ours):
                return (
                    f"{key} {folder} is {place} where the daemon works ({source} is {ours}), and what is there would "
                    "be offered and cleaned as disks: give the class a folder of its own, such as /mnt/disks"
                )
    return ""


def _place(folder: Path, ours: Path) -> str:
    if ours.is_relative_to(folder):
        return "above the folder" if ours != folder else "the folder"
    return "inside the folder" if folder.is_relative_to(ours) else ""
