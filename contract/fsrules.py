"""Which options of a StorageClass can't be mounted together, though each of them is allowed (contract.filesystems).

mkfs makes such a filesystem without a word, and the kernel refuses it with one that says nothing ("wrong fs type, bad
option, bad superblock"). So what can be known from the options alone is refused when a volume is claimed, and never on
a node: volumes that exist are mounted with what they have.

Sources: ext4(5) and fs/ext4/super.c (ext4_check_opt_consistency, ext4_load_super, __ext4_fill_super); xfs(5) and
fs/xfs/xfs_super.c (xfs_fs_validate_params, xfs_finish_flags), xfs_mount.c (xfs_validate_new_dalign), libxfs/xfs_log_
format.h for the limits; btrfs(5) and fs/btrfs/super.c (btrfs_parse_param, btrfs_parse_compress); mke2fs(8),
mkfs.xfs(8), mkfs.btrfs(8) of the versions in the image. Linux 5.12 to 6.18.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from contract.filesystems import BTRFS, EXT4, XFS, OptionRefused

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_SECTOR = 512
_PAGE = 4 * _KIB
"""Bytes. Filesystems with larger blocks need larger pages, which few machines have, or a newer kernel than most."""
_INT = (1 << 31) - 1
_LONGEST_COMMIT = _INT // 1000
"""Seconds. The kernel counts them in ticks, of which there are up to 1000 a second, in an int."""

_MKFS, _MOUNT = "mkfsOptions", "mountOptions"

Options = Mapping[str, str]
"""Options by name, the last one where there are several, as mount and mkfs take them."""


class Contradiction(OptionRefused):
    """`key` is the field of the class that has to change."""

    def __init__(self, key: str, option: str, allowed: str) -> None:
        super().__init__(option, allowed)
        self.key = key


def check(filesystem: str, mkfs: Sequence[str], mount: Sequence[str]) -> None:
    """Raises Contradiction for the first that is found. Both are options that contract.filesystems allowed."""
    if rules := _RULES.get(filesystem):
        for contradiction in rules(mkfs, dict(map(_pair, mount))):
            raise contradiction


def _ext4(mkfs: Sequence[str], mount: Options) -> Iterator[Contradiction]:
    features = _features(mkfs, {"has_journal"})
    if "has_journal" not in features:
        for option in ("data", "commit", "journal_checksum"):
            if option in mount:
                yield _unmounted(mount, option, "only with a journal, which mkfsOptions turn off (-O ^has_journal)")
    if "prjquota" in mount and "project" not in features:
        yield _unmounted(mount, "prjquota", "only with mkfsOptions `-O project,quota`, which make room for it")
    if mount.get("data") == "journal":
        for option in ("delalloc", "dioread_nolock"):
            if option in mount:
                yield _unmounted(mount, option, "not together with data=journal")
    if "noacl" in mount:
        yield _unmounted(mount, "noacl", "on kernels before Linux 6.13 only, which took it away: leave it out")
    yield from _bounded(mount, {"commit": (0, _LONGEST_COMMIT)})
    yield from _bounded(mount, dict.fromkeys(("init_itable", "max_batch_time", "min_batch_time", "stripe"), (0, _INT)))


def _xfs(mkfs: Sequence[str], mount: Options) -> Iterator[Contradiction]:
    made = {f"{flag} {option}": value for flag, option, value in _items(mkfs)}
    if (block := _bytes(made.get("-b size", "0"))) > _PAGE:
        yield Contradiction(_MKFS, f"-b size={made['-b size']}", f"-b size up to {_PAGE}, a page of memory ({block=})")
    if "allocsize" in mount and not _power(_bytes(mount["allocsize"]), _PAGE, _GIB):
        yield _unmounted(mount, "allocsize", "a power of two from 4k to 1g")
    if "logbufs" in mount and not 2 <= int(mount["logbufs"]) <= 8:
        yield _unmounted(mount, "logbufs", "2 to 8")
    if "logbsize" in mount:
        least = max(_log_stripe(made), 16 * _KIB)
        if not _power(_bytes(mount["logbsize"]), least, 256 * _KIB):
            yield _unmounted(mount, "logbsize", f"a power of two from {least // _KIB}k to 256k")
    if made.get("-m crc") == "0":
        yield Contradiction(_MKFS, "-m crc=0", "crc=1: kernels of today are built without the format that lacks it")
    stripe = _stripe(mount, "")
    if ("sunit" in mount or "swidth" in mount) and (stripe is None or stripe != _stripe(made, "-d ")):
        option = "sunit" if "sunit" in mount else "swidth"
        yield _unmounted(
            mount, option, "sunit and swidth together, and what mkfsOptions say (-d sunit=N,swidth=M): say it there"
        )


def _btrfs(mkfs: Sequence[str], mount: Options) -> Iterator[Contradiction]:
    for flag, option, value in _items(mkfs):
        if flag == "-s" and _bytes(value) != _PAGE:
            yield Contradiction(_MKFS, f"-s {value}", f"-s {_PAGE}, which kernels with pages of any size can mount")
        if flag == "-O" and option.removeprefix("^") in ("block-group-tree", "free-space-tree", "quota"):
            yield Contradiction(
                _MKFS,
                f"-O {option}",
                "what mkfs.btrfs 6.2 of the image knows: extref mixed-bg no-holes skinny-metadata",
            )
    for option in ("compress", "compress-force"):
        kind, _, level = mount.get(option, "").partition(":")
        most = {"zlib": 9, "zstd": 15}.get(kind, 0)
        if level and not 1 <= int(level) <= most:
            yield _unmounted(
                mount, option, f"{kind} with a level from 1 to {most}" if most else f"{kind} without a level"
            )
    yield from _bounded(mount, {"thread_pool": (1, _INT), "commit": (0, _INT)})


_RULES: Mapping[str, Callable[[Sequence[str], Options], Iterator[Contradiction]]] = {  # none: nothing contradicts
    EXT4: _ext4,
    XFS: _xfs,
    BTRFS: _btrfs,
}


def _unmounted(mount: Options, option: str, allowed: str) -> Contradiction:
    return Contradiction(_MOUNT, f"{option}={mount[option]}" if mount[option] else option, allowed)


def _bounded(mount: Options, bounds: Mapping[str, tuple[int, int]]) -> Iterator[Contradiction]:
    for option, (least, most) in bounds.items():
        if option in mount and not least <= int(mount[option]) <= most:
            yield _unmounted(mount, option, f"{least} to {most}")


def _pair(option: str) -> tuple[str, str]:
    name, _, value = option.partition("=")
    return name, value


def _items(mkfs: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Flag, name and value of each option. A flag that takes a plain value has it as value and no name; features have
    no value."""
    for flag, value in zip(mkfs, (*mkfs[1:], ""), strict=False):
        if flag.startswith("-"):
            for item in value.split(","):
                name, equals, detail = item.partition("=")
                yield (flag, name, detail) if equals or flag == "-O" else (flag, "", item)


