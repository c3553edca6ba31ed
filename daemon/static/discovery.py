"""Discovery: creates the PersistentVolumes of the entries in the discovery folders.

plan.py decides, this module acts. Invalid entries are reported once, in the log and as an event, and counted in a
metric while they exist. A class that can't be discovered makes the node unready; the other classes are still served.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from contract import quantity
from daemon.static import entries, volume
from daemon.static.cache import Cache
from daemon.static.configuration import ClassConfiguration, Configuration, class_inside
from daemon.static.diskidentity import DiskIdentity
from daemon.static.diskrecord import DiskRecord
from daemon.static.entries import Entry, EntryKind, PatternError
from daemon.static.metrics import CREATE, DELETE, StaticMetrics
from daemon.static.plan import (
    DISK_CHANGED,
    DUPLICATE,
    UNRESPONSIVE,
    Create,
    DiscoveredDisk,
    DuplicateVolumes,
    InvalidEntry,
    RecordDisk,
    Step,
    Withdraw,
    duplicate_volumes,
    find_duplicate,
    find_recorded,
    host_path,
    is_unclaimed,
    missing_volumes,
    plan,
)
from daemon.static.volume import POLICIES, DiscoveredVolume, StaticVolume, provisioner_name, round_down
from host.diskthreads import DEADLINE, DiskThreads, Hung
from kube.client import Cluster
from kube.errors import AlreadyExists, ApiError
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, StorageClass
from kube.resources import VOLUMES

log = logging.getLogger(__name__)

CLASS_FAILED = "VolumeDiscoveryFailed"

_CACHE_SECONDS = 30.0
"""How long a PersistentVolume that was created may take to appear in the cache."""


class ClassError(Exception):
    """A class that can't be discovered: says why and what to do."""


@dataclass(frozen=True)
class _ScannedClass:
    """A class, and the entries of its folder."""

    class_config: ClassConfiguration
    storage_class: StorageClass
    matches: Callable[[str], bool]
    """Whether a name matches the class's namePattern."""
    entries: Collection[Entry]


