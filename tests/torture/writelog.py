"""A disk as a kill or a power cut leaves it, from the writes and flushes that writelog.c noted.

A kill leaves all that was written. After a power cut any part may be missing of what was written since the last flush
that came back: of each page any of its states since then may be there.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.uml import guest

PAGE = 4096
"""Bytes that reach a disk together."""


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes


Log = Sequence[Write | None]
"""Of one disk, in order; None: a flush that came back."""


def library(folder: Path) -> Path:
    """writelog.c to preload, compiled into `folder`. Raises NoGuest."""
    return guest.preloaded(Path(__file__).with_suffix(".c"), folder / "writelog.so")


def parsed(notes: bytes) -> Iterator[tuple[int, Write | None]]:
    """What writelog.c wrote, each with the inode of the file."""
    at = 0
    while at < len(notes):
        what, inode, offset, length = struct.unpack_from("=4q", notes, at)
        at += 32
        yield inode, Write(offset, notes[at : at + length]) if what == ord("W") else None
        at += length


def flushed(log: Log) -> int:
    """How many of its entries are on the disk for sure."""
    return max((number + 1 for number, write in enumerate(log) if write is None), default=0)


def apply(disk: BinaryIO, log: Log, surely: int, reached: Callable[[], int]) -> None:
    """Writes the first `surely` entries to the disk, and of the others those that come before the entry that `reached`
    says of their page."""
    pages: dict[int, int] = {}
    for number, write in enumerate(log):
        for offset, data in _by_page(write) if write else ():
            page = offset // PAGE
            if number >= surely and page not in pages:
                pages[page] = reached()
            if number < max(surely, pages.get(page, 0)):
                disk.seek(offset)
                disk.write(data)


def any_part(log: Log, surely: int, chance: random.Random) -> Callable[[], int]:
    """For `apply`: of each page nothing, or its state at a moment of chance."""
    return lambda: chance.choice([surely, chance.randint(surely, len(log))])


def _by_page(write: Write) -> Iterator[tuple[int, bytes]]:
    offset, data = write.offset, write.data
    while data:
        here = PAGE - offset % PAGE
        yield offset, data[:here]
        offset, data = offset + here, data[here:]
