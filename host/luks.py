"""Encrypted block devices: LUKS2 headers, and the mappings (dm-crypt) that show what is behind them.

A passphrase reaches cryptsetup through a pipe, its standard input, which the kernel keeps in memory that is never
swapped. It is in no argument, no file, no environment and no message.

What a header is made with. aes-xts-plain64 with 512 bits is cryptsetup's own choice. Its key derivation is argon2id, so
that also a passphrase that a person made up costs much to guess; not benchmarked, which would take up to a GiB of
memory and seconds of time, but with 32 MiB and 4 passes: OWASP's Password Storage Cheat Sheet has 19 MiB and 2 passes
as enough. Sectors of 512 bytes, because mkfs options and programs that work on the disk itself are to work here. The
header has LUKS_HEADER bytes whatever the disk's alignment, so that its size is known before it is made.

The volume's key is given to dm-crypt itself and not left in a keyring: so a mapping can grow without a passphrase. Who
is root on the node can read it either way, in the kernel's memory. Discards are passed on, or a thin pool would never
get back what a filesystem no longer needs; so the disk shows which blocks are unused.

Sources: cryptsetup(8), cryptsetup-luksFormat(8), cryptsetup-open(8), Documentation/ABI/testing/sysfs-block-dm.
"""

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from host import blockdevice, presence
from host.command import CommandFailed, Completed, run

SIGNATURE = "crypto_LUKS"
"""What blkid calls a device with a header."""
LONGEST_PASSPHRASE = 4096
"""Bytes that the smallest pipe holds."""
_MAPPER = Path("/dev/mapper")
_MAPPING_UUID = "CRYPT-"
"""What device-mapper's uuid of a mapping of cryptsetup begins with; also of one that a killed one has left."""

_LIVE = "L"
"""What the attributes of a device begin with that has a table in use, dmsetup(8)."""

_SECTOR = 512
_NO_PERMISSION, _WRONG_DEVICE, _BUSY = 2, 4, 5
"""Exit codes: of a wrong passphrase, of a mapping that does not exist, of one that is in use."""

_CRYPTSETUP = ("cryptsetup", "--batch-mode")
_WITH_KEY = ("--type", "luks2", "--key-file=-")
_DERIVATION = (
    *("--pbkdf", "argon2id", "--pbkdf-memory", str(32 << 10), "--pbkdf-parallel", "1"),
    *("--pbkdf-force-iterations", "4"),
)
_OPTIONS = ("--disable-keyring", "--allow-discards")


@dataclass(frozen=True)
class Passphrase:
    """What opens a header. No text made of it shows its content."""

    content: bytes = field(repr=False)
    origin: str
    """Where it comes from, for messages."""


class WrongPassphrase(Exception):
    """It opens nothing here. The data was not touched."""


class MappingInUse(Exception):
    """A mapping can't be closed, somebody has it open."""


class NoHeader(Exception):
    """A device without a LUKS header. The message says what is there instead."""


async def make(device: Path, passphrase: Passphrase, header_size: int, *, deadline: float = 120) -> None:
    """A new header with a new key, on disk when this returns: whatever the device held can't be read any more. Raises
    CommandError, OSError and host.diskthreads.Hung."""
    await blockdevice.run_on(
        device,
        *_CRYPTSETUP,
        "luksFormat",
        *_WITH_KEY,
        *("--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256"),
        *("--sector-size", str(_SECTOR), "--offset", str(header_size // _SECTOR)),
        *_DERIVATION,
        deadline=deadline,
        secret=passphrase.content,
    )


async def open_mapping(device: Path, name: str, passphrase: Passphrase, *, deadline: float = 120) -> None:
    """/dev/mapper/<name> shows what is behind the header. Raises WrongPassphrase, NoHeader, and as `make`."""
    await _remove_unfinished(name, deadline)
    await _with_passphrase(device, ("open", *_WITH_KEY, *_OPTIONS), (name,), passphrase, deadline)


async def check(device: Path, passphrase: Passphrase, *, deadline: float = 120) -> None:
    """Raises WrongPassphrase, NoHeader, and as `make`."""
    await _with_passphrase(device, ("open", *_WITH_KEY, "--test-passphrase"), (), passphrase, deadline)


async def _with_passphrase(
    device: Path, words: tuple[str, ...], last: tuple[str, ...], passphrase: Passphrase, deadline: float
) -> Completed:
    try:
        return await blockdevice.run_on(
            device, *_CRYPTSETUP, *words, last=last, deadline=deadline, secret=passphrase.content
        )
    except CommandFailed as error:
        if error.completed.exit_code == _NO_PERMISSION:
            raise WrongPassphrase(str(device)) from error
        if error.completed.exit_code > 0 and (found := await blockdevice.signature(device)) != SIGNATURE:
            raise NoHeader(f"found {found}" if found else "found nothing that is known") from error
        raise


async def fill(name: str, *, deadline: float = 60) -> None:
    """The mapping is as large as its device lets it be. Raises CommandError."""
    await run(*_CRYPTSETUP, "resize", name, deadline=deadline)


async def close_mapping(name: str, *, deadline: float = 60) -> None:
    """There is no mapping of that name. Raises MappingInUse and CommandError."""
    try:
        await run(*_CRYPTSETUP, "close", name, deadline=deadline)
    except CommandFailed as error:
        if error.completed.exit_code == _BUSY:
            raise MappingInUse(name) from error
        if error.completed.exit_code != _WRONG_DEVICE:
            raise
        await _remove_unfinished(name, deadline)


async def _remove_unfinished(name: str, deadline: float) -> None:
    """A cryptsetup that is killed while it opens leaves a device that shows nothing yet. To another one that is neither
    open, so it closes nothing, nor free to be opened; and it may keep the disk in use."""
    found = await run(
        *("dmsetup", "info", "--columns", "--noheadings", "--options", "attr", name), deadline=deadline, check=False
    )
    if found.exit_code == 0 and not found.stdout.strip().startswith(_LIVE):
        await run("dmsetup", "--noudevsync", "remove", name, deadline=deadline)


async def renew_uuid(device: Path, *, deadline: float = 60) -> None:
    """The header has a uuid of its own: a copy has that of its source. Raises as `make`."""
    await blockdevice.run_on(
        device, *_CRYPTSETUP, "luksUUID", "--type", "luks2", "--uuid", str(uuid.uuid4()), deadline=deadline
    )


def path_of(name: str) -> Path:
    """The device of a mapping."""
    return _MAPPER / name


def exists(name: str) -> bool:
    """Whether there is a device of that name."""
    return presence.exists(path_of(name))


@dataclass(frozen=True)
class Mapping:
    """A mapping of cryptsetup, or what one that was killed has left of one."""

    name: str
    live: bool
    """False: it shows nothing yet, and never will."""


def mappings(device: Path) -> list[Mapping]:
    """Those on this device. Raises OSError."""
    number = device.stat().st_rdev
    found = []
    for holder in sorted(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/holders").iterdir()):
        mapper = holder / "dm"
        if presence.is_folder(mapper) and (mapper / "uuid").read_text().startswith(_MAPPING_UUID):
            live = int((holder / "size").read_text()) > 0
            found.append(Mapping((mapper / "name").read_text().strip(), live))
    return found