class Discoverer:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        classes: Informer[StorageClass],
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        is_cleaning: Callable[[str], bool],
        *,
        deadline: float = DEADLINE,
    ) -> None:
        """`deadline`: seconds that a disk may take to answer."""
        self._cluster = cluster
        self._cache = cache
        self._classes = classes
        self._node = node
        self._events = events
        self._metrics = metrics
        self._is_cleaning = is_cleaning
        self._disk_threads = DiskThreads(deadline)
        self._created: dict[str, tuple[str, float]] = {}
        """PersistentVolumes that were created and are not in the cache yet, by path: name, and when to stop waiting."""
        cache.informer.subscribe(lambda name, *_: self._forget_created(name))
        self._invalid_entries: dict[str, Mapping[str, InvalidEntry]] = {}
        """By class and entry."""
        self._errors: dict[str, str] = {}
        self._identities: dict[str, DiskIdentity] = {}
        """Of the disks with PersistentVolumes when they last responded, by path on the node."""
        self._reported_duplicates: set[tuple[str, str, str]] = set()
        """Both UIDs and the message."""
        self._unrecorded: set[str] = set()
        """Why a PersistentVolume could not be told its disk, as it was logged."""

    def invalid_entries(self) -> Mapping[str, int]:
        """The number of invalid entries by class."""
        return {name: len(invalid) for name, invalid in self._invalid_entries.items()}

    def changed_disks(self) -> Mapping[str, int]:
        """The number of PersistentVolumes whose entry leads to another disk, by class."""
        return {
            name: sum(each.reason == DISK_CHANGED for each in invalid.values())
            for name, invalid in self._invalid_entries.items()
        }

    async def discovery_pass(self, configuration: Configuration) -> list[str]:
        """Creates missing PersistentVolumes. Returns an error message for each class that could not be discovered."""
        errors: dict[str, str] = {}
        scanned: list[_ScannedClass] = []
        for class_config in configuration.classes.values():
            with self._class_errors(class_config, errors):
                scanned.append(await self._scan(class_config))
        volumes = self._cache.volumes()
        existing = self._disks_with_volumes(scanned, volumes)
        for pair in duplicate_volumes(existing):
            await self._resolve_duplicate(pair)
        steps = [
            (each, plan(each.class_config, each.entries, self._node.name, volumes, self._is_cleaning, self._uncached()))
            for each in scanned
        ]
        records = {
            host_path(each.class_config, entry): entry.record
            for each in scanned
            for entry in each.entries
            if entry.record
        }
        candidates = [
            DiscoveredDisk(host_path(each.class_config, step.entry), step.name, step.entry.identity)
            for each, planned in steps
            for step in planned
            if isinstance(step, Create) and step.entry.identity
        ]
        for each, planned in steps:
            with self._class_errors(each.class_config, errors):
                await self._discover(configuration, each, planned, existing, candidates, records)
        self._errors = errors
        self._invalid_entries = {name: self._invalid_entries.get(name, {}) for name in configuration.classes}
        return [f"class {name}: {error}" for name, error in errors.items()]

    @contextlib.contextmanager
    def _class_errors(self, class_config: ClassConfiguration, errors: dict[str, str]) -> Iterator[None]:
        """Reports the error of a class once, and lets the other classes go on."""
        try:
            yield
        except ClassError as error:
            errors[class_config.name] = str(error)
            if self._errors.get(class_config.name) != str(error):
                log.error("class %s: %s", class_config.name, error)
                self._events.warning(self._node.reference, CLASS_FAILED, f"class {class_config.name}: {error}")

    def _disks_with_volumes(
        self, scanned: "list[_ScannedClass]", volumes: Collection[StaticVolume]
    ) -> list[DiscoveredDisk]:
        """The disks that have a PersistentVolume. For those that don't respond now, the last known identity is used."""
        entries_of = {
            host_path(each.class_config, entry): entry
            for each in scanned
            for entry in each.entries
            if entry.kind is not EntryKind.UNRESPONSIVE
        }
        scanned_folders = {each.class_config.host_dir for each in scanned}
        unresponsive = {
            host_path(each.class_config, entry) for each in scanned for entry in each.entries
        } - entries_of.keys()
        identities = {path: entry.identity for path, entry in entries_of.items() if entry.identity}
        for path, known in self._identities.items():
            if path in unresponsive or path.rpartition("/")[0] not in scanned_folders:
                identities.setdefault(path, known)
        disks = [
            DiscoveredDisk(each.path, each.name, identities[each.path], each)
            for each in volumes
            if each.path in identities
        ]
        disks += [
            DiscoveredDisk(path, name, identities[path])
            for path, name in self._uncached().items()
            if path in identities
        ]
        self._identities = {each.path: each.identity for each in disks}
        return disks

    async def _resolve_duplicate(self, pair: DuplicateVolumes) -> None:
        """Reports two PersistentVolumes of one disk, and deletes the other if it is unclaimed, in that very version.
        The next pass removes its finalizer."""
        report = (pair.kept.uid, pair.other.uid, pair.message)
        if report not in self._reported_duplicates:
            self._reported_duplicates.add(report)
            log.warning("%s", pair.message)
            for about in (self._node, pair.kept, pair.other):
                self._events.warning(about.reference, DUPLICATE, pair.message)
        if pair.deletable:
            await self._withdraw(pair.other)

    async def _withdraw(self, unused: StaticVolume) -> bool:
        """Deletes a PersistentVolume that no claim has or had, in that very version. The next pass removes its
        finalizer. False: not now."""
        try:
            body = await self._cluster.get(VOLUMES, unused.name)
            now = volume.read(body)
            if now is None or now.uid != unused.uid or not is_unclaimed(now) or now.deleting or now.disk != unused.disk:
                return False
            with self._metrics.request(DELETE):
                version = body["metadata"]["resourceVersion"]
                await self._cluster.delete(VOLUMES, now.name, uid=now.uid, resource_version=version)
        except ApiError as error:
            log.warning("PersistentVolume %s can't be deleted yet: %s", unused.name, error)
            return False
        return True

    async def _record_disk(self, step: RecordDisk) -> None:
        """Of a PersistentVolume that an older version made, or whose annotation was removed."""
        try:
            body = await self._cluster.get(VOLUMES, step.volume.name)
            now = volume.read(body)
            if now is None or (now.uid, now.phase, now.disk) != (step.volume.uid, step.volume.phase, ""):
                return
            await self._cluster.patch(VOLUMES, now.name, volume.disk_patch(body, step.record.render()))
        except ApiError as error:
            problem = f"PersistentVolume {step.volume.name} can't be told which disk it is: {error}"
            log.log(logging.DEBUG if problem in self._unrecorded else logging.WARNING, "%s", problem)
            self._unrecorded.add(problem)
        else:
            log.info("%s is %s from now on: %s", step.volume.name, step.volume.path, step.record)

    async def _scan(self, class_config: ClassConfiguration) -> "_ScannedClass":
        """Raises ClassError."""
        if class_config.refusal:
            raise ClassError(class_config.refusal)
        storage_class = self._classes.get(class_config.name)
        if storage_class is None:
            raise ClassError(
                f"there is no StorageClass {class_config.name}: create it, or remove it from storageClassMap"
            )
        if storage_class.reclaim_policy not in POLICIES:
            raise ClassError(
                f"reclaimPolicy of StorageClass {class_config.name} is {storage_class.reclaim_policy}: "
                f"allowed is {' or '.join(POLICIES)}"
            )
        try:
            matches = entries.name_matcher(class_config.name_pattern)
            scanned = await entries.scan(class_config.mount_dir, matches, self._disk_threads)
        except (PatternError, Hung) as error:
            raise ClassError(str(error)) from None
        except OSError as error:
            raise ClassError(
                f"folder {class_config.mount_dir} can't be listed ({error.strerror}): "
                f"create {class_config.host_dir} on the node and mount it there"
            ) from None
        return _ScannedClass(class_config, storage_class, matches, scanned)

    async def _discover(
        self,
        configuration: Configuration,
        scanned: "_ScannedClass",
        steps: Iterable[Step],
        existing: Collection[DiscoveredDisk],
        candidates: Collection[DiscoveredDisk],
        records: Mapping[str, DiskRecord],
    ) -> None:
        """Raises ClassError."""
        class_config = scanned.class_config
        missing = missing_volumes(class_config, scanned.matches, scanned.entries, self._cache.volumes())
        invalid_entries = {invalid.name: invalid for invalid in missing}
        failed = ""
        for step in steps:
            if isinstance(step, Create):
                path = host_path(class_config, step.entry)
                if holds := class_inside(configuration, class_config, step.entry.name):
                    invalid_entries[step.entry.name] = InvalidEntry(step.entry.name, holds)
                    continue
                if path in self._uncached():
                    continue  # another class with the same folder was first
                if invalid := find_recorded(class_config, step.entry, step.name, self._cache.volumes(), records):
                    invalid_entries[invalid.name] = invalid
                    continue
                if step.entry.identity:
                    disk = DiscoveredDisk(path, step.name, step.entry.identity)
                    if invalid := find_duplicate(disk, existing, candidates):
                        invalid_entries[invalid.name] = invalid
                        continue
                    self._identities[path] = disk.identity
                try:
                    if invalid := await self._create(configuration, class_config, scanned.storage_class, step):
                        invalid_entries[invalid.name] = invalid
                except ApiError as error:
                    failed = failed or f"the API server rejects PersistentVolume {step.name}: {error}"
            elif isinstance(step, InvalidEntry):
                invalid_entries[step.name] = step
            elif isinstance(step, RecordDisk):
                await self._record_disk(step)
            elif isinstance(step, Withdraw):
                if await self._withdraw(step.volume):
                    log.warning("class %s: %s", class_config.name, step.message)
                    self._events.warning(step.volume.reference, DISK_CHANGED, step.message)
            else:
                log.debug("class %s: %s is skipped: %s", class_config.name, step.entry.path, step.reason)
        self._report(class_config, invalid_entries)
        if failed:
            raise ClassError(failed)

    def _uncached(self) -> dict[str, str]:
        now = time.monotonic()
        self._created = {path: known for path, known in self._created.items() if known[1] > now}
        return {path: name for path, (name, _) in self._created.items()}

    def _forget_created(self, name: str) -> None:
        """Called when the cache received it."""
        self._created = {path: known for path, known in self._created.items() if known[0] != name}

    async def _create(
        self, configuration: Configuration, class_config: ClassConfiguration, storage_class: StorageClass, step: Create
    ) -> InvalidEntry | None:
        """Raises ApiError."""
        begin = time.perf_counter()
        path = host_path(class_config, step.entry)
        try:
            path.encode()
        except UnicodeEncodeError:
            return InvalidEntry(step.entry.name, f"the name {step.entry.name!r} is not UTF-8: rename it")
        try:
            if user := await entries.user(step.entry, self._disk_threads):
                remedy = "end that use, or take it out of the folder"
                return InvalidEntry(step.entry.name, f'"{step.entry.path}" is in use, {user}: {remedy}')
            size = round_down(await entries.capacity(step.entry, self._disk_threads))
        except OSError as error:
            return InvalidEntry(
                step.entry.name, f'the capacity of "{step.entry.path}" can\'t be read: {error.strerror}'
            )
        except Hung as error:
            return InvalidEntry(step.entry.name, str(error), reason=UNRESPONSIVE)
        if not size:
            return InvalidEntry(
                step.entry.name, f'"{step.entry.path}" has no capacity: check whether its device has a medium'
            )
        disk = step.entry.record.render() if step.entry.record else ""
        discovered = DiscoveredVolume(step.name, path, step.mode, size, disk)
        provisioner = provisioner_name(self._node.name, self._node.uid, configuration.use_node_name_only)
        body = volume.manifest(discovered, configuration, class_config, storage_class, self._node, provisioner)
        self._created[path] = (step.name, time.monotonic() + _CACHE_SECONDS)
        try:
            with self._metrics.request(CREATE):
                await self._cluster.create(VOLUMES, body)
        except ApiError as error:
            self._forget_created(step.name)
            if not isinstance(error, AlreadyExists):
                raise
            if await self._cache.adopt(step.name):
                return None
            return InvalidEntry(
                step.entry.name,
                f"PersistentVolume {step.name} of {path} exists and belongs to another Node: delete it, or set "
                "useNodeNameOnly if this Node was registered again",
            )
        self._metrics.discovered(step.mode, time.perf_counter() - begin)
        log.info("created %s: %s, %s of class %s", step.name, path, quantity.humane(size), class_config.name)
        return None

    def _report(self, class_config: ClassConfiguration, invalid_entries: Mapping[str, InvalidEntry]) -> None:
        """Reports entries that were not invalid for the same reason before."""
        known = self._invalid_entries.get(class_config.name, {})
        for name, invalid in invalid_entries.items():
            if name not in known or known[name].message != invalid.message:
                log.warning("class %s: %s", class_config.name, invalid.message)
                about = invalid.volume.reference if invalid.volume else self._node.reference
                self._events.warning(about, invalid.reason, invalid.message)
        self._invalid_entries[class_config.name] = dict(invalid_entries)
