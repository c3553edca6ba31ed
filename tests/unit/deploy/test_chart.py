"""The Helm chart: the same objects as kustomize makes with equal settings, valid in every Kubernetes in use. What its
values do: test_chart_values.py."""

import copy
import json
import operator
import re
import shutil
import tarfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from contract import names
from tests.unit.deploy.rendered import (
    ADDING,
    BASE,
    CHART,
    COMPONENTS,
    CUSTOM,
    DEPLOY,
    IMAGE,
    OVERLAYS,
    VALUES,
    charted,
    container,
    of_kind,
    one,
    run_helm,
    with_components,
)

Json = dict[str, Any]

_OF_THE_CHART = {
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "checksum/config",
}
"""Labels and annotations that the chart gives otherwise than kustomize, or alone."""
_BY_NAME = {"env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""Lists whose order is of no meaning, and what their items are told apart by."""
_GENERATED = re.compile(r"^(daemon|provisioner|device-classes)-[0-9a-z]{10}$")
"""ConfigMaps whose names kustomize gives a hash. The chart restarts pods by an annotation."""
_CLEANUP_CLASSES = ["cache", "scratch"]


def component(name: str) -> Path:
    return DEPLOY / "components" / name


@dataclass(frozen=True)
class Way:
    """One way to install, told to both."""

    overlay: Path = BASE
    components: tuple[str, ...] = ()
    kustomization: Json = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Of values."""
    values: Json = field(default_factory=dict)


_FLEX_VOLUME: Json = {"volumeSource": "flexVolume"}
_DEVICE_CLASSES: Json = {
    "deviceClasses": {
        "classes": {
            "nvme": {"kind": "LVM", "group": "vg-nvme", "reserve": "10Gi"},
            "hdd": {"kind": "LVM", "group": "vg-hdd"},
        }
    },
    "storageClasses": {
        "elastic-local-nvme": {"parameters": {"device-class": "nvme"}},
        "elastic-local-hdd": {"parameters": {"device-class": "hdd"}},
    },
}
_MONITORING: Json = {"monitoring": {each: {"enabled": True} for each in ("podMonitor", "alerts", "dashboard")}}


def _overlay(name: str) -> Path:
    return DEPLOY / "overlays" / name


def _with_data(name: str, **data: str) -> Json:
    """Changes a ConfigMap."""
    metadata = {"name": name, "namespace": "elastic-local"}
    return {"patch": yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})}


def _job_image() -> Json:
    """`images:` does not reach into the environment."""
    of = {"name": "daemon", "env": [{"name": "JOB_CONTAINER_IMAGE", "value": f"{IMAGE}:1"}]}
    metadata = {"name": "daemon", "namespace": "elastic-local"}
    spec = {"template": {"spec": {"containers": [of]}}}
    return {"patch": yaml.safe_dump({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec})}


_CLEANUP = _with_data("provisioner", NODE_CLEANUP_CLASSES=",".join(_CLEANUP_CLASSES))
WAYS = {
    "base": Way(values=_FLEX_VOLUME),
    "labels": Way(
        components=("csi", "monitoring"),
        kustomization={"labels": [{"pairs": {"team": "storage"}, "includeTemplates": True}]},
        values={**_MONITORING, "commonLabels": {"team": "storage"}},
    ),
    "overlay csi": Way(_overlay("csi")),
    "overlay gke": Way(_overlay("gke"), files=("values-gke",), values=_FLEX_VOLUME),
    "overlay ha": Way(_overlay("ha"), files=("values-ha",), values=_FLEX_VOLUME),
    "overlay minikube": Way(_overlay("minikube"), files=("values-minikube",), values=_FLEX_VOLUME),
    "overlay minikube-loop": Way(_overlay("minikube-loop"), files=("values-minikube-loop",), values=_FLEX_VOLUME),
    "overlay static": Way(_overlay("static"), values={**_FLEX_VOLUME, "static": {"enabled": True}}),
    "csi": Way(components=("csi",)),
    "device-classes": Way(components=("device-classes",), values={**_FLEX_VOLUME, **_DEVICE_CLASSES}),
    "monitoring": Way(components=("csi", "monitoring"), values=_MONITORING),
    "node-cleanup": Way(
        components=("csi", "node-cleanup"),
        kustomization={"patches": [_CLEANUP]},
        values={"nodeCleanup": {"classes": _CLEANUP_CLASSES}},
    ),
    "static": Way(components=("csi", "static"), values={"static": {"enabled": True}}),
    "static-jobs": Way(
        components=("csi", "static", "static-jobs"),
        kustomization={"patches": [_with_data("static-volumes", useJobForCleaning="true"), _job_image()]},
        values={"static": {"enabled": True, "jobs": True}},
    ),
    "startup-taint": Way(components=("csi", "startup-taint"), values={"startupTaint": {"enabled": True}}),
    "static, startup-taint": Way(
        components=("csi", "static", "startup-taint"),
        kustomization={
            "patches": [
                _with_data("static-volumes", removeNodeNotReadyTaint="true"),
                _with_data("daemon", STARTUP_TAINT="example.com/starting"),
            ]
        },
        values={
            "static": {"enabled": True, "taint": True},
            "startupTaint": {"enabled": True, "key": "example.com/starting"},
        },
    ),
    "snapshots": Way(components=("csi", "snapshots"), values={"snapshots": {"enabled": True}}),
    "without-flex-volume": Way(components=("csi", "without-flex-volume"), values={"flexVolume": {"enabled": False}}),
    "without-policies": Way(components=("csi", "without-policies"), values={"policies": {"enabled": False}}),
    "all": Way(
        components=tuple(path.name for path in sorted(ADDING, key=lambda path: path.name == "csi")),
        kustomization={
            "patches": [
                _with_data("static-volumes", useJobForCleaning="true", removeNodeNotReadyTaint="true"),
                _CLEANUP,
                _job_image(),
            ],
        },
        values={
            **_DEVICE_CLASSES,
            **_MONITORING,
            "nodeCleanup": {"classes": _CLEANUP_CLASSES},
            "snapshots": {"enabled": True},
            "startupTaint": {"enabled": True},
            "static": {"enabled": True, "jobs": True, "taint": True},
        },
    ),
}


def test_every_overlay_and_component_is_compared() -> None:
    """Whoever adds one adds it to the chart, and here."""
    assert {way.overlay for way in WAYS.values()} == {BASE, *OVERLAYS}
    assert {name for way in WAYS.values() for name in way.components} == {path.name for path in COMPONENTS}


@pytest.mark.parametrize("name", [*WAYS, "all, in another namespace"])
def test_chart_and_kustomize_make_the_same_objects(name: str, tmp_path: Path) -> None:
    way, namespace = (WAYS[name], names.NAMESPACE) if name in WAYS else (WAYS["all"], "storage-system")
    theirs = with_components(
        tmp_path,
        map(component, way.components),
        way.overlay,
        **{**way.kustomization, "images": [{"name": "elastic-local", "newName": IMAGE, "newTag": "1"}]},
        **({} if namespace == names.NAMESPACE else {"namespace": namespace}),
    )
    ours = charted(
        *(CHART / f"{file}.yaml" for file in way.files),
        namespace=namespace,
        # What asks before `helm uninstall` has no counterpart.
        uninstallCheck={"enabled": False},
        **{**way.values, "image": {"repository": IMAGE, "tag": "1", **_pull_policy(way)}},
    )
    wanted, found = _comparable(theirs), _comparable(ours)
    # Of the release: `helm install --namespace`. docs/install.md and the chart's notes have its labels.
    del wanted["Namespace", namespace]
    assert found.keys() == wanted.keys(), "objects of the chart, and those of kustomize"
    for identity, body in wanted.items():
        assert found[identity] == body, f"{identity} of the chart, and that of kustomize"


def test_volumes_keep_helm_from_uninstalling() -> None:
    """By a hook that asks the command, with the rights of the provisioner."""
    objects = charted(image={"repository": IMAGE, "tag": "1", "pullSecrets": [{"name": "registry"}]})
    (hook,) = (each for each in objects if "helm.sh/hook" in each["metadata"].get("annotations", {}))
    assert (hook["kind"], hook["metadata"]["annotations"]["helm.sh/hook"]) == ("Job", "pre-delete")
    assert hook["spec"]["backoffLimit"] == 0
    pod = hook["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["restartPolicy"]) == ("provisioner", "Never")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    (program,) = pod["containers"]
    assert program["image"] == container(objects, "Deployment", "provisioner")["image"]
    assert program["command"] == ["elastic-local", "doctor", "--uninstall"]
    (rules,) = (
        each["rules"] for each in of_kind(objects, "ClusterRole") if each["metadata"]["name"].endswith("provisioner")
    )
    assert any("persistentvolumes" in rule["resources"] and "list" in rule["verbs"] for rule in rules)
    # Also where the component is switched off (as here): snapshots of earlier days may be there.
    binding = one(objects, "ClusterRoleBinding", "elastic-local-uninstall-check")
    role = one(objects, "ClusterRole", binding["roleRef"]["name"])
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [(["volumesnapshotcontents"], ["list"])]
    assert [(each["kind"], each["name"]) for each in binding["subjects"]] == [("ServiceAccount", "provisioner")]
    without = charted(uninstallCheck={"enabled": False})
    assert not [each for each in without if "uninstall-check" in each["metadata"]["name"]]


def _pull_policy(way: Way) -> Json:
    """`--set-json` of the image replaces what a file of values has of it."""
    found: Json = {}
    for file in way.files:
        found |= yaml.safe_load((CHART / f"{file}.yaml").read_text()).get("image", {})
    return found


def _comparable(objects: tuple[Json, ...]) -> dict[tuple[str, str], Json]:
    """By kind and name, without what is different on purpose."""
    found: dict[tuple[str, str], Json] = {}
    for each in objects:
        body = _plain(copy.deepcopy(each))
        if body["kind"].startswith(("ValidatingAdmissionPolicy", "VolumeSnapshotClass")):
            # kustomize does not know that these kinds have no namespace; the API server drops it.
            body["metadata"].pop("namespace", None)
        if body["kind"] == "ConfigMap":
            body["data"] = {key: yaml.safe_load(text) for key, text in body["data"].items()}
        identity = body["kind"], body["metadata"]["name"]
        assert identity not in found
        found[identity] = body
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _GENERATED.sub(r"\1", value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _plain(each) for key, each in value.items()}
    for key, by in _BY_NAME.items():
        if isinstance(plain.get(key), list):
            plain[key] = sorted(plain[key], key=operator.itemgetter(by))
    for key in ("labels", "annotations"):
        if isinstance(plain.get(key), dict):
            plain[key] = {name: text for name, text in plain[key].items() if name not in _OF_THE_CHART}
            if not plain[key]:
                del plain[key]
    return plain


def test_the_labels_of_the_namespace_are_told() -> None:
    """Helm makes a namespace without labels."""
    namespace = yaml.safe_load((BASE / "namespace.yaml").read_text())
    for text in ((CHART / "templates" / "NOTES.txt").read_text(), (DEPLOY.parent / "docs" / "install.md").read_text()):
        for label, value in namespace["metadata"]["labels"].items():
            assert f"{label}={value}" in text


_EVERYTHING = WAYS["all"].values


@pytest.mark.parametrize("version", ["1.28", "1.32", "1.36"])
def test_objects_are_valid(version: str) -> None:
    old = {"policies": {"enabled": False}, "startupTaint": {"enabled": False}} if version == "1.28" else {}
    every = [each for file in VALUES for each in charted(file, kubernetes=version, **old)]
    every += [*charted(kubernetes=version, **old), *charted(kubernetes=version, **{**_EVERYTHING, **old})]
    for text in {json.dumps(each, sort_keys=True) for each in every}:
        body = json.loads(text)
        if body["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(body, version, strict=True)


@pytest.mark.parametrize("file", [None, *VALUES], ids=lambda file: file.stem if file else "values")
def test_helm_lints(file: Path | None) -> None:
    told = [f"--values={file}"] if file else []
    linted = run_helm("lint", CHART, "--strict", "--kube-version=1.32.0", *told)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_package_has_all_that_the_chart_links_to(tmp_path: Path) -> None:
    """Policies, alerts and the dashboard are those of kustomize, by links."""
    assert {path.name for path in (CHART / "files").iterdir() if not path.is_symlink()} == set()
    packaged = run_helm("package", CHART, "--version=1.2.3", "--app-version=1.2.3", f"--destination={tmp_path}")
    assert packaged.returncode == 0, packaged.stderr
    (archive,) = tmp_path.glob("*.tgz")
    assert archive.name == "elastic-local-1.2.3.tgz"
    with tarfile.open(archive) as opened:
        for path in (CHART / "files").iterdir():
            file = opened.extractfile(f"elastic-local/files/{path.name}")
            assert file is not None
            assert file.read() == path.read_bytes()
    rendered = charted(chart=archive, **_EVERYTHING)
    assert container(rendered, "DaemonSet", "daemon")["image"] == "elastic-local:1.2.3"
    assert _comparable(rendered).keys() == _comparable(charted(**_EVERYTHING)).keys()


def test_the_notes_say_what_to_do_next(tmp_path: Path) -> None:
    """Only an installation shows them, so here an object has them as its text."""
    copy_of_chart = tmp_path / "elastic-local"
    shutil.copytree(CHART, copy_of_chart)
    notes_template = 'kind: Notes\ntext: |\n  {{- include "elastic-local/templates/NOTES.txt" . | nindent 2 }}\n'
    (copy_of_chart / "templates" / "notes.yaml").write_text(notes_template)
    objects = charted(chart=copy_of_chart, namespace="storage", storage={"volumeGroup": "data"})
    (notes,) = (each["text"] for each in of_kind(objects, "Notes"))
    assert "IMAGE=elastic-local:0.0.0 deploy/create-vg data /dev/sdX" in notes
    assert "NAMESPACE=storage" in notes
    claim, pod = yaml.safe_load_all(textwrap.dedent(notes.partition("<<END\n")[2].partition("   END\n")[0]))
    assert claim["spec"]["storageClassName"] in {each["metadata"]["name"] for each in of_kind(objects, "StorageClass")}
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for each in (claim, pod):
        kubernetes_validate.validate(each, "1.32", strict=True)
    calm = charted(
        chart=copy_of_chart,
        storage={"kind": "LOOP"},
        policies={"enabled": False},
        storageClasses={"elastic-local": None, "elastic-local-thin": None, "elastic-local-xfs": None},
    )
    (notes,) = (each["text"] for each in of_kind(calm, "Notes"))
    assert "create-vg" not in notes
    assert "Try a claim" not in notes
    assert "WARNING: without policies.enabled" in notes
    classes = {
        "nvme": {"kind": "LVM", "group": "vg-nvme"},
        "thin": {"kind": "LVM", "group": "vg-nvme", "thin": True},
        "own": {"kind": "LVM", "group": "vg-own", "devices": {"rotational": True}},
    }
    several = charted(
        chart=copy_of_chart,
        deviceClasses={"default": "nvme", "classes": classes},
        storageClasses={"a": None, "gold": {"default": True}},
        static={"enabled": True},
    )
    (notes,) = (each["text"] for each in of_kind(several, "Notes"))
    assert re.findall(r"deploy/create-vg (\S+)", notes) == ["vg-nvme"]
    assert "storageClassName: gold" in notes
    assert "/mnt/disks" in notes
