"""`migrate`: gives volumes of idle claims the other driver. Shows what it would do, and does it when told so.

It works through the API server, with an administrator's kubeconfig; what is to be seen and done on a node, `kubectl
exec` does in the daemon's pod there, so the node's own checks hold.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import typer

from command import migration, nodeexec
from command.migration import CONTINUE, LEAVE, MIGRATE, UNKNOWN, Note, Plan, Step
from command.options import ApiAccess, Form
from command.running import Stop, cluster, patience, run
from command.table import Column, show
from command.volumerows import Row
from contract import names, snapshot
from contract import volume as contract_volume
from contract.snapshot import SnapshotContent
from contract.volume import PV_PROTECTION, RETAIN, PersistentVolume
from host.command import CommandError
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError, Conflict, Json, NotFound, is_unknown_kind
from kube.records import Claim, read_claim, read_node, read_pod
from kube.resources import CLAIMS, CONFIG_MAPS, CSI_NODES, NODES, PODS, SNAPSHOT_CONTENTS, VOLUMES

_COLUMNS = (
    Column[Plan]("claim", lambda plan: plan.claim),
    Column[Plan]("volume", lambda plan: plan.volume),
    Column[Plan]("node", lambda plan: plan.node or "-"),
    Column[Plan]("action", lambda plan: plan.action),
    Column[Plan]("why", lambda plan: plan.why),
)

_PATIENCE = 180.0
"""Seconds that one step of one volume may take. The daemon records a policy at once, and looks at its storage every
half minute; the controller of volumes looks at each claim every quarter."""
_PERIOD = 1.0


class Nodes(Protocol):
    """What is asked of the daemons' pods."""

    async def rows(self, node: str) -> list[Row]:
        """What a node holds. Raises CommandError and Stop."""
        ...

    async def adopt(self, node: str, volume: str) -> None:
        """Hands a volume over to the PersistentVolume of its name. Raises CommandError and Stop."""
        ...


def migrate(claims: list[str], to: str, yes: bool, namespace: str, access: ApiAccess, form: Form) -> None:
    for each in claims:
        if len(each.split("/")) != 2 or not all(each.split("/")):
            raise typer.BadParameter(f"{each!r} is not NAMESPACE/NAME of a claim, such as default/data")
    plans = run(_migrate(claims, to, yes, namespace, access), resumable=True)
    nothing = f"no claim has a volume to be migrated to {to}"
    show(plans, _COLUMNS, form, nothing, name=lambda plan: f"persistentvolume/{plan.volume}")
    if not form.structured and not yes and any(plan.doable for plan in plans):
        typer.echo("nothing was changed: the same command with --yes does it", err=True)
    left = [plan for plan in plans if not plan.doable]
    if (claims and yes and left) or any(plan.action == UNKNOWN for plan in left):
        raise typer.Exit(1)


async def _migrate(claims: list[str], to: str, yes: bool, namespace: str, access: ApiAccess) -> list[Plan]:
    async with cluster(access) as connected:
        namespace = await nodeexec.namespace_of(connected, namespace)
        migrator = Migrator(connected, namespace, nodeexec.DaemonPods(connected, namespace, access))
        async with patience("asking the API server and the nodes"):
            plans = await migrator.plans(to, claims)
        if yes:
            for plan in plans:
                if plan.doable:
                    async with patience(f"migrating {plan.claim}"):
                        await migrator.migrate(plan.volume, to)
    return plans


@dataclass(frozen=True)
class _Found:
    """A volume as things are now."""

    pv: PersistentVolume | None
    body: Json | None
    claim: Claim | None
    row: Row | None
    used: str


