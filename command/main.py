"""The commands of `elastic-local`. Each program takes its settings from the environment, as a pod has them; what a
person types is an option.

What a command does is imported when it runs: help and completion take a tenth of a second instead of a whole one,
and the provisioner's process does not carry the daemon.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from command.options import (
    DATA_DIR,
    ApiAccess,
    Commands,
    Context,
    DataDir,
    DryRun,
    Form,
    Kubeconfig,
    Namespace,
    Output,
    ReportOutput,
    VolumeSource,
    WideOutput,
)
from command.programsettings import ProgramCommand
from contract import names
from flexdriver import installation

EXECUTABLE = "kubectl-elastic_local"
"""By which kubectl finds the command as its plugin `kubectl elastic-local`."""


def is_plugin() -> bool:
    """Whether kubectl started it."""
    return Path(sys.argv[0]).name == EXECUTABLE


app = typer.Typer(
    help="Local volumes for Kubernetes: logical volumes of exactly the size a claim asks for.",
    cls=Commands,
    add_completion=not is_plugin(),  # kubectl completes its plugins: command.entrypoints
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
flexdriver = typer.Typer(help="Install the FlexVolume driver on this node.", cls=Commands, rich_markup_mode=None)
vg = typer.Typer(
    help="Create, extend, list and remove volume groups of this node.", cls=Commands, rich_markup_mode=None
)
app.add_typer(flexdriver, name="flexdriver")
app.add_typer(vg, name="vg")


def _on_a_node(instead: str = "") -> None:
    """What looks at a node can't even be imported without Linux, which a person's own machine may not have."""
    if sys.platform != "linux":
        command = f"kubectl -n {names.NAMESPACE} exec POD -c daemon -- elastic-local"
        typer.echo(
            f"elastic-local: this asks the node that it runs on, and {sys.platform} is none: {instead}run it in the "
            f"daemon's pod, `{command} ...`",
            err=True,
        )
        raise typer.Exit(1)


@vg.callback()
@flexdriver.callback()
def _of_nodes() -> None:
    _on_a_node()


def _print_version(asked: bool) -> None:
    from importlib import metadata

    if asked:
        typer.echo(f"elastic-local {metadata.version('elastic-local')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """What all commands have in common."""


@app.command()
def volumes(
    whole_cluster: Annotated[
        bool, typer.Option("--cluster", help="Volumes of all nodes, by kubectl exec into the daemons' pods.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Don't ask the API server: claims are not shown, orphans not marked.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep running, and show each volume that changes.")
    ] = False,
    namespace: Namespace = names.NAMESPACE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: WideOutput = Form.TABLE,
) -> None:
    """List the volumes of this node, or of all nodes. With their claims, pods, sizes, usage and states.

    States: ready; formatting (being created); erasing (being removed, its data first); pending (not created yet);
    released (its claim is gone); deleting; orphan (of elastic-local, without a PersistentVolume: see `adopt`); foreign
    (not of elastic-local, or of another cluster: never touched); damaged (of elastic-local, with a record that can't be
    relied on); lost (its node is gone); unseen (its node did not answer).
    """
    if whole_cluster and local:
        raise typer.BadParameter("it is for this node alone: leave out --cluster.", param_hint="--local")
    if not whole_cluster:
        _on_a_node("add --cluster, or ")
    from command import volumes

    volumes.volumes(whole_cluster, local, watch, namespace, ApiAccess(kubeconfig, context), output)


@app.command()
def capacity(
    namespace: Namespace = names.NAMESPACE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: WideOutput = Form.TABLE,
) -> None:
    """Show how much capacity each node has for each StorageClass. As the scheduler sees it.

    Classes that share a pool each show all of its capacity.
    """
    from command import capacity

    capacity.capacity(namespace, ApiAccess(kubeconfig, context), output)


@app.command()
def adopt(
    volumes: Annotated[
        list[str] | None,
        typer.Argument(help="Names of volumes. Default: all that can be adopted.", metavar="[VOLUME]..."),
    ] = None,
    claim: Annotated[str | None, typer.Option(help="NAMESPACE/NAME of the claim that an orphan is for.")] = None,
    storage_class: Annotated[str, typer.Option(help="StorageClass of that claim.")] = "elastic-local",
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would be done.")] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print the PersistentVolumes, for kubectl create -f -.")
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = Form.TABLE,
) -> None:
    """Adopt volumes of this node that no PersistentVolume has. Orphans (left by reclaim policy Retain, or of a deleted
    node), and volumes of elastic/local-volume. A dry run by default.

    No data is touched: a volume gets tags, its PersistentVolume a finalizer, an annotation and a label; an orphan gets
    a new PersistentVolume, for the claim that --claim names.

    The daemon's account may not create PersistentVolumes. In its pod, print them with --manifest, create them with
    kubectl, then run this command again with --yes.
    """
    _on_a_node()
    from command import adopt

    adopt.adopt(volumes or [], claim, storage_class, yes, manifest, ApiAccess(kubeconfig, context), output)


@app.command()
def migrate(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Claims. Default: all that no pod uses.", metavar="[NAMESPACE/NAME]...")
    ] = None,
    to: Annotated[VolumeSource, typer.Option("--to", help="Driver to migrate to.")] = VolumeSource.CSI,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would be done.")] = False,
    namespace: Namespace = names.NAMESPACE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = Form.TABLE,
) -> None:
    """Migrate volumes from FlexVolume to CSI, or back. The data stays in place. A dry run by default.

    No pod may use the claim. Its PersistentVolume is deleted and created again, with the same name: the claim is Lost
    for some seconds, then Bound again. If the command is interrupted, run it again: it continues. --to flexVolume
    migrates back.

    Needs an administrator's kubeconfig: it creates PersistentVolumes, and runs kubectl exec in the daemons' pods.
    """
    from command import migrate

    migrate.migrate(claims or [], to.value, yes, namespace, ApiAccess(kubeconfig, context), output)


@app.command()
def doctor(
    whole_cluster: Annotated[bool, typer.Option("--cluster", help="Check the cluster instead of this node.")] = False,
    uninstall: Annotated[
        bool, typer.Option("--uninstall", help="Check only what has to be deleted before elastic-local is uninstalled.")
    ] = False,
    namespace: Namespace = names.NAMESPACE,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: ReportOutput = Form.TABLE,
) -> None:
    """Check this node, or the cluster. Each problem is printed with the command that fixes it. Exit code 1 if there is
    a problem.

    On a node: run it in the daemon's pod, or as root. With --cluster and --uninstall: with an administrator's
    kubeconfig. What comes first in the output is what the rest depends on.
    """
    if not whole_cluster and not uninstall:
        _on_a_node("add --cluster, or ")
    from command import doctor

    doctor.doctor(whole_cluster, uninstall, namespace, ApiAccess(kubeconfig, context), output)


@vg.command()
def create(
    group: Annotated[
        str, typer.Argument(envvar="LVM_VOLUME_GROUP", help="Name of the group.", metavar="[GROUP]")
    ] = "elastic-local-vg",
    devices: Annotated[
        list[Path] | None, typer.Argument(help="Empty disks, such as /dev/sdb.", metavar="[DEVICE]...")
    ] = None,
    any_disk: Annotated[bool, typer.Option("--any-disk", help="Take the largest whole disk that is empty.")] = False,
    loop_size: Annotated[
        str | None,
        typer.Option(
            help="Use a file of this size, such as 10Gi, instead of a disk. With --any-disk: if there is no empty disk."
        ),
    ] = None,
    dry_run: DryRun = False,
    data_dir: DataDir = DATA_DIR,
    output: Output = Form.TABLE,
) -> None:
    """Create a volume group on this node. One that exists is left as it is.

    A disk that holds anything (a partition, a filesystem, a mount, LVM, or data of any kind) is refused.

    After a restart of the node, the daemon attaches the file of a group again (--loop-size).
    """
    from command import vg

    vg.create(group, devices or [], any_disk, loop_size, dry_run, data_dir, output)


@vg.command()
def extend(
    group: Annotated[str, typer.Argument(help="Name of the group.", metavar="GROUP")],
    devices: Annotated[list[Path], typer.Argument(help="Empty disks, such as /dev/sdc.", metavar="DEVICE...")],
    dry_run: DryRun = False,
    data_dir: DataDir = DATA_DIR,
    output: Output = Form.TABLE,
) -> None:
    """Add disks to a volume group of this node. A disk that is in it already is left as it is.

    A disk that holds anything is refused, as by `vg create`.
    """
    from command import vg

    vg.extend(group, devices, dry_run, data_dir, output)


@vg.command()
def remove(
    group: Annotated[str, typer.Argument(help="Name of the group.", metavar="GROUP")],
    dry_run: DryRun = False,
    data_dir: DataDir = DATA_DIR,
    output: Output = Form.TABLE,
) -> None:
    """Remove a volume group of this node. Refused while it has any logical volume, of elastic-local or not."""
    from command import vg

    vg.remove(group, dry_run, data_dir, output)


@vg.command("list")
def list_groups(data_dir: DataDir = DATA_DIR, output: Output = Form.TABLE) -> None:
    """List the volume groups of this node. With their sizes, free space, devices and logical volumes."""
    from command import vg

    vg.list_groups(data_dir, output)


@flexdriver.command()
def install(
    plugin_dir: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="PLUGIN_DIR",
            help="The kubelet's volumePluginDir. May be repeated; in the environment, separated by colons.",
            show_default=installation.PLUGIN_DIRECTORY,
        ),
    ] = None,
    interpreter: Annotated[
        Path | None,
        typer.Option(help="Python of the node, 3.11 or later, where no native driver was built for its machine."),
    ] = None,
    output: ReportOutput = Form.TABLE,
) -> None:
    """Install the FlexVolume driver in the kubelet's plugin directory. The kubelet sees it at once.

    The daemon does this by itself: use it where the daemon may not write there. Run it from the image, which has the
    driver for amd64 and arm64.
    """
    from command import install

    install.install(plugin_dir or [Path(installation.PLUGIN_DIRECTORY)], interpreter, output)


@app.command(cls=ProgramCommand)
def daemon() -> None:
    """Run the daemon of this node. It creates, mounts and removes volumes.

    Settings come from the environment, NODE_NAME above all.
    """
    from command import programs

    programs.daemon()


@app.command(cls=ProgramCommand)
def provisioner() -> None:
    """Run the provisioner of the cluster. It creates a PersistentVolume for each claim, and deletes those that are
    released.

    Settings come from the environment. Run two: one leads, the other takes over.
    """
    from command import programs

    programs.provisioner()
