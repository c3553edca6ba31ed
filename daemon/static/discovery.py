"""What stands ready in the folders becomes PersistentVolumes.

What to do is decided in plan.py; here it is done. Stray entries are reported once, in the log and as an event, and in a
figure for as long as they are there. A class that can't be looked at makes the node unready, and the other classes go
on.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from contract import quantity
from daemon.static import entries, volume
from daemon.static.cache import Cache
from daemon.static.configuration import ClassConfiguration, Configuration
from daemon.static.diskidentity import Identity
from daemon.static.entries import Entry, Kind, PatternError
from daemon.static.metrics import CREATE, DELETE, StaticMetrics
from daemon.static.plan import (
    DUPLICATE,
    UNRESPONSIVE,
    Create,
    Rivals,
    Shown,
    Skip,
    Stray,
    duplicate,
    host_path,
    is_free,
    plan,
    rivals,
    vanished,
)
from daemon.static.volume import POLICIES, Offer, StaticVolume, provisioner_name, round_down
from host.diskthreads import DEADLINE, DiskThreads, Hung
from kube.client import VOLUMES, AlreadyExists, ApiError, Cluster
from kube.events import Recorder
from kube.informer import Informer
from kube.records import Node, StorageClass

log = logging.getLogger(__name__)

CLASS_FAILED = "VolumeDiscoveryFailed"

_TOLD_SECONDS = 30.0
"""How long a PersistentVolume that we created may take to come back through the informer."""


class ClassError(Exception):
    """A class whose volumes can't be looked for: says why and what to do."""


@dataclass(frozen=True)
class _Looked:
    """A class, and what stands in its folder."""

    settings: ClassConfiguration
    storage_class: StorageClass
    wanted: Callable[[str], bool]
    found: Collection[Entry]


