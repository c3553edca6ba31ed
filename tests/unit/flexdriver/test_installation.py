"""Which driver a node gets, and that it comes whole or not at all."""

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command.main import app
from contract import names
from flexdriver import bundle, installation
from flexdriver.installation import Driver

FIRST, SECOND = Driver("the first", b"#!/bin/true\n"), Driver("the second", b"#!/bin/false\n" * 100_000)


def test_what_is_installed_is_known_from_what_is_not(tmp_path: Path) -> None:
    assert not installation.installed(FIRST, tmp_path)
    target = installation.install(FIRST, tmp_path)
    assert target == tmp_path / names.DRIVER_FOLDER / names.DRIVER_NAME
    assert target.stat().st_mode & 0o777 == 0o755
    assert installation.installed(FIRST, tmp_path)
    assert not installation.installed(SECOND, tmp_path)
    target.chmod(0o644)
    assert not installation.installed(FIRST, tmp_path)


def test_the_driver_is_replaced_whole_by_whoever_installs_at_once(tmp_path: Path) -> None:
    target = installation.install(FIRST, tmp_path)
    with target.open("rb") as running, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(installation.install, driver, tmp_path) for driver in (FIRST, SECOND) * 8]:
            done.result()
            assert target.read_bytes() in (FIRST.executable, SECOND.executable)
        assert running.read() == FIRST.executable
    assert [entry.name for entry in target.parent.iterdir()] == [names.DRIVER_NAME]


def test_a_machine_without_a_native_driver_gets_the_python_one(native: Driver, machine: str) -> None:
    assert installation.choose(machine) == native
    chosen = installation.choose("sparc64", "/opt/python")
    assert chosen.executable == bundle.build("/opt/python")
    assert "no native one for sparc64" in chosen.description


def test_the_command_says_what_it_installed_and_that_it_did(tmp_path: Path) -> None:
    chosen = installation.choose()
    first, again = (CliRunner().invoke(app, ["flexdriver", "install", "--plugin-dir", str(tmp_path)]) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.output.startswith("installed ")
    assert chosen.description in first.output
    assert "installed already" in again.output
    assert installation.installed(chosen, tmp_path)


def test_the_command_installs_no_other_driver_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the plugin of kubectl, for which none is built."""
    monkeypatch.setattr(installation, "native", lambda machine: None)
    words = ["flexdriver", "install", "--plugin-dir", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "The daemon has one, and installs it when it starts" in refused.output
    assert not list(tmp_path.iterdir())

    done = CliRunner().invoke(app, [*words, "--interpreter", "/opt/python"])
    assert done.exit_code == 0, done.output
    assert installation.place(tmp_path).read_bytes() == bundle.build("/opt/python")


def test_the_command_says_what_to_do_about_a_folder_that_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, ["flexdriver", "install", "--plugin-dir", str(tmp_path / "file")])
    assert refused.exit_code == 2
    assert "Is it a folder of this host" in refused.output

    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["flexdriver", "install", "--plugin-dir", "exec"])
    assert (refused.exit_code, "exec is no absolute path" in refused.output) == (2, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_archive_holds_all_that_it_imports() -> None:
    """A module that the Python callout starts to import must be added to the archive: it runs where nothing else is."""
    archived = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in bundle._MEMBERS}
    for package, file in bundle._MEMBERS.values():
        source = resources.files(package).joinpath(file).read_text()
        for node in ast.walk(ast.parse(source)):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                assert module in archived or module.split(".")[0] in sys.stdlib_module_names, f"{file}: {module}"
