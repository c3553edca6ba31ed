"""What tests and the demo ask of a cluster: claims, pods, and waiting for what becomes of them."""

import contextlib
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from contract import names
from contract.parameters import VOLUME_SOURCE
from contract.volume import CSI, FLEX_VOLUME
from kube.client import Cluster
from kube.errors import AlreadyExists, NotFound
from kube.resources import CLAIMS, EVENTS, PODS, VOLUMES, Resource
from tests.sandbox.nodes import default_source
from tests.sandbox.sandbox import Sandbox
from tests.waiting import NeverHappened, until

Json = dict[str, Any]

NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
_IDLE = ["sleep", "infinity"]
_SHOWN_CHARACTERS = 2000


def claim(name: str, size: str, storage_class: str = "elastic-local", **spec: Any) -> Json:
    """A PersistentVolumeClaim; `spec` adds to its spec."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": storage_class,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def pod(name: str, claims: dict[str, str] | None = None, *, script: str = "", **spec: Any) -> Json:
    """A pod that runs a shell script, or nothing for ever; `claims`: mount path to claim, `spec` adds to its spec."""
    mounts = claims or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "command": ["sh", "-ec", script] if script else _IDLE,
                    "volumeMounts": [{"name": claim, "mountPath": path} for path, claim in mounts.items()],
                }
            ],
            "volumes": [
                {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in dict.fromkeys(mounts.values())
            ],
            **spec,
        },
    }


def storage_class(
    name: str,
    mode: str = "WaitForFirstConsumer",
    *,
    volume_source: str = "",
    parameters: dict[str, str] | None = None,
    **more: Any,
) -> Json:
    """A StorageClass of ours; `mode` is when its claims get their volumes, `volume_source` how the kubelet mounts
    them, as those of the sandbox's classes unless told, `more` its other fields."""
    if not volume_source and VOLUME_SOURCE not in (parameters or {}) and default_source() != FLEX_VOLUME:
        volume_source = default_source()
    source = {VOLUME_SOURCE: volume_source} if volume_source else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": names.PROVISIONER,
        "volumeBindingMode": mode,
        "reclaimPolicy": "Delete",
        **({"parameters": {**(parameters or {}), **source}} if parameters is not None or source else {}),
        **more,
    }


def source_of(volume: Json) -> Json:
    """The source of a PersistentVolume of ours, as either driver has it."""
    spec = volume["spec"]
    source: Json = spec[CSI] if CSI in spec else spec[FLEX_VOLUME]
    return source


def options_of(volume: Json) -> Json:
    """What the source of a PersistentVolume of ours says of it beside its filesystem."""
    source = source_of(volume)
    options: Json = source["volumeAttributes" if "volumeHandle" in source else "options"]
    return options


