"""`adopt`: gives volumes that hold data back to Kubernetes. Shows what it would do, and does it with --yes."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

import typer
import yaml

from command import adoption, thisnode
from command.adoption import Plan, TargetClaim, Untagged
from command.options import ApiAccess, Form
from command.running import Stop, cluster, need_root, patience, run
from command.table import Column, show, show_data, size
from command.terminal import visible
from contract import names
from contract import volume as contract_volume
from contract.parameters import ParameterError, node_secrets, volume_source
from contract.volume import RETAIN, PersistentVolume
from daemon.backends.loop import volume_devices
from daemon.cluster.ownerlookup import read_cluster_uid
from daemon.settings import Settings
from daemon.storage.backend import Backend
from daemon.storage.deviceclasses import LVM
from daemon.storage.inventory import Inventory, Volume
from daemon.storage.record import differences
from host import blockdevice
from kube.client import Cluster
from kube.errors import Forbidden, NotFound
from kube.records import Node, read_node, read_storage_class
from kube.resources import CLASSES, NODES, VOLUMES
from lvm import Lvm

_COLUMNS = (
    Column[Plan]("volume", lambda plan: plan.volume),
    Column[Plan]("size", lambda plan: size(plan.size), right=True),
    Column[Plan]("action", lambda plan: plan.action),
    Column[Plan]("why", lambda plan: plan.why),
)


def adopt(
    volumes: list[str],
    claim: str | None,
    storage_class: str,
    yes: bool,
    manifest: bool,
    access: ApiAccess,
    form: Form,
) -> None:
    if manifest and yes:
        raise typer.BadParameter(
            "it only prints what you create with kubectl: leave out --yes", param_hint="--manifest"
        )
    if manifest and form is Form.NAME:
        raise typer.BadParameter("with --manifest it is yaml or json.", param_hint="--output")
    target = _target_claim(volumes, claim, storage_class)
    plans = run(_adopt(volumes, target, yes, manifest, access), resumable=True)
    if manifest:
        _show_manifests([plan.manifest for plan in plans if plan.manifest], form)
    elif form.structured:
        data = [{**dataclasses.asdict(plan), "record": plan.record and plan.record.to_fields()} for plan in plans]
        show_data(data, form)
    else:
        nothing = "nothing on this node is to be adopted"
        show(plans, _COLUMNS, form, nothing, name=lambda plan: f"persistentvolume/{plan.volume}")
        if not yes and any(plan.doable for plan in plans):
            typer.echo("nothing was changed: the same command with --yes does it", err=True)
    if yes and volumes and (left := [plan for plan in plans if not plan.doable]):
        for plan in left:
            typer.echo(f"elastic-local: {plan.volume} is not adopted: {visible(plan.why)}", err=True)
        raise typer.Exit(1)


def _show_manifests(manifests: list[adoption.Json], form: Form) -> None:
    """Either form is one that kubectl takes."""
    if not manifests:
        typer.echo("no PersistentVolume is to be made: name an orphan, and the claim that is to have it", err=True)
    if form is Form.JSON:
        show_data({"apiVersion": "v1", "kind": "List", "items": manifests}, form)
    else:
        typer.echo(yaml.safe_dump_all(manifests), nl=False)


def _target_claim(named: list[str], claim: str | None, storage_class: str) -> TargetClaim | None:
    if claim is None:
        return None
    namespace, slash, name = claim.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise typer.BadParameter(f"{claim!r} is not NAMESPACE/NAME of a claim", param_hint="--claim")
    if len(named) != 1:
        raise typer.BadParameter("name the one volume that the claim is to have", param_hint="--claim")
    return TargetClaim(namespace, name, storage_class)


@dataclass(frozen=True)
class _View:
    backend: Backend
    tools: Lvm | None
    """None: this node's volumes are not LVM's."""
    inventory: Inventory
    volumes: dict[str, PersistentVolume]
    node: Node
    cluster: str
    """Identity of the cluster."""


async def _adopt(
    named: list[str], target: TargetClaim | None, yes: bool, manifest: bool, access: ApiAccess
) -> list[Plan]:
    need_root("looking into volumes")
    here = thisnode.chosen()
    async with cluster(access) as connected:
        async with patience("comparing this node with the API server"):
            target = target and await _of_class(target, connected)
            view = await _find(here, connected)
            plans = adoption.chosen(await _plans(view, target, named), named)
        if unknown := set(named) - {plan.volume for plan in plans}:
            hidden = "".join(f"; {each.reason}" for each in view.inventory.unavailable)
            raise Stop(
                f"nothing is to be adopted under the name {', '.join(sorted(unknown))}: `elastic-local volumes` lists "
                f"what this node has{hidden}"
            )
        if yes:
            async with patience("adopting"):
                for plan in plans:
                    await _carry_out(plan, view, connected)
        elif manifest:
            for plan in plans:
                await _keep(plan, view)
    return plans


async def _find(here: Settings, connected: Cluster) -> _View:
    read = [contract_volume.read(body) for body in await connected.list(VOLUMES)]
    backend = thisnode.backend(here)
    kinds = {each.kind for each in here.classes.values()}
    return _View(
        backend=backend,
        tools=Lvm(here.data_dir / "lvm", foreign=volume_devices) if LVM in kinds else None,
        inventory=await backend.inspect(),
        volumes={volume.name: volume for volume in read if volume},
        node=read_node(await connected.get(NODES, here.node_name)),
        cluster=await read_cluster_uid(connected),
    )


async def _of_class(target: TargetClaim, connected: Cluster) -> TargetClaim:
    """With what its class asks for. Classes are listed, because a daemon's account may not get one. Raises Stop."""
    found = {each.name: each for each in map(read_storage_class, await connected.list(CLASSES))}
    if target.storage_class not in found:
        there = ", ".join(sorted(name for name, each in found.items() if each.provisioner in names.PROVISIONERS))
        raise Stop(
            f"there is no StorageClass {target.storage_class}, and it says how the volume is mounted: create it, or "
            f"name another with --storage-class (ours are: {there or 'none'})"
        )
    asked = found[target.storage_class].parameters
    try:
        return replace(target, source=volume_source(asked), secrets=node_secrets(asked))
    except ParameterError as error:
        raise Stop(f"StorageClass {target.storage_class}: {error}") from None


