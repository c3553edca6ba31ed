"""One replica works, the others wait: a Lease of coordination.k8s.io as client-go uses it.

Clocks of other machines are not trusted. Whether a lease ran out is measured from when *we* saw it change last, on
our monotonic clock, so a candidate that has just started waits a whole lease. The leader counts from the moment it
*began* to send a renewal that succeeded, and gives up `lease_seconds - renew_deadline` before anybody may follow it.

The library's leader election is not used: its renewal has no deadline, so that a request that hangs keeps the old
leader at work after the new one began.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError, Conflict, Json, NoLongerLeading, NotFound
from kube.resources import LEASES


@dataclass(frozen=True)
class Clock:
    """Monotonic seconds, also those that a suspended machine slept through: for everybody else they went by. `speed`:
    how many of them go by in one real second."""

    speed: float = 1.0

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) * self.speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """As asyncio.timeout."""
        return asyncio.timeout(seconds / self.speed)


_log = logging.getLogger(__name__)
_RELEASE_SECONDS = 2.0


class LeadershipLost(Exception):
    """Another replica leads, or may do so any moment. The process must end: its caches and plans are a leader's."""


async def lead(
    cluster: Cluster,
    name: str,
    namespace: str,
    identity: str,
    work: Callable[[Cluster], Awaitable[None]],
    *,
    lease_seconds: float = 15,
    renew_deadline: float = 10,
    retry: float = 2,
    clock: Clock = Clock(),
) -> None:
    """Waits for the lease, then does `work` for as long as it is held, and gives it back when the work ends. The work
    gets a connection to use for all that it does: see `_Lease.still_held`.

    `identity` must be this process's alone. Raises LeadershipLost, after the work was cancelled, when the lease could
    not be renewed for `renew_deadline` seconds or somebody else took it; whatever `work` raises passes through."""
    if not retry < renew_deadline < lease_seconds:
        raise ValueError("leadership needs retry < renew_deadline < lease_seconds")
    lease = _Lease(cluster, name, namespace, identity, lease_seconds, clock)
    await _acquire(lease, renew_deadline / 2, retry)
    _log.info("%s leads: it holds the lease %s/%s", identity, namespace, name)
    working = asyncio.ensure_future(work(cluster.guarded(lambda: lease.still_held(renew_deadline))))
    renewing = asyncio.create_task(_renew(lease, renew_deadline, retry), name="renew lease")
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        lost = renewing.done()
        renewing.cancel()
        working.cancel()
        # Work that ignores its cancellation must not keep us here until the next leader begins.
        grace = (lease_seconds - renew_deadline) / 2
        await asyncio.wait({working, renewing}, timeout=grace / clock.speed)
        if working.done() and not lost:
            await lease.release()
    if lost:
        await renewing
    await working


async def _acquire(lease: "_Lease", deadline: float, retry: float) -> None:
    while True:
        try:
            async with lease.clock.timeout(deadline):
                if await lease.take():
                    return
        except (ApiError, TimeoutError) as error:
            _log.warning("waiting for the lease %s: %s", lease.name, str(error) or "the API server does not answer")
        await lease.clock.sleep(retry * (1 + random.random() / 5))  # noqa: S311


async def _renew(lease: "_Lease", renew_deadline: float, retry: float) -> None:
    """Only ever ends by raising LeadershipLost, at the latest `renew_deadline` after the last good renewal began."""
    while True:
        await lease.clock.sleep(retry)
        left = lease.renewed + renew_deadline - lease.clock.now()
        try:
            async with lease.clock.timeout(left):
                await lease.renew()
        except (ApiError, TimeoutError) as error:
            _log.warning("the lease %s is not renewed yet: %s", lease.name, str(error) or "no answer in time")
            if lease.clock.now() + retry > lease.renewed + renew_deadline:
                raise LeadershipLost(
                    f"the lease {lease.name} could not be renewed for {renew_deadline:g} s: {str(error) or 'no answer'}"
                ) from error


class _Lease:
    """Our view of the lease."""

    def __init__(
        self, cluster: Cluster, name: str, namespace: str, identity: str, seconds: float, clock: Clock
    ) -> None:
        self.name = name
        self.clock = clock
        self.renewed = 0.0
        """When the last write that succeeded began."""
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity
        self._seconds = seconds
        self._body: Json = {}
        self._changed = 0.0
        """When we saw the spec change last."""

    async def take(self) -> bool:
        """One try to become the holder."""
        begun = self.clock.now()
        try:
            body = await self._cluster.get(LEASES, self.name, self._namespace)
        except NotFound:
            metadata = {"name": self.name, "namespace": self._namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        spec = body.setdefault("spec", {})
        if spec != self._body.get("spec"):
            self._changed = self.clock.now()
        self._body = body
        holder = spec.get("holderIdentity")
        valid = float(spec.get("leaseDurationSeconds") or self._seconds)
        if holder and holder != self._identity and self.clock.now() - self._changed < valid:
            return False
        if holder != self._identity:
            transitions = int(spec["leaseTransitions"]) + 1 if "leaseTransitions" in spec else 0
            spec = spec | {"acquireTime": _now(), "leaseTransitions": transitions}
        try:
            await self._write(self._held(spec))
        except (Conflict, AlreadyExists):
            return False
        self.renewed = begun
        return True

    async def renew(self) -> None:
        """Raises LeadershipLost when the lease is somebody else's or gone: then nothing keeps others from it."""
        begun = self.clock.now()
        await self._change(self._held)
        self.renewed = begun

    def still_held(self, renew_deadline: float) -> None:
        """Raises NoLongerLeading when another may lead by now. A process that was stopped for a while, with its machine
        or by a signal, goes on in the middle of what it was doing, before it hears of any clock; so each write asks
        right before its bytes go (kube/transport.py)."""
        if self.clock.now() >= self.renewed + renew_deadline:
            raise NoLongerLeading(0, "", f"not written: the lease {self.name} was not renewed in time")

    async def release(self) -> None:
        """Lets the next one begin at once. When it fails they wait for the lease to run out."""
        try:
            async with self.clock.timeout(_RELEASE_SECONDS):
                await self._change(_free)
        except (ApiError, TimeoutError, LeadershipLost) as error:
            _log.info("the lease %s was not given back: %s", self.name, str(error) or "no answer in time")

    async def _change(self, change: Callable[[Json], Json]) -> None:
        try:
            await self._write(change(self._body["spec"]))
        except (Conflict, NotFound):
            # Somebody labelled it, or a write of ours that we gave up was carried out after all. A write with a uid to
            # a lease that was deleted is a conflict, too.
            try:
                body = await self._cluster.get(LEASES, self.name, self._namespace)
            except NotFound:
                raise LeadershipLost(f"the lease {self.name} was deleted") from None
            holder = body["spec"].get("holderIdentity")
            if holder != self._identity:
                raise LeadershipLost(f"the lease {self.name} is now held by {holder or 'nobody'}") from None
            self._body = body
            await self._write(change(body["spec"]))

    def _held(self, spec: Json) -> Json:
        return spec | {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, math.ceil(self._seconds)),
            "renewTime": _now(),
        }

    async def _write(self, spec: Json) -> None:
        body = self._body | {"spec": spec}
        if "resourceVersion" in body["metadata"]:
            self._body = await self._cluster.replace(LEASES, self.name, body, self._namespace)
        else:
            self._body = await self._cluster.create(LEASES, body, self._namespace)


def _free(spec: Json) -> Json:
    kept = {key: value for key, value in spec.items() if key != "holderIdentity"}
    return kept | {"leaseDurationSeconds": 1, "renewTime": _now()}


def _now() -> str:
    """A MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
