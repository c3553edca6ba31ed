"""What stands ready in the folders becomes PersistentVolumes.

What to do is decided in plan.py; here it is done. Stray entries are reported once, in the log and as an event, and in a
figure for as long as they are there. A class that can't be looked at makes the node unready, and the other classes go
on.
"""

import logging
import time
from collections.abc import Callable, Mapping

from contract import quantity
from daemon.static import entries, patterns, volume
from daemon.static.cache import Cache
from daemon.static.configuration import ClassConfiguration, Configuration
from daemon.static.looks import DEADLINE, Hung, Looks
from daemon.static.metrics import CREATE, StaticMetrics
from daemon.static.naming import provisioner_name, round_down
from daemon.static.patterns import PatternError
from daemon.static.plan import UNRESPONSIVE, Create, Stray, host_path, plan, vanished
from daemon.static.volume import POLICIES, Offer
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
        self._looks = Looks(deadline)
        self._created: dict[str, tuple[str, float]] = {}
        """PersistentVolumes that we created, by path: their names, and until when we count on hearing of them."""
        cache.informer.subscribe(lambda name, *_: self._heard_of(name))
        self._strays: dict[str, dict[str, str]] = {}
        """By class and entry: the message."""
        self._errors: dict[str, str] = {}

    def strays(self) -> Mapping[str, int]:
        """The number of stray entries by class."""
        return {name: len(found) for name, found in self._strays.items()}

    async def discovery_pass(self, configuration: Configuration) -> list[str]:
        """Offers what is new. The answer is what went wrong with whole classes, a sentence each."""
        errors = {}
        for settings in configuration.classes.values():
            try:
                await self._discover(configuration, settings)
            except ClassError as error:
                errors[settings.name] = str(error)
                if self._errors.get(settings.name) != str(error):
                    log.error("class %s: %s", settings.name, error)
                    self._events.warning(self._node.reference, CLASS_FAILED, f"class {settings.name}: {error}")
        self._errors = errors
        self._strays = {name: self._strays.get(name, {}) for name in configuration.classes}
        return [f"class {name}: {error}" for name, error in errors.items()]

    async def _discover(self, configuration: Configuration, settings: ClassConfiguration) -> None:
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
            wanted = patterns.matcher(settings.name_pattern)
            found = await entries.look(settings.mount_dir, wanted, self._looks)
        except (PatternError, Hung) as error:
            raise ClassError(str(error)) from None
        except OSError as error:
            raise ClassError(
                f"folder {settings.mount_dir} can't be listed ({error.strerror}): "
                f"make {settings.host_dir} on the node and mount it there"
            ) from None
        volumes = self._cache.volumes()
        strays = {gone.name: gone for gone in vanished(settings, wanted, found, volumes)}
        failed = ""
        for step in plan(settings, found, self._node.name, volumes, self._cleaning, self._awaited()):
            if isinstance(step, Create):
                try:
                    if stray := await self._create(configuration, settings, storage_class, step):
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
