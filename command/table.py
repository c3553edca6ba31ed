"""Answers for a person, as a table, and for a program, as JSON, from the same frozen rows.

JSON has all fields of a row, sizes in bytes. A table is cut to the terminal only where there is one: what is piped is
whole, so that grep finds it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from command.options import Form
from contract import quantity

_BAR = 16
_PIPED_WIDTH = 400

R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    title: str
    cell: Callable[[R], str]
    right: bool = False


def show(rows: Sequence[R], columns: Sequence[Column[R]], form: Form, nothing: str) -> None:
    """Prints the rows; `nothing` is shown to a person when there are none."""
    if form is Form.JSON:
        show_json([dataclasses.asdict(row) for row in rows])  # type: ignore[call-overload]  # rows are dataclasses
        return
    if not rows:
        typer.echo(nothing, err=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title.upper(), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        # Text: names hold brackets that rich would take for markup.
        table.add_row(*(Text(column.cell(row)) for column in columns))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=list))


def size(count: int | None) -> str:
    return "-" if count is None else quantity.humane(count)


def share(taken: int, whole: int) -> str:
    """A bar with the percentage. What is overcommitted fills it, and the figure says by how much."""
    percent = 100 * taken // whole if whole > 0 else (100 if taken > 0 else 0)
    filled = max(0, min(_BAR, _BAR * percent // 100))
    return f"{'█' * filled}{'░' * (_BAR - filled)} {percent:3d} %"
