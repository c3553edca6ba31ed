"""What the superblock of an ext4 says of its size, of how far it can grow, and of whether it needs a check.

`needs_no_check` asks what `e2fsck -p` asks before it says "clean" and ends: not only whether it was unmounted cleanly,
but for the state of the journal, which may hold an error or data that the superblock knows nothing of, and whether the
first copy of the superblock agrees. Whatever is not as in a filesystem of today's mkfs is left to e2fsck. What is not
asked here, because the kernel refuses the mount before it writes anything: the checksums of the superblock, of the
journal's and of the group descriptors, and whether the descriptors point into the filesystem. So who goes by this must
have the filesystem checked when the kernel does not mount it.

Source: ext4(5), the kernel's Documentation/filesystems/ext4/super.rst and journal.rst, ext4_load_super and
ext4_check_descriptors of fs/ext4/super.c; adjust_fs_info and blocks_to_move of resize2fs; get_backup_sb,
e2fsck_check_ext3_journal, check_super_block, check_backup_super_block and check_if_skip of e2fsck 1.47.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from host import blockdevice

_SUPERBLOCK = 1024
_LENGTH = 1024

_MAGIC, _JOURNAL_MAGIC, _EXTENT_MAGIC = 0xEF53, 0xC03B3998, 0xF30A
_VALID = 1
"""Of s_state, alone: errors (2) and orphans being recovered (4) are not set."""
_HASH_IS_SIGNED_OR_NOT, _TEST_FILESYSTEM = 0x3, 0x4
"""Of s_flags."""
_JOURNAL_INODE = 8
_JOURNAL_V2 = 4
_LONGEST_EXTENT = 32768

_HAS_JOURNAL, _METADATA_CSUM = 0x4, 0x400
_COMPATIBLE = _HAS_JOURNAL | 0x8 | 0x10 | 0x20 | 0x1000
"""Features with which `needs_no_check` knows what it does. These: ext_attr, resize_inode, dir_index, orphan_file."""
_INCOMPATIBLE = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000 | 0x8000
"""filetype, extents, 64bit, flex_bg, metadata_csum_seed, large_dir, inline_data; a journal to be replayed (0x4) is
another."""
_READ_ONLY = _METADATA_CSUM | 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x200 | 0x2000
"""sparse_super, large_file, huge_file, dir_nlink, extra_isize, bigalloc, project; orphans that are present (0x10000)
are another."""
_SET_BY_KERNEL = (0, 0x44, 0x10022)
"""Features in which a superblock may differ from its copies: the kernel sets them when it first needs them."""


@dataclass(frozen=True)
class Geometry:
    block_size: int
    blocks: int
    first_block: int
    blocks_per_group: int
    descriptor_size: int
    reserved_descriptor_blocks: int
    """Into which the table of group descriptors can grow without moving anything."""
    sparse_super2: bool = False

    @classmethod
    def read(cls, device: Path) -> "Geometry":
        with device.open("rb") as file:
            file.seek(_SUPERBLOCK)
            return cls.parse(file.read(_LENGTH))

    @classmethod
    def parse(cls, superblock: bytes) -> "Geometry":
        (blocks,) = struct.unpack_from("<I", superblock, 0x4)
        first_block, block_size = struct.unpack_from("<II", superblock, 0x14)
        (blocks_per_group,) = struct.unpack_from("<I", superblock, 0x20)
        compatible, incompatible, _ = _features(superblock)
        (reserved,) = struct.unpack_from("<H", superblock, 0xCE)
        (descriptor_size,) = struct.unpack_from("<H", superblock, 0xFE)
        (blocks_high,) = struct.unpack_from("<I", superblock, 0x150)
        large = bool(incompatible & 0x80)  # 64bit: without it s_blocks_count_hi and s_desc_size mean nothing
        return cls(
            block_size=1024 << block_size,
            blocks=blocks | (blocks_high << 32 if large else 0),
            first_block=first_block,
            blocks_per_group=blocks_per_group,
            descriptor_size=descriptor_size if large else 32,
            reserved_descriptor_blocks=reserved if compatible & 0x10 else 0,  # resize_inode
            sparse_super2=bool(compatible & 0x200),
        )

    def is_whole(self, size: int) -> bool:
        """Whether it is one, and all of it on a device of `size` bytes."""
        return self.block_size <= 65536 and self.blocks_per_group > 0 and 0 < self.blocks * self.block_size <= size

    def lacks(self, size: int) -> bool:
        """Whether it is smaller than `size` bytes, by a block at least."""
        return size // self.block_size > self.blocks

    def unsafe_to_grow(self, size: int) -> str:
        """Why a growth to `size` bytes that is cut off could cost data. Empty: it can't."""
        if self._groups(self.blocks) < 2 or self.sparse_super2:
            return "it has no copy of its superblock where one is looked for"
        more = self._descriptor_blocks(size // self.block_size) - self._descriptor_blocks(self.blocks)
        if more > self.reserved_descriptor_blocks:
            return "data would have to be moved"
        return ""

    @property
    def copy(self) -> int | None:
        """Byte at which the first copy of the superblock is, if there is one."""
        if self._groups(self.blocks) < 2:
            return None
        return (self.first_block + self.blocks_per_group) * self.block_size

    def _groups(self, blocks: int) -> int:
        return -(-(blocks - self.first_block) // self.blocks_per_group)

    def _descriptor_blocks(self, blocks: int) -> int:
        return -(-self._groups(blocks) * self.descriptor_size // self.block_size)


def size(device: Path) -> int:
    """Bytes that the filesystem says it has; 0: there is none. Raises OSError."""
    geometry = _geometry(device)
    return geometry.blocks * geometry.block_size if geometry else 0


def unit(device: Path) -> int:
    """Bytes of the smallest piece that the filesystem reads or writes; 0: there is none. Raises OSError."""
    geometry = _geometry(device)
    return geometry.block_size if geometry else 0


def _geometry(device: Path) -> Geometry | None:
    with blockdevice.opened(device) as descriptor:
        superblock = _read(descriptor, _SUPERBLOCK)
    return Geometry.parse(superblock) if struct.unpack_from("<H", superblock, 0x38)[0] == _MAGIC else None


def needs_no_check(device: int, size: int) -> Geometry | None:
    """Of a filesystem, not mounted, on an open device of `size` bytes, of which `e2fsck -p` would say that it is clean.
    None: it may be damaged, or it is of a kind that only e2fsck knows. Raises OSError."""
    os.posix_fadvise(device, 0, 0, os.POSIX_FADV_RANDOM)  # what lies behind is not read ahead
    superblock = _read(device, _SUPERBLOCK)
    if not _unmounted_cleanly(superblock):
        return None
    geometry = Geometry.parse(superblock)
    journal = _journal(superblock, geometry) if geometry.is_whole(size) else None
    if journal is None:
        return None
    copy = geometry.copy
    if copy is not None:  # both are asked for before one is waited for
        os.posix_fadvise(device, copy, _LENGTH, os.POSIX_FADV_WILLNEED)
    if not _is_empty(_read(device, journal), geometry.block_size):
        return None
    if copy is not None and not _agree(superblock, _read(device, copy)):
        return None
    return geometry


def _read(device: int, offset: int) -> bytes:
    return os.pread(device, _LENGTH, offset).ljust(_LENGTH, b"\0")


def _unmounted_cleanly(superblock: bytes) -> bool:
    """Whether it needs no check. Only what a current mkfs makes is judged, with a journal and metadata checksums."""
    mounts, most_mounts, magic, state = struct.unpack_from("<HhHH", superblock, 0x34)
    check_interval, maker, revision = struct.unpack_from("<III", superblock, 0x44)
    if magic != _MAGIC or revision != 1:
        return False
    compatible, incompatible, read_only = _features(superblock)
    known = not (compatible & ~_COMPATIBLE or incompatible & ~_INCOMPATIBLE or read_only & ~_READ_ONLY)
    if not known or not compatible & _HAS_JOURNAL or not read_only & _METADATA_CSUM:
        return False
    (to_delete,) = struct.unpack_from("<I", superblock, 0xE8)
    (flags,) = struct.unpack_from("<I", superblock, 0x160)
    (errors,) = struct.unpack_from("<I", superblock, 0x194)
    return (
        state == _VALID
        and errors == 0  # since the last check
        and to_delete == 0  # the first of the inodes that are
        and (most_mounts <= 0 or mounts < most_mounts)
        and check_interval == 0  # seconds
        and maker == 0  # Linux
        and flags & _HASH_IS_SIGNED_OR_NOT != 0
        and not flags & _TEST_FILESYSTEM
    )


def _features(superblock: bytes) -> tuple[int, int, int]:
    """Compatible, incompatible, and those with which it may be mounted read-only."""
    compatible, incompatible, read_only = struct.unpack_from("<3I", superblock, 0x5C)
    return compatible, incompatible, read_only


def _journal(superblock: bytes, geometry: Geometry) -> int | None:
    """Byte at which the journal begins, if it is inside: by the extents of its inode, which the superblock keeps."""
    uuid, inode, device = struct.unpack_from("<16sII", superblock, 0xD0)
    (kept,) = struct.unpack_from("<B", superblock, 0xFD)
    if any(uuid) or inode != _JOURNAL_INODE or device or kept != 1:
        return None
    magic, entries, _, depth, _, logical, length, high, low = struct.unpack_from("<HHHHIIHHI", superblock, 0x10C)
    if magic != _EXTENT_MAGIC or not entries or depth or logical or not 0 < length <= _LONGEST_EXTENT:
        return None
    block = int(high << 32 | low)
    return block * geometry.block_size if geometry.first_block < block < geometry.blocks else None


def _is_empty(journal: bytes, block_size: int) -> bool:
    """And without an error that the kernel noted there, because it could not in the superblock."""
    magic, kind, _, size, _, _, _, start, error = struct.unpack_from(">9I", journal)
    (users,) = struct.unpack_from(">I", journal, 0x40)
    return (magic, kind, size, start, error) == (_JOURNAL_MAGIC, _JOURNAL_V2, block_size, 0, 0) and users <= 1


def _agree(superblock: bytes, copy: bytes) -> bool:
    differing = (one ^ other for one, other in zip(_features(superblock), _features(copy), strict=True))
    if any(bits & ~allowed for bits, allowed in zip(differing, _SET_BY_KERNEL, strict=True)):
        return False
    # Magic number, inodes, blocks and the upper half of their number, UUID.
    spans = ((0x38, 0x3A), (0x0, 0x8), (0x150, 0x154), (0x68, 0x78))
    return all(superblock[begin:end] == copy[begin:end] for begin, end in spans)
