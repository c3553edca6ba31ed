"""What can go wrong, as types that a caller can act on.

LVM's exit code says little (5 = failed, 3 = wrong usage) and its error numbers nothing, so what happened is read from
the error messages of its structured command log. They are matched per message and never in the output as a whole,
where a volume's name or a warning could look like one. Texts are those of lvm2 2.03, in the C locale.
"""

import re
from collections.abc import Sequence


class LvmError(Exception):
    """An LVM command that failed. `message` is what LVM said; without an exit code no command was started."""

    def __init__(self, command: str, exit_code: int | None, message: str) -> None:
        super().__init__(message if exit_code is None else f"{message} ({command}: exit code {exit_code})")
        self.command = command
        self.exit_code = exit_code
        self.message = message


class NoSpace(LvmError):
    """The group or pool has not the room, or not the devices that stripes or mirrors need."""


class LvmNotFound(LvmError):
    """No such volume group, volume, pool or device."""


class GroupNotFound(LvmNotFound):
    """LVM sees no device of such a group: there is none, or its devices are away or can't be read now."""


class TagsDiffer(LvmError):
    """The volume has not the tags that were named, so nothing was done to it."""


class AlreadyExists(LvmError):
    """The name is taken."""


class InUse(LvmError):
    """The volume is open or mounted, or the device holds something already."""


class PartsActive(LvmError):
    """A thin pool or a mirror can't be activated, nor a volume in it, because something that it consists of is active
    without it: a command that had begun to was killed, or somebody looks at it."""

    @property
    def part(self) -> str:
        """As commands take it: the first that LVM met. Empty: it does not say, but names the volume."""
        found = _PARTS_ACTIVE.search(self.message)
        return (found and found["part"]) or ""

    @property
    def volume(self) -> str:
        """Likewise, where it names no part."""
        found = _PARTS_ACTIVE.search(self.message)
        return (found and found["volume"]) or ""


class ThinDeviceLeft(LvmError):
    """A thin pool is to make a device that it has already: a command was killed that had it made."""

    @property
    def pool(self) -> str:
        """As device-mapper calls it."""
        return self._found("pool")

    @property
    def device(self) -> str:
        """Its number in the pool."""
        return self._found("device")

    def _found(self, what: str) -> str:
        found = _THIN_DEVICE_LEFT.search(self.message)
        return found[what] if found else ""


class Interrupted(LvmError):
    """The command was killed. What it was doing may have happened or not, and what it had suspended still is."""


class TimedOut(Interrupted):
    """The command was killed at its deadline: a device does not answer or somebody holds the lock."""


class BeingChecked(LvmError):
    """A thin pool of the group is being activated or deactivated, and LVM checks its metadata for longer than its
    commands take as a rule. That goes on; until it is done no other command gets at the group, and none is started."""


class Hung(LvmError):
    """The command was not started: one like it was killed and does not end, because a device does not answer."""


class Unsupported(LvmError):
    """The kernel lacks what the command needs, and LVM could not load it."""


class BadName(LvmError, ValueError):
    """A name or tag that LVM does not take. Seen before any command is started, as a rule."""


_PARTS_ACTIVE = re.compile(
    r"activation of .* is prohibited while logical volume (?P<part>\S+) is active"
    r"|logical volume (?P<volume>\S+) with active component lvs?\b",
    re.IGNORECASE,
)

_THIN_DEVICE_LEFT = re.compile(
    r"thin pool (?P<pool>\S+) \(\d+:\d+\) already contain thin device with device_id (?P<device>\d+)", re.IGNORECASE
)

_MEANINGS: tuple[tuple[type[LvmError], re.Pattern[str]], ...] = (
    (
        NoSpace,
        re.compile(
            r"insufficient free space"
            r"|insufficient suitable allocatable extents"
            r"|not enough (free|pvs|space)"
            r"|free space in (thin )?pool .* reached threshold"
            r"|number of stripes \(\d+\) must not exceed number of physical volumes",
            re.IGNORECASE,
        ),
    ),
    (GroupNotFound, re.compile(r"^volume group \S+ not found", re.IGNORECASE)),
    (
        LvmNotFound,
        re.compile(
            r"^failed to find logical volume"
            r"|^logical volume \S+ not found in volume group"
            r"|^pool \S+ not found in volume group"
            r"|^no device found for "
            r"|^device \S+ not found",
            re.IGNORECASE,
        ),
    ),
    (PartsActive, _PARTS_ACTIVE),
    (ThinDeviceLeft, _THIN_DEVICE_LEFT),
    (AlreadyExists, re.compile(r"already exists( in volume group \S+| in filesystem)?\.?$", re.IGNORECASE)),
    (
        InUse,
        re.compile(
            r"^logical volume \S+ (is )?(in use|used by another device)"
            r"|contains a filesystem in use"
            r"|^physical volume \S+ is already in volume group"
            r"|^can't open \S+ exclusively"
            r"|^aborted wiping of "
            r"|device has a signature",
            re.IGNORECASE,
        ),
    ),
    (Unsupported, re.compile(r"required device-mapper target\(s\) not detected in your kernel", re.IGNORECASE)),
    (
        BadName,
        re.compile(
            r"^names (starting|including) \S+ are reserved"
            r"|name \S.* is invalid|^invalid argument for --(name|addtag|deltag)"
            r"|^name \S+ too long",
            re.IGNORECASE,
        ),
    ),
)


def explain(command: str, exit_code: int, messages: Sequence[str]) -> LvmError:
    """The error of a failed command. The first message whose meaning is known decides: those after it are what
    followed from it."""
    joined = "; ".join(dict.fromkeys(messages)) or "LVM gave no reason"
    for message in messages:
        for error, pattern in _MEANINGS:
            if pattern.search(message):
                return error(command, exit_code, joined)
    return LvmError(command, exit_code, joined)
