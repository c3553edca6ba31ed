"""What survives a kill: one file of JSON lines, appended to before a request is answered and compacted at start.

A line is written with one system call, so a killed process leaves whole lines; a machine that loses power may leave
a torn last one, which is dropped. There is no fsync per write: what is promised is to survive SIGKILL, not a power cut.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.apiserver.resources import Json

_NAME = "journal.jsonl"


class DataInUse(Exception):
    """Another server works on this folder."""


@dataclass(frozen=True)
class Entry:
    """One line: the object as it was stored, or None when it was removed."""

    revision: int
    resource: str
    key: str
    object: Json | None


class Journal:
    """The file in `folder`. Open for one process at a time: raises DataInUse."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _NAME
        self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataInUse(f"{folder} is in use by another API server: stop it or choose another --data") from None
        self._file = -1

    def read(self) -> Iterator[Entry]:
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                yield Entry(**json.loads(line))

    def compact(self, revision: int, objects: Iterator[tuple[str, str, bytes, int]]) -> None:
        """Replaces the file by the given present state (resource, key, encoded object, revision) and opens it."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(_line(revision, "", "", b"null"))
            for resource, key, encoded, written in objects:
                file.write(_line(written, resource, key, encoded))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, revision: int, resource: str, key: str, encoded: bytes | None) -> None:
        line = _line(revision, resource, key, encoded or b"null")
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self._path}: short write: is the disk full?")

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)


class NoJournal(Journal):
    """For a server in the process of its test: nothing outlives that."""

    def __init__(self) -> None: ...

    def read(self) -> Iterator[Entry]:
        return iter(())

    def compact(self, revision: int, objects: Iterator[tuple[str, str, bytes, int]]) -> None: ...

    def append(self, revision: int, resource: str, key: str, encoded: bytes | None) -> None: ...

    def close(self) -> None: ...


def _line(revision: int, resource: str, key: str, encoded: bytes) -> bytes:
    head = f'{{"revision":{revision},"resource":{json.dumps(resource)},"key":{json.dumps(key)},"object":'
    return head.encode() + encoded + b"}\n"
