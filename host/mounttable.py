"""The mount table of our namespace, read from /proc/self/mountinfo.

mountinfo and not /proc/mounts: only it shows which part of a filesystem a bind mount shows (`root`) and which mount
lies on which. Source of the format: proc_pid_mountinfo(5).
"""

import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_TRIES = 3
_ESCAPE = re.compile(r"\\([0-7]{3})")
_ESCAPED = re.compile(r"[ \t\n\\#]")
"""What is written otherwise in the table, some of it by some kernels only."""


@dataclass(frozen=True)
class Mount:
    """One line of the table."""

    id: int
    parent: int
    device: str
    """"major:minor"."""
    root: str
    """The folder of the filesystem that this mount shows: "/" unless it is a bind mount of less than all."""
    path: str
    options: frozenset[str]
    """Of this mount alone: a bind mount may be `ro` of a filesystem that is `rw`."""
    filesystem: str
    source: str
    filesystem_options: frozenset[str]
    shared: bool = False
    """Mounts below it reach other namespaces, a container's those of its host (mount_namespaces(7))."""

    @property
    def read_only(self) -> bool:
        return "ro" in self.options


def parse(text: str) -> list[Mount]:
    """The mounts in the order of the table, in which one that lies on another comes later. Raises ValueError."""
    return [_parse_line(line) for line in text.split("\n") if line]


def _parse_line(line: str) -> Mount:
    # Single spaces separate, and a field may be empty: a mount without a source has two in a row. Some filesystems
    # write blanks in their options as they are, such as the 9p of WSL in its paths of Windows.
    fields = line.split(" ")
    try:
        dash = fields.index("-", 6)
        filesystem, source, *words = fields[dash + 1 :]
        if not words:
            raise ValueError("it has no options")
        return Mount(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2],
            root=_decode(fields[3]),
            path=_decode(fields[4]),
            options=frozenset(fields[5].split(",")),
            filesystem=_decode(filesystem),
            source=_decode(source),
            filesystem_options=frozenset(_decode(option) for option in " ".join(words).split(",")),
            shared=any(field.startswith("shared:") for field in fields[6:dash]),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a line of mountinfo: {line!r}") from error


def _decode(field: str) -> str:
    """Undoes the kernel's escapes: blanks, line ends, backslash and # as three octal digits, nothing else."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)


def read() -> list[Mount]:
    """The table as it is now."""
    return parse(_text())


def read_at(*paths: Path) -> list[list[Mount]]:
    """What is mounted on each of these paths, of one reading, the uppermost last. Of a long table only those lines are
    parsed."""
    text = _text()
    return [_at(text, path) for path in paths]


def _at(text: str, path: Path) -> list[Mount]:
    if _ESCAPED.search(str(path)):
        return [mount for mount in parse(text) if mount.path == str(path)]
    word = f" {path} "
    lines, begin = [], text.find(word)
    while begin >= 0:
        end = text.find("\n", begin)
        lines.append(text[text.rfind("\n", 0, begin) + 1 : end])
        begin = text.find(word, end)
    return [mount for mount in map(_parse_line, lines) if mount.path == str(path)]


def _text() -> str:
    """The kernel hands a long table out in pieces, between which mounts come and go, and may then leave out one that
    was there all the time. Two equal readings show that nothing moved; if it never calms down, the last one must do.
    """
    text = _read_once()
    for _ in range(_TRIES - 1):
        before, text = text, _read_once()
        if text == before:
            break
    return text


def _read_once() -> str:
    return _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
