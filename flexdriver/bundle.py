"""The executable as one file, and its installation into the kubelet's plugin directory.

The kubelet's host has no virtual environment: what gets installed is a zip archive of the callout and the two modules
of the contract that it reads, behind a first line that names the interpreter. `-I -S` keep the node's own Python
configuration and packages out, which is safer and starts in half the time.
"""

import io
import os
import zipfile
from importlib import resources
from pathlib import Path

from contract.names import DRIVER_FOLDER, DRIVER_NAME

INTERPRETER = "/usr/bin/python3"
PLUGIN_DIRECTORY = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
"""The kubelet's default volumePluginDir."""

_MEMBERS = {
    "__main__.py": ("flexdriver", "__main__.py"),
    "flexdriver/__init__.py": ("flexdriver", "__init__.py"),
    "flexdriver/callout.py": ("flexdriver", "callout.py"),
    "contract/__init__.py": ("contract", "__init__.py"),
    "contract/callout.py": ("contract", "callout.py"),
    "contract/names.py": ("contract", "names.py"),
}
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip archive can hold: the same sources give the same bytes, so that an installed driver is
replaced, and probed again by the kubelet, only when it changed."""


def build(interpreter: str = INTERPRETER) -> bytes:
    """The executable's bytes. Members are stored, not compressed: unpacking would cost each call more than reading."""
    archive = io.BytesIO()
    archive.write(f"#!{interpreter} -IS\n".encode())
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as members:
        for name, (package, file) in _MEMBERS.items():
            members.writestr(zipfile.ZipInfo(name, _LONG_AGO), resources.files(package).joinpath(file).read_bytes())
    return archive.getvalue()


def install(executable: bytes, plugin_directory: Path) -> Path | None:
    """Put the driver where the kubelet looks for it; None when this very one stands there already.

    The kubelet watches the folder and runs what it finds at once, but ignores names that start with a dot: so the file
    is written whole under such a name, made durable, and renamed. Raises OSError.
    """
    folder = plugin_directory / DRIVER_FOLDER
    target = folder / DRIVER_NAME
    if target.is_file() and target.read_bytes() == executable and os.access(target, os.X_OK):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{DRIVER_NAME}"
    with draft.open("wb") as file:
        file.write(executable)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())
    draft.rename(target)
    entry = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
    return target
