"""The rules of pods. Source: pkg/apis/core/validation/validation.go."""

import copy
from collections.abc import Iterator

from tests.sandbox.apiserver.errors import (
    FieldError,
    duplicate,
    forbidden_value,
    invalid_value,
    required,
    unknown_reference,
    unsupported,
)
from tests.sandbox.apiserver.resources import Json

_RESTART_POLICIES = ("Always", "OnFailure", "Never")


def check(body: Json) -> Iterator[FieldError]:
    yield from check_spec(body["spec"], "spec")


def check_spec(spec: Json, field: str) -> Iterator[FieldError]:
    volumes = spec.get("volumes") or []
    yield from _volumes(volumes, f"{field}.volumes")
    declared = {volume.get("name"): volume for volume in volumes}
    if not spec.get("containers"):
        yield required(f"{field}.containers")
    seen: set[str] = set()
    for key in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(key) or []):
            where = f"{field}.{key}[{place}]"
            if container.get("name") in seen:
                yield duplicate(f"{where}.name", container["name"])
            seen.add(container.get("name"))
            yield from _container(container, where, declared)
    if spec.get("restartPolicy") not in _RESTART_POLICIES:
        yield unsupported(f"{field}.restartPolicy", spec.get("restartPolicy"), _RESTART_POLICIES)


def _volumes(volumes: list[Json], field: str) -> Iterator[FieldError]:
    seen = set()
    for place, volume in enumerate(volumes):
        where = f"{field}[{place}]"
        name = volume.get("name")
        if not name:
            yield required(f"{where}.name")
        elif name in seen:
            yield duplicate(f"{where}.name", name)
        seen.add(name)
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if not sources:
            yield required(where, "must specify a volume type")
        for extra in sources[1:]:
            yield forbidden_value(f"{where}.{extra}", "may not specify more than 1 volume type")
        if sources == ["persistentVolumeClaim"] and not volume["persistentVolumeClaim"].get("claimName"):
            yield required(f"{where}.persistentVolumeClaim.claimName")
        if sources == ["flexVolume"] and not volume["flexVolume"].get("driver"):
            yield required(f"{where}.flexVolume.driver")
        if sources == ["csi"] and not volume["csi"].get("driver"):
            yield required(f"{where}.csi.driver")


def _container(container: Json, field: str, volumes: dict[str, Json]) -> Iterator[FieldError]:
    if not container.get("name"):
        yield required(f"{field}.name")
    if not container.get("image"):
        yield required(f"{field}.image")
    paths = set()
    for place, mount in enumerate(container.get("volumeMounts") or []):
        where = f"{field}.volumeMounts[{place}]"
        if mount.get("name") not in volumes:
            yield unknown_reference(f"{where}.name", mount.get("name"))
        path = mount.get("mountPath")
        if not path:
            yield required(f"{where}.mountPath")
        elif path in paths:
            yield invalid_value(f"{where}.mountPath", path, "must be unique")
        paths.add(path)
    yield from _devices(container, field, volumes, paths)


def _devices(container: Json, field: str, volumes: dict[str, Json], paths: set[str]) -> Iterator[FieldError]:
    """ValidateVolumeDevices."""
    mounted = {mount.get("name") for mount in container.get("volumeMounts") or []}
    devices, names = set(), set()
    for place, device in enumerate(container.get("volumeDevices") or []):
        where = f"{field}.volumeDevices[{place}]"
        name, path = device.get("name"), device.get("devicePath")
        if not name:
            yield required(f"{where}.name")
        if name in names:
            yield invalid_value(f"{where}.name", name, "must be unique")
        names.add(name)
        if name in volumes and not {"persistentVolumeClaim", "ephemeral"} & volumes[name].keys():
            message = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"
            yield invalid_value(f"{where}.name", name, message)
        elif name not in volumes:
            yield unknown_reference(f"{where}.name", name)
        if not path:
            yield required(f"{where}.devicePath")
        elif path in devices:
            yield invalid_value(f"{where}.devicePath", path, "must be unique")
        elif ".." in path.split("/"):
            yield invalid_value(f"{where}.devicePath", path, "can not contain backsteps ('..')")
        elif path in paths:
            yield invalid_value(f"{where}.devicePath", path, "must not already exist in volumeMounts")
        devices.add(path)
        if name in mounted:
            yield invalid_value(f"{where}.name", name, "must not already exist in volumeMounts")


_MUTABLE_WORDS = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def check_update(body: Json, present: Json) -> Iterator[FieldError]:
    kept = present["spec"].get("tolerations") or []
    given = body["spec"].get("tolerations") or []
    if _fixed(body["spec"]) != _fixed(present["spec"]) or any(each not in given for each in kept):
        yield forbidden_value("spec", _MUTABLE_WORDS)


def _fixed(spec: Json) -> Json:
    fixed = copy.deepcopy(spec)
    for key in ("activeDeadlineSeconds", "tolerations", "schedulingGates"):
        fixed.pop(key, None)
    for key in ("containers", "initContainers"):
        for container in fixed.get(key) or []:
            container.pop("image", None)
    return fixed
