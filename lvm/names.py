"""Names and tags, checked before LVM sees them.

LVM would refuse them too, but with a usage message; and what starts with a hyphen would be taken for an option.
Source of the rules: lvm(8), "VALID NAMES", and validate_name() of lvm2.
"""

import re

from lvm.errors import BadName

_NAME = re.compile(r"[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*")
_TAG = re.compile(r"[A-Za-z0-9_+./=!:&#][A-Za-z0-9_+./=!:&#-]*")
_DEVICE = re.compile(r"/dev/[^\s\x00-\x1f]+")

_RESERVED_STARTS = ("snapshot", "pvmove")
_RESERVED_PARTS = (
    "_cdata",
    "_cmeta",
    "_corig",
    "_cpool",
    "_cvol",
    "_imeta",
    "_iorig",
    "_mimage",
    "_mlog",
    "_pmspare",
    "_rimage",
    "_rmeta",
    "_tdata",
    "_tmeta",
    "_vdata",
    "_vorigin",
    "_wcorig",
)

_LONGEST_TAG = 1024
_LONGEST_MAPPED_NAME = 106
"""Device-mapper takes 127 characters, and LVM adds up to 21: `_rimage_0-missing_0_0`, when a mirror is removed. It does
not look ahead: a mirror with a longer name can be made and then never removed."""


def group(name: str) -> str:
    """A volume group's name. Raises BadName."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise _bad(f"{name!r} is no name for a volume group: allowed are letters, digits and + _ . -, no - first")
    return name


def volume(group_name: str, name: str) -> str:
    """`group/name`, as commands take it. Raises BadName."""
    group(group_name)
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise _bad(f"{name!r} is no name for a volume: allowed are letters, digits and + _ . -, no - first")
    reserved = next((start for start in _RESERVED_STARTS if name.startswith(start)), None) or next(
        (part for part in _RESERVED_PARTS if part in name), None
    )
    if reserved:
        raise _bad(f"{name!r} is no name for a volume: LVM keeps names with {reserved!r} to itself")
    if len(mapped(group_name, name)) > _LONGEST_MAPPED_NAME:
        raise _bad(f"{group_name}/{name} is too long: {_LONGEST_MAPPED_NAME} characters together, each - counts twice")
    return f"{group_name}/{name}"


def mapped(group_name: str, name: str) -> str:
    """The name under /dev/mapper: hyphens are doubled, because a single one separates group and volume."""
    return f"{group_name.replace('-', '--')}-{name.replace('-', '--')}"


def tag(text: str) -> str:
    """A tag. Raises BadName."""
    if not _TAG.fullmatch(text):
        raise _bad(f"{text!r} is no tag: allowed are letters, digits and _ + . - / = ! : & #, no - first")
    if len(text) > _LONGEST_TAG:
        raise _bad(f"the tag {text[:40]}... is {len(text)} characters long: LVM takes {_LONGEST_TAG}")
    return text


def device(path: str) -> str:
    """The path of a block device under /dev. Raises BadName."""
    if not _DEVICE.fullmatch(path) or ".." in path.split("/"):
        raise _bad(f"{path!r} is not the path of a device: give one like /dev/sdb")
    return path


def _bad(message: str) -> BadName:
    return BadName("", None, message)
