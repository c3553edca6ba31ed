"""`flexdriver install`: puts the driver where this node's kubelet looks for it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from command.options import Form
from command.table import show_data
from flexdriver import installation


@dataclass(frozen=True)
class Installed:
    path: str
    driver: str
    """Which of them, for people."""
    changed: bool
    """Whether another one, or none, was there before."""

    def __str__(self) -> str:
        if self.changed:
            return f"installed {self.path} ({self.driver})"
        return f"{self.path}: this very driver ({self.driver}) is installed already"


def install(plugin_dirs: Sequence[Path], interpreter: Path, form: Form) -> None:
    driver = installation.choose(interpreter=str(interpreter))
    done = [_install(driver, each) for each in plugin_dirs]
    if form.structured:
        show_data([dataclasses.asdict(each) for each in done], form)
    else:
        for each in done:
            typer.echo(str(each))


def _install(driver: installation.Driver, plugin_dir: Path) -> Installed:
    try:
        changed = not installation.installed(driver, plugin_dir)
        path = installation.install(driver, plugin_dir) if changed else installation.place(plugin_dir)
    except OSError as error:
        raise typer.BadParameter(
            f"can't write to {plugin_dir}: {error.strerror}. Is it a folder of this host, and writable?"
        ) from None
    return Installed(str(path), driver.description, changed)
