"""The manifests: valid in every Kubernetes in use, and in step with what the programs read and where they look."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from aiohttp import web
from prometheus_client import CollectorRegistry

import daemon.settings
import provisioner.settings
from contract import names, parameters
from daemon.static import configuration
from daemon.storage import deviceclasses
from service.endpoints import HealthChecks, application
from tests.sandbox.apiserver import snapshots
from tests.unit.deploy.rendered import (
    ADDING,
    BASE,
    COMPONENTS,
    CUSTOM,
    DEPLOY,
    OVERLAYS,
    VALUES,
    WITHOUT_FLEX_VOLUME,
    WITHOUT_POLICIES,
    charted,
    container,
    environment,
    kustomize,
    of_kind,
    one,
    with_components,
)
from tests.unit.heard import Heard

Json = dict[str, Any]

VERSIONS = ("1.28", "1.30", "1.32", "1.34", "1.36", kubernetes_validate.latest_version())
DEVICE_CLASSES = DEPLOY / "components" / "device-classes"
CSI = DEPLOY / "components" / "csi"
WAYS = {path.name: path for path in (BASE, *OVERLAYS)}


CHARTED = {f"helm {path.stem}": path for path in VALUES}


@pytest.fixture(params=[*WAYS, "all components", "csi alone", *CHARTED])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Json, ...]:
    """What each way to install makes."""
    if request.param in CHARTED:
        return charted(CHARTED[request.param])
    if request.param == "csi alone":
        return with_components(tmp_path, [CSI, WITHOUT_FLEX_VOLUME])
    return with_components(tmp_path) if request.param == "all components" else kustomize(WAYS[request.param])


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(version: str, tmp_path: Path) -> None:
    if tuple(map(int, version.split(".")[:2])) < (1, 30):
        every = list(with_components(tmp_path, [*ADDING, WITHOUT_FLEX_VOLUME, WITHOUT_POLICIES]))
    else:
        every = [each for path in WAYS.values() for each in kustomize(path)] + list(with_components(tmp_path))
    for text in {json.dumps(each, sort_keys=True) for each in every if each["apiVersion"] not in CUSTOM}:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


def _environment(objects: tuple[Json, ...], program: Json) -> Heard:
    """What the container's process finds; what Kubernetes fills in is a word."""
    variables = {name: each.get("value", "filled-in") for name, each in environment(program).items()}
    for source in program["envFrom"]:
        variables |= one(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    return Heard(variables)


def _daemon_environment(objects: tuple[Json, ...], folder: Path) -> Heard:
    """As `_environment`, with the file of device classes, if there is one, taken from its ConfigMap to `folder`."""
    variables = _environment(objects, container(objects, "DaemonSet", "daemon"))
    if "DEVICE_CLASSES_FILE" not in variables:
        return variables
    file = Path(variables["DEVICE_CLASSES_FILE"])
    copy = folder / file.name
    copy.write_text(_mounted(objects, file.parent)[file.name])
    return Heard({**variables, "DEVICE_CLASSES_FILE": str(copy)})


def test_the_provisioner_reads_all_its_settings(objects: tuple[Json, ...]) -> None:
    variables = _environment(objects, container(objects, "Deployment", "provisioner"))
    provisioner.settings.read(variables)
    assert set(variables) <= variables.asked


def test_the_daemon_reads_all_its_settings(objects: tuple[Json, ...], tmp_path: Path) -> None:
    variables = _daemon_environment(objects, tmp_path)
    daemon.settings.read(variables)
    assert set(variables) <= variables.asked


def _volumes(objects: tuple[Json, ...]) -> dict[str, Json]:
    """Of the daemon's pods, by name."""
    return {each["name"]: each for each in one(objects, "DaemonSet", "daemon")["spec"]["template"]["spec"]["volumes"]}


def _mounts(objects: tuple[Json, ...]) -> dict[Path, tuple[str, Json]]:
    """Of the daemon: path in the container to path of the host, and the mount."""
    volumes = _volumes(objects)
    return {
        Path(mount["mountPath"]): (volumes[mount["name"]].get("hostPath", {}).get("path", ""), mount)
        for mount in container(objects, "DaemonSet", "daemon")["volumeMounts"]
    }


def _mounted(objects: tuple[Json, ...], folder: Path) -> dict[str, str]:
    """The files of the ConfigMap that the daemon has in that folder."""
    _, mount = _mounts(objects)[folder]
    data = one(objects, "ConfigMap", _volumes(objects)[mount["name"]]["configMap"]["name"])["data"]
    assert isinstance(data, dict)
    return data


def test_the_daemon_has_the_folders_of_the_host_that_it_works_in(objects: tuple[Json, ...], tmp_path: Path) -> None:
    settings = daemon.settings.read(_daemon_environment(objects, tmp_path))
    mounts = _mounts(objects)
    for folder in (settings.kubelet_root, settings.staging_dir, settings.data_dir, settings.socket.parent):
        assert mounts[folder][0] == str(folder)
    assert {each in mounts for each in settings.plugin_dirs} == {settings.flex_volume}
    if settings.flex_volume:
        for folder in settings.plugin_dirs:
            assert mounts[folder][0] == str(folder)
    for folder in (settings.kubelet_root, settings.staging_dir):
        assert mounts[folder][1]["mountPropagation"] == "Bidirectional"


def test_udev_is_shared_whole() -> None:
    """LVM that finds udev waits for it on semaphores, which are the host's only with hostIPC."""
    objects = kustomize(BASE)
    shares_udev = Path("/run/udev") in _mounts(objects)
    assert shares_udev == one(objects, "DaemonSet", "daemon")["spec"]["template"]["spec"].get("hostIPC", False)


def test_who_is_root_and_who_is_not(objects: tuple[Json, ...]) -> None:
    """The user of the image is the provisioner's; the daemon mounts."""
    (user,) = re.findall(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    pod = one(objects, "Deployment", "provisioner")["spec"]["template"]["spec"]["securityContext"]
    assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) == user
    assert container(objects, "DaemonSet", "daemon")["securityContext"]["runAsUser"] == 0


def test_probes_ask_for_what_is_served(objects: tuple[Json, ...]) -> None:
    served = {
        resource.canonical
        for resource in application(HealthChecks({}), CollectorRegistry()).router.resources()
        if isinstance(resource, web.PlainResource)
    }
    for kind, name in (("Deployment", "provisioner"), ("DaemonSet", "daemon")):
        program = container(objects, kind, name)
        assert program["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert program["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert served >= {"/healthz", "/readyz"}


def test_the_disks_of_the_configuration_are_mounted() -> None:
    objects = kustomize(WAYS["static"])
    data = one(objects, "ConfigMap", "static-volumes")["data"]
    parsed = configuration.parse({key: yaml.safe_load(text) for key, text in data.items()})
    assert parsed.classes
    assert not parsed.unknown_keys
    for each in parsed.classes.values():
        host_path, mount = _mounts(objects)[each.mount_dir]
        assert host_path == each.host_dir
        assert mount["mountPropagation"] == "HostToContainer"
        assert one(objects, "StorageClass", each.name)["provisioner"] == "kubernetes.io/no-provisioner"


def test_the_device_classes_are_read_and_asked_for(tmp_path: Path) -> None:
    objects = with_components(tmp_path, [DEVICE_CLASSES])
    classes = daemon.settings.read(_daemon_environment(objects, tmp_path)).device_classes
    assert classes
    own = {each["metadata"]["name"] for each in of_kind(kustomize(BASE), "StorageClass")}
    added = [each for each in of_kind(objects, "StorageClass") if each["metadata"]["name"] not in own]
    assert {parameters.parse(each["parameters"]).device_class for each in added} == classes.keys() - {"default"}
    assert {each["provisioner"] for each in added} == {names.PROVISIONER}


def _sources(objects: tuple[Json, ...]) -> set[str]:
    """Of the volumes that the StorageClasses make."""
    return {
        parameters.volume_source(each.get("parameters", {}))
        for each in of_kind(objects, "StorageClass")
        if each["provisioner"] == names.PROVISIONER
    }


def test_a_component_makes_csi_the_driver_of_all_classes_before_it(tmp_path: Path) -> None:
    assert _sources(kustomize(BASE)) == {"flexVolume"}
    assert _sources(kustomize(WAYS["csi"])) == {"csi"}
    objects = with_components(tmp_path, [DEVICE_CLASSES, DEPLOY / "components" / "static", CSI])
    assert _sources(objects) == {"csi"}
    (offered,) = (each for each in of_kind(objects, "StorageClass") if each["provisioner"] != names.PROVISIONER)
    assert "parameters" not in offered
    (nvme,) = (each for each in of_kind(objects, "StorageClass") if each["metadata"]["name"] == "elastic-local-nvme")
    assert nvme["parameters"] == {"device-class": "nvme", "volumeSource": "csi"}


def test_both_drivers_can_be_turned_off_each(tmp_path: Path) -> None:
    settings = daemon.settings.read(_daemon_environment(kustomize(BASE), tmp_path))
    assert (settings.csi, settings.flex_volume) == (True, True)
    alone = with_components(tmp_path, [CSI, WITHOUT_FLEX_VOLUME])
    settings = daemon.settings.read(_daemon_environment(alone, tmp_path))
    assert (settings.csi, settings.flex_volume) == (True, False)
    assert "plugins" not in _volumes(alone)


def test_what_the_file_of_device_classes_has_as_a_comment_is_right_too() -> None:
    text = re.sub(r"^( *)# (\w+: [\w{].*)$", r"\1\2", (DEVICE_CLASSES / "classes.yaml").read_text(), flags=re.MULTILINE)
    classes = deviceclasses.read(text, daemon.settings.Settings("node").own_class)
    assert classes.keys() == {"default", "nvme", "hdd", "local", "thin", "scratch"}
    assert classes["default"] == classes["nvme"]
    commented = (DEVICE_CLASSES / "daemon.yaml").read_text()
    assert f"#   mountPath: {classes['scratch'].folder.parent}\n" in commented


def test_other_device_classes_restart_the_daemons(tmp_path: Path) -> None:
    """The daemon reads the file when it starts, so the pods' template must change with it."""
    ours = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "device-classes", "namespace": names.NAMESPACE},
        "data": {"classes.yaml": "classes: {ssd: {kind: LVM, group: ssd}}"},
    }
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    before = with_components(tmp_path / "before", [DEVICE_CLASSES])
    after = with_components(tmp_path / "after", [DEVICE_CLASSES], patches=[{"patch": yaml.safe_dump(ours)}])
    assert _mounted(after, Path("/etc/elastic-local")) == ours["data"]
    assert _volumes(before)["device-classes"] != _volumes(after)["device-classes"]