def _features(mkfs: Sequence[str], default: set[str]) -> set[str]:
    features = set(default)
    for flag, option, _ in _items(mkfs):
        if flag == "-O":
            (features.discard if option.startswith("^") else features.add)(option.removeprefix("^"))
    return features


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    return int(match[1]) * {"": 1, "k": _KIB, "m": _MIB, "g": _GIB}[match[2]] if match else 0


def _power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def _stripe(options: Options, prefix: str) -> tuple[int, int] | None:
    """Unit and width in sectors. None: not said, or half."""
    unit, width = options.get(f"{prefix}sunit"), options.get(f"{prefix}swidth")
    if unit is not None and width is not None:
        return int(unit), int(width)
    su, sw = options.get(f"{prefix}su"), options.get(f"{prefix}sw")
    if su is not None and sw is not None:
        return _bytes(su) // _SECTOR, _bytes(su) // _SECTOR * int(sw)
    return None


def _log_stripe(made: Options) -> int:
    """Bytes: of the log's own, else of the data's, which mkfs takes for the log too unless it is too large for one."""
    for flag in ("-l", "-d"):
        unit = _bytes(made.get(f"{flag} su", "0")) or int(made.get(f"{flag} sunit", "0")) * _SECTOR
        if unit:
            return unit if unit <= 256 * _KIB else 32 * _KIB
    return 0
