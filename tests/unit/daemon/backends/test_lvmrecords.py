"""Which records go with which command, and what each caller hears of it."""

import asyncio
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from daemon.backends.lvmrecords import LvmRecords
from daemon.errors import BackendFailed, NotAuthorized, PoolMissing, VolumeError, VolumeNotFound
from daemon.storage.inventory import Volume
from daemon.storage.record import Record, VolumeState
from lvm import GroupNotFound, Hung, Lvm, LvmError, LvmNotFound, TagsDiffer, TimedOut


@dataclass
class FakeLvm:
    """Each command waits until it is let go."""

    commands: list[list[str]] = field(default_factory=list)
    tags: list[tuple[Collection[str], Collection[str]]] = field(default_factory=list)
    """Those added and removed."""
    having: list[Mapping[str, Collection[str]]] = field(default_factory=list)
    differing: set[str] = field(default_factory=set)
    failures: dict[str, Exception] = field(default_factory=dict)
    """Of each command that names this volume."""
    ended: int = 0
    broken_off: int = 0
    _go: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def retag(
        self, group: str, volumes: Mapping[str, Collection[str]], *, add: Collection[str], remove: Collection[str]
    ) -> Mapping[str, TagsDiffer]:
        if not volumes:
            return {}
        self.commands.append([f"{group}/{name}" for name in volumes])
        self.having.append(volumes)
        self.tags.append((add, remove))
        try:
            await self._go.get()
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        self.ended += 1
        for name, error in self.failures.items():
            if name in volumes:
                raise error
        return {name: TagsDiffer("lvchange", 0, "not these tags") for name in volumes if name in self.differing}

    def let_go(self, commands: int) -> None:
        for _ in range(commands):
            self._go.put_nowait(None)


class Burst:
    def __init__(self) -> None:
        self.lvm = FakeLvm()
        self._records = LvmRecords(cast(Lvm, self.lvm))

    async def note(
        self, *names: str, state: VolumeState = VolumeState.READY, pool: str = "vg"
    ) -> list[asyncio.Task[Volume]]:
        """Callers that all have come as far as they can."""
        callers = [asyncio.create_task(self._note(name, state, pool)) for name in names]
        await settled()
        return callers

    async def _note(self, name: str, state: VolumeState, pool: str) -> Volume:
        volume = formatted(name, pool)
        return await self._records.rewrite(volume, replace(volume.record, state=state))


async def settled() -> None:
    """All that can go on without another command's end has done so."""
    for _ in range(20):
        await asyncio.sleep(0)


def formatted(name: str, pool: str = "vg") -> Volume:
    return Volume(Record(name, f"uid-{name}", "Delete", "ext4", VolumeState.FORMATTING, cluster="here"), 2**30, pool)


def failure(caller: "asyncio.Task[Volume]") -> VolumeError:
    error = caller.exception()
    assert isinstance(error, VolumeError)
    return error


@pytest.fixture
async def burst() -> Burst:
    return Burst()


async def test_a_lone_volume_goes_at_once(burst: Burst) -> None:
    (caller,) = await burst.note("a")
    assert burst.lvm.commands == [["vg/a"]]
    burst.lvm.let_go(1)
    noted = await caller
    assert noted == replace(formatted("a"), record=replace(formatted("a").record, state=VolumeState.READY))
    assert burst.lvm.tags == [({"elastic-local/state=ready"}, {"elastic-local/state=formatting"})]
    assert burst.lvm.having == [{"a": formatted("a").record.owner_tags()}]


async def test_those_that_come_while_one_runs_go_together(burst: Burst) -> None:
    first = await burst.note("a")
    later = [*await burst.note("b"), *await burst.note("c", "d", pool="vg/pool")]
    assert burst.lvm.commands == [["vg/a"]]
    burst.lvm.let_go(1)
    await asyncio.gather(*first)
    assert burst.lvm.commands == [["vg/a"], ["vg/b", "vg/c", "vg/d"]]
    assert not any(caller.done() for caller in later), "before it is on the disk"
    burst.lvm.let_go(1)
    assert [volume.pv for volume in await asyncio.gather(*later)] == ["b", "c", "d"]
    (alone,) = await burst.note("e")
    assert burst.lvm.commands[2:] == [["vg/e"]]
    burst.lvm.let_go(1)
    await alone


async def test_another_change_and_another_group_do_not_wait(burst: Burst) -> None:
    callers = [
        *await burst.note("a"),
        *await burst.note("b", state=VolumeState.ERASING),
        *await burst.note("c", pool="other"),
    ]
    assert burst.lvm.commands == [["vg/a"], ["vg/b"], ["other/c"]]
    burst.lvm.let_go(3)
    await asyncio.gather(*callers)


async def test_so_many_that_a_command_line_holds_them(burst: Burst) -> None:
    names = [f"volume-{number}" for number in range(70)]
    callers = await burst.note("first") + await burst.note(*names)
    burst.lvm.let_go(4)
    await asyncio.gather(*callers)
    assert [len(command) for command in burst.lvm.commands] == [1, 32, 32, 6]
    assert list(itertools.chain(*burst.lvm.commands[1:])) == [f"vg/{name}" for name in names]


