"""Records in files beside the data, for storage that has no tags.

A file is replaced as a whole: written under another name, flushed, renamed, and the folder flushed. So it always has
the old or the new content, also after a power cut, and what a crash leaves is a file whose name starts with a dot.

On a full disk a record can still be replaced, or what fills the disk could not be removed. A folder with records has a
file in reserve: the new record is written over it where it lies, which takes no room, and it takes the old one's name;
what was the old record is the reserve from then on. So each record has a whole block, with blanks at its end.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.errors import BackendFailed, Damaged, Foreign, PoolMissing, VolumeNotFound
from daemon.storage.inventory import Volume
from daemon.storage.record import DamagedRecord, Record, VolumeSpec, VolumeState, from_fields
from host import ownfolder, presence
from host.diskthreads import Hung
from host.foldertree import NotEmptied

log = logging.getLogger(__name__)

RESERVE = ".reserve"
RECORD_SUFFIX = ".json"
_UNFINISHED = ".new"
_SIZE = "size"
_BLOCK = 4096
"""Bytes that a record has, blanks at its end included."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def volume_errors() -> Iterator[None]:
    """What goes wrong inside becomes a VolumeError, worded for the pod's owner."""
    try:
        yield
    except (OSError, NotEmptied) as error:
        raise BackendFailed(f"the node's disk said: {error}; ask its administrator to look at it") from error
    except Hung as error:
        raise BackendFailed(str(error)) from error
    except DamagedRecord as error:
        raise BackendFailed(f"the PersistentVolume can't be served: {error}") from error


@dataclass(frozen=True)
class StoredRecord:
    record: Record
    size: int
    """Bytes that were promised, where the data itself does not say it; else 0."""


