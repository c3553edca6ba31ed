"""What is really on a node, whatever the API server says of it: the files of its volumes and the mount table."""

import subprocess
from pathlib import Path

from host import mounttable
from host.mounttable import Mount
from tests.sandbox.nodes import Node


def sizes(node: Node) -> dict[str, int]:
    """Bytes of each volume that a node with the loop backend holds, by the name of its PersistentVolume."""
    bytes_of = {}
    for image in node.data.rglob("*.img"):
        try:
            bytes_of[image.stem] = image.stat().st_size
        except FileNotFoundError:
            continue  # removed since it was listed
    return bytes_of


def image(node: Node, volume: str) -> Path:
    """The file that holds a volume's filesystem."""
    [path] = node.data.rglob(f"{volume}.img")
    return path


def mount_on(path: Path) -> Mount | None:
    """What is mounted on a path, seen from the node."""
    return next((mount for mount in reversed(mounttable.read()) if Path(mount.path) == path), None)


def staged(node: Node, volume: str) -> Mount | None:
    """Where all of a node's pods have a volume from."""
    return mount_on(node.staging / volume)


def output(*argv: str | Path) -> str:
    """What one of the host's tools tells of a filesystem."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