def test_jobs_clean_with_our_own_image(tmp_path: Path) -> None:
    program = container(with_components(tmp_path), "DaemonSet", "daemon")
    assert environment(program)["JOB_CONTAINER_IMAGE"]["value"] == program["image"]


def test_every_object_has_the_recommended_labels(objects: tuple[Json, ...]) -> None:
    """Source: kubernetes.io/docs/concepts/overview/working-with-objects/common-labels. Files know no version."""
    for each in objects:
        labels = each["metadata"].get("labels", {})
        labels = {key.removeprefix("app.kubernetes.io/"): value for key, value in labels.items()}
        who = f"{each['kind']} {each['metadata']['name']}"
        assert labels.get("name") == labels.get("part-of") == "elastic-local", who
        assert labels["instance"], who
        assert labels["managed-by"] in ("kustomize", "Helm"), who
        assert ("version" in labels) == (labels["managed-by"] == "Helm"), who
        assert ("component" in labels) == (each["kind"] in ("Deployment", "DaemonSet", "Job")), who


def test_names_are_those_of_the_contract() -> None:
    objects = kustomize(BASE)
    one(objects, "Namespace", names.NAMESPACE)
    one(objects, "CSIDriver", names.PROVISIONER)
    assert {each["provisioner"] for each in of_kind(objects, "StorageClass")} == {names.PROVISIONER}
    lease = provisioner.settings.read({}).lease
    (role,) = (each for each in of_kind(objects, "Role") if each["metadata"]["name"] == "provisioner")
    assert [lease] in [rule.get("resourceNames") for rule in role["rules"]]


