"""Answers for a person, as a table, and for a program, as JSON or YAML, from the same frozen rows.

JSON and YAML have all fields of a row, sizes in bytes. A table looks like kubectl's: a row is a line however narrow the
terminal is, so that a name is never broken and grep finds it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import typer
import yaml

from command.options import Form
from command.terminal import in_unicode, visible
from contract import quantity

_BAR = 16
_GAP = "   "

R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    title: str
    cell: Callable[[R], str]
    right: bool = False
    wide: bool = False
    """Shown with `-o wide` only."""


def show(
    rows: Sequence[R],
    columns: Sequence[Column[R]],
    form: Form,
    nothing: str,
    name: Callable[[R], str] = lambda row: "",
    *,
    titles: bool = True,
) -> None:
    """Prints the rows; `nothing` is shown to a person when there are none. `name` is what `-o name` prints of a row, as
    kubectl takes it; empty: the row is nothing that kubectl knows. Without `titles`, as what follows an earlier one."""
    if form.structured:
        show_data([dataclasses.asdict(row) for row in rows], form)  # type: ignore[call-overload]  # rows are dataclasses
        return
    if form is Form.NAME:
        for each in dict.fromkeys(filter(None, map(name, rows))):
            typer.echo(each)
        return
    if not rows:
        typer.echo(nothing, err=True)
        return
    shown = [column for column in columns if form is Form.WIDE or not column.wide]
    lines = [
        [column.title.upper() for column in shown],
        *([visible(column.cell(row)) for column in shown] for row in rows),
    ]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines if titles else lines[1:]:
        cells = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, cell, width in zip(shown, line, widths, strict=True)
        )
        typer.echo(_GAP.join(cells).rstrip())


def show_data(value: Any, form: Form) -> None:
    """As JSON, or as YAML."""
    text = json.dumps(value, indent=2, default=list)
    if form is Form.YAML:
        unicode = in_unicode(sys.stdout)
        typer.echo(yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=unicode), nl=False)
    else:
        typer.echo(text)


def size(count: int | None) -> str:
    return "-" if count is None else quantity.humane(count)


def share(taken: int, whole: int) -> str:
    """A bar with the percentage. What is overcommitted fills it, and the figure says by how much."""
    percent = 100 * taken // whole if whole > 0 else (100 if taken > 0 else 0)
    filled = max(0, min(_BAR, _BAR * percent // 100))
    full, empty = "█░" if in_unicode(sys.stdout) else "#."
    return f"{full * filled}{empty * (_BAR - filled)} {percent:3d} %"
