"""`flexdriver install`: puts the driver where this node's kubelet looks for it."""

import dataclasses
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


def install(plugin_dir: Path, interpreter: Path, form: Form) -> None:
    driver = installation.choose(interpreter=str(interpreter))
    try:
        changed = not installation.installed(driver, plugin_dir)
        path = installation.install(driver, plugin_dir) if changed else installation.place(plugin_dir)
    except OSError as error:
        raise typer.BadParameter(
            f"can't write to {plugin_dir}: {error.strerror}. Is it a folder of this host, and writable?"
        ) from None
    done = Installed(str(path), driver.description, changed)
    if form.structured:
        show_data(dataclasses.asdict(done), form)
    else:
        typer.echo(str(done))