async def test_a_record_that_changed_concerns_its_own_volume(burst: Burst) -> None:
    burst.lvm.differing = {"b"}
    callers = await burst.note("a", "b", "c")
    burst.lvm.let_go(1)
    await asyncio.wait(callers)
    assert burst.lvm.commands == [["vg/a", "vg/b", "vg/c"]]
    assert [caller.exception() is None for caller in callers] == [True, False, True]
    error = failure(callers[1])
    assert isinstance(error, NotAuthorized)
    assert "volume b" in str(error)


async def test_after_a_failure_each_is_tried_alone(burst: Burst) -> None:
    burst.lvm.failures = {"b": LvmNotFound("lvchange", 5, "Failed to find logical volume vg/b")}
    burst.lvm.differing = {"c"}
    callers = await burst.note("a", "b", "c", "d")
    later = await burst.note("e")
    burst.lvm.let_go(6)
    await asyncio.wait([*callers, *later])
    assert burst.lvm.commands == [["vg/a", "vg/b", "vg/c", "vg/d"], ["vg/a"], ["vg/b"], ["vg/c"], ["vg/d"], ["vg/e"]]
    assert [type(caller.exception()) for caller in [*callers, *later]] == [
        *(type(None), VolumeNotFound, NotAuthorized, type(None)),
        type(None),
    ]


async def test_one_that_fails_alone_is_not_tried_again(burst: Burst) -> None:
    burst.lvm.failures = {"a": LvmError("lvchange", 5, "no")}
    callers = await burst.note("a")
    burst.lvm.let_go(1)
    await asyncio.wait(callers)
    assert isinstance(failure(callers[0]), BackendFailed)
    assert burst.lvm.commands == [["vg/a"]]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimedOut("lvchange", -9, "no answer"), BackendFailed),
        (Hung("lvchange", None, "no answer"), BackendFailed),
        (GroupNotFound("lvchange", 5, "no answer"), PoolMissing),
    ],
)
async def test_a_group_without_an_answer_is_an_error_for_all(
    burst: Burst, error: LvmError, kind: type[VolumeError]
) -> None:
    burst.lvm.failures = {"b": error}
    callers = await burst.note("a", "b", "c")
    burst.lvm.let_go(1)
    await asyncio.wait(callers)
    assert burst.lvm.commands == [["vg/a", "vg/b", "vg/c"]]
    for name, caller in zip("abc", callers, strict=True):
        assert isinstance(failure(caller), kind)
        assert f"volume {name}" in str(failure(caller))
        assert "no answer" in str(failure(caller))


async def test_no_answer_while_each_is_tried_alone_is_one_for_those_left(burst: Burst) -> None:
    burst.lvm.failures = {"c": LvmNotFound("lvchange", 5, "gone")}
    callers = await burst.note("a", "b", "c", "d")
    burst.lvm.let_go(2)
    await settled()
    assert burst.lvm.commands[1:] == [["vg/a"], ["vg/b"]]
    burst.lvm.failures = {"b": Hung("lvchange", None, "no answer")}
    burst.lvm.let_go(1)
    await asyncio.wait(callers)
    assert burst.lvm.commands[3:] == []
    assert callers[0].exception() is None
    assert ["no answer" in str(failure(caller)) for caller in callers[1:]] == [True, True, True]


async def test_what_nobody_foresaw_reaches_all(burst: Burst) -> None:
    burst.lvm.failures = {"b": RuntimeError("a fault of ours")}
    callers = await burst.note("a", "b")
    burst.lvm.let_go(1)
    await asyncio.wait(callers)
    assert [str(caller.exception()) for caller in callers] == ["a fault of ours", "a fault of ours"]


async def test_who_gives_up_before_the_command_is_not_in_it(burst: Burst) -> None:
    first, given_up, other = *await burst.note("a"), *await burst.note("b", "c")
    given_up.cancel()
    await asyncio.wait([given_up])
    burst.lvm.let_go(2)
    await asyncio.gather(first, other)
    assert burst.lvm.commands == [["vg/a"], ["vg/c"]]


async def test_who_gives_up_takes_the_command_from_nobody(burst: Burst) -> None:
    """And is not gone before it ended: the volume's next turn must find what it did."""
    given_up, other = await burst.note("a", "b")
    given_up.cancel()
    await settled()
    assert not given_up.done()
    burst.lvm.let_go(1)
    assert (await other).pv == "b"
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    assert (burst.lvm.ended, burst.lvm.broken_off) == (1, 0)


async def test_a_command_that_nobody_waits_for_is_broken_off(burst: Burst) -> None:
    callers = await burst.note("a", "b")
    later = await burst.note("c")
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert burst.lvm.broken_off == 1
    burst.lvm.let_go(1)
    await asyncio.gather(*later)
    assert burst.lvm.commands == [["vg/a", "vg/b"], ["vg/c"]]


async def test_all_gave_up_before_it_began(burst: Burst) -> None:
    (first,) = await burst.note("a")
    (given_up,) = await burst.note("b")
    given_up.cancel()
    await asyncio.wait([given_up])
    (again,) = await burst.note("b")
    burst.lvm.let_go(2)
    await asyncio.gather(first, again)
    assert burst.lvm.commands == [["vg/a"], ["vg/b"]]