async def _plans(view: _View, target: TargetClaim | None, named: list[str]) -> list[Plan]:
    mirrors = await _mirrors(view.tools) if view.tools else set()
    plans = [
        adoption.of_recorded(
            volume, volume.pv in mirrors, view.volumes, view.node, target, view.cluster, named=volume.pv in named
        )
        for volume in view.inventory.volumes
    ]
    for foreign in view.inventory.foreign if view.tools else ():
        if foreign.name in view.volumes:
            device = Path("/dev", foreign.pool.split("/")[0], foreign.name)
            plans.append(
                adoption.of_untagged(
                    Untagged(foreign.name, foreign.pool, foreign.size, await _signature(device)),
                    view.volumes,
                    view.node,
                    view.cluster,
                )
            )
    return [plan for plan in plans if plan is not None]


async def _mirrors(tools: Lvm) -> set[str]:
    return {volume.name for volume in (await tools.report()).volumes if "raid1" in volume.layout}


async def _signature(device: Path) -> str:
    if not blockdevice.is_block_device(device):
        group, name = device.parts[-2:]
        raise Stop(f"{device} is not there: activate it with `lvchange --activate y {group}/{name}`, then try again")
    return await blockdevice.signature(device)


async def _keep(plan: Plan, view: _View) -> None:
    """An orphan for which a PersistentVolume is about to be made must not be removed meanwhile. Others are not ours to
    change before the PersistentVolume is there."""
    volume = view.inventory.volume(plan.volume)
    if plan.manifest and volume and volume.record.cluster in ("", view.cluster):
        await view.backend.rewrite(await _unchanged(volume, view), replace(volume.record, policy=RETAIN))


async def _unchanged(volume: Volume, view: _View) -> Volume:
    """As its disk shows it now."""
    now = await view.backend.reread(volume)
    if changed := differences(volume.record, now.record):
        raise Stop(f"volume {volume.pv} changed while it was looked at ({changed}): run the same command again")
    return now


async def _present(volume: str, connected: Cluster) -> PersistentVolume | None:
    """The PersistentVolume of ours of that name, as it is now."""
    try:
        return contract_volume.read(await connected.get(VOLUMES, volume))
    except NotFound:
        return None


async def _carry_out(plan: Plan, view: _View, connected: Cluster) -> None:
    """The record first: from then on nobody takes the volume for anything else, and a second run does the rest."""
    record = plan.record
    if plan.manifest:
        try:
            created = await connected.create(VOLUMES, plan.manifest)
        except Forbidden as error:
            raise Stop(
                f"the account in use may not create PersistentVolumes ({error.message}): create it with "
                f"`elastic-local adopt {plan.volume} --claim ... --manifest | kubectl create -f -` "
                f"as an administrator, then run `elastic-local adopt {plan.volume} --yes`"
            ) from error
        assert record is not None
        record = replace(record, uid=created["metadata"]["uid"])
    elif record and not adoption.is_for(record, await _present(plan.volume, connected)):
        raise Stop(f"PersistentVolume {plan.volume} changed while it was looked at: run the same command again")
    if record and (volume := view.inventory.volume(plan.volume)):
        await view.backend.rewrite(await _unchanged(volume, view), record)
    elif record and view.tools:
        (foreign,) = [each for each in view.inventory.foreign if each.name == plan.volume]
        await view.tools.retag(foreign.pool.split("/")[0], {plan.volume: ()}, add=record.to_tags())
    if plan.patch:
        await connected.patch(VOLUMES, plan.volume, plan.patch)
