"""What the campaigns on a whole cluster ask for next. It follows from the model and from chance alone."""

import random
import zlib
from collections.abc import Iterable
from dataclasses import replace

from tests.node.volume_node import MIB
from tests.torture.cluster.attributes import LIMITS, MISSING
from tests.torture.cluster.model import Model
from tests.torture.cluster.operation import Operation
from tests.torture.cluster.snapshots import Snapshot
from tests.torture.cluster.workloads import Workload

SIZE = 16 * MIB
_STEP = 8 * MIB
_LARGEST = 48 * MIB
_MOST_WORKLOADS = 6
_MOST_SNAPSHOTS = 5
_MOST_KEPT = 6
_MOST_RETAINED = 4


def plan(model: Model, chance: random.Random, number: int) -> list[Operation]:
    """What is asked for next: at most `number` requests, or a few more where some go together."""
    operations: list[Operation] = []
    for name in chance.sample(
        sorted([*model.workloads, *model.snapshots]), len(model.workloads) + len(model.snapshots)
    ):
        if len(operations) < number and chance.random() < 0.6:
            asked = (
                _next(model.workloads[name], model, chance)
                if name in model.workloads
                else _next_of_snapshot(model.snapshots[name], model, chance)
            )
            model = replace(model, number=model.number + sum(each.makes for each in asked))
            operations += asked
    changed = {each.name for each in operations}
    living = [each for each in model.workloads.values() if not each.deleted]
    while len(operations) < number and len(living) < _MOST_WORKLOADS:
        made = _create(model, chance, changed)
        model = replace(model, number=model.number + 1)
        operations.append(made)
        living.append(Workload(made.name, SIZE, False))
    return operations


def _create(model: Model, chance: random.Random, changed: Iterable[str]) -> Operation:
    name, retain = f"w{model.number}", chance.random() < 0.4
    # Both drivers are in use, from any seed.
    csi = zlib.crc32(name.encode()) % 3 > 0
    claims = [
        each
        for each in model.workloads.values()
        if not each.deleted and each.node in model.cloning and each.file and not each.doubtful
        if each.name not in changed
    ]
    # One that is not ready yet is waited for. Its source may still grow meanwhile.
    snapshots = [each for each in model.snapshots.values() if model.is_promised(each) and not each.deleted]
    sources: list[Workload | Snapshot] = [*claims, *snapshots]
    if not sources or chance.random() < 0.3:
        return Operation("create", name, SIZE, retain=retain, csi=csi)
    source = chance.choice(snapshots if snapshots and chance.random() < 0.6 else sources)
    if isinstance(source, Snapshot):
        least = max(SIZE, source.size) if source.ready else _LARGEST
        size = min(least + chance.choice([0, _STEP]), _LARGEST)
    else:
        size = max(SIZE, source.size, source.has)
    return Operation("create", name, size, retain=retain, csi=csi, source=source.name)


def _next(each: Workload, model: Model, chance: random.Random) -> list[Operation]:
    if each.deleted:
        return _next_of_deleted(each, model, chance)
    if each.doubtful:
        # What a person does: lets go of what can't be had back.
        return [Operation("policy", each.name, retain=False), Operation("delete", each.name)]
    if model.is_starved(each):
        return [Operation("delete", each.name)]
    choices = [[Operation("stop", each.name)]] if each.pod else [[Operation("start", each.name)]] * 3
    if not any(one.source == each.name and not one.copied for one in model.workloads.values()):
        choices += [[Operation("delete", each.name)]] * 2
    if each.volume:
        choices.append([Operation("policy", each.name, retain=not each.retain)])
        choices += [_modify(each, chance)] * 2
        if each.node in model.growing and each.size < _LARGEST:
            choices += [[Operation("grow", each.name, size=each.size + _STEP)]] * 2
        taken = sum(1 for one in model.snapshots.values() if not one.deleted)
        if taken < _MOST_SNAPSHOTS and (each.file or chance.random() < 0.3):
            take = Operation("snapshot", f"s{model.number}", source=each.name, retain=chance.random() < 0.3)
            able = each.csi and each.node in model.cloning
            choices += [[take, *_at_once(each, take, model, chance)]] * (4 if able else 1)
    return chance.choice(choices)


def _at_once(each: Workload, take: Operation, model: Model, chance: random.Random) -> list[Operation]:
    """What else is asked for while the snapshot is being made."""
    dice = chance.random()
    if dice < 0.15 and not any(one.source == each.name and not one.copied for one in model.workloads.values()):
        return [Operation("delete", each.name)]
    return [Operation("unsnapshot", take.name)] if dice < 0.25 else []


def _modify(each: Workload, chance: random.Random) -> list[Operation]:
    """Back and forth, too."""
    names = chance.choices([*LIMITS, *LIMITS, MISSING], k=chance.choice([1, 1, 2, 3]))
    return [Operation("modify", each.name, attributes=name) for name in names]


def _next_of_deleted(each: Workload, model: Model, chance: random.Random) -> list[Operation]:
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


def _next_of_snapshot(each: Snapshot, model: Model, chance: random.Random) -> list[Operation]:
    if not each.deleted:
        if not each.source and not each.ready:
            return []  # what it is to have is not its own yet, and would stay
        choices = [Operation("unsnapshot", each.name)] * 2
        if each.content and not each.doubtful:
            choices.append(Operation("snapshotpolicy", each.name, retain=not each.retain))
        return [chance.choice(choices)]
    if not each.retain or not each.content:
        return []
    if each.parted:
        again = each.ready and not each.doubtful and chance.random() < 0.5
        retain = chance.random() < 0.3
        return [Operation("regain", f"s{model.number}", source=each.name, retain=retain)] if again else []
    part = not each.doubtful and chance.random() < 0.5
    return [Operation("partsnapshot" if part else "freesnapshot", each.name)]