def test_bindings_tie_what_there_is(objects: tuple[Json, ...]) -> None:
    for binding in (*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")):
        if not binding["roleRef"]["name"].startswith("system:"):  # of the cluster itself
            one(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            assert one(objects, "ServiceAccount", subject["name"])["metadata"]["namespace"] == subject["namespace"]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("rbac*.yaml")), ids=lambda path: path.parent.name + path.name)
def test_every_rule_says_who_needs_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups:")]
    assert rules
    for number in rules:
        assert lines[number - 1].startswith("  # "), f"{path.name}:{number + 1}"


def test_every_component_is_documented() -> None:
    page = (DEPLOY.parent / "docs" / "install.md").read_text()
    table = page.partition("### Your own overlay")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[a-z`, -]+`) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(rows))) == [path.name for path in COMPONENTS]


def test_a_snapshot_is_erased_with_its_object_or_retained(tmp_path: Path) -> None:
    objects = with_components(tmp_path, [DEPLOY / "components" / "snapshots"])
    classes = of_kind(objects, "VolumeSnapshotClass")
    for each in classes:
        assert not list(snapshots.check_class(each))
        assert each["driver"] == names.CSI_DRIVER
    policies = {each["metadata"]["name"]: each["deletionPolicy"] for each in classes}
    assert policies == {"elastic-local": "Delete", "elastic-local-retain": "Retain"}
