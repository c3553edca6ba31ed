"""A node, real backend and all, to which anything happens in any order, and the figures it publishes meanwhile.

The machine plays the others: the provisioner, which gives out what was published, however long ago; Kubernetes, which
lets claims grow without asking; people who make volumes of their own; and whoever kills the daemon, with a real
SIGKILL. What has to be true after each step is said by figures that are not the daemon's (`Storage.free`).
"""

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contract import capacity, names, parameters
from contract.capacity import footprint
from contract.volume import DELETE, RETAIN, PersistentVolume
from daemon.cluster.capacity import largest_volume, reservations
from daemon.cluster.capacitypublisher import desired
from daemon.cluster.nodevolumes import volume_spec
from daemon.errors import NoSpace
from daemon.kubelet.podfolder import PodFolder
from daemon.storage.freespace import Reservation
from daemon.storage.volumes import Volumes
from host import filesystem, mounting
from kube.records import Node as KubeNode
from kube.records import StorageClass
from tests.agreeing import Agreeing
from tests.node.volume_node import MIB, Node

T = TypeVar("T")
Work = Callable[[Volumes], Coroutine[Any, Any, object]]

NODE = KubeNode("node", "uid", "host", {}, deleting=False)


@dataclass
class Storage:
    """What is under test, and how to look at it without it."""

    node: Node
    classes: Mapping[str, Mapping[str, str]]
    """Parameters by StorageClass. All of them are served from one pool."""
    reserve: int
    """What the node keeps back, by its configuration."""
    free: Callable[[], Coroutine[Any, Any, int]]
    """Bytes of the pool that no volume has, whoever asks."""
    come: Callable[[str, int], Coroutine[Any, Any, None]]
    """Somebody makes a volume of that name and size, which is not ours."""
    go: Callable[[str], Coroutine[Any, Any, None]]
    pvs: dict[str, PersistentVolume] = field(default_factory=dict)

    def volumes(self) -> Volumes:
        """A daemon that starts."""

        def reserved() -> list[Reservation]:
            return reservations(self.pvs.values(), volumes.inventory)

        volumes = Volumes(self.node.make_backend(), self.node.staging, Agreeing(), reservations=reserved)
        return volumes


WORK = ("prepare", "mount", "expand", "reclaim")
STEPS = ("create", "rewrite", "extend", "remove")


def arm(volumes: Volumes, fuse: int) -> None:
    """The process kills itself when that many ends of steps lie behind it."""
    left = fuse

    def burn() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def fused(step: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*arguments: Any, **keywords: Any) -> Any:
            burn()
            result = await step(*arguments, **keywords)
            burn()
            return result

        return run

    backend = volumes._backend
    for name in STEPS:
        setattr(backend, name, fused(getattr(backend, name)))
    for name in ("make", "mount", "grow"):
        setattr(filesystem, name, fused(getattr(filesystem, name)))
    bind = mounting.bind

    def fused_bind(*arguments: Any, **keywords: Any) -> None:
        burn()
        bind(*arguments, **keywords)
        burn()

    mounting.bind = fused_bind


