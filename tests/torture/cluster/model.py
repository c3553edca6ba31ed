"""What a cluster must show when it is quiet, whatever was killed or refused: claims, pods, volumes, data on the nodes.

Pure. All that is asked for is asked of an API server that answers, so it counts from then on; what becomes of it takes
its time. `complaints` holds what is seen against it, and is empty once all has come to its end.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tests.torture.cluster import attributes
from tests.torture.cluster.operation import Operation
from tests.torture.cluster.seen import Seen, begins_with, flushed
from tests.torture.cluster.snapshots import Snapshot
from tests.torture.cluster.workloads import Workload


@dataclass(frozen=True)
class Orphan:
    """What lies on a node since the API server went back to before it was made."""

    owner: Workload | Snapshot
    sure: bool
    """It must be there. Else it may be."""


_UNKNOWN = Workload("", 0, False)


@dataclass(frozen=True)
class Model:
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    orphans: Mapping[str, Orphan] = field(default_factory=dict)
    """By the names of the volumes that they had."""
    number: int = 0
    """Of names given out."""
    growing: frozenset[str] = frozenset()
    """Nodes on which a mounted volume grows."""
    cloning: frozenset[str] = frozenset()
    forgotten: frozenset[str] = frozenset()
    """Names of VolumeSnapshots that the API server knew before it went back in time."""

    def after(self, operation: Operation) -> "Model":
        """The API server has taken it."""
        model = replace(self, number=self.number + operation.makes)
        match operation.kind:
            case "create":
                return model._with(self._created(operation))
            case "rebind":
                before = self.workloads[operation.source]
                others = {key: each for key, each in self.workloads.items() if key != before.name}
                again = replace(
                    before,
                    name=operation.name,
                    size=operation.size,
                    retain=operation.retain,
                    pod=True,
                    deleted=False,
                    attributes=operation.attributes,
                )
                return replace(model, workloads={**others, again.name: again})
            case "snapshot":
                return model._with_snapshot(self._snapshot(operation))
            case "regain":
                former = self.snapshots[operation.source]
                rest = {key: each for key, each in self.snapshots.items() if key != former.name}
                regained = replace(
                    former,
                    name=operation.name,
                    source="",
                    retain=operation.retain,
                    content=operation.name,
                    ready=False,
                    deleted=False,
                    parted=False,
                )
                return replace(model, snapshots={**rest, regained.name: regained})
        if operation.name in self.snapshots:
            taken = self.snapshots[operation.name]
            ends: dict[str, Snapshot] = {
                "unsnapshot": replace(taken, deleted=True),
                "snapshotpolicy": replace(taken, retain=operation.retain),
                "partsnapshot": replace(taken, parted=True),
                "freesnapshot": replace(taken, retain=False),
            }
            return self._with_snapshot(ends[operation.kind])
        before = self.workloads[operation.name]
        changes: dict[str, Workload] = {
            "start": replace(before, pod=True),
            "stop": replace(before, pod=False),
            "grow": replace(before, size=operation.size),
            "modify": replace(before, attributes=operation.attributes),
            "policy": replace(before, retain=operation.retain),
            "delete": replace(before, pod=False, deleted=True),
            "part": replace(before, parted=True),
            "free": replace(before, retain=False),
        }
        return self._with(changes[operation.kind])

    def _created(self, operation: Operation) -> Workload:
        made = Workload(operation.name, operation.size, operation.retain, source=operation.source, csi=operation.csi)
        if source := self.workloads.get(operation.source):
            return replace(made, file=source.file, lines=flushed(source.lines))
        if taken := self.snapshots.get(operation.source):
            return replace(made, file=taken.file, lines=taken.lines, most=taken.lines if taken.whole else None)
        return made

    def _snapshot(self, operation: Operation) -> Snapshot:
        source = self.workloads[operation.source]
        lines, file = (flushed(source.lines), source.file) if source.copied else ((), "")
        return Snapshot(
            operation.name, source.name, operation.retain, file=file, lines=lines, able=self._is_able(source)
        )

    def _is_able(self, source: Workload) -> bool:
        return source.csi and source.node in self.cloning

    def is_promised(self, snapshot: Snapshot) -> bool:
        """Nothing keeps it from becoming, and being, ready."""
        if snapshot.doubtful:
            return False
        if not snapshot.source:
            return True
        source = self.workloads.get(snapshot.source)
        # It waits for a volume that was not made yet.
        makes = source is not None and not source.deleted and not source.doubtful and source.copied
        return snapshot.ready or (snapshot.able and makes)

    def is_starved(self, each: Workload) -> bool:
        """It may wait for ever to be restored: its snapshot went before its volume was begun, or never comes."""
        if not each.source.startswith("s") or each.volume:
            return False
        snapshot = self.snapshots.get(each.source)
        return snapshot is None or snapshot.deleted or not self.is_promised(snapshot)

    def learned(self, seen: Seen) -> "Model":
        """What can't be known before: which volume a claim got, where, and what its pod wrote."""
        model = self
        for name, volume in seen.volumes.items():
            known = model.workloads.get(volume.claim)
            if known and known.volume in ("", name):
                model = model._with(replace(known, volume=name, node=volume.node or known.node))
        for known in list(model.workloads.values()):
            if data := seen.data.get(known.volume):
                source, most = model.workloads.get(known.source), known.most
                if source and known.copied and most is None:
                    most = source.lines
                model = model._with(replace(known.learned(data), most=most))
        for name, content in seen.contents.items():
            taken = model.snapshots.get(content.snapshot)
            if taken and taken.content in ("", name):
                model = model._with_snapshot(replace(taken, content=name, volume=content.volume))
        for taken in list(model.snapshots.values()):
            model = model._with_snapshot(model._learned_of(taken, seen))
        return model._with_restored()

    def _learned_of(self, taken: Snapshot, seen: Seen) -> Snapshot:
        source, shown = self.workloads.get(taken.source), seen.snapshots.get(taken.name)
        taken = taken.taken(seen.data.get(taken.volume), source.lines if source else None)
        able = taken.able or (source is not None and self._is_able(source))
        if shown is None or not shown.ready:
            return replace(taken, able=able)
        return replace(taken, able=able, ready=True, size=max(taken.size, shown.size))

    def _with_restored(self) -> "Model":
        """What was asked for before its snapshot was there holds what that turned out to hold."""
        model = self
        for each in self.workloads.values():
            taken = self.snapshots.get(each.source)
            if taken and taken.whole and each.most is None:
                lines = each.lines if begins_with(each.lines, taken.lines) else taken.lines
                model = model._with(replace(each, most=taken.lines, lines=lines, file=each.file or taken.file))
        return model

    def settled(self, seen: Seen) -> "Model":
        """Once there are no complaints: what is gone is forgotten."""
        there = {
            name: workload
            for name, workload in self.workloads.items()
            if not workload.deleted
            or name in seen.claims
            or (workload.retain and workload.volume and not self._vanished(workload, seen))
        }
        snapshots = {
            name: each
            for name, each in self.snapshots.items()
            if not each.deleted or name in seen.snapshots or each.content in seen.contents or each.volume in seen.data
        }
        orphans = {name: orphan for name, orphan in self.orphans.items() if name in seen.data}
        return replace(self, workloads=there, snapshots=snapshots, orphans=orphans)

    def restored(self, saved: "Model", there: Iterable[str]) -> "Model":
        """The API server is as it was when all was quiet and as in `saved`; the nodes are not. `there`: names of the
        volumes that it knew of or the nodes had right before."""
        workloads = {}
        holders = {each.volume: each for each in self.workloads.values() if each.volume}
        for name, then in saved.workloads.items():
            # Another claim may have its volume by now.
            now = self.workloads.get(name) or holders.get(then.volume)
            erased = now is None or (now.deleted and not now.retain) or now.doubtful
            grown = (
                replace(then, has=max(now.has, then.has), file=now.file or then.file, lines=now.lines) if now else then
            )
            workloads[name] = replace(grown, doubtful=then.doubtful or erased)
        snapshots = {}
        having = {each.volume: each for each in self.snapshots.values() if each.volume}
        for name, taken in saved.snapshots.items():
            last = self.snapshots.get(name) or having.get(taken.volume)
            gone = last is None or (last.deleted and not last.retain) or last.doubtful
            snapshots[name] = replace(taken, doubtful=taken.doubtful or (gone and bool(taken.volume)))
        given = {each.volume for each in workloads.values()} | {each.volume for each in snapshots.values()}
        orphans = dict(self.orphans)
        owners: list[Workload | Snapshot] = [*self.workloads.values(), *self.snapshots.values()]
        for owner in owners:
            if owner.volume and owner.volume not in given and owner.name not in (*workloads, *snapshots):
                holds = owner.ready if isinstance(owner, Snapshot) else bool(owner.file and owner.copied)
                orphans[owner.volume] = Orphan(owner, holds and (not owner.deleted or owner.retain))
        known = given | orphans.keys()
        orphans |= {volume: Orphan(_UNKNOWN, False) for volume in there if volume not in known}
        # Names are not given out again: what lies on the nodes still bears them.
        return replace(
            saved,
            workloads=workloads,
            snapshots=snapshots,
            orphans=orphans,
            number=self.number,
            forgotten=self.forgotten | (self.snapshots.keys() - snapshots.keys()),
        )

    def strays(self, seen: Seen) -> list[str]:
        """VolumeSnapshotContents that the snapshot controller made of what it remembered, after the API server went
        back to before there was the VolumeSnapshot. Nobody but a person lets them go."""
        return [name for name, content in seen.contents.items() if content.snapshot in self.forgotten]

    def unreleased(self, seen: Seen) -> list[str]:
        """Claims that it keeps for such a VolumeSnapshot, likewise."""
        keeping = {each.source for each in self.snapshots.values() if not each.deleted}
        return [
            each.name
            for each in self.workloads.values()
            if self.forgotten and each.deleted and each.name in seen.claims.keys() - keeping
        ]

    def complaints(self, seen: Seen) -> list[str]:
        """What is lost, left over or not done (yet)."""
        complaints: list[str] = []
        for each in self.workloads.values():
            complaints += [f"{each.name} ({each.volume or 'no volume'}): {message}" for message in self._of(each, seen)]
        for taken in self.snapshots.values():
            waited_for = any(self.is_starved(one) for one in self.workloads.values() if one.source == taken.name)
            told = taken.complaints(seen, promised=self.is_promised(taken), waited_for=waited_for)
            complaints += [f"{taken.name} ({taken.volume or 'no snapshot'}): {message}" for message in told]
        for name, orphan in self.orphans.items():
            if orphan.sure:
                complaints += [f"orphan {name}: {each}" for each in orphan.owner.data_complaints(seen.data.get(name))]
        return complaints + self._strangers(seen) + self._mount_complaints(seen) + _room_complaints(seen)

    def _strangers(self, seen: Seen) -> list[str]:
        owners = {each.volume for each in self.workloads.values()} - {""}
        holders = owners | {each.volume for each in self.snapshots.values()} | self.orphans.keys()
        contents = {each.content for each in self.snapshots.values()}
        return [
            *(f"PersistentVolume {name} is nobody's" for name in seen.volumes.keys() - owners),
            *(f"volume {name} on a node is nobody's" for name in seen.data.keys() - holders),
            *(f"claim {name} is there still" for name in seen.claims.keys() - self.workloads.keys()),
            *(f"pod {name} is there still" for name in seen.pods.keys() - self.workloads.keys()),
            *(f"VolumeSnapshot {name} is there still" for name in seen.snapshots.keys() - self.snapshots.keys()),
            *(f"VolumeSnapshotContent {name} is nobody's" for name in seen.contents.keys() - contents),
        ]

    def _of(self, each: Workload, seen: Seen) -> Iterable[str]:
        claim, pod = seen.claims.get(each.name), seen.pods.get(each.name)
        volume, data = seen.volumes.get(each.volume), seen.data.get(each.volume)
        if pod and not each.pod:
            yield "its pod is there still"
        if each.deleted:
            yield from self._of_deleted(each, seen)
            return
        if claim is None:
            yield "its claim is gone"
        if self.is_starved(each):
            return
        if claim and each.volume and claim.phase != "Bound":
            yield f"its claim is {claim.phase}"
        if each.volume and volume is None:
            yield "its PersistentVolume is gone"
        if each.pod and (pod is None or not (pod.ready or each.doubtful)):
            yield f"its pod {'is not ready' if pod else 'is gone'}"
        if pod and pod.ready and not (each.volume and data and data.file):
            yield "its pod runs and its file is not there"
        elif each.file and each.copied and (not each.doubtful or (pod and pod.ready)):
            # What may be erased must not look whole when it is not: then no pod runs.
            yield from each.data_complaints(data)
        if each.pod and not each.doubtful and volume and claim and min(volume.capacity, claim.capacity) < each.size:
            yield f"it has {claim.capacity} bytes, its PersistentVolume {volume.capacity}, and it asks for {each.size}"
        if data and volume and data.size < volume.capacity:
            yield f"its PersistentVolume says {volume.capacity} bytes, and it has {data.size}"
        if claim and volume:
            yield from attributes.complaints(
                each.attributes,
                each.csi,
                each.node not in seen.loop_nodes,
                claim,
                volume,
                pod,
                seen.staged.get(each.volume, "") if each.node in seen.loop_nodes else "",
            )

    def _of_deleted(self, each: Workload, seen: Seen) -> Iterable[str]:
        volume, data = seen.volumes.get(each.volume), seen.data.get(each.volume)
        if each.name in seen.claims:
            # The snapshot controller keeps the source of one that is not ready, or not any more, be it for ever.
            keeping = [one for one in self.snapshots.values() if one.source == each.name and not one.deleted]
            if all(one.ready and not one.doubtful for one in keeping):
                yield "its claim is there still"
            elif any(one.able and not one.ready and not one.doubtful for one in keeping):
                yield "its claim is there still, and its snapshot is not ready"
            return
        if not each.retain or each.parted:
            if volume:
                yield f"its PersistentVolume is there still, {volume.phase}"
        elif each.volume and not self._vanished(each, seen) and (volume is None or volume.phase != "Released"):
            yield f"its PersistentVolume is not Released but {volume.phase if volume else 'gone'}"
        if not each.retain and data:
            yield f"its data is left on {data.node}"
        if each.retain and each.file and each.copied and not each.doubtful:
            yield from each.data_complaints(data)

    def _vanished(self, each: Workload, seen: Seen) -> bool:
        """One that nobody was seen to use goes with its claim, whatever its policy (provisioner/volumecreation.py)."""
        return each.deleted and not each.copied and each.volume not in seen.volumes and each.volume not in seen.data

    def _mount_complaints(self, seen: Seen) -> list[str]:
        uses = {
            (pod.uid, each.volume)
            for each in self.workloads.values()
            if each.pod and (pod := seen.pods.get(each.name)) and pod.ready
        }
        complaints = [f"{volume} is not mounted for pod {uid}" for uid, volume in uses - seen.mounts]
        complaints += [f"{volume} is mounted still for pod {uid}" for uid, volume in seen.mounts - uses]
        used = {volume for _, volume in uses}
        complaints += [f"{volume} is staged still" for volume in seen.staged.keys() - used]
        # That of a volume that is there is used again, and goes with it.
        complaints += [
            f"{name} has a staging folder and is on no node" for name in seen.staging_folders - seen.data.keys()
        ]
        loops = sum(1 for name in used if (data := seen.data.get(name)) and data.node in seen.loop_nodes)
        if seen.loop_devices != loops:
            complaints.append(f"there are {seen.loop_devices} loop devices for {loops} volumes")
        return complaints

    def _with(self, workload: Workload) -> "Model":
        return replace(self, workloads={**self.workloads, workload.name: workload})

    def _with_snapshot(self, snapshot: Snapshot) -> "Model":
        return replace(self, snapshots={**self.snapshots, snapshot.name: snapshot})


def _room_complaints(seen: Seen) -> list[str]:
    complaints = []
    for node, capacity in seen.capacity.items():
        # One that is not made yet counts too, or was erased before the API server went back in time.
        taken = Counter({name: data.size for name, data in seen.data.items() if data.node == node})
        for name, volume in seen.volumes.items():
            if volume.node == node:
                taken[name] = max(taken[name] or volume.capacity, volume.granted)
        left = capacity - taken.total()
        if seen.room.get(node) != left:
            complaints.append(f"node {node} offers {seen.room.get(node)} bytes and has {left}")
    return complaints