class Workspace:
    """A namespace of any cluster, and what is done in it. Leaving it deletes all, and volumes with policy Delete."""

    def __init__(self, api: Cluster, name: str) -> None:
        self.api = api
        self.name = name

    async def __aenter__(self) -> Self:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}
        with contextlib.suppress(AlreadyExists):
            await self.api.create(NAMESPACES, body)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for resource in (PODS, CLAIMS):
            for item in await self.api.list(resource, self.name):
                await self.delete(resource, item["metadata"]["name"])
        await self.api.delete(NAMESPACES, self.name)
        await self.wait(self._is_empty, what=f"namespace {self.name} and its volumes with policy Delete are gone")

    async def create(self, resource: Resource, body: Json) -> Json:
        return await self.api.create(resource, body, self.name)

    async def get(self, resource: Resource, name: str) -> Json:
        return await self.api.get(resource, name, self.name)

    async def delete(self, resource: Resource, name: str) -> None:
        """Ask for the deletion; what is gone already is fine."""
        try:
            await self.api.delete(resource, name, self.name)
        except NotFound:
            return

    async def until(
        self, resource: Resource, name: str, condition: Callable[[Json], Any], *, what: str, seconds: float = 30
    ) -> Json:
        """The object as it is when the condition holds. Raises NeverHappened with how the object was seen last, and its
        events."""
        seen = "not there"

        async def holds() -> Json | None:
            nonlocal seen
            try:
                body = await self.get(resource, name)
            except NotFound:
                seen = "not there"
                return None
            seen = _shown(body)
            return body if condition(body) else None

        try:
            held: Json = await self.wait(holds, what=f"{resource} {name} {what}", seconds=seconds)
        except NeverHappened as error:
            raise NeverHappened(f"{error}; seen last: {seen}; events: {await self.events(name)}") from None
        return held

    async def wait(self, condition: Callable[[], Any], *, what: str, seconds: float = 30) -> Any:
        """As waiting.until: all that is waited for here goes through this."""
        return await until(condition, what=what, seconds=seconds)

    async def until_gone(self, resource: Resource, name: str, *, seconds: float = 30) -> None:
        seen = ""

        async def gone() -> bool:
            nonlocal seen
            try:
                seen = _shown(await self.get(resource, name))
            except NotFound:
                return True
            return False

        try:
            await self.wait(gone, what=f"{resource} {name} is gone", seconds=seconds)
        except NeverHappened as error:
            raise NeverHappened(f"{error}; seen last: {seen}; events: {await self.events(name)}") from None

    async def until_running(self, name: str, *, seconds: float = 30) -> Json:
        return await self.until(PODS, name, is_ready, what="is ready", seconds=seconds)

    async def until_bound(self, name: str, *, seconds: float = 30) -> Json:
        """The PersistentVolume of the claim."""
        bound = await self.until(
            CLAIMS, name, lambda body: body["status"].get("phase") == "Bound", what="is bound", seconds=seconds
        )
        return await self.api.get(VOLUMES, bound["spec"]["volumeName"])

    async def until_event(self, name: str, reason: str, text: str = "", *, seconds: float = 30) -> str:
        """The message of an event on the object of that name, with that reason and this text in it."""

        async def reported() -> str | None:
            messages = await self._messages(name, reason)
            return next((message for message in messages if text in message), None)

        try:
            message: str = await self.wait(reported, what=f"an event {reason} on {name} with {text!r}", seconds=seconds)
        except NeverHappened as error:
            raise NeverHappened(f"{error}; events: {await self.events(name)}") from None
        return message

    async def events(self, name: str) -> list[str]:
        """Reason and message of the events on the objects of that name."""
        events = await self.api.list(EVENTS, self.name, field_selector=f"involvedObject.name={name}")
        return [f"{event['reason']}: {event['message']}" for event in events]

    async def volumes(self) -> list[Json]:
        """The PersistentVolumes that are, or were, of claims of this namespace."""
        volumes = await self.api.list(VOLUMES)
        return [volume for volume in volumes if (volume["spec"].get("claimRef") or {}).get("namespace") == self.name]

    async def _messages(self, name: str, reason: str) -> list[str]:
        selector = f"involvedObject.name={name},reason={reason}"
        events = await self.api.list(EVENTS, self.name, field_selector=selector)
        return [event["message"] for event in events]

    async def _is_empty(self) -> bool:
        if await self.api.list(PODS, self.name) or await self.api.list(CLAIMS, self.name):
            return False
        policies = [volume["spec"]["persistentVolumeReclaimPolicy"] for volume in await self.volumes()]
        return "Delete" not in policies


def _shown(body: Json) -> str:
    """What says how an object is, short enough for the message of a test."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    about = {key: metadata[key] for key in ("deletionTimestamp", "finalizers", "annotations") if key in metadata}
    chosen = {key: spec[key] for key in ("nodeName", "volumeName", "capacity", "claimRef", "resources") if key in spec}
    return json.dumps(about | chosen | {"status": body.get("status")}, separators=(",", ":"))[:_SHOWN_CHARACTERS]


class Namespace(Workspace):
    """A namespace of a sandbox, for those who look behind the API: at its nodes and programs."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        super().__init__(sandbox.api, name)
        self.sandbox = sandbox


def is_ready(body: Json) -> bool:
    """Whether a pod is ready."""
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