class CapacityMachine(RuleBasedStateMachine):
    """`make_storage` makes a fresh one, or cleans up the one there is."""

    make_storage: Callable[[], Storage]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.storage = type(self).make_storage()
        self.numbers = itertools.count()
        self.granted: dict[str, int] = {}
        """What the provisioner gave each PersistentVolume, in bytes."""
        self.folders: dict[str, PodFolder] = {}
        self.foreign: dict[str, int] = {}
        self.kept: dict[str, PersistentVolume] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(made=st.integers(3, 9), reserved=st.integers(3, 9))
    def start(self, made: int, reserved: int) -> None:
        """With a volume that is made and one that is not: from here on most things are about room that is scarce."""
        self.restart()
        self.provision(size=made, odd=0, choice=0)
        self.prepare(choice=0)
        self.provision(size=reserved, odd=0, choice=1)

    @rule()
    def restart(self) -> None:
        """A new daemon, which knows nothing but what it finds."""
        self.abandon()
        self.volumes = self.storage.volumes()
        self.run(self.volumes.start())
        self.publish()

    def abandon(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            self.run(asyncio.wait([task]))

    @rule()
    def publish(self) -> None:
        self.published = self.now()

    def now(self) -> dict[str, capacity.Capacity]:
        """What the daemon would publish at this moment, by class."""
        classes = [
            StorageClass(name, names.PROVISIONER, given, DELETE, (), "WaitForFirstConsumer", ())
            for name, given in self.storage.classes.items()
        ]
        pool_of = self.storage.node.make_backend().pool_of
        pvs = list(self.storage.pvs.values())
        objects = desired(classes, pool_of, self.volumes.inventory, pvs, NODE)
        return {published.capacity.storage_class: published.capacity for published in objects.values()}

    # What the provisioner and Kubernetes do.

    @rule(size=st.integers(1, 9), odd=st.sampled_from((0, 1, 4096)), choice=st.integers(0, 9))
    def provision(self, size: int, odd: int, choice: int) -> None:
        name = sorted(self.storage.classes)[choice % len(self.storage.classes)]
        asked = parameters.parse(self.storage.classes[name])
        room = self.published[name]
        taken = sum(self.weighs(pv, pv.charged_size) for pv in self.storage.pvs.values())
        if footprint(size * MIB + odd, asked, room.granularity) > room.allocatable - taken:
            return
        pv = f"pvc-{next(self.numbers):03}"
        self.granted[pv] = size * MIB + odd
        self.storage.pvs[pv] = PersistentVolume(
            name=pv,
            uid=f"uid-{pv}",
            resource_version="1",
            size=size * MIB + odd,
            options=parameters.to_options(asked, size * MIB + odd),
            filesystem="ext4",
            reclaim_policy=DELETE,
            storage_class=name,
            provisioned_by="",
            claim=None,
            node_label="node",
            hostnames=("host",),
            pool=room.pool,
            phase="Bound",
            finalizers=(names.FINALIZER,),
            deleting=False,
            granted=size * MIB + odd,
        )

    @precondition(lambda self: self.alive())
    @rule(choice=st.integers(0, 99), more=st.integers(1, 16), then=st.sampled_from(("prepare", "mount", "expand", "")))
    def claim_grows(self, choice: int, more: int, then: str) -> None:
        """It is granted if there is room by what was published, however long ago. Mostly somebody notices at once."""
        pv = self.pick(self.alive(), choice)
        wish = max(pv.size, self.granted[pv.name] + more * MIB)
        room = self.published[pv.storage_class]
        taken = sum(self.weighs(other, other.charged_size) for other in self.storage.pvs.values() if other is not pv)
        if self.weighs(pv, wish) <= room.allocatable - taken:
            self.granted[pv.name] = wish
        pv = self.storage.pvs[pv.name] = replace(pv, size=wish, granted=self.granted[pv.name])
        match then:
            case "prepare":
                self.do(pv, self.preparing(pv))
            case "mount":
                self.do(pv, self.mounting(pv))
            case "expand":
                self.do(pv, self.expanding(pv))

    # What the kubelet and the reconciler have the daemon do.

    @precondition(lambda self: self.alive())
    @rule(choice=st.integers(0, 99))
    def prepare(self, choice: int) -> None:
        pv = self.pick(self.alive(), choice)
        self.do(pv, self.preparing(pv))

    @precondition(lambda self: self.alive())
    @rule(choice=st.integers(0, 99))
    def mount(self, choice: int) -> None:
        pv = self.pick(self.alive(), choice)
        self.do(pv, self.mounting(pv))

    @precondition(lambda self: self.alive())
    @rule(choice=st.integers(0, 99))
    def expand(self, choice: int) -> None:
        pv = self.pick(self.alive(), choice)
        self.do(pv, self.expanding(pv))

    @precondition(lambda self: self.folders)
    @rule(choice=st.integers(0, 99))
    def unmount(self, choice: int) -> None:
        name = sorted(self.folders)[choice % len(self.folders)]
        self.run(self.volumes.unmount(self.folders.pop(name)))

    @precondition(lambda self: self.idle())
    @rule(choice=st.integers(0, 99))
    def delete(self, choice: int) -> None:
        pv = self.leaving(self.pick(self.idle(), choice), DELETE)
        self.run(self.reclaiming(pv)(self.volumes))
        del self.storage.pvs[pv.name]

    @precondition(lambda self: self.idle())
    @rule(choice=st.integers(0, 99))
    def retain(self, choice: int) -> None:
        pv = self.leaving(self.pick(self.idle(), choice), RETAIN)
        self.run(self.volumes.retain(pv.name, pv.uid, pv.pool, made=pv.made))
        self.publish()
        self.kept[pv.name] = self.storage.pvs.pop(pv.name)

    @precondition(lambda self: self.kept)
    @rule(choice=st.integers(0, 99))
    def an_administrator_removes_what_was_kept(self, choice: int) -> None:
        pv = self.pick(list(self.kept.values()), choice)
        self.run(self.reclaiming(pv)(self.volumes))
        del self.kept[pv.name]

    # What goes wrong.

    @precondition(lambda self: self.storage.pvs)
    @rule(
        choice=st.integers(0, 99),
        what=st.sampled_from(("prepare", "mount", "expand", "reclaim")),
        fuse=st.integers(0, 6),
    )
    def killed(self, choice: int, what: str, fuse: int) -> None:
        """The daemon is killed on the way, unless it is done before that. What it was asked for is not asked again."""
        pv = self.pick(list(self.storage.pvs.values()), choice)
        if what == "reclaim" or pv.deleting:
            if pv.name in self.folders:
                return
            pv = self.leaving(pv, DELETE)
            work = self.reclaiming(pv)
        else:
            work = {"prepare": self.preparing, "mount": self.mounting, "expand": self.expanding}[what](pv)
        self.abandon()
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(self.doomed(work, fuse))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        self.restart()

    async def doomed(self, work: Work, fuse: int) -> None:
        volumes = self.storage.volumes()
        await volumes.start()
        arm(volumes, fuse)
        await work(volumes)

    @rule(extents=st.integers(1, 8))
    def a_stranger_comes(self, extents: int) -> None:
        """It takes what is free, whatever of that is reserved."""
        room = next(iter(self.now().values()))
        size = extents * max(room.granularity, MIB)
        if size <= self.run(self.storage.free()) - self.storage.reserve:
            name = f"stranger-{next(self.numbers):03}"
            self.run(self.storage.come(name, size))
            self.foreign[name] = size
            self.run(self.volumes.refresh())
            self.publish()

    @precondition(lambda self: self.foreign)
    @rule(choice=st.integers(0, 99))
    def a_stranger_goes(self, choice: int) -> None:
        name = sorted(self.foreign)[choice % len(self.foreign)]
        self.run(self.storage.go(name))
        del self.foreign[name]
        self.run(self.volumes.refresh())

    # What must be true all the time.

    @invariant()
    def published_is_what_is_free_less_what_is_reserved(self) -> None:
        free = self.run(self.storage.free())
        reserved = sum(max(self.weighs(pv, pv.charged_size) - self.has(pv), 0) for pv in self.storage.pvs.values())
        for name, room in self.now().items():
            asked = parameters.parse(self.storage.classes[name])
            left = free + self.beyond(asked.overprovision_ratio) - reserved - self.storage.reserve
            assert room.available == largest_volume(left, asked, room.granularity)

    @invariant()
    def nothing_is_given_away_twice(self) -> None:
        """What is free is enough for everything that the provisioner gave away and that is not made yet, but for what
        strangers took of it."""
        owed = sum(
            max(self.weighs(pv, self.granted[pv.name]) - self.has(pv), 0)
            for pv in self.storage.pvs.values()
            if not pv.deleting
        )
        most = max(parameters.parse(given).overprovision_ratio for given in self.storage.classes.values())
        left = self.run(self.storage.free()) + self.beyond(most) - self.storage.reserve
        assert owed <= left + sum(self.foreign.values())

    def teardown(self) -> None:
        self.abandon()
        if hasattr(self, "volumes"):
            self.storage.node.unmount_all()
            for pv in [*self.storage.pvs.values(), *self.kept.values()]:
                self.run(self.reclaiming(pv)(self.volumes))
            for name in self.foreign:
                self.run(self.storage.go(name))
            self.run(self.volumes.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    def preparing(self, pv: PersistentVolume) -> Work:
        return lambda volumes: volumes.prepare(volume_spec(pv))

    def mounting(self, pv: PersistentVolume) -> Work:
        folder = self.folders.setdefault(pv.name, self.storage.node.folder(pv.name))
        return lambda volumes: volumes.mount(volume_spec(pv), folder, read_only=False)

    def expanding(self, pv: PersistentVolume) -> Work:
        return lambda volumes: volumes.expand(volume_spec(pv))

    def reclaiming(self, pv: PersistentVolume) -> Work:
        async def reclaim(volumes: Volumes) -> None:
            while await volumes.reclaim(pv.name, pv.uid, pv.pool) is False:
                await asyncio.sleep(0.01)

        return reclaim

    def do(self, pv: PersistentVolume, work: Work) -> None:
        """What was granted is given."""
        try:
            self.run(work(self.volumes))
        except NoSpace:
            assert self.foreign

    def leaving(self, pv: PersistentVolume, policy: str) -> PersistentVolume:
        """Its claim is gone, and Kubernetes lets go of it."""
        self.storage.pvs[pv.name] = replace(pv, deleting=True, phase="Released", reclaim_policy=policy)
        return self.storage.pvs[pv.name]

    def alive(self) -> list[PersistentVolume]:
        return [pv for pv in self.storage.pvs.values() if not pv.deleting]

    def idle(self) -> list[PersistentVolume]:
        return [pv for pv in self.storage.pvs.values() if pv.name not in self.folders]

    @staticmethod
    def pick(pvs: list[PersistentVolume], choice: int) -> PersistentVolume:
        return pvs[choice % len(pvs)]

    def weighs(self, pv: PersistentVolume, size: int) -> int:
        return footprint(size, pv.parameters(), self.published[pv.storage_class].granularity)

    def has(self, pv: PersistentVolume) -> int:
        volume = self.volumes.inventory.volume(pv.name)
        return self.weighs(pv, volume.size) if volume and volume.size else 0

    def beyond(self, ratio: float) -> int:
        """Bytes that a pool may have reserved beyond its size."""
        (pool,) = {room.pool for room in self.published.values()}
        seen = self.volumes.inventory.pool(pool)
        assert seen
        return int(seen.size * (ratio - 1)) if seen.thin else 0
