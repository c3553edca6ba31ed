"""Kubernetes Events: what `kubectl describe` shows a user about their claim, pod, volume or node.

Reporting never blocks and never fails: an event goes into a bounded queue, and a task writes it when the API server
will have it. The same message about the same object is not a new event but a higher count on the first one.
A program that goes wrong in a loop must not flood the cluster, so each object has a budget for each reason: a hundred
volumes that are told on their Node do not keep what else happens to that from being told.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from contract.volume import ObjectReference
from kube.backoff import Backoff
from kube.client import STRATEGIC, Cluster
from kube.errors import AlreadyExists, ApiError, Json, NotFound, Unreachable
from kube.resources import EVENTS

K = TypeVar("K")
V = TypeVar("V")

NORMAL, WARNING = "Normal", "Warning"
MESSAGE_BYTES = 1024
"""What the API server takes (validation of core/v1 Event: NoteLengthLimit)."""

_log = logging.getLogger(__name__)
_PENDING = 10_000
_TOGETHER = 8
"""Events written at the same time: one after the other they would trail behind a burst of claims for seconds."""
_REMEMBERED = 4096
_BURST, _REFILL_SECONDS = 25, 30.0
_NAME_LENGTH = 253
_TRIES = 5
"""Of an event that the API server says it failed with, while it takes others: a webhook that is away is asked for the
events of some namespaces only, and nobody may hold up the rest."""
_BACKOFF = Backoff(first=0.5, factor=2, limit=30)


@dataclass(frozen=True)
class _Subject:
    """What makes two reports the same event. The resourceVersion of the object does not."""

    reference: ObjectReference
    kind: str
    reason: str
    message: str


@dataclass(frozen=True)
class _Series:
    """Reports of one subject that wait to be written."""

    name: str
    """Of the event, if it comes to a new one: chosen before the first try, so that a try whose answer was lost and
    its repetition make one event."""
    resource_version: str
    first: datetime
    last: datetime
    count: int
    refused: int = 0
    """Tries that failed while others were written."""
    others: int = 0
    """Events written until the last try."""


@dataclass(frozen=True)
class _Written:
    """The event that is already on the server."""

    name: str
    count: int


@dataclass(frozen=True)
class _Budget:
    """Events of one reason that may still be written about an object, as of a monotonic time."""

    left: float
    at: float

    def refilled(self, now: float) -> "_Budget":
        return _Budget(min(_BURST, self.left + (now - self.at) / _REFILL_SECONDS), now)


class Recorder:
    """Events of one component, on one host if it is bound to one."""

    def __init__(
        self, cluster: Cluster, component: str, host: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._component = component
        self._host = host
        self._clock = clock
        self._pending: OrderedDict[_Subject, _Series] = OrderedDict()
        self._written: OrderedDict[_Subject, _Written] = OrderedDict()
        self._budgets: OrderedDict[tuple[ObjectReference, str], _Budget] = OrderedDict()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._writing = asyncio.Lock()
        self._count = 0
        """Events written."""

    def normal(self, reference: ObjectReference, reason: str, message: str) -> None:
        self._report(reference, NORMAL, reason, message)

    def warning(self, reference: ObjectReference, reason: str, message: str) -> None:
        self._report(reference, WARNING, reason, message)

    def hurry(self) -> None:
        """The API server is there again: what waits is written now."""
        self._hurry.set()

    async def run(self) -> None:
        """Writes what is reported, for ever. Only cancellation ends it."""
        failures = 0
        while True:
            before = self._count
            try:
                await self._write_all()
                failures = 0
            except Unreachable as error:
                failures = failures + 1 if self._count == before else 1
                _log.info("%d events wait for the API server: %s", len(self._pending), error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), max(_BACKOFF.delay(failures), error.retry_after or 0))
                self._hurry.clear()
                continue
            self._wake.clear()
            if not self._pending:
                await self._wake.wait()

    async def flush(self, seconds: float = 5.0) -> None:
        """Writes what was reported so far, with or without `run`. Gives up after that many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._write_all()
        except (Unreachable, TimeoutError) as error:
            _log.warning("%d events were not written: %s", len(self._pending), str(error) or "no answer in time")

    def _report(self, reference: ObjectReference, kind: str, reason: str, message: str) -> None:
        subject = _Subject(replace(reference, resource_version=""), kind, reason, _shorten(message))
        now = datetime.now(UTC)
        if waiting := self._pending.get(subject):
            self._pending[subject] = replace(waiting, last=now, count=waiting.count + 1)
        elif len(self._pending) >= _PENDING:
            _log.warning("too many events wait, this one is only logged: %s", subject)
        elif self._spend(subject.reference, reason):
            self._pending[subject] = _Series(_name(reference), reference.resource_version, now, now, 1)
            self._wake.set()
        else:
            _log.debug("too many events of one reason about one object, this one is only logged: %s", subject)

    def _spend(self, reference: ObjectReference, reason: str) -> bool:
        now, of = self._clock(), (reference, reason)
        budget = self._budgets.get(of, _Budget(_BURST, now)).refilled(now)
        if budget.left < 1:
            return False
        _remember(self._budgets, of, replace(budget, left=budget.left - 1))
        return True

    async def _write_all(self) -> None:
        """Raises Unreachable when nothing more can be written, and then that still waits."""
        async with self._writing:
            while self._pending:
                batch = [self._settle(*entry) for entry in itertools.islice(self._pending.items(), _TOGETHER)]
                outcomes = await asyncio.gather(*batch, return_exceptions=True)
                errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                for error in errors:
                    if len(errors) == len(batch) or not isinstance(error, Unreachable):
                        raise error

    async def _settle(self, subject: _Subject, series: _Series) -> None:
        """Writes it, or gives it up when the API server refuses it. Raises Unreachable."""
        try:
            _remember(self._written, subject, await self._write(subject, series))
            self._count += 1
        except Unreachable as error:
            if not self._refused(subject, error):
                raise
            _log.warning("an event can't be written, so it is here: %s: %s", subject, error)
        except ApiError as error:
            _log.warning("an event can't be written, so it is here: %s: %s", subject, error)
        self._forget(subject, series)

    def _refused(self, subject: _Subject, error: Unreachable) -> bool:
        """Whether it is given up. Else it is the turn of the others first."""
        series = self._pending[subject]
        refused = series.refused + (error.status >= 500 and self._count > series.others)
        self._pending[subject] = replace(series, refused=refused, others=self._count)
        self._pending.move_to_end(subject)
        return refused >= _TRIES

    def _forget(self, subject: _Subject, series: _Series) -> None:
        """Takes out what was written. What was reported meanwhile stays."""
        now = self._pending.pop(subject)
        if now.count > series.count:
            self._pending[subject] = replace(now, count=now.count - series.count)

    async def _write(self, subject: _Subject, series: _Series) -> _Written:
        namespace = subject.reference.namespace or "default"
        if known := self._written.get(subject):
            count = known.count + series.count
            patch = {"count": count, "lastTimestamp": _timestamp(series.last)}
            try:
                await self._cluster.patch(EVENTS, known.name, patch, namespace, content_type=STRATEGIC)
                return replace(known, count=count)
            except NotFound:
                _log.debug("event %s ran out on the server", known.name)
        with suppress(AlreadyExists):
            await self._cluster.create(EVENTS, self._event(subject, series, namespace), namespace)
        return _Written(series.name, series.count)

    def _event(self, subject: _Subject, series: _Series, namespace: str) -> Json:
        reference = subject.reference
        involved = {
            "kind": reference.kind,
            "apiVersion": reference.api_version,
            "namespace": reference.namespace,
            "name": reference.name,
            "uid": reference.uid,
            "resourceVersion": series.resource_version,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "type": subject.kind,
            "reason": subject.reason,
            "message": subject.message,
            "source": {"component": self._component} | ({"host": self._host} if self._host else {}),
            "reportingComponent": self._component,
            "reportingInstance": self._host or self._component,
            "firstTimestamp": _timestamp(series.first),
            "lastTimestamp": _timestamp(series.last),
            "count": series.count,
        }


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _REMEMBERED:
        memory.popitem(last=False)


def _name(reference: ObjectReference) -> str:
    unique = secrets.token_hex(8)
    stem = reference.name[: _NAME_LENGTH - len(unique) - 1].rstrip(".-")
    return f"{stem}.{unique}"


def _shorten(message: str) -> str:
    """To what the API server takes, in bytes, without cutting a character in two."""
    encoded = message.encode()
    if len(encoded) <= MESSAGE_BYTES:
        return message
    return encoded[: MESSAGE_BYTES - 3].decode(errors="ignore") + "..."


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
