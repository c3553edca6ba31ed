"""What VolumeSnapshots must have come to once a cluster is quiet. What a snapshot holds is what its source held at one
moment, after it was asked for and before it was said to be ready; that never changes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.torture.cluster.seen import Lines, Seen, SeenData, begins_with


@dataclass(frozen=True)
class Snapshot:
    """A VolumeSnapshot, whose name is never given again, and what it has on a node."""

    name: str
    source: str
    """Name of the claim. Empty: it has what another one left."""
    retain: bool
    file: str = ""
    lines: Lines = ()
    """What it holds at least, and all of it once it is `whole`."""
    most: Lines | None = None
    """What its source held when it was ready. None: not known."""
    able: bool = False
    """The source is one of which there can be any."""
    whole: bool = False
    ready: bool = False
    """So it was acknowledged."""
    deleted: bool = False
    parted: bool = False
    """Its VolumeSnapshotContent was deleted, under policy Retain."""
    content: str = ""
    """Name of that, as soon as that was seen."""
    node: str = ""
    volume: str = ""
    """Name of what it has on its node."""
    size: int = 0
    """Bytes of what is restored from it, at least."""
    doubtful: bool = False
    """The API server went back to when it was there, and its data may be gone."""

    def taken(self, data: SeenData | None, source_lines: Lines | None) -> "Snapshot":
        """With what is learned from what lies on its node. `source_lines`: what its source holds by now."""
        if data is None or not data.whole or self.doubtful or (self.file and not data.file):
            return self
        if not self.whole and begins_with(data.lines, self.lines):
            return replace(self, file=self.file or data.file, lines=data.lines, node=data.node, whole=True)
        if not self.whole:
            return self
        return self if self.most is not None or source_lines is None else replace(self, most=source_lines)

    def complaints(self, seen: Seen, *, promised: bool, waited_for: bool) -> Iterator[str]:
        """`promised`: nothing keeps it from being made. `waited_for`: a claim may be restored from it yet, or wait for
        that for ever."""
        shown, content = seen.snapshots.get(self.name), seen.contents.get(self.content)
        data = seen.data.get(self.volume)
        if not self.deleted:
            yield from self._of_living(seen, promised)
            return
        if shown and not waited_for:
            yield "it is there still"
        if waited_for and shown:
            return
        if not self.retain or self.parted:
            if content:
                yield "its content is there still"
            if data and not self.retain:
                yield f"its data is left on {data.node}"
            if data and not data.whole and data.policy == "Retain":
                yield f"what was begun of it is left on {data.node}"
        elif self.ready and not content:
            yield "its content is gone"
        if self.retain and self.ready and not self.doubtful:
            yield from self.data_complaints(data)
            if data and data.policy != "Retain":
                yield f"on {data.node} it has policy {data.policy}"

    def _of_living(self, seen: Seen, promised: bool) -> Iterator[str]:
        shown, content = seen.snapshots.get(self.name), seen.contents.get(self.content)
        data = seen.data.get(self.volume)
        if shown is None:
            yield "it is gone"
            return
        if promised and not shown.ready:
            yield "it is not ready"
        if (self.ready or shown.ready) and content is None:
            yield "its content is gone"
        if content and content.retain != self.retain:
            yield f"its content has policy {'Retain' if content.retain else 'Delete'}"
        # One that was ready stays so for the snapshot controller, also when its driver says that it is lost.
        if content and content.ready != shown.ready and not self.doubtful:
            yield f"ready it is by itself: {shown.ready}, by its content: {content.ready}"
        if not self.able and (shown.ready or data):
            yield "it is ready, and there can be none of its source"
        if (shown.ready and content and content.ready) or (self.ready and not self.doubtful):
            yield from self.data_complaints(data)
            if data and (data.policy == "Retain") != self.retain:
                yield f"on {data.node} it has policy {data.policy}"
        elif data and not self.doubtful:
            yield f"what was begun of it is left on {data.node}"

    def data_complaints(self, data: SeenData | None) -> Iterator[str]:
        if data is None:
            yield "LOST: it is on no node"
        elif not data.whole:
            yield "LOST: its record does not say that it is ready"
        elif data.file != self.file:
            yield f"LOST: its file has {data.file!r}, and had {self.file!r}"
        elif self.whole and data.lines != self.lines:
            yield f"LOST: it has lines {data.lines}, and had {self.lines}"
        elif not begins_with(data.lines, self.lines):
            yield f"LOST: it has lines {data.lines}, and its source had {self.lines}"
        elif self.most is not None and not begins_with(self.most, data.lines):
            yield f"it has lines {data.lines}, and its source had only {self.most} when it was ready"
