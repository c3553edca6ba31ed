"""The columns that kubectl shows of each kind, and how each cell is told from an object."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.sandbox.apiserver.resources import Json, Resource


@dataclass(frozen=True)
class Column:
    """`priority` 0 is always shown, 1 with `-o wide`."""

    name: str
    cell: Callable[[Json], object]
    priority: int = 0


def of(resource: Resource) -> tuple[Column, ...]:
    return (_NAME, _AGE)


_NAME = Column("Name", lambda body: body["metadata"]["name"])
_AGE = Column("Age", lambda body: "1s")
