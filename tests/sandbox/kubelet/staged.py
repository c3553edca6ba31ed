"""CSI volumes as the node has them: staged before the first pod of a volume, unstaged after its last one.

Source: pkg/kubelet/volumemanager/reconciler and pkg/volume/util/{operationexecutor,nestedpendingoperations} of
Kubernetes 1.36.2. Staging and publishing a volume exclude all else that is done with it; unpublishing it from different
pods goes on side by side. A volume that a pod still waits for is not unstaged.
"""

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from kube.backoff import Backoff
from tests.sandbox.kubelet.csi import CsiPlugin, CsiVolume
from tests.sandbox.kubelet.driver import CallFailed
from tests.sandbox.kubelet.sources import Csi

Json = dict[str, Any]

_RETRY = Backoff(first=0.5, factor=2, limit=122, jitter=0)
_log = logging.getLogger(__name__)


class State(enum.Enum):
    """Of the staging mount (DeviceMountState)."""

    NO = enum.auto()
    UNCERTAIN = enum.auto()
    YES = enum.auto()


class Member(Protocol):
    """A pod's volume."""

    @property
    def holds_pod(self) -> bool: ...


class StagedVolume:
    def __init__(self, csi: CsiPlugin, volume: CsiVolume, on_end: Callable[[CsiVolume], None]) -> None:
        self._csi = csi
        self._volume = volume
        self._on_end = on_end
        self._state = State.NO
        self._reconstructed = False
        self._members: dict[Path, Member] = {}
        self._changed = asyncio.Event()
        self._condition = asyncio.Condition()
        self._alone = False
        self._shared = 0
        self._task = asyncio.create_task(self._run())

    def join(self, folder: Path, member: Member) -> None:
        """A pod wants the volume, or has it."""
        self._members[folder] = member

    def leave(self, folder: Path) -> None:
        """A pod neither has the volume nor wants it."""
        self._members.pop(folder, None)
        self._changed.set()

    def reconstruct(self) -> None:
        """A kubelet before this one may have staged it, and only an unstage makes sure that it is not."""
        self._state, self._reconstructed = State.UNCERTAIN, True

    def is_used_elsewhere(self, folder: Path) -> bool:
        """Whether another pod has it, or may have it (IsVolumeMountedElsewhere)."""
        return any(path != folder and member.holds_pod for path, member in self._members.items())

    async def stage(self, source: Csi, pod: Json) -> None:
        """For one who is `alone`. Raises CallFailed and OSError."""
        if self._state is State.YES:
            return
        try:
            await self._csi.stage(source, pod)
        except CallFailed as error:
            if error.uncertain:
                self._state = State.UNCERTAIN
            elif error.finished and not self._reconstructed:
                self._state = State.NO
            raise
        self._state, self._reconstructed = State.YES, False

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._condition:
            await self._condition.wait_for(lambda: not self._alone and not self._shared)
            self._alone = True
        try:
            yield
        finally:
            async with self._condition:
                self._alone = False
                self._condition.notify_all()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._condition:
            await self._condition.wait_for(lambda: not self._alone)
            self._shared += 1
        try:
            yield
        finally:
            async with self._condition:
                self._shared -= 1
                self._condition.notify_all()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._members:
                failures = 0
                continue
            try:
                await self._unstage()
            except (CallFailed, OSError) as error:
                failures += 1
                _log.error('UnmountDevice failed for volume "%s": %s', self._volume.name, error)
                asyncio.get_running_loop().call_later(_RETRY.delay(failures), self._changed.set)
            if not self._members and self._state is State.NO:
                self._on_end(self._volume)
                return

    async def _unstage(self) -> None:
        async with self.alone():
            if self._members or self._state is State.NO:
                return
            self._state = State.UNCERTAIN
            await self._csi.unstage(self._volume)
            self._state, self._reconstructed = State.NO, False
