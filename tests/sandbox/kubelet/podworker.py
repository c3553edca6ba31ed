"""The life of one pod: volumes, then containers, then the way back.

Level-triggered: each step looks at the pod as the API has it, at its volumes and at its containers' folders, does what
is due and reports; so a kubelet that was killed goes on where it was. The order at the end is the real one's:
containers stop, volumes are unmounted, only then the pod object goes.
"""

import asyncio
import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.volume import ObjectReference
from kube.backoff import Backoff
from kube.client import Cluster
from kube.errors import ApiError, Conflict, NotFound
from kube.events import Recorder
from kube.informer import Informer
from kube.resources import CLAIMS, PODS, VOLUMES, Resource
from tests.sandbox.controlplane.caches import claim_key
from tests.sandbox.kubelet import sources
from tests.sandbox.kubelet.container import Bind, Container, Device, Ended, specification
from tests.sandbox.kubelet.layout import Layout
from tests.sandbox.kubelet.plugins import NoDriver, Plugins
from tests.sandbox.kubelet.status import FAILED, SUCCEEDED, Seen, phase, pod_status, terminal
from tests.sandbox.kubelet.volumes import PodVolume, VolumeManager

Json = dict[str, Any]

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_RESTART = Backoff(first=0.5, factor=2, limit=10, jitter=0)
"""The real one begins with 10 s; nobody here wants to wait for that."""
_LONGEST_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL at most: the pods of tests have nothing to finish."""


@dataclass(frozen=True)
class Host:
    """What all pod workers of a kubelet share."""

    cluster: Cluster
    recorder: Recorder
    layout: Layout
    plugins: Plugins
    volumes: VolumeManager
    claims: Informer[Json]
    persistent_volumes: Informer[Json]
    node_labels: dict[str, str]
    address: str
    lifeline: int


def _sub_path(volume: Path, inside: str) -> Path:
    """Made when it is missing, with the mode of the volume's root, whose setgid bit gives it the group as well.

    Source: makeMounts (pkg/kubelet/kubelet_pods.go), SafeMakeDir (pkg/volume/util/subpath/subpath_linux.go)."""
    folder = volume / inside
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(stat.S_IMODE(volume.stat().st_mode))
    return folder


class PodWorker:
    def __init__(self, host: Host, pod: Json) -> None:
        self._host = host
        self._pod = pod
        self._gone = False
        self._changed = asyncio.Event()
        self._reported: Json | None = None
        self._waiters: dict[Path, asyncio.Task[Ended]] = {}
        self._restarts = {
            item["name"]: int(item.get("restartCount") or 0)
            for item in (pod.get("status") or {}).get("containerStatuses") or []
        }
        self._restart_at: dict[str, float] = {}
        self._told: set[str] = set()
        self._processed: set[str] = set()
        """Volumes that a driver was found for."""

    @property
    def uid(self) -> str:
        uid: str = self._pod["metadata"]["uid"]
        return uid

    def update(self, pod: Json) -> None:
        self._pod = pod
        self._changed.set()

    def gone(self) -> None:
        """The object is no longer there: deleted by us, or by force."""
        self._gone = True
        self._changed.set()

    def volume_changed(self) -> None:
        self._changed.set()

    def tell(self, reason: str, message: str, *, normal: bool = False) -> None:
        report = self._host.recorder.normal if normal else self._host.recorder.warning
        report(self._reference(), reason, message)

    async def run(self) -> None:
        """Until the pod is gone and nothing of it is left but perhaps a volume that can't be unmounted."""
        try:
            while True:
                self._changed.clear()
                gone = self._gone  # that it is gone may come out in the middle of a step that mounts for it
                try:
                    wait = await self._step()
                except (ApiError, OSError) as error:
                    _log.warning("pod %s: %s", self._pod["metadata"]["name"], error)
                    wait = _RETRY_SECONDS
                if gone and wait == 0:
                    return
                try:
                    async with asyncio.timeout(wait or None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            for waiter in self._waiters.values():
                waiter.cancel()

    async def _step(self) -> float:
        """Do what is due. Seconds until it is worth to look again without being told; 0: not at all."""
        if self._gone or "deletionTimestamp" in self._pod["metadata"]:
            return await self._end()
        if terminal(self._pod):
            self._host.volumes.release(self.uid)
            return 0
        self._host.layout.make_pod(self.uid)
        volumes = await self._want_volumes()
        if volumes is None:
            await self._report([], [])
            return _RETRY_SECONDS
        if not all(volume.mounted for volume in volumes.values()):
            await self._report([], [])
            return 0
        return await self._run_containers(volumes)

    async def _want_volumes(self) -> dict[str, PodVolume] | None:
        """The volumes that the pod's containers mount, by name, or None when one of them can't even be asked for."""
        wanted: dict[str, PodVolume] = {}
        errors: dict[str, str] = {}
        refused = False
        for volume in self._pod["spec"].get("volumes") or []:
            name = volume["name"]
            if name not in self._mounted_names():
                continue
            try:
                source = await self._source(volume)
            except sources.Unprocessed as error:
                errors[name] = str(error)
            except sources.Unmountable as error:
                refused = True
                self._tell_once(str(error))
            else:
                wanted[name] = self._host.volumes.want(self._pod, source, self)
        if errors:
            unmounted = self._mounted_names() - {name for name, volume in wanted.items() if volume.mounted}
            self._tell_once(
                f"Unable to attach or mount volumes: unmounted volumes=[{' '.join(sorted(unmounted))}], unattached "
                f"volumes=[], failed to process volumes=[{' '.join(sorted(errors))}]: "
                f"{'; '.join(sorted(set(errors.values())))}"
            )
        return None if errors or refused else wanted

    def _mounted_names(self) -> set[str]:
        return sources.mounted(self._pod) | sources.mapped(self._pod)

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self.tell("FailedMount", message)

    async def _source(self, volume: Json) -> sources.Source:
        """What the volume is. The API server has the last word before anything is said. Raises Unprocessed and
        Unmountable."""
        key = claim_key(self._pod, volume)
        claim = self._host.claims.get(key) if key else None
        try:
            source = self._resolve(volume, key, claim, self._host.persistent_volumes.get)
        except sources.Unprocessed:
            if not key:
                raise
            claim = await self._live(CLAIMS, key.partition("/")[2], self._pod["metadata"]["namespace"])
            name = ((claim or {}).get("spec") or {}).get("volumeName") or ""
            live = await self._live(VOLUMES, name) if name else None
            source = self._resolve(volume, key, claim, lambda _name: live)
        if isinstance(source, sources.Flex) and volume["name"] not in self._processed:
            try:
                await self._host.plugins.find(source.driver)
            except NoDriver:
                why = f'failed to get Plugin from volumeSpec for volume "{source.name}" err=no volume plugin matched'
                raise sources.Unprocessed(why) from None
        self._processed.add(volume["name"])
        return source

    def _resolve(
        self, volume: Json, key: str, claim: Json | None, persistent_volume: Callable[[str], Json | None]
    ) -> sources.Source:
        name = ((claim or {}).get("spec") or {}).get("volumeName") or ""
        found = persistent_volume(name) if name else None
        claims, volumes = {key: claim} if claim else {}, {name: found} if found else {}
        return sources.resolve(self._pod, volume, claims, volumes, self._host.node_labels)

    async def _live(self, resource: Resource, name: str, namespace: str | None = None) -> Json | None:
        try:
            return await self._host.cluster.get(resource, name, namespace)
        except NotFound:
            return None

    async def _run_containers(self, volumes: dict[str, PodVolume]) -> float:
        init: list[Seen] = []
        for container in self._pod["spec"].get("initContainers") or []:
            seen = await self._keep_running(container, volumes, until_success=True)
            init.append(seen)
            if seen.ended is None or seen.ended.exit_code != 0:
                break
        main: list[Seen] = []
        if all(seen.ended and seen.ended.exit_code == 0 for seen in init):
            for container in self._pod["spec"]["containers"]:
                main.append(await self._keep_running(container, volumes, until_success=False))
        await self._report(init, main)
        if phase(self._restart_policy, init, main) in (SUCCEEDED, FAILED):
            self._host.volumes.release(self.uid)
        pending = [at - asyncio.get_running_loop().time() for at in self._restart_at.values()]
        return max(min(pending), 0.001) if pending else 0

    @property
    def _restart_policy(self) -> str:
        return self._pod["spec"].get("restartPolicy") or "Always"

    async def _keep_running(self, spec: Json, volumes: dict[str, PodVolume], *, until_success: bool) -> Seen:
        """Start the container if it is due, and say what it does."""
        name = spec["name"]
        container = Container(self._host.layout.container(self.uid, name))
        if not container.started:
            await self._start(container, spec, volumes)
        ended = container.ended
        crash_looping = False
        if ended and self._wants_restart(ended, until_success):
            crash_looping = True
            now = asyncio.get_running_loop().time()
            failures = self._restarts.get(name, 0) + 1
            if now >= self._restart_at.setdefault(name, now + _RESTART.delay(failures)):
                del self._restart_at[name]
                self._restarts[name] = failures
                await self._start(container, spec, volumes)
                ended, crash_looping = container.ended, False
        if ended is None:
            self._watch(container)
        return Seen(
            name=name,
            image=spec.get("image") or "",
            started_at=_time_of(container.folder / "spec.json"),
            ended=ended,
            ended_at=_time_of(container.folder / "exit") if ended else "",
            restarts=self._restarts.get(name, 0),
            crash_looping=crash_looping,
        )

    def _wants_restart(self, ended: Ended, until_success: bool) -> bool:
        if ended.exit_code == 0 and (until_success or self._restart_policy == "OnFailure"):
            return False
        return self._restart_policy != "Never"

    async def _start(self, container: Container, spec: Json, volumes: dict[str, PodVolume]) -> None:
        binds = [
            Bind(
                source=_sub_path(volumes[mount["name"]].path, mount.get("subPath") or ""),
                target=mount["mountPath"],
                # Of makeMounts: what the volume's source says holds for all containers.
                read_only=bool(mount.get("readOnly")) or getattr(volumes[mount["name"]].source, "read_only", False),
            )
            for mount in spec.get("volumeMounts") or []
        ]
        devices = [
            Device(source=volumes[device["name"]].path.resolve(), target=device["devicePath"])
            for device in spec.get("volumeDevices") or []
        ]
        await container.start(specification(self._pod, spec, container.folder, binds, devices), self._host.lifeline)
        self._host.recorder.normal(self._reference(), "Started", f"Container started: {spec['name']}")

    def _watch(self, container: Container) -> None:
        """Look again when it ends."""
        known = self._waiters.get(container.folder)
        if known is None or known.done():
            waiter = self._waiters[container.folder] = asyncio.create_task(container.wait())
            waiter.add_done_callback(lambda _: self._changed.set())

    async def _end(self) -> float:
        grace = float(self._pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        containers = [Container(folder) for folder in self._host.layout.containers(self.uid)]
        await asyncio.gather(*(container.stop(min(grace, _LONGEST_GRACE)) for container in containers))
        if not self._host.volumes.release(self.uid) and not self._gone:
            return 0
        if not self._gone:
            metadata = self._pod["metadata"]
            try:
                await self._host.cluster.delete(
                    PODS, metadata["name"], metadata["namespace"], uid=self.uid, grace_seconds=0
                )
            except (NotFound, Conflict):
                self.gone()
        return 0

    async def _report(self, init: list[Seen], main: list[Seen]) -> None:
        spec = self._pod["spec"]
        init += [
            Seen(item["name"], item.get("image") or "") for item in (spec.get("initContainers") or [])[len(init) :]
        ]
        main += [Seen(item["name"], item.get("image") or "") for item in spec["containers"][len(main) :]]
        status = pod_status(self._pod, init, main, _now(), self._host.address)
        if status == self._reported:
            return
        metadata = self._pod["metadata"]
        body = {"metadata": {"uid": self.uid}, "status": status}
        try:
            self._pod = await self._host.cluster.patch(PODS, metadata["name"], body, metadata["namespace"], "status")
        except NotFound:
            self.gone()
        except Conflict:
            # Another pod by this name: ours is gone, and the watch will say so.
            return
        self._reported = status

    def _reference(self) -> ObjectReference:
        metadata = self._pod["metadata"]
        return ObjectReference("Pod", "v1", metadata["namespace"], metadata["name"], self.uid)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time_of(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if path.exists() else ""