class RecordFiles:
    """The record files of one folder. All methods block and raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reserve = folder / RESERVE
        self._making_reserve = folder / f"{RESERVE}-{_UNFINISHED}"  # the name of no PersistentVolume

    def establish(self) -> None:
        ownfolder.establish(self._folder)
        for path in self._folder.iterdir():
            if path.name.startswith(".") and path.name.endswith(_UNFINISHED):
                path.unlink()
        if not self._drop_idle_reserve():
            self._keep_reserve()

    def read_all(self) -> tuple[Mapping[str, StoredRecord], Mapping[str, str]]:
        """What is remembered, and of what the memory is damaged and why; both by name of the PersistentVolume."""
        sound, damaged = {}, {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not path.name.endswith(RECORD_SUFFIX):
                continue
            pv = path.name.removesuffix(RECORD_SUFFIX)
            try:
                if stored := self._read(pv):
                    sound[pv] = stored
            except DamagedRecord as error:
                damaged[pv] = f"{error} (in {path})"
        return sound, damaged

    def read(self, pv: str) -> StoredRecord | None:
        """None when there is no file. Raises daemon.errors.Damaged."""
        try:
            return self._read(pv)
        except DamagedRecord as error:
            raise Damaged(
                f"the record of volume {pv} on this node is damaged: {error}; ask the node's administrator to restore "
                f"{self._path(pv)}, or to remove it together with the data beside it"
            ) from error

    def claim(self, spec: VolumeSpec) -> StoredRecord | None:
        """What there is to go on from when the volume is made. Raises Foreign when another has its name, Damaged,
        PoolMissing."""
        self._refuse_absent(spec.pv)
        before = self.read(spec.pv)
        if before and (before.record.uid != spec.uid or before.record.state is not VolumeState.FORMATTING):
            raise Foreign(
                f"this node has another volume named {spec.pv} (of uid {before.record.uid}, "
                f"{before.record.state.value}): ask the node's administrator whether it may go"
            )
        return before

    def own(self, volume: Volume) -> StoredRecord:
        """What is remembered of this very volume. Raises VolumeNotFound, also when only its namesake is here, Damaged,
        PoolMissing."""
        before = self.present(volume.pv)
        if before.record.uid != volume.record.uid:
            raise VolumeNotFound(f"volume {volume.pv} is not on this node (any more)")
        return before

    def present(self, pv: str) -> StoredRecord:
        """What is remembered by that name, whoever's it is. Raises VolumeNotFound, Damaged, PoolMissing."""
        self._refuse_absent(pv)
        record = self.read(pv)
        if record is None:
            raise VolumeNotFound(f"volume {pv} is not on this node (any more)")
        return record

    def _refuse_absent(self, pv: str) -> None:
        """Raises PoolMissing. While the folder is missing, a record that is not found may still exist on its disk."""
        if not presence.is_folder(self._folder):
            raise PoolMissing(
                f"volume {pv} needs {self._folder}, which this node does not have: its administrator mounts the disk "
                "that it is on, or makes it there"
            )

    def _read(self, pv: str) -> StoredRecord | None:
        try:
            text = _content(self._path(pv))
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
        return StoredRecord(record, size)

    def write(self, record: Record, size: int = 0) -> None:
        """On disk when this returns."""
        fields = {**record.to_fields(), **({_SIZE: size} if size else {})}
        text = (json.dumps(fields, indent=1).ljust(_BLOCK - 1) + "\n").encode()
        path = self._path(record.pv)
        self._keep_reserve()
        try:
            self._write(path, self._folder / f".{record.pv}{_UNFINISHED}", text)
        except OSError as full:
            if full.errno not in _FULL or not presence.exists(path):
                raise
            self._write_on_full_disk(path, text, full)
        self.flush()

    @staticmethod
    def _write(path: Path, unfinished: Path, text: bytes) -> None:
        try:
            with unfinished.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise

    def _write_on_full_disk(self, path: Path, text: bytes, full: OSError) -> None:
        """Raises `full` when there is no reserve."""
        old = self._making_reserve
        with self._alone():
            try:
                with self._reserve.open("r+b") as file:
                    file.write(text)
                    file.truncate()
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                raise full from None
            with contextlib.suppress(OSError):
                old.unlink(missing_ok=True)
                old.hardlink_to(path)
            self._reserve.replace(path)
            # Nobody else has the old record's file by now, so the next one may write over it.
            with contextlib.suppress(OSError):
                old.replace(self._reserve)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else touches the reserve, in no thread and no program."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _drop_idle_reserve(self) -> bool:
        """Without any record there is nothing to replace."""
        with self._alone(), os.scandir(self._folder) as entries:
            if any(entry.name.endswith(RECORD_SUFFIX) for entry in entries):
                return False
            self._reserve.unlink(missing_ok=True)
            return True

    def _keep_reserve(self) -> None:
        """There is one, if there is room for it."""
        if presence.exists(self._reserve):
            return
        with self._alone():
            try:
                self._write(self._reserve, self._making_reserve, b" " * (_BLOCK - 1) + b"\n")
            except OSError as error:
                log.warning(
                    "%s can't be made (%s): remove any file from that disk, or no volume on it can be removed",
                    self._reserve,
                    error.strerror,
                )

    def void(self, stored: StoredRecord) -> None:
        """The first step of a removal: from now on what is left of the data counts for nothing."""
        if stored.record.state is not VolumeState.FORMATTING:
            self.write(replace(stored.record, state=VolumeState.FORMATTING), stored.size)

    def forget(self, pv: str) -> None:
        """The last step of a removal: without its record, data is foreign."""
        with contextlib.suppress(FileNotFoundError):
            self._path(pv).unlink()
        self._drop_idle_reserve()
        self.flush()

    def flush(self) -> None:
        """What was made or unlinked in the folder is so on disk."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, pv: str) -> Path:
        return self._folder / f"{pv}{RECORD_SUFFIX}"


def _content(path: Path) -> str:
    """Of one moment. Raises FileNotFoundError."""
    while True:
        with path.open(errors="replace") as file:
            text = file.read()
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return text
        # It was replaced meanwhile, and the file that was read may be the reserve, and written over, by now.
