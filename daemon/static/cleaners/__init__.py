"""The bundled cleaners: small programs that empty one volume, named in a variable of their environment.

They have the names of the local static provisioner's, so that its configurations go on working:

    /scripts/quick_reset.sh             makes a filesystem, then wipes all signatures: fast, the data stays
    /scripts/dd_zero.sh [PASSES]        overwrites all bytes with zeros (default 1 pass)
    /scripts/shred.sh [PASSES]          overwrites all bytes with random data (default 1 pass)
    /scripts/blkdiscard.sh              discards all blocks: whether they read as zeros then depends on the device
    /scripts/fsclean.sh                 removes the contents of a mounted filesystem

In this process `bundled` finds them beside this file, wherever the package is installed. In the image of cleanup Jobs
/scripts must hold them: in ours it is a link to this folder. Shell for block devices, because shred, dd, wipefs and
blkdiscard do the work; Python for folders, because only system calls on open folders are safe there.

The block cleaners read LOCAL_PV_BLKDEVICE, the folder cleaner LOCAL_PV_FILESYSTEM. Each checks its variable and what
it names, says what is wrong, and ends with 1 then.
"""

import sys
from pathlib import Path

BLOCK_DEVICE, FOLDER = "LOCAL_PV_BLKDEVICE", "LOCAL_PV_FILESYSTEM"
OPEN_FOLDER = "ELASTIC_LOCAL_OPEN_FOLDER"
"""The number of an open file that the folder cleaner is started with: the folder as the daemon judged it."""

_HERE = Path(__file__).parent
_SCRIPTS = "/scripts/"
_BLOCK_CLEANERS = ("quick_reset.sh", "dd_zero.sh", "shred.sh", "blkdiscard.sh")
_FOLDER_CLEANER = "fsclean.sh"

QUICK_RESET = ("/scripts/quick_reset.sh",)
FOLDER_CLEAN = ("/scripts/fsclean.sh",)


def bundled(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command as it is run on this node: one of the names above becomes our program, any other stays."""
    program, *arguments = command
    name = program.removeprefix(_SCRIPTS)
    if program == name:
        return command
    if name == _FOLDER_CLEANER:
        # -P: the folder that the daemon was started in is no place to take modules from.
        return (sys.executable, "-P", "-m", f"{__name__}.folder", *arguments)
    return (str(_HERE / name), *arguments) if name in _BLOCK_CLEANERS else command
