"""Records in files beside the data, for storage that has no tags.

A file is replaced as a whole: written under another name, flushed, renamed, and the folder flushed. So it always has
the old or the new content, also after a power cut, and what a crash leaves is a file whose name starts with a dot.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.errors import BackendFailed, Damaged, Foreign, NotFound, PoolMissing
from daemon.storage.record import DamagedRecord, Record, State, Volume, Wanted, from_fields
from host import ownfolder

_SUFFIX = ".json"
_UNFINISHED = ".new"
_SIZE = "size"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What goes wrong inside is told to the pod's owner."""
    try:
        yield
    except OSError as error:
        raise BackendFailed(f"the node's disk said: {error}; ask its administrator to look at it") from error
    except DamagedRecord as error:
        raise BackendFailed(f"the PersistentVolume can't be served: {error}") from error


@dataclass(frozen=True)
class Remembered:
    record: Record
    size: int
    """Bytes that were promised, where the data itself does not say it; else 0."""


class RecordFiles:
    """The record files of one folder. All methods block and raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def establish(self) -> None:
        ownfolder.establish(self._folder)
        for unfinished in self._folder.glob(f".*{_UNFINISHED}"):
            unfinished.unlink()

    def read_all(self) -> tuple[Mapping[str, Remembered], Mapping[str, str]]:
        """What is remembered, and of what the memory is damaged and why; both by name of the PersistentVolume."""
        sound, damaged = {}, {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not path.name.endswith(_SUFFIX):
                continue
            pv = path.name.removesuffix(_SUFFIX)
            try:
                if remembered := self._read(pv):
                    sound[pv] = remembered
            except DamagedRecord as error:
                damaged[pv] = f"{error} (in {path})"
        return sound, damaged

    def read(self, pv: str) -> Remembered | None:
        """None when there is no file. Raises daemon.errors.Damaged."""
        try:
            return self._read(pv)
        except DamagedRecord as error:
            raise Damaged(
                f"the record of volume {pv} on this node is damaged: {error}; ask the node's administrator to restore "
                f"{self._path(pv)}, or to remove it together with the data beside it"
            ) from error

    def claim(self, wanted: Wanted) -> Remembered | None:
        """What there is to go on from when the volume is made. Raises Foreign when another has its name, Damaged,
        PoolMissing."""
        self._refuse_absent(wanted.pv)
        before = self.read(wanted.pv)
        if before and (before.record.uid != wanted.uid or before.record.state is not State.FORMATTING):
            raise Foreign(
                f"this node has another volume named {wanted.pv} (of uid {before.record.uid}, "
                f"{before.record.state.value}): ask the node's administrator whether it may go"
            )
        return before

    def own(self, volume: Volume) -> Remembered:
        """What is remembered of this very volume. Raises NotFound, also when only its namesake is here, Damaged,
        PoolMissing."""
        before = self.present(volume.pv)
        if before.record.uid != volume.record.uid:
            raise NotFound(f"volume {volume.pv} is not on this node (any more)")
        return before

    def present(self, pv: str) -> Remembered:
        """What is remembered by that name, whoever's it is. Raises NotFound, Damaged, PoolMissing."""
        self._refuse_absent(pv)
        found = self.read(pv)
        if found is None:
            raise NotFound(f"volume {pv} is not on this node (any more)")
        return found

    def _refuse_absent(self, pv: str) -> None:
        """Of what lies in a folder that is not there nobody can say that it is gone."""
        if not self._folder.is_dir():
            raise PoolMissing(
                f"volume {pv} needs {self._folder}, which this node does not have: its administrator mounts the disk "
                "that it is on, or makes it there"
            )

    def _read(self, pv: str) -> Remembered | None:
        try:
            text = self._path(pv).read_text(errors="replace")
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise DamagedRecord(f"it is not JSON: {error}") from error
        record = from_fields(fields) if isinstance(fields, dict) else None
        if record is None:
            raise DamagedRecord("it is no record of elastic-local")
        if record.pv != pv:
            raise DamagedRecord(f"it is the record of {record.pv}")
        size = fields.get(_SIZE, 0)
        if not isinstance(size, int) or size < 0:
            raise DamagedRecord(f"size is {size!r}")
        return Remembered(record, size)

    def write(self, record: Record, size: int = 0) -> None:
        """On disk when this returns."""
        fields = {**record.to_fields(), **({_SIZE: size} if size else {})}
        unfinished = self._folder / f".{record.pv}{_UNFINISHED}"
        with unfinished.open("w") as file:
            file.write(json.dumps(fields, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path(record.pv))
        self.flush()

    def void(self, remembered: Remembered) -> None:
        """The first step of a removal: from now on what is left of the data counts for nothing."""
        if remembered.record.state is not State.FORMATTING:
            self.write(replace(remembered.record, state=State.FORMATTING), remembered.size)

    def forget(self, pv: str) -> None:
        """The last step of a removal: without its record, data is foreign."""
        with contextlib.suppress(FileNotFoundError):
            self._path(pv).unlink()
        self.flush()

    def flush(self) -> None:
        """What was made or unlinked in the folder is so on disk."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, pv: str) -> Path:
        return self._folder / f"{pv}{_SUFFIX}"