class Discoverer:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        classes: Informer[StorageClass],
        node: Node,
        events: Recorder,
        metrics: StaticMetrics,
        cleaning: Callable[[str], bool],
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
        self._cleaning = cleaning
        self._looks = DiskThreads(deadline)
        self._created: dict[str, tuple[str, float]] = {}
        """PersistentVolumes that we created, by path: their names, and until when we count on hearing of them."""
        cache.informer.subscribe(lambda name, *_: self._heard_of(name))
        self._strays: dict[str, dict[str, str]] = {}
        """By class and entry: the message."""
        self._errors: dict[str, str] = {}
        self._identities: dict[str, Identity] = {}
        """By path as the node sees it: what PersistentVolumes were seen to be."""
        self._rivals: set[tuple[str, str, str]] = set()
        """What was told of two PersistentVolumes of one disk."""

    def strays(self) -> Mapping[str, int]:
        """The number of stray entries by class."""
        return {name: len(found) for name, found in self._strays.items()}

    async def discovery_pass(self, configuration: Configuration) -> list[str]:
        """Offers what is new. The answer is what went wrong with whole classes, a sentence each."""
        errors: dict[str, str] = {}
        looked: list[_Looked] = []
        for settings in configuration.classes.values():
            with self._told_of(settings, errors):
                looked.append(await self._look(settings))
        volumes = self._cache.volumes()
        offered = self._offered(looked, volumes)
        for pair in rivals(offered):
            await self._settle_rivals(pair)
        steps = [
            (each, plan(each.settings, each.found, self._node.name, volumes, self._cleaning, self._awaited()))
            for each in looked
        ]
        candidates = [
            Shown(host_path(each.settings, step.entry), step.name, step.entry.identity)
            for each, decided in steps
            for step in decided
            if isinstance(step, Create) and step.entry.identity
        ]
        for each, decided in steps:
            with self._told_of(each.settings, errors):
                await self._discover(configuration, each, decided, offered, candidates)
        self._errors = errors
        self._strays = {name: self._strays.get(name, {}) for name in configuration.classes}
        return [f"class {name}: {error}" for name, error in errors.items()]

    @contextlib.contextmanager
    def _told_of(self, settings: ClassConfiguration, errors: dict[str, str]) -> Iterator[None]:
        """What goes wrong with a class is told once, and the other classes go on."""
        try:
            yield
        except ClassError as error:
            errors[settings.name] = str(error)
            if self._errors.get(settings.name) != str(error):
                log.error("class %s: %s", settings.name, error)
                self._events.warning(self._node.reference, CLASS_FAILED, f"class {settings.name}: {error}")

    def _offered(self, looked: "list[_Looked]", volumes: Collection[StaticVolume]) -> list[Shown]:
        """The disks that have a PersistentVolume. Of what gives no answer now, the last that was seen counts."""
        entries_of = {
            host_path(each.settings, entry): entry
            for each in looked
            for entry in each.found
            if entry.kind is not Kind.HUNG
        }
        listed = {each.settings.host_dir for each in looked}
        hung = {host_path(each.settings, entry) for each in looked for entry in each.found} - entries_of.keys()
        identities = {path: entry.identity for path, entry in entries_of.items() if entry.identity}
        for path, known in self._identities.items():
            if path in hung or path.rpartition("/")[0] not in listed:
                identities.setdefault(path, known)
        shown = [
            Shown(each.path, each.name, identities[each.path], each) for each in volumes if each.path in identities
        ]
        shown += [Shown(path, name, identities[path]) for path, name in self._awaited().items() if path in identities]
        self._identities = {each.path: each.identity for each in shown}
        return shown

    async def _settle_rivals(self, pair: Rivals) -> None:
        """Tells of two PersistentVolumes of one disk, and deletes the one that is nobody's, in the version that was
        so. Our finalizer comes off it in the next pass."""
        told = (pair.kept.uid, pair.other.uid, pair.message)
        if told not in self._rivals:
            self._rivals.add(told)
            log.warning("%s", pair.message)
            for about in (self._node, pair.kept, pair.other):
                self._events.warning(about.reference, DUPLICATE, pair.message)
        if not pair.withdrawn:
            return
        try:
            body = await self._cluster.get(VOLUMES, pair.other.name)
            now = volume.read(body)
            if now is None or now.uid != pair.other.uid or not is_free(now) or now.deleting:
                return
            with self._metrics.request(DELETE):
                version = body["metadata"]["resourceVersion"]
                await self._cluster.delete(VOLUMES, now.name, uid=now.uid, resource_version=version)
        except ApiError as error:
            log.warning("PersistentVolume %s can't be withdrawn yet: %s", pair.other.name, error)

    async def _look(self, settings: ClassConfiguration) -> "_Looked":
        """Raises ClassError."""
        if settings.refused:
            raise ClassError(settings.refused)
        storage_class = self._classes.get(settings.name)
        if storage_class is None:
            raise ClassError(f"there is no StorageClass {settings.name}: create it, or take it out of storageClassMap")
        if storage_class.reclaim_policy not in POLICIES:
            raise ClassError(
                f"reclaimPolicy of StorageClass {settings.name} is {storage_class.reclaim_policy}: "
                f"allowed is {' or '.join(POLICIES)}"
            )
        try:
            wanted = entries.matcher(settings.name_pattern)
            found = await entries.look(settings.mount_dir, wanted, self._looks)
        except (PatternError, Hung) as error:
            raise ClassError(str(error)) from None
        except OSError as error:
            raise ClassError(
                f"folder {settings.mount_dir} can't be listed ({error.strerror}): "
                f"make {settings.host_dir} on the node and mount it there"
            ) from None
        return _Looked(settings, storage_class, wanted, found)

    async def _discover(
        self,
        configuration: Configuration,
        looked: "_Looked",
        steps: Iterable[Create | Skip | Stray],
        offered: Collection[Shown],
        candidates: Collection[Shown],
    ) -> None:
        """Raises ClassError."""
        settings = looked.settings
        strays = {gone.name: gone for gone in vanished(settings, looked.wanted, looked.found, self._cache.volumes())}
        failed = ""
        for step in steps:
            if isinstance(step, Create):
                path = host_path(settings, step.entry)
                if path in self._awaited():
                    continue  # another class has the same folder, and was first
                if step.entry.identity:
                    shown = Shown(path, step.name, step.entry.identity)
                    if stray := duplicate(shown, offered, candidates):
                        strays[stray.name] = stray
                        continue
                    self._identities[path] = shown.identity
                try:
                    if stray := await self._create(configuration, settings, looked.storage_class, step):
                        strays[stray.name] = stray
                except ApiError as error:
                    failed = failed or f"the API server does not take PersistentVolume {step.name}: {error}"
            elif isinstance(step, Stray):
                strays[step.name] = step
            else:
                log.debug("class %s: %s is skipped: %s", settings.name, step.entry.path, step.reason)
        self._report(settings, strays)
        if failed:
            raise ClassError(failed)

    def _awaited(self) -> dict[str, str]:
        now = time.monotonic()
        self._created = {path: known for path, known in self._created.items() if known[1] > now}
        return {path: name for path, (name, _) in self._created.items()}

    def _heard_of(self, name: str) -> None:
        """That it was created, changed or deleted: from now on the cache knows better."""
        self._created = {path: known for path, known in self._created.items() if known[0] != name}

    async def _create(
        self, configuration: Configuration, settings: ClassConfiguration, storage_class: StorageClass, step: Create
    ) -> Stray | None:
        """Raises ApiError."""
        begin = time.perf_counter()
        path = host_path(settings, step.entry)
        try:
            path.encode()
        except UnicodeEncodeError:
            return Stray(step.entry.name, f"the name {step.entry.name!r} is not UTF-8: rename it")
        try:
            if await entries.is_claimed(step.entry, self._looks):
                words = "unmount it and end what is built on it or on a part of it (lsblk shows both), or take it out"
                return Stray(step.entry.name, f'"{step.entry.path}" is in use: {words}')
            size = round_down(await entries.capacity(step.entry, self._looks))
        except OSError as error:
            return Stray(step.entry.name, f'the capacity of "{step.entry.path}" can\'t be read: {error.strerror}')
        except Hung as error:
            return Stray(step.entry.name, str(error), reason=UNRESPONSIVE)
        if not size:
            return Stray(step.entry.name, f'"{step.entry.path}" has no capacity: see whether its device has a medium')
        offer = Offer(step.name, path, step.mode, size)
        provisioner = provisioner_name(self._node.name, self._node.uid, configuration.use_node_name_only)
        body = volume.manifest(offer, configuration, settings, storage_class, self._node, provisioner)
        self._created[path] = (step.name, time.monotonic() + _TOLD_SECONDS)
        try:
            with self._metrics.request(CREATE):
                await self._cluster.create(VOLUMES, body)
        except ApiError as error:
            self._heard_of(step.name)
            if not isinstance(error, AlreadyExists):
                raise
            if await self._cache.adopt(step.name):
                return None
            return Stray(
                step.entry.name,
                f"PersistentVolume {step.name} of {path} exists and is not of this Node: delete it, or set "
                "useNodeNameOnly when the Node was registered anew",
            )
        self._metrics.discovered(step.mode, time.perf_counter() - begin)
        log.info("created %s: %s, %s of class %s", step.name, path, quantity.humane(size), settings.name)
        return None

    def _report(self, settings: ClassConfiguration, strays: Mapping[str, Stray]) -> None:
        """Tells of what was not stray in this way before."""
        known = self._strays.get(settings.name, {})
        for name, stray in strays.items():
            if known.get(name) != stray.message:
                log.warning("class %s: %s", settings.name, stray.message)
                about = stray.volume.reference if stray.volume else self._node.reference
                self._events.warning(about, stray.reason, stray.message)
        self._strays[settings.name] = {name: stray.message for name, stray in strays.items()}
