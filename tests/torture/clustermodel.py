"""What a cluster must show when it is quiet, whatever was killed or refused: claims, pods, volumes, data on the nodes.

Pure. All that is asked for is asked of an API server that answers, so it counts from then on; what becomes of it takes
its time. `complaints` holds what is seen against it, and is empty once all has come to its end.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tests.node.volume_node import MIB

SIZE = 16 * MIB
_STEP = 8 * MIB
_LARGEST = 48 * MIB
_MOST_WORKLOADS = 6
_MOST_KEPT = 6
_MOST_RETAINED = 4


@dataclass(frozen=True)
class Operation:
    """One request of a user or an administrator. The kinds: create, start and stop (the pod), grow, policy, delete (pod
    and claim); part (the PersistentVolume of a claim that is gone), free (let it be removed), rebind (give it to a new
    claim)."""

    kind: str
    name: str
    size: int = 0
    retain: bool = False
    source: str = ""
    """Name of the claim that a new one is a copy of, or has the volume of."""
    reserved: bool = False
    """The volume names the new claim before there is one, in place of no claim."""


@dataclass(frozen=True)
class Workload:
    """A claim and the pod that uses it; both have its name, which is never given again. Sizes in bytes."""

    name: str
    size: int
    retain: bool
    pod: bool = True
    deleted: bool = False
    parted: bool = False
    """Its PersistentVolume was deleted, under policy Retain."""
    source: str = ""
    volume: str = ""
    """Name of its PersistentVolume, as soon as that was seen."""
    node: str = ""
    has: int = 0
    """The most that it was seen to have on its node."""
    file: str = ""
    """What its first pod wrote, or that of its source. Each writer writes something else."""
    copied: bool = False
    """That was seen in its own volume."""
    doubtful: bool = False
    """The API server went back to when it was there, and its data may be gone."""

    @property
    def kept(self) -> bool:
        """Its claim is gone, and its data must stay."""
        return self.deleted and self.retain


@dataclass(frozen=True)
class Orphan:
    """What lies on a node since the API server went back to before it was made."""

    workload: Workload
    sure: bool
    """It must be there. Else it may be."""


@dataclass(frozen=True)
class SeenClaim:
    phase: str
    volume: str
    capacity: int


@dataclass(frozen=True)
class SeenPod:
    uid: str
    ready: bool
    node: str


@dataclass(frozen=True)
class SeenVolume:
    claim: str
    phase: str
    retain: bool
    capacity: int
    """That Kubernetes raises as soon as a claim asks for more."""
    granted: int
    """Or what its node says that it has, where that is more: so many bytes it counts with."""
    node: str


@dataclass(frozen=True)
class SeenData:
    """A volume on a node."""

    node: str
    size: int
    policy: str
    """Of its own record."""
    file: str = ""


@dataclass(frozen=True)
class Seen:
    claims: Mapping[str, SeenClaim]
    pods: Mapping[str, SeenPod]
    volumes: Mapping[str, SeenVolume]
    data: Mapping[str, SeenData]
    mounts: frozenset[tuple[str, str]]
    """UID of a pod and name of the volume that its folder shows."""
    staged: frozenset[str]
    """Volumes that are mounted in the staging folder."""
    staging_folders: frozenset[str]
    loop_devices: int
    room: Mapping[str, int]
    """That each node publishes."""
    capacity: Mapping[str, int]
    loop_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Model:
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    orphans: Mapping[str, Orphan] = field(default_factory=dict)
    """By the names of the PersistentVolumes that they had."""
    number: int = 0
    """Of names given out."""
    growing: frozenset[str] = frozenset()
    """Nodes on which a mounted volume grows."""
    cloning: frozenset[str] = frozenset()

    def after(self, operation: Operation) -> "Model":
        """The API server has taken it."""
        name = operation.name
        if operation.kind == "create":
            source = self.workloads.get(operation.source)
            made = Workload(name, operation.size, operation.retain, source=operation.source)
            if source:
                made = replace(made, file=source.file)
            return replace(self._with(made), number=self.number + 1)
        if operation.kind == "rebind":
            before = self.workloads[operation.source]
            others = {key: each for key, each in self.workloads.items() if key != before.name}
            again = replace(before, name=name, size=operation.size, retain=operation.retain, pod=True, deleted=False)
            return replace(self, workloads={**others, name: again}, number=self.number + 1)
        before = self.workloads[name]
        changes: dict[str, Workload] = {
            "start": replace(before, pod=True),
            "stop": replace(before, pod=False),
            "grow": replace(before, size=operation.size),
            "policy": replace(before, retain=operation.retain),
            "delete": replace(before, pod=False, deleted=True),
            "part": replace(before, parted=True),
            "free": replace(before, retain=False),
        }
        return self._with(changes[operation.kind])

    def learned(self, seen: Seen) -> "Model":
        """What can't be known before: which volume a claim got, where, and what its pod wrote."""
        model = self
        for name, volume in seen.volumes.items():
            known = model.workloads.get(volume.claim)
            if known and known.volume in ("", name):
                model = model._with(replace(known, volume=name, node=volume.node or known.node))
        for known in list(model.workloads.values()):
            data = seen.data.get(known.volume)
            if data:
                file, has = known.file or data.file, max(known.has, data.size)
                model = model._with(replace(known, file=file, has=has, copied=known.copied or bool(data.file)))
        return model

    def settled(self, seen: Seen) -> "Model":
        """Once there are no complaints: what is gone is forgotten."""
        there = {
            name: workload
            for name, workload in self.workloads.items()
            if not workload.deleted or (workload.retain and workload.volume and not self._vanished(workload, seen))
        }
        orphans = {name: orphan for name, orphan in self.orphans.items() if name in seen.data}
        return replace(self, workloads=there, orphans=orphans)

    def restored(self, saved: "Model", there: Iterable[str]) -> "Model":
        """The API server is as it was when all was quiet and as in `saved`; the nodes are not. `there`: names of the
        volumes that it knew of or the nodes had right before."""
        workloads = {}
        holders = {each.volume: each for each in self.workloads.values() if each.volume}
        for name, then in saved.workloads.items():
            # Another claim may have its volume by now.
            now = self.workloads.get(name) or holders.get(then.volume)
            erased = now is None or (now.deleted and not now.retain) or now.doubtful
            has, file = (max(now.has, then.has), now.file or then.file) if now else (then.has, then.file)
            workloads[name] = replace(then, has=has, file=file, doubtful=then.doubtful or erased)
        orphans = dict(self.orphans)
        given = {each.volume for each in saved.workloads.values()}
        for name, now in self.workloads.items():
            if name not in saved.workloads and now.volume and now.volume not in given:
                sure = bool(now.file and now.copied) and (not now.deleted or now.retain)
                orphans[now.volume] = Orphan(now, sure)
        known = {each.volume for each in workloads.values()} | orphans.keys()
        for volume in there:
            if volume not in known:
                orphans[volume] = Orphan(Workload("", 0, False), False)
        # Names are not given out again: what lies on the nodes still bears them.
        return replace(saved, workloads=workloads, orphans=orphans, number=self.number)

    def complaints(self, seen: Seen) -> list[str]:
        """What is lost, left over or not done (yet)."""
        complaints: list[str] = []
        for each in self.workloads.values():
            complaints += [f"{each.name} ({each.volume or 'no volume'}): {message}" for message in self._of(each, seen)]
        for name, orphan in self.orphans.items():
            if orphan.sure:
                complaints += [
                    f"orphan {name}: {message}" for message in _data_complaints(orphan.workload, seen.data.get(name))
                ]
        owners = {each.volume for each in self.workloads.values()} - {""}
        complaints += [f"PersistentVolume {name} is nobody's" for name in seen.volumes.keys() - owners]
        complaints += [
            f"volume {name} on a node is nobody's" for name in seen.data.keys() - owners - self.orphans.keys()
        ]
        complaints += [f"claim {name} is there still" for name in seen.claims.keys() - self.workloads.keys()]
        complaints += [f"pod {name} is there still" for name in seen.pods.keys() - self.workloads.keys()]
        return complaints + self._mount_complaints(seen) + _room_complaints(seen)

    def _of(self, each: Workload, seen: Seen) -> Iterable[str]:
        claim, pod = seen.claims.get(each.name), seen.pods.get(each.name)
        volume, data = seen.volumes.get(each.volume), seen.data.get(each.volume)
        if pod and not each.pod:
            yield "its pod is there still"
        if each.deleted:
            if claim:
                yield "its claim is there still"
            if not each.retain or each.parted:
                if volume:
                    yield f"its PersistentVolume is there still, {volume.phase}"
            elif each.volume and not self._vanished(each, seen) and (volume is None or volume.phase != "Released"):
                yield f"its PersistentVolume is not Released but {volume.phase if volume else 'gone'}"
            if not each.retain and data:
                yield f"its data is left on {data.node}"
            if each.retain and each.file and each.copied and not each.doubtful:
                yield from _data_complaints(each, data)
            return
        if claim is None:
            yield "its claim is gone"
        elif each.volume and claim.phase != "Bound":
            yield f"its claim is {claim.phase}"
        if each.volume and volume is None:
            yield "its PersistentVolume is gone"
        if each.pod and (pod is None or not (pod.ready or each.doubtful)):
            yield f"its pod {'is not ready' if pod else 'is gone'}"
        if pod and pod.ready and not (each.volume and data and data.file):
            yield "its pod runs and its file is not there"
        elif each.file and each.copied and (not each.doubtful or (pod and pod.ready)):
            # What may be erased must not look whole when it is not: then no pod runs.
            yield from _data_complaints(each, data)
        if each.pod and not each.doubtful and volume and claim and min(volume.capacity, claim.capacity) < each.size:
            yield f"it has {claim.capacity} bytes, its PersistentVolume {volume.capacity}, and it asks for {each.size}"
        if data and volume and data.size < volume.capacity:
            yield f"its PersistentVolume says {volume.capacity} bytes, and it has {data.size}"

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
        complaints += [f"{volume} is staged still" for volume in seen.staged - used]
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


