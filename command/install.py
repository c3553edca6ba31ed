"""`flexdriver install`: puts the driver where this node's kubelet looks for it."""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from command.options import Form
from command.table import show_data
from flexdriver import bundle, installation


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


def install(plugin_dirs: Sequence[Path], interpreter: Path | None, form: Form) -> None:
    """Where no native driver was built, as for the plugin of kubectl, the one that needs a Python of the node is for
    who says which: nobody means to install it by mistake, and the next start of the daemon would replace it."""
    if relative := [str(each) for each in plugin_dirs if not each.is_absolute()]:
        raise typer.BadParameter(
            f"{', '.join(relative)} is no absolute path, as the kubelet has it", param_hint="--plugin-dir"
        )
    machine = platform.machine()
    if interpreter is None and installation.native(machine) is None:
        typer.echo(
            f"elastic-local: this installation of the command has no native driver for {machine}. The daemon has one, "
            "and installs it when it starts. For a node where it may not: run `elastic-local flexdriver install` from "
            "the image there, or name a Python of that node, 3.11 or later, with --interpreter",
            err=True,
        )
        raise typer.Exit(1)
    driver = installation.choose(machine, str(interpreter or bundle.INTERPRETER))
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
            f"can't write to {plugin_dir}: {error.strerror}. Is it a folder of this host, and writable?",
            param_hint="--plugin-dir",
        ) from None
    return Installed(str(path), driver.description, changed)
