"""Claims with their pods, as those who asked for them know them, and what must be in the volume of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from tests.torture.cluster.seen import Lines, SeenData, begins_with


@dataclass(frozen=True)
class Workload:
    """A claim and the pod that uses it; both have its name, which is never given again. Sizes in bytes."""

    name: str
    size: int
    retain: bool
    pod: bool = True
    deleted: bool = False
    parted: bool = False
    """Its PersistentVolume was deleted, under policy Retain."""
    source: str = ""
    csi: bool = False
    volume: str = ""
    """Name of its PersistentVolume, as soon as that was seen."""
    node: str = ""
    has: int = 0
    """The most that it was seen to have on its node."""
    file: str = ""
    """What its first pod wrote, or that of its source. Each writer writes something else."""
    lines: Lines = ()
    """What its pods were seen to have appended, or its source had flushed before it was asked for."""
    most: Lines | None = None
    """Of a copy: no line of its source that is not among these can be in it. None: not known."""
    copied: bool = False
    """The file was seen in its own volume."""
    attributes: str = ""
    """The VolumeAttributesClass that the claim names."""
    doubtful: bool = False
    """The API server went back to when it was there, and its data may be gone."""

    @property
    def kept(self) -> bool:
        """Its claim is gone, and its data must stay."""
        return self.deleted and self.retain

    def learned(self, data: SeenData) -> "Workload":
        file, has = self.file or data.file, max(self.has, data.size)
        longer = data.whole and bool(data.file) and begins_with(data.lines, self.lines)
        lines = data.lines if longer else self.lines
        return replace(self, file=file, has=has, lines=lines, copied=self.copied or bool(data.whole and data.file))

    def data_complaints(self, data: SeenData | None) -> Iterator[str]:
        if data is None:
            yield "LOST: it is on no node"
            return
        if data.file != self.file:
            yield f"LOST: its file has {data.file!r}, and had {self.file!r}"
        elif data.size < self.has:
            yield f"LOST: it has {data.size} bytes, and had {self.has}"
        elif not begins_with(data.lines, self.lines):
            yield f"LOST: it has lines {data.lines}, and had {self.lines}"
        if self.most is not None:
            others = {writer for writer, _ in self.most}
            inherited = tuple(takewhile(lambda one: one[0] in others, data.lines))
            if not begins_with(self.most, inherited):
                yield f"it began with lines {inherited}, and its source had only {self.most}"
