"""How the command talks: what is piped is whole, what takes long says so, what goes wrong is a line."""

import asyncio
import json
from dataclasses import dataclass
from typing import NoReturn

import pytest
import typer

from command import running, table
from command.options import Form
from command.running import Stop, patience, run
from command.table import Column, share, show
from lvm import NoSpace


@dataclass(frozen=True)
class Row:
    name: str
    size: int


_COLUMNS = (Column[Row]("name", lambda row: row.name), Column[Row]("size", lambda row: table.size(row.size)))


def test_a_piped_table_is_not_cut_and_takes_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "pvc-" + "x" * 180 + "[bold]"
    show([Row(long, 1 << 30)], _COLUMNS, Form.TABLE, nothing="")
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "SIZE"]
    assert line.split() == [long, "1Gi"]


def test_programs_get_bytes_and_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    show([Row("a", 5)], _COLUMNS, Form.JSON, nothing="none")
    assert json.loads(capsys.readouterr().out) == [{"name": "a", "size": 5}]
    show([], _COLUMNS, Form.JSON, nothing="none")
    assert capsys.readouterr() == ("[]\n", "")
    show([], _COLUMNS, Form.TABLE, nothing="none")
    assert capsys.readouterr() == ("", "none\n")


@pytest.mark.parametrize(
    ("taken", "whole", "words"),
    [(0, 100, "░" * 16), (50, 100, "████████░░░░░░░░  50 %"), (150, 100, "150 %"), (0, 0, "0 %"), (-5, 100, "-5 %")],
)
def test_a_share_is_a_bar_with_a_figure(taken: int, whole: int, words: str) -> None:
    assert words in share(taken, whole)
    assert len(share(taken, whole).split()[0]) == 16


async def test_what_takes_long_says_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with patience("being quick"):
        pass
    monkeypatch.setattr(running, "_PATIENCE", 0.0)
    async with patience("asking LVM"):
        while capsys.readouterr().err != "asking LVM ...\n":
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [Stop("no disk: add one"), NoSpace("vgcreate", 5, "no room: free some")])
def test_what_goes_wrong_is_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> NoReturn:
        raise error

    with pytest.raises(typer.Exit) as ended:
        run(work())
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.startswith(f"elastic-local: {str(error)[:8]}")