class Migrator:
    """`pause` and `clock` in seconds."""

    def __init__(
        self,
        connected: Cluster,
        namespace: str,
        nodes: Nodes,
        *,
        clock: Callable[[], float] = time.monotonic,
        period: float = _PERIOD,
    ) -> None:
        self._cluster = connected
        self._namespace = namespace
        self._nodes = nodes
        self._clock = clock
        self._period = period

    async def plans(self, to: str, claims: Collection[str] = ()) -> list[Plan]:
        """For these claims, or all. Raises ApiError, and Stop for a claim that has no volume of ours."""
        volumes = [pv for pv in map(contract_volume.read, await self._cluster.list(VOLUMES)) if pv is not None]
        notes = {note.pv: note for note in await self._notes()}
        plans, rows = [], dict[str, list[Row]]()
        for note in notes.values():
            node = await self._node_name(_label_of(note))
            if note.to == to:
                plans.append(Plan(note.claim, note.pv, node, CONTINUE, "it was begun, and cut off"))
            else:
                why = f"a migration to {note.to} was begun: finish that first, with --to {note.to}"
                plans.append(Plan(note.claim, note.pv, node, LEAVE, why))
        for pv in volumes:
            if pv.name in notes or pv.source == to or pv.claim is None or (claims and str(pv.claim) not in claims):
                continue
            node = await self._node_name(pv.node_label)
            action = LEAVE
            try:
                if node not in rows:
                    rows[node] = await self._nodes.rows(node) if node else []
                why = await self._obstacle(pv, node, rows[node], volumes, to)
            except (CommandError, Stop) as error:
                action, why = UNKNOWN, f"node {node} did not answer: {error}"
            if not why:
                action, why = MIGRATE, f"from {pv.source} to {to}"
            plans.append(Plan(str(pv.claim), pv.name, node, action, why))
        if claims:
            plans = [plan for plan in plans if plan.claim in claims]
        done = {str(pv.claim) for pv in volumes if pv.source == to}
        if unknown := set(claims) - {plan.claim for plan in plans} - done:
            raise Stop(f"claim {', '.join(sorted(unknown))} has no volume of elastic-local: see kubectl get pvc")
        return sorted(plans, key=lambda plan: plan.claim)

    async def migrate(self, name: str, to: str) -> None:
        """Begins it, or goes on with it. Raises Stop with the reason when it can't go on, ApiError and CommandError:
        the same call goes on from there."""
        note = await self._note(name) or await self._begin(name, to)
        step, since = None, self._clock()
        while True:
            found = await self._look(note)
            try:
                following = migration.next_step(
                    note, found.pv, found.row, claimed=_claimed(found.claim, note), used=found.used
                )
            except ValueError as error:
                raise Stop(f"claim {note.claim}: {error}. Then run the same command again") from None
            if following != step:
                step, since = following, self._clock()
            elif self._clock() - since > _PATIENCE:
                raise Stop(
                    f"claim {note.claim}: still to {step} after {_PATIENCE:.0f} s. See the events of PersistentVolume "
                    f"{name} and the log of its node's daemon, then run the same command again"
                )
            try:
                if await self._perform(step, note, found):
                    return
            except (AlreadyExists, Conflict, NotFound):
                await asyncio.sleep(self._period)

    async def _begin(self, name: str, to: str) -> Note:
        """All is asked once more: the plan may be old."""
        body = await self._cluster.get(VOLUMES, name)
        pv = contract_volume.read(body)
        if pv is None:
            raise Stop(f"{name} is no PersistentVolume of elastic-local (any more)")
        volumes = [each for each in map(contract_volume.read, await self._cluster.list(VOLUMES)) if each is not None]
        node = await self._node_name(pv.node_label)
        rows = await self._nodes.rows(node) if node else []
        if why := await self._obstacle(pv, node, rows, volumes, to):
            raise Stop(f"claim {pv.claim or name}: {why}")
        note = migration.note_of(body, pv, to)
        await self._cluster.create(CONFIG_MAPS, migration.note_manifest(note, self._namespace), self._namespace)
        return note

    async def _perform(self, step: Step, note: Note, found: _Found) -> bool:
        """Whether the migration is complete after this step."""
        match step:
            case Step.RETAIN:
                await self._set_policy(found, RETAIN)
            case Step.DELETE:
                assert found.pv
                await self._cluster.delete(VOLUMES, note.pv, uid=note.uid, resource_version=found.pv.resource_version)
            case Step.RELEASE:
                assert found.pv
                ours = (PV_PROTECTION, names.FINALIZER)
                metadata = {
                    "uid": found.pv.uid,
                    "resourceVersion": found.pv.resource_version,
                    "finalizers": [each for each in found.pv.finalizers if each not in ours],
                }
                await self._cluster.patch(VOLUMES, note.pv, {"metadata": metadata})
            case Step.CREATE:
                await self._cluster.create(VOLUMES, note.manifest)
            case Step.HAND_OVER:
                await self._nodes.adopt(await self._node_name(_label_of(note)), note.pv)
            case Step.RESTORE:
                await self._set_policy(found, note.policy)
            case Step.AWAIT_RECORD | Step.AWAIT_BOUND:
                await asyncio.sleep(self._period)
            case Step.ABANDON:
                await self._set_policy(found, note.policy)
                await self._forget(note)
                raise Stop(f"claim {note.claim}: {found.used or 'it is gone, or being deleted'}. Nothing was changed")
            case Step.FINISH:
                await self._forget(note)
                if not _claimed(found.claim, note):
                    raise Stop(
                        f"claim {note.claim} went meanwhile: PersistentVolume {note.pv} keeps its data, with policy "
                        "Retain; delete both by hand, or adopt the volume (docs/operations.md)"
                    )
                return True
        return False

    async def _set_policy(self, found: _Found, policy: str) -> None:
        assert found.pv
        if found.pv.reclaim_policy == policy:
            return
        metadata = {"uid": found.pv.uid, "resourceVersion": found.pv.resource_version}
        body = {"metadata": metadata, "spec": {"persistentVolumeReclaimPolicy": policy}}
        await self._cluster.patch(VOLUMES, found.pv.name, body)

    async def _look(self, note: Note) -> _Found:
        """Each time asked anew: what is done next can't be undone."""
        body = await self._get_volume(note.pv)
        pv = contract_volume.read(body) if body else None
        if body is not None and pv is None:
            raise Stop(f"somebody else made a PersistentVolume {note.pv}: delete that, its volume is kept")
        # While it is not there, its node needn't be asked: whatever it says, the claim is to have its volume back.
        row = _row(await self._nodes.rows(await self._node_name(_label_of(note))), note.pv) if pv else None
        claim = await self._claim(note.claim)
        return _Found(pv, body, claim, row, await self._used(note.claim, row))

    async def _obstacle(
        self, pv: PersistentVolume, node: str, rows: Iterable[Row], volumes: Collection[PersistentVolume], to: str
    ) -> str:
        if pv.claim is None:
            return "its PersistentVolume is not bound to a claim"
        claim = await self._claim(str(pv.claim))
        pods = [read_pod(body) for body in await self._cluster.list(PODS, pv.claim.namespace)]
        if not node and pv.node_label:
            return "its node is gone"
        registered = bool(node) and await self._registered(node)
        contents = await self._contents()
        return migration.obstacle(pv, claim, pods, _row(rows, pv.name), volumes, contents, to, registered=registered)

    async def _contents(self) -> list[SnapshotContent]:
        """None in a cluster without their definitions."""
        try:
            found = map(snapshot.read, await self._cluster.list(SNAPSHOT_CONTENTS))
        except ApiError as error:
            # Who may not see them can't know that there are none.
            if not is_unknown_kind(error):
                raise
            return []
        return [content for content in found if content is not None]

    async def _used(self, claim: str, row: Row | None) -> str:
        pods = [read_pod(body) for body in await self._cluster.list(PODS, claim.partition("/")[0])]
        return migration.in_use(claim, pods, row)

    async def _get_volume(self, name: str) -> Json | None:
        try:
            return await self._cluster.get(VOLUMES, name)
        except NotFound:
            return None

    async def _claim(self, key: str) -> Claim | None:
        namespace, _, name = key.partition("/")
        try:
            return read_claim(await self._cluster.get(CLAIMS, name, namespace))
        except NotFound:
            return None

    async def _node_name(self, label: str) -> str:
        """The name of the node whose volumes bear this label. Empty: there is none."""
        if not label:
            return ""
        nodes = [read_node(body) for body in await self._cluster.list(NODES)]
        return next((node.name for node in nodes if names.node_label_value(node.name) == label), "")

    async def _registered(self, node: str) -> bool:
        try:
            body = await self._cluster.get(CSI_NODES, node)
        except NotFound:
            return False
        return any(each.get("name") == names.CSI_DRIVER for each in (body.get("spec") or {}).get("drivers") or ())

    async def _note(self, pv: str) -> Note | None:
        try:
            return _read(await self._cluster.get(CONFIG_MAPS, migration.note_name(pv), self._namespace))
        except NotFound:
            return None

    async def _notes(self) -> list[Note]:
        found = await self._cluster.list(CONFIG_MAPS, self._namespace, label_selector=migration.NOTE_LABEL)
        return [_read(body) for body in found]

    async def _forget(self, note: Note) -> None:
        await self._cluster.delete(CONFIG_MAPS, migration.note_name(note.pv), self._namespace)


def _read(body: Json) -> Note:
    try:
        return migration.read_note(body)
    except ValueError as error:
        metadata = body["metadata"]
        raise Stop(
            f"ConfigMap {metadata['namespace']}/{metadata['name']}, in which a migration is noted, can't be read "
            f"({error}): see what is in it, and delete it when its PersistentVolume is there and bound"
        ) from None


def _row(rows: Iterable[Row], volume: str) -> Row | None:
    return next((row for row in rows if row.volume == volume), None)


def _claimed(claim: Claim | None, note: Note) -> bool:
    return claim is not None and claim.uid == note.claim_uid and claim.volume_name == note.pv and not claim.deleting


def _label_of(note: Note) -> str:
    return str(note.manifest["metadata"]["labels"].get(names.NODE_LABEL, ""))