def _data_complaints(each: Workload, data: SeenData | None) -> Iterable[str]:
    if data is None:
        yield "LOST: it is on no node"
    elif data.file != each.file:
        yield f"LOST: its file has {data.file!r}, and had {each.file!r}"
    elif data.size < each.has:
        yield f"LOST: it has {data.size} bytes, and had {each.has}"


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


def plan(model: Model, chance: random.Random, number: int) -> list[Operation]:
    """What is asked for next: at most `number` requests, each about another workload."""
    operations: list[Operation] = []
    sources = {each.source for each in model.workloads.values() if each.source and not each.copied}
    living = [each for each in model.workloads.values() if not each.deleted]
    for each in chance.sample(sorted(model.workloads.values(), key=lambda one: one.name), len(model.workloads)):
        if len(operations) < number and chance.random() < 0.6:
            operations += _next(each, model, chance, is_source=each.name in sources)
            model = replace(model, number=model.number + sum(one.kind == "rebind" for one in operations[-1:]))
    while len(operations) < number and len(living) < _MOST_WORKLOADS:
        name = f"w{model.number}"
        model = replace(model, number=model.number + 1)
        fit = [
            each
            for each in living
            if each.node in model.cloning
            and each.file
            and not each.doubtful
            and not any(each.name == o.name for o in operations)
        ]
        source = chance.choice(fit) if fit and chance.random() < 0.6 else None
        operations.append(
            Operation(
                "create",
                name,
                max(SIZE, source.size, source.has) if source else SIZE,
                retain=chance.random() < 0.4,
                source=source.name if source else "",
            )
        )
        living.append(Workload(name, SIZE, False))
    return operations


