"""LVM's configuration: a folder of our own with an lvm.conf in it, instead of /etc/lvm.

In a container /etc/lvm is the image's and says nothing of the node; and use_aio is obeyed only in a file, not in
`--config`. Each setting that is not LVM's own choice stands here with its reason, and in the file as well, for whoever
finds it on a node.
"""

import tempfile
from pathlib import Path

from host import ownfolder, presence

_UDEV_SOCKET = Path("/run/udev/control")

_SETTINGS = """\
# Written by elastic-local at each start: changes are lost.

global {
    # Bytes, and numbers without a unit: sizes are exact and need no parsing.
    units = "b"
    suffix = 0
    # Tearing down the kernel's aio context takes longer than the rest of a command.
    use_aio = 0
    # There is no lvmpolld in a container, and nothing that we start needs one.
    use_lvmpolld = 0
    # Nor is there a D-Bus to notify of changes.
    notify_dbus = 0
    # A pool that the kernel made read-only, because its metadata could not be written, is checked when it is activated
    # and is writable again if they are sound. LVM's own default since 2.03, but not that of every distribution.
    thin_check_options = ["-q", "--clear-needs-check-flag"]
}

report {
    output_format = "json"
}

log {
    # Errors as a structured log beside the report: nothing is guessed from mixed output.
    report_command_log = 1
    command_log_cols = "log_seq_num,log_type,log_message"
    # With a selection LVM leaves a comma after the last row it kept, which is no JSON.
    command_log_selection = "all"
}

devices {
    # A devices file lists what an administrator gave to LVM on the host, and is not here in a container.
    use_devicesfile = 0
    # The hints file in /run/lvm is renewed by commands that share it: one made on the host would be missed here.
    hints = "none"
    # Mappings of encrypted volumes show what pods write to block devices, and a pod may write LVM's metadata there: a
    # group of the name of ours would hide ours. LVM looks into no logical volume by itself, but into these. A name that
    # no pattern matches is accepted; global_filter is for what hangs.
    filter = ["r|^/dev/mapper/elastic_local_|"]
}

activation {
    # dmeventd would be started inside the container and die with it. We watch pools ourselves.
    monitoring = 0
}

backup {
    # One lvchange writes the backup of its group three times over. It is written after changes, by vgcfgbackup.
    backup = 0
    archive = 0
}
"""

_WITHOUT_UDEV = """
devices {
    # No udev runs here: its database is empty, and LVM would find no device in it.
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
}

activation {
    # Nobody answers LVM's wait for udev, so it makes the links in /dev itself.
    udev_sync = 0
    udev_rules = 0
}
"""


def udev_runs() -> bool:
    """Whether udev can be asked. A container that shares /run/udev must share the host's IPC namespace as well,
    because LVM waits for udev on a semaphore."""
    return presence.exists(_UDEV_SOCKET)


def text(*, udev: bool) -> str:
    """The content of lvm.conf on a node with or without udev."""
    return _SETTINGS if udev else _SETTINGS + _WITHOUT_UDEV


def write(folder: Path, content: str) -> None:
    """Put lvm.conf into its folder, so that a command that starts at this moment reads the old or the new one. Several
    programs of ours may do so at once, from different containers."""
    ownfolder.establish(folder)
    target = folder / "lvm.conf"
    if presence.exists(target) and target.read_text() == content:
        return
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix="lvm.conf.", delete=False) as fresh:
        fresh.write(content)
    Path(fresh.name).replace(target)
