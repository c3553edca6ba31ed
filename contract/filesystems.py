"""Which filesystems there are, and what a StorageClass may ask of mkfs and mount for each.

Allow-lists: the words end on the command line of a program that runs as root on the node. What is missing here is
either dangerous there (a journal on another device, `errors=panic`) or useless for a volume of its own.

Sources: mke2fs(8), mkfs.xfs(8), mkfs.btrfs(8), mount(8), ext4(5), xfs(5), btrfs(5).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EXT4, XFS, BTRFS = "ext4", "xfs", "btrfs"
RAW = "raw"
"""In the place of a filesystem: the volume is a block device to its pod (volumeMode Block). No class can ask for it."""

_MIB = 1024**2
_NUMBER = r"\d{1,18}"
_SIZE = r"\d{1,18}[kmgKMG]?"
_SWITCH = r"[01]"


def _words(*allowed: str) -> str:
    return "|".join(map(re.escape, allowed))


def _features(*allowed: str) -> dict[str, str]:
    """Features that may be turned on, or off by a leading ^."""
    return dict.fromkeys((*allowed, *(f"^{feature}" for feature in allowed)), "")


@dataclass(frozen=True)
class Filesystem:
    """What one kind of filesystem allows. A pattern is matched whole; an empty one stands for a word without value."""

    minimum_size: int
    """Bytes below which its mkfs refuses."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """mkfs flags with one value."""
    lists: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """mkfs flags whose value is a list of `word` or `word=value`, by comma."""
    mount_options: Mapping[str, str] = field(default_factory=dict)
    clonable: bool = True
    """Whether the kernel can have two copies of one on a node, block for block the same but for the UUID."""


_EVERY_MOUNT = dict.fromkeys(
    ("noatime", "relatime", "strictatime", "nodiratime", "lazytime", "nodev", "nosuid", "noexec", "sync", "dirsync",
     "discard", "nodiscard"),
    "",
)  # fmt: skip

FILESYSTEMS: Mapping[str, Filesystem] = {
    EXT4: Filesystem(
        minimum_size=1 * _MIB,
        flags={
            "-b": _words("1024", "2048", "4096"),
            "-C": _NUMBER,
            "-G": _NUMBER,
            "-i": _NUMBER,
            "-I": _NUMBER,
            "-m": r"\d{1,2}(\.\d{1,3})?",
            "-N": _NUMBER,
            "-T": r"[a-z0-9]+(,[a-z0-9]+)*",
        },
        lists={
            "-E": {
                "discard": "", "nodiscard": "", "lazy_itable_init": _SWITCH, "lazy_journal_init": _SWITCH,
                "num_backup_sb": r"[012]", "packed_meta_blocks": _SWITCH, "stride": _NUMBER, "stripe_width": _NUMBER,
            },
            "-J": {"size": _NUMBER, "fast_commit_size": _NUMBER},
            "-O": _features(
                "64bit", "bigalloc", "dir_index", "ext_attr", "extent", "extra_isize", "fast_commit", "filetype",
                "flex_bg", "has_journal", "huge_file", "inline_data", "large_dir", "metadata_csum",
                "metadata_csum_seed", "orphan_file", "project", "quota", "resize_inode", "sparse_super",
                "sparse_super2", "uninit_bg",
            ),
        },
        mount_options={
            **_EVERY_MOUNT, "acl": "", "noacl": "", "user_xattr": "", "auto_da_alloc": "", "noauto_da_alloc": "",
            "barrier": _SWITCH, "nobarrier": "", "commit": _NUMBER, "data": _words("ordered", "writeback", "journal"),
            "delalloc": "", "nodelalloc": "", "dioread_lock": "", "dioread_nolock": "",
            "errors": _words("remount-ro", "continue"), "init_itable": _NUMBER, "noinit_itable": "",
            "journal_checksum": "", "max_batch_time": _NUMBER, "min_batch_time": _NUMBER, "prjquota": "",
            "stripe": _NUMBER,
        },
    ),
    XFS: Filesystem(
        minimum_size=300 * _MIB,
        flags={"-K": ""},
        lists={
            "-b": {"size": _SIZE},
            "-d": {
                "agcount": _NUMBER, "agsize": _SIZE, "su": _SIZE, "sunit": _NUMBER, "sw": _NUMBER, "swidth": _NUMBER,
            },
            "-i": {"maxpct": _NUMBER, "size": _NUMBER, "sparse": _SWITCH},
            "-l": {"lazy-count": _SWITCH, "size": _SIZE, "su": _SIZE, "sunit": _NUMBER},
            "-m": {
                "bigtime": _SWITCH, "crc": _SWITCH, "finobt": _SWITCH, "inobtcount": _SWITCH, "reflink": _SWITCH,
                "rmapbt": _SWITCH,
            },
            "-n": {"ftype": _SWITCH, "size": _SIZE},
            "-s": {"size": _SIZE},
        },
        mount_options={
            **_EVERY_MOUNT, "allocsize": _SIZE, "inode32": "", "inode64": "", "largeio": "", "nolargeio": "",
            "logbsize": _SIZE, "logbufs": _NUMBER, "prjquota": "", "pquota": "", "sunit": _NUMBER, "swidth": _NUMBER,
            "swalloc": "", "wsync": "",
        },
    ),
    BTRFS: Filesystem(
        # mkfs.btrfs takes 109 MiB, but the kernel refuses to resize to less than 256 MiB (btrfs_ioctl_resize).
        minimum_size=256 * _MIB,
        clonable=False,  # the kernel takes two devices with one UUID for one filesystem as soon as it sees them
        flags={
            "--csum": _words("crc32c", "xxhash", "sha256", "blake2"),
            "-d": _words("single", "dup"),
            "-K": "",
            "-M": "",
            "-m": _words("single", "dup"),
            "-n": _SIZE,
            "-s": _SIZE,
        },
        lists={
            "-O": _features("block-group-tree", "extref", "free-space-tree", "mixed-bg", "no-holes", "quota",
                            "skinny-metadata"),
        },
        mount_options={
            **_EVERY_MOUNT, "autodefrag": "", "noautodefrag": "", "commit": _NUMBER,
            "compress": r"(zlib|lzo|zstd)(:\d{1,2})?", "compress-force": r"(zlib|lzo|zstd)(:\d{1,2})?",
            "datacow": "", "nodatacow": "", "datasum": "", "nodatasum": "", "discard": "|async|sync",
            "flushoncommit": "", "noflushoncommit": "", "max_inline": _SIZE, "space_cache": "v2", "ssd": "",
            "nossd": "", "ssd_spread": "", "thread_pool": _NUMBER,
        },
    ),
}  # fmt: skip


CLONABLE = tuple(kind for kind, facts in FILESYSTEMS.items() if facts.clonable)
"""Filesystems of which there may be clones on one node."""


def is_clonable(kind: str) -> bool:
    """Whether there may be clones of a volume that holds this, a filesystem or RAW."""
    return kind == RAW or kind in CLONABLE


class OptionRefused(ValueError):
    """An option outside the allow-list: says which, and what is allowed in its place."""

    def __init__(self, option: str, allowed: str) -> None:
        super().__init__(f"{option!r} is not allowed; allowed: {allowed}")
        self.option = option
        self.allowed = allowed


def mkfs_options(filesystem: str, text: str) -> tuple[str, ...]:
    """The words of a class's mkfsOptions, each of them allowed. Raises OptionRefused."""
    facts = FILESYSTEMS[filesystem]
    every_flag = " ".join(sorted({*facts.flags, *facts.lists}))
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise OptionRefused(text, f"words as in a shell ({error})") from None
    checked: list[str] = []
    for flag in words:
        if flag in facts.lists:
            value = next(words, "")
            for item in value.split(","):
                _check(item, facts.lists[flag], f"{flag} ")
            checked += [flag, value]
        elif facts.flags.get(flag):
            value = next(words, "")
            if not re.fullmatch(facts.flags[flag], value, re.ASCII):
                raise OptionRefused(f"{flag} {value}", f"{flag} with {facts.flags[flag]}")
            checked += [flag, value]
        elif flag in facts.flags:
            checked.append(flag)
        else:
            raise OptionRefused(flag, every_flag)
    return tuple(checked)


def mount_options(filesystem: str, options: Sequence[str]) -> tuple[str, ...]:
    """A class's mountOptions, each of them allowed; one entry may hold several by comma. Raises OptionRefused."""
    checked = [option for entry in options for option in entry.split(",")]
    for option in checked:
        _check(option, FILESYSTEMS[filesystem].mount_options, "")
    return tuple(checked)


def _check(item: str, allowed: Mapping[str, str], prefix: str) -> None:
    word, equals, value = item.partition("=")
    pattern = allowed.get(word)
    if pattern is None:
        raise OptionRefused(f"{prefix}{item}", prefix + ", ".join(sorted(allowed)))
    if not re.fullmatch(pattern, value, re.ASCII) or bool(equals) != bool(value):
        raise OptionRefused(
            f"{prefix}{item}", f"{prefix}{word}={pattern}" if pattern else f"{prefix}{word} without a value"
        )