def _next(each: Workload, model: Model, chance: random.Random, *, is_source: bool) -> list[Operation]:
    if each.deleted:
        if not each.kept or each.parted or not each.volume:
            return []
        kept = sum(1 for one in model.workloads.values() if one.parted)
        retained = sum(1 for one in model.workloads.values() if one.kept and not one.parted)
        if retained < _MOST_RETAINED and chance.random() < 0.5:
            return []
        if each.file and each.copied and not each.doubtful and chance.random() < 0.4:
            retain, reserved = chance.random() < 0.4, chance.random() < 0.5
            return [Operation("rebind", f"w{model.number}", SIZE, retain=retain, source=each.name, reserved=reserved)]
        part = kept < _MOST_KEPT and not each.doubtful and chance.random() < 0.4
        return [Operation("part" if part else "free", each.name)]
    if each.doubtful:
        # What a person does: lets go of what can't be had back.
        return [Operation("policy", each.name, retain=False), Operation("delete", each.name)]
    choices = [Operation("stop", each.name)] if each.pod else [Operation("start", each.name)] * 3
    if not is_source:
        choices += [Operation("delete", each.name)] * 2
    if each.volume:
        choices.append(Operation("policy", each.name, retain=not each.retain))
        if each.node in model.growing and each.size < _LARGEST:
            choices += [Operation("grow", each.name, size=each.size + _STEP)] * 2
    return [chance.choice(choices)]
