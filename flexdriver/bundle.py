"""The Python callout as one file.

The kubelet's host has no virtual environment: what gets installed is a zip archive of the callout and the two modules
of the contract that it reads, behind a first line that names the interpreter. `-I -S` keep the node's own Python
configuration and packages out, which is safer and starts in half the time.
"""

import io
import zipfile
from importlib import resources

INTERPRETER = "/usr/bin/python3"

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
