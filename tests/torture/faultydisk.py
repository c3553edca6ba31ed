"""A disk whose faults come and go: a device-mapper device over a sound one, whose table is exchanged under whoever uses
it, without waiting for what is on its way (dm-linear, dm-error, dm-flakey, dm-delay, dm-dust)."""

import os
import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SECTOR = 512
_OFFSET = 2048
"""Sectors: LVM must not find the same label on the device below."""
METADATA = 2048
"""Sectors in the front with LVM's label and metadata, of groups made as our tests do. The data come behind them."""
_FOR_EVER = 3600
_BAD_BLOCK = 8
"""Sectors of each bad block of a disk."""

KINDS = ("error", "partly", "metadata", "unwritable", "on and off", "slow", "bad blocks")
LIE = "lie"
"""Writes are dropped and said to be done."""


@dataclass(frozen=True)
class Segment:
    """Of a table: `target` with its arguments, in which {} is the place on the disk below."""

    begin: int
    sectors: int
    target: str = "linear {}"

    def line(self, below: str) -> str:
        return f"{self.begin} {self.sectors} {self.target.format(f'{below} {_OFFSET + self.begin}')}"


@dataclass(frozen=True)
class Fault:
    kind: str
    segments: Sequence[Segment]
    bad_blocks: Sequence[int] = ()


def fault(kind: str, sectors: int, chance: random.Random) -> Fault:
    """One of that kind on a disk of so many sectors."""

    def on(begin: int, end: int, target: str) -> Fault:
        parts = (Segment(0, begin), Segment(begin, end - begin, target), Segment(end, sectors - end))
        return Fault(kind, [part for part in parts if part.sectors])

    if kind == "error":
        return on(0, sectors, "error")
    if kind == "metadata":
        return on(0, METADATA, chance.choice(["error", f"flakey {{}} 0 {_FOR_EVER} 1 error_writes"]))
    if kind == "partly":
        begin = chance.randrange(METADATA, sectors * 3 // 4, 8)
        return on(begin, min(begin + chance.randrange(8, sectors // 4, 8), sectors), "error")
    if kind == "unwritable":
        return on(0, sectors, f"flakey {{}} 0 {_FOR_EVER} 1 error_writes")
    if kind == "on and off":
        return on(0, sectors, f"flakey {{}} {chance.randint(1, 2)} {chance.randint(1, 2)}")
    if kind == "slow":
        return on(0, sectors, f"delay {{}} {chance.choice([100, 300, 1000, 2500])}")
    if kind == "bad blocks":
        blocks = chance.sample(range(METADATA // _BAD_BLOCK, sectors // 2 // _BAD_BLOCK), 20)
        return Fault(kind, [Segment(0, sectors, f"dust {{}} {_BAD_BLOCK * _SECTOR}")], blocks)
    return on(METADATA, sectors, f"flakey {{}} 0 {_FOR_EVER} 1 drop_writes")


class FaultyDisk:
    """`name` is that of the device, `below` the sound disk. Its functions block."""

    def __init__(self, name: str, below: Path) -> None:
        self.name = name
        self.below = below
        self.path = Path("/dev/mapper", name)
        size = int(subprocess.run(["blockdev", "--getsz", below], check=True, capture_output=True, text=True).stdout)
        self.sectors = size - _OFFSET
        dmsetup("create", name, "--table", Segment(0, self.sectors).line(str(below)))
        dmsetup("mknodes")

    def have(self, fault: Fault) -> None:
        self._load("\n".join(segment.line(str(self.below)) for segment in fault.segments))
        for block in fault.bad_blocks:
            dmsetup("message", self.name, "0", "addbadblock", str(block))
        if fault.bad_blocks:
            dmsetup("message", self.name, "0", "enable")

    def mend(self) -> None:
        """It is sound again, with what was written to it."""
        self._load(Segment(0, self.sectors).line(str(self.below)))

    def _load(self, table: str) -> None:
        dmsetup("reload", self.name, table=table)
        dmsetup("suspend", "--noflush", "--nolockfs", self.name)
        dmsetup("resume", self.name)

    def remove(self) -> None:
        dmsetup("remove", "--retry", self.name)


def dmsetup(*arguments: str, table: str = "") -> str:
    done = subprocess.run(
        ["dmsetup", "--noudevsync", *arguments], input=table, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"dmsetup {' '.join(arguments)} {table}: {done.stderr}")
    return done.stdout


def lost_devices(known: frozenset[str]) -> list[str]:
    """Device-mapper devices of LVM that belong to none of the volumes that are `known`, by the identifiers of their
    groups and their own; what a cryptsetup made for itself; and those that are suspended."""
    columns = "name,uuid,suspended"
    found = []
    for line in dmsetup("info", "--columns", "--noheadings", "--separator=|", f"--options={columns}").splitlines():
        name, identifier, suspended = line.split("|") if line.count("|") == 2 else ("", "", "")
        if identifier.startswith("LVM-") and identifier.removeprefix("LVM-")[:64] not in known:
            found.append(f"the device {name} is left, of no volume")
        if identifier.startswith("CRYPT-TEMP-"):
            found.append(f"the device {name} is left, of a cryptsetup")
        if suspended == "Suspended":
            found.append(f"the device {name} is left suspended")
    return found


def known_volumes(system_folder: Path) -> frozenset[str]:
    """See lost_devices."""
    environment = {**os.environ, "LVM_SYSTEM_DIR": str(system_folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    command = ["lvm", "lvs", "--all", "--reportformat=basic", "--noheadings", "--options=vg_uuid,lv_uuid"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return frozenset(re.sub(r"[-\s]", "", line) for line in text.splitlines())
