"""Installing the driver: whole or not at all, and only when it changed."""

import ast
import sys
from importlib import resources
from pathlib import Path

from contract import names
from flexdriver import bundle


def test_the_same_driver_is_not_installed_again(tmp_path: Path) -> None:
    executable = bundle.build()
    target = tmp_path / names.DRIVER_FOLDER / names.DRIVER_NAME
    assert bundle.install(executable, tmp_path) == target
    first = target.stat()
    assert bundle.install(bundle.build(), tmp_path) is None
    assert target.stat().st_ino == first.st_ino
    assert [entry.name for entry in target.parent.iterdir()] == [names.DRIVER_NAME]


def test_a_changed_or_spoilt_driver_is_replaced(tmp_path: Path) -> None:
    target = bundle.install(bundle.build(), tmp_path)
    assert target is not None
    target.write_bytes(b"#!/bin/false")
    assert bundle.install(bundle.build(), tmp_path) == target
    target.chmod(0o644)
    assert bundle.install(bundle.build(), tmp_path) == target
    assert target.stat().st_mode & 0o777 == 0o755


def test_the_archive_holds_all_that_it_imports() -> None:
    """A module that the callout starts to import must be added to the archive: it runs where nothing else is."""
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
