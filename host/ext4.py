"""What the superblock of an ext4 says of its size, and of how far it can grow.

Source: ext4(5), the kernel's Documentation/filesystems/ext4/super.rst; adjust_fs_info and blocks_to_move of resize2fs;
get_backup_sb of e2fsck.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

_SUPERBLOCK = 1024
_LENGTH = 1024


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
        def number(offset: int, layout: str = "<I") -> int:
            return int(struct.unpack_from(layout, superblock, offset)[0])

        compatible, incompatible = number(0x5C), number(0x60)
        large = bool(incompatible & 0x80)  # 64bit: without it s_blocks_count_hi and s_desc_size mean nothing
        return cls(
            block_size=1024 << number(0x18),
            blocks=number(0x4) | (number(0x150) << 32 if large else 0),
            first_block=number(0x14),
            blocks_per_group=number(0x20),
            descriptor_size=number(0xFE, "<H") if large else 32,
            reserved_descriptor_blocks=number(0xCE, "<H") if compatible & 0x10 else 0,  # resize_inode
            sparse_super2=bool(compatible & 0x200),
        )

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

    def _groups(self, blocks: int) -> int:
        return -(-(blocks - self.first_block) // self.blocks_per_group)

    def _descriptor_blocks(self, blocks: int) -> int:
        return -(-self._groups(blocks) * self.descriptor_size // self.block_size)
