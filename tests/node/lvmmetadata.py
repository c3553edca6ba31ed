"""LVM without device-mapper: all that it decides and writes down, and no volume that can be used.

With activation switched off, LVM makes groups and plain volumes in their metadata alone, and refuses what it would
refuse. So what it does with a group can be asked on any kernel, in hundredths of a second.
"""

import os
import subprocess
import uuid
from pathlib import Path

from daemon.storage.record import Record, VolumeState
from host.command import Completed
from lvm import Lvm, Report, configuration


class Metadata:
    """`tools` sees what `run` does: no devices but those that were shown to it, so that other tests may take away
    theirs at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self.tools = Lvm(folder, configured=True)
        folder.mkdir(exist_ok=True)
        self.show()

    def show(self, *devices: str) -> None:
        """These too."""
        self._seen.update(devices)
        self.write(self._folder, configuration.text(udev=False))

    def write(self, folder: Path, text: str) -> None:
        """An lvm.conf that says so, and sees the same devices."""
        folder.mkdir(exist_ok=True)
        accepted = "".join(f'"a|^{device}$|", ' for device in sorted(self._seen))
        more = f'\nglobal {{\n    activation = 0\n}}\ndevices {{\n    global_filter = [{accepted}"r|.*|"]\n}}\n'
        (folder / "lvm.conf").write_text(text + more)

    def hide(self, *devices: str) -> None:
        """As if they were pulled out."""
        self._seen.difference_update(devices)
        self.show()

    def run(self, *arguments: str, check: bool = True) -> Completed:
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(self._folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        done = subprocess.run(["lvm", *arguments], capture_output=True, text=True, env=environment, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"lvm {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return Completed(("lvm", *arguments), done.returncode, done.stdout, done.stderr, 0.0)

    def makes(self, group: str, name: str, extents: int, *, stripes: int = 1, on: str = "") -> bool:
        """Whether LVM makes a volume of so many extents; `on` is where, as lvcreate(8) has it."""
        flags = ("--activate=n", "--zero=n", "--wipesignatures=n", "--yes", f"--name={name}", f"--extents={extents}")
        layout = ("--type=striped", f"--stripes={stripes}") if stripes > 1 else ("--type=linear",)
        return self.run("lvcreate", *flags, *layout, group, *filter(None, [on]), check=False).exit_code == 0

    async def state(self) -> Report:
        return await self.tools.report()


def volumes(count: int) -> str:
    """The metadata of so many volumes of ours, as a backup has it, each an extent of pv0."""
    parts = []
    for number in range(count):
        uid = uuid.uuid4()
        tags = sorted(Record(f"pvc-{uid}", str(uid), "Delete", "ext4", VolumeState.READY).to_tags())
        lv_id = f"{number:06d}-{'-'.join(4 * ['aaaa'])}-{'a' * 4}-{'b' * 6}"
        parts.append(f"""
		pvc-{uid} {{
			id = "{lv_id}"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			tags = [{", ".join(f'"{tag}"' for tag in tags)}]
			creation_time = 1700000000
			creation_host = "a-host-with-a-name-of-some-length"
			segment_count = 1

			segment1 {{
				start_extent = 0
				extent_count = 1
				type = "striped"
				stripe_count = 1
				stripes = ["pv0", {number}]
			}}
		}}""")
    return "\n\tlogical_volumes {" + "".join(parts) + "\n\t}\n"


def restored(metadata: Metadata, group: str, folder: Path, count: int) -> bool:
    """Whether LVM can write the metadata of a group that had no volume with so many of them."""
    backup = folder / "backup"
    metadata.run("vgcfgbackup", "--file", str(backup), group)
    backup.with_name("empty").write_text(backup.read_text())
    head = backup.read_text().rstrip().removesuffix("}")
    backup.write_text(f"{head}{volumes(count)}}}\n")
    return metadata.run("vgcfgrestore", "--force", "--file", str(backup), group, check=False).exit_code == 0


def remove(metadata: Metadata, group: str, folder: Path) -> None:
    """At once: LVM removes volumes one by one."""
    metadata.run("vgcfgrestore", "--force", "--file", str(folder / "empty"), group)
    metadata.run("vgremove", group)
