"""Which program cleans, and what is said when it does not."""

import os
import sys
from pathlib import Path

import pytest

from daemon.static import cleaners, cleanupprocess
from daemon.static.cleanupprocess import CleanupFailed, CleanupTarget, clean
from daemon.static.configuration import BLOCK, FILESYSTEM, ClassConfiguration
from tests.unit.daemon.static.deleterharness import believe_places


@pytest.mark.parametrize("name", ["quick_reset.sh", "dd_zero.sh", "shred.sh", "blkdiscard.sh"])
def test_script_paths_are_the_bundled_cleaners(name: str) -> None:
    program, *arguments = cleaners.bundled((f"/scripts/{name}", "2"))
    assert os.access(program, os.X_OK)
    assert (Path(program).name, arguments) == (name, ["2"])


def test_the_folder_cleaner_is_run_by_our_own_python() -> None:
    assert cleaners.bundled(("/scripts/fsclean.sh",)) == (sys.executable, "-P", "-m", "daemon.static.cleaners.folder")


@pytest.mark.parametrize("command", [("/scripts/own.sh", "2"), ("quick_reset.sh",), ("/opt/scripts/shred.sh",)])
def test_other_programs_are_run_as_they_are(command: tuple[str, ...]) -> None:
    assert cleaners.bundled(command) == command


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    believe_places(monkeypatch)


def class_config(tmp_path: Path, *command: str, mode: str = BLOCK) -> ClassConfiguration:
    chosen = {"block_cleaner": command} if mode == BLOCK else {"filesystem_cleaner": command}
    return ClassConfiguration("fast", "/mnt/disks", tmp_path, **chosen)  # type: ignore[arg-type]  # of the two, one


def target(tmp_path: Path, mode: str = BLOCK) -> CleanupTarget:
    target = tmp_path / "device"
    target.touch()
    return CleanupTarget(tmp_path / "link", target, mode)


@pytest.mark.parametrize(("mode", "variable"), [(BLOCK, "LOCAL_PV_BLKDEVICE"), (FILESYSTEM, "LOCAL_PV_FILESYSTEM")])
async def test_the_program_gets_the_path_in_a_variable(tmp_path: Path, mode: str, variable: str) -> None:
    here = target(tmp_path, mode)
    script = f'printf "%s" "${variable}" > {tmp_path}/told'
    await clean("pv", here, class_config(tmp_path, "sh", "-c", script, mode=mode), 10)
    assert (tmp_path / "told").read_text() == str(here.real_path)


def test_what_cleans_a_folder_when_nothing_is_configured(tmp_path: Path) -> None:
    assert cleanupprocess.command(FILESYSTEM, class_config(tmp_path, mode=FILESYSTEM)) == ("/scripts/fsclean.sh",)


async def test_what_it_said_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await clean("pv", target(tmp_path), class_config(tmp_path, "sh", "-c", "echo half; echo done >&2"), 10)
    assert [record.message for record in caplog.records] == ["cleaning pv: half", "cleaning pv: done"]


async def test_an_exit_code_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(CleanupFailed, match="failed with exit code 10: disk on fire"):
        await clean("pv", target(tmp_path), class_config(tmp_path, "sh", "-c", "echo disk on fire >&2; exit 10"), 10)


async def test_a_time_limit_ends_it(tmp_path: Path) -> None:
    with pytest.raises(CleanupFailed, match=r"killed at its deadline .*raise cleaningTimeout"):
        await clean("pv", target(tmp_path), class_config(tmp_path, "sleep", "60"), 0.1)


@pytest.mark.parametrize("program", ["/no/such/program", "/dev/null"])
async def test_a_program_that_can_not_be_run(tmp_path: Path, program: str) -> None:
    with pytest.raises(CleanupFailed, match=f"{program} can't be run"):
        await clean("pv", target(tmp_path), class_config(tmp_path, program), 10)
