"""The words of the command. Each program takes its settings from the environment, as a pod has them; what a person
types is an option."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from command import vg
from command.adopt import adopt
from command.capacity import capacity
from command.doctor import doctor
from command.volumes import volumes
from flexdriver import bundle, installation
from service.environment import SettingsError

app = typer.Typer(
    help="Local volumes for Kubernetes: logical volumes of exactly the size a claim asks for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
flexdriver = typer.Typer(help="The executable that the kubelet calls.", no_args_is_help=True)
app.add_typer(flexdriver, name="flexdriver")
app.add_typer(vg.app, name="vg")
for _command in (volumes, capacity, adopt, doctor):
    app.command()(_command)


@app.command()
def daemon() -> None:
    """Run the daemon of this node: serves the kubelet, makes, mounts and removes volumes.

    Settings come from the environment, NODE_NAME above all; the README has the table.
    """
    from daemon import node, settings

    _run(lambda: node.run(settings.read(os.environ)))


@app.command()
def provisioner() -> None:
    """Run the provisioner, cluster-wide: creates a PersistentVolume for each claim, deletes those that are released.

    Settings come from the environment; the README has the table. Run two: one leads, the other takes over.
    """
    from provisioner import controller, settings

    _run(lambda: controller.run(settings.read(os.environ)))


@flexdriver.command()
def install(
    plugin_dir: Annotated[Path, typer.Option(envvar="PLUGIN_DIR", help="The kubelet's volumePluginDir.")] = Path(
        installation.PLUGIN_DIRECTORY
    ),
    interpreter: Annotated[
        Path, typer.Option(help="Python of the node, 3.11 or later, where no native driver was built for its machine.")
    ] = Path(bundle.INTERPRETER),
) -> None:
    """Install the driver into the kubelet's plugin directory, whole or not at all; the kubelet sees it at once.

    The daemon does this by itself; this is for a node where no daemon may write there.
    """
    driver = installation.choose(interpreter=str(interpreter))
    try:
        if installation.installed(driver, plugin_dir):
            typer.echo(f"{plugin_dir}: this very driver ({driver.words}) is installed already")
        else:
            typer.echo(f"installed {installation.install(driver, plugin_dir)} ({driver.words})")
    except OSError as error:
        raise typer.BadParameter(
            f"can't write to {plugin_dir}: {error.strerror}. Is it a folder of this host, and writable?"
        ) from None


def _run(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program until it ends. A wrong setting ends it before it began, with a line instead of a traceback."""
    try:
        asyncio.run(program())
    except SettingsError as error:
        typer.echo(f"elastic-local: {error}", err=True)
        raise typer.Exit(2) from None
