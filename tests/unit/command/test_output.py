"""How the command talks: what is piped is whole, what takes long says so, what goes wrong is a line."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import pytest
import typer
import yaml

from command import checkup, running, table, terminal, volumes
from command.options import Form
from command.running import Stop, patience, run
from command.table import Column, share, show
from command.volumerows import Row as VolumeRow
from command.volumes import changes
from kube.errors import Unreachable
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


def test_wide_yaml_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (*_COLUMNS, Column[Row]("more", lambda row: "x", wide=True))
    show([Row("a", 5)], columns, Form.TABLE, nothing="none")
    assert "MORE" not in capsys.readouterr().out
    show([Row("a", 5)], columns, Form.WIDE, nothing="none")
    assert "MORE" in capsys.readouterr().out
    show([Row("a", 5)], columns, Form.YAML, nothing="none")
    assert yaml.safe_load(capsys.readouterr().out) == [{"name": "a", "size": 5}]
    rows = [Row("a", 5), Row("", 6), Row("a", 7)]
    show(rows, columns, Form.NAME, nothing="none", name=lambda row: row.name and f"persistentvolume/{row.name}")
    assert capsys.readouterr() == ("persistentvolume/a\n", "")


def test_a_row_is_a_line_in_any_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show([Row("pvc-" + "x" * 100, 5)], _COLUMNS, Form.TABLE, nothing="")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_others_wrote_is_one_line_that_no_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    show([Row("two\nlines \x1b[31mred\x1b[0m \u202eabc", 5)], _COLUMNS, Form.TABLE, nothing="")
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("two lines \\x1b[31mred\\x1b[0m \\u202eabc ")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_only_where_it_is_wanted(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert (terminal.in_colour("WRONG", fg="red") != "WRONG") is coloured


def test_a_checkup_ends_with_its_sum() -> None:
    findings = [checkup.ok("a", ""), checkup.ok("b", ""), checkup.wrong("c", "", ""), checkup.unknown("d", "")]
    assert checkup.summary(findings) == "4 checks: 2 ok, 1 wrong, 1 could not be found out"
    assert checkup.summary(findings[:3]) == "3 checks: 2 ok, 1 wrong"
    assert checkup.summary(findings[:1]) == "1 check: 1 ok, 0 wrong"


def test_watching_shows_what_changes() -> None:
    row = VolumeRow(volume="pvc-1", uid="u", node="n", state="ready", size=5, used=1)
    before = {("n", "pvc-1"): row}
    assert changes({}, before) == [row]
    assert changes(before, {("n", "pvc-1"): replace(row, used=2)}) == []
    grown = replace(row, size=6)
    assert changes(before, {("n", "pvc-1"): grown}) == [grown]
    assert changes(before, {}) == [replace(row, state="gone")]


async def test_watching_tells_a_remark_when_it_is_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(volumes, "_WATCH_SECONDS", 0)
    row = VolumeRow(volume="pvc-1", uid="u", node="n", state="ready", size=5)
    silent = volumes.Seen([row], ("node m did not answer",), complete=False)
    looks = iter([silent, silent, volumes.Seen([row]), silent])

    async def look() -> volumes.Seen:
        try:
            return next(looks)
        except StopIteration:
            raise Stop("enough") from None

    with pytest.raises(Stop):
        await volumes._watch(look, Form.TABLE)
    shown = capsys.readouterr()
    assert shown.err == "node m did not answer\n" * 2
    assert shown.out.count("pvc-1") == 1


async def test_watching_goes_on_when_the_api_server_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(volumes, "_WATCH_SECONDS", 0)
    row = VolumeRow(volume="pvc-1", uid="u", node="n", state="ready", size=5)
    orphan = VolumeRow(volume="pvc-2", uid="u", node="m", state="orphan", size=5)
    away = Unreachable(0, "", "no connection to it")
    both, silent = volumes.Seen([row, orphan]), volumes.Seen([row], ("node m did not answer",), False, frozenset("m"))
    looks: Iterator[volumes.Seen | Exception]
    looks = iter([both, away, away, silent, both, volumes.Seen([row]), away, Stop("enough")])

    async def look() -> volumes.Seen:
        found = next(looks)
        if isinstance(found, volumes.Seen):
            return found
        raise found

    with pytest.raises(Stop):
        await volumes._watch(look, Form.TABLE)
    shown = capsys.readouterr()
    again = "no connection to it: it is asked again until it answers\n"
    assert shown.err == f"{again}node m did not answer\n{again}"
    assert [line.split()[1] for line in shown.out.splitlines()[1:]] == ["pvc-1", "pvc-2", "pvc-2"]
    assert shown.out.splitlines()[-1].endswith("gone")

    looks = iter([away])
    with pytest.raises(Unreachable):
        await volumes._watch(look, Form.TABLE)


@pytest.mark.parametrize(
    ("taken", "whole", "message"),
    [(0, 100, "░" * 16), (50, 100, "████████░░░░░░░░  50 %"), (150, 100, "150 %"), (0, 0, "0 %"), (-5, 100, "-5 %")],
)
def test_a_share_is_a_bar_with_a_figure(taken: int, whole: int, message: str) -> None:
    assert message in share(taken, whole)
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
    monkeypatch.setattr(running, "_AGAIN", 0.0)
    left = ["all have answered", "1 of 2", "1 of 2", "2 of 2"]
    shown = ""
    async with patience(lambda: left.pop() if len(left) > 1 else left[0]):
        while "all have answered" not in shown:
            shown += capsys.readouterr().err
            await asyncio.sleep(0.001)
    assert shown == "2 of 2 ...\n1 of 2 ...\nall have answered ...\n"


async def _interrupted() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("resumable", "told"), [(True, "the same command goes on from here"), (False, "")])
def test_an_interrupt_ends_it_as_it_ends_any_program(
    resumable: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        run(_interrupted(), resumable=resumable)
    assert ended.value.exit_code == 130
    shown = capsys.readouterr().err
    assert told in shown if told else not shown


@pytest.mark.parametrize("error", [Stop("no disk: add one"), NoSpace("vgcreate", 5, "no room: free some")])
def test_what_goes_wrong_is_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> NoReturn:
        raise error

    with pytest.raises(typer.Exit) as ended:
        run(work())
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.startswith(f"elastic-local: {str(error)[:8]}")
