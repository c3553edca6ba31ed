"""The samples in deploy/samples: valid for each version of Kubernetes, of classes that there are. The script that moves
data is run."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from contract import capacity, names
from contract.capacity import Capacity
from kube.records import SELECTED_NODE, read_claim, read_storage_class
from provisioner.decision import AvailableCapacity, Create, NodeCapacity, decide
from tests.sandbox.controlplane.binding import NOT_ENOUGH_SPACE, Placement, PodClaims, place
from tests.unit.deploy.rendered import BASE, DEPLOY, kustomize, of_kind
from tests.unit.deploy.test_manifests import VERSIONS

Json = dict[str, Any]

SAMPLES = sorted((DEPLOY / "samples").rglob("*.yaml"))
OTHERS = {"data-db-0"}
"""Claims that the samples use and do not make."""


def objects(path: Path) -> list[Json]:
    return list(yaml.safe_load_all(path.read_text()))


def claim_specs(found: list[Json]) -> Iterator[Json]:
    for each in found:
        if each["kind"] == "PersistentVolumeClaim":
            yield each["spec"]
        yield from (template["spec"] for template in each.get("spec", {}).get("volumeClaimTemplates", []))


def pod_specs(found: list[Json]) -> Iterator[tuple[Json, set[str]]]:
    """Each with the names of the volumes that its StatefulSet adds to it."""
    for each in found:
        if each["kind"] == "Pod":
            yield each["spec"], set()
        elif "template" in each.get("spec", {}):
            templates = each["spec"].get("volumeClaimTemplates", [])
            yield each["spec"]["template"]["spec"], {template["metadata"]["name"] for template in templates}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_sample_is_valid(path: Path, version: str) -> None:
    for each in objects(path):
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_classes_claims_and_volumes_of_a_sample_are_there(path: Path) -> None:
    classes = {each["metadata"]["name"] for each in of_kind((*kustomize(BASE), *objects(path)), "StorageClass")}
    beside = [each for sibling in path.parent.glob("*.yaml") for each in objects(sibling)]
    claims = {each["metadata"]["name"] for each in beside if each["kind"] == "PersistentVolumeClaim"} | OTHERS
    found = objects(path)
    assert {spec["storageClassName"] for spec in claim_specs(found)} <= classes
    for pod, added in pod_specs(found):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values()} <= claims
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == volumes.keys() | added


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_stateful_set_and_its_service_select_its_pods(path: Path) -> None:
    found = objects(path)
    for each in found:
        if each["kind"] == "StatefulSet":
            labels = each["spec"]["template"]["metadata"]["labels"]
            (service,) = (other for other in found if other["kind"] == "Service")
            assert service["metadata"]["name"] == each["spec"]["serviceName"]
            assert service["spec"]["selector"] == each["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("overlay", ["base", "overlays/csi"])
def test_the_claims_of_a_sample_are_served(path: Path, overlay: str) -> None:
    found = objects(path)
    own = of_kind(tuple(found), "StorageClass")
    classes = {each["metadata"]["name"]: each for each in (*of_kind(kustomize(DEPLOY / overlay), "StorageClass"), *own)}
    for spec in claim_specs(found):
        name = spec["storageClassName"]
        empty = Capacity("node-1", "node-1", name, "elastic-local-vg", 1 << 40, available=1 << 40, granularity=1 << 22)
        empty = replace(empty, encryption=True)
        annotations = {"volume.kubernetes.io/storage-provisioner": names.PROVISIONER, SELECTED_NODE: "node-1"}
        metadata = {
            "namespace": "default",
            "name": "claim",
            "uid": "1",
            "resourceVersion": "1",
            "annotations": annotations,
        }
        decision = decide(
            read_claim({"metadata": metadata, "spec": spec}),
            read_storage_class(classes[name]),
            AvailableCapacity([NodeCapacity(empty, empty.available)]),
            waited=0,
        )
        assert isinstance(decision, Create)
        assert decision.source == ("csi" if overlay == "overlays/csi" or classes[name] in own else "flexVolume")


GROUP = {"example.com/node-group": "databases"}
TEMPLATE = {
    "cluster-autoscaler.kubernetes.io/template-node": "true",
    names.HOSTNAME_LABEL: "template-node-for-databases-1",
}


@pytest.mark.parametrize(
    ("labels", "fits"),
    [(GROUP | TEMPLATE, True), (TEMPLATE, False), (GROUP | {names.HOSTNAME_LABEL: "node-1"}, False)],
    ids=["template", "template of another group", "full node"],
)
def test_only_a_template_node_of_the_group_has_the_capacity_that_is_written_for_it(
    labels: dict[str, str], *, fits: bool
) -> None:
    """Told by the rule of the scheduler, whose code the autoscaler runs."""
    (template,) = objects(DEPLOY / "samples" / "autoscaler" / "template-node.yaml")
    full = Capacity("node-1", "node-1", "elastic-local", "elastic-local-vg", 1 << 40, available=0, granularity=1 << 22)
    (postgresql,) = claim_specs(objects(DEPLOY / "samples" / "databases" / "postgresql.yaml"))
    claim = {"metadata": {"name": "data-postgresql-0", "namespace": "default"}, "spec": postgresql}
    placed = place(
        {"metadata": {"name": labels[names.HOSTNAME_LABEL], "labels": labels}},
        PodClaims(bound=[], delayed=[claim]),
        [],
        {each["metadata"]["name"]: each for each in of_kind(kustomize(BASE), "StorageClass")},
        {each["metadata"]["name"]: each for each in of_kind(kustomize(BASE), "CSIDriver")},
        [template, capacity.manifest(full, names.NAMESPACE, None)],
    )
    assert isinstance(placed, Placement) == fits
    assert fits or placed == (NOT_ENOUGH_SPACE,)


def test_the_capacity_of_a_template_node_is_none_of_a_daemon() -> None:
    (template,) = objects(DEPLOY / "samples" / "autoscaler" / "template-node.yaml")
    assert capacity.read(template) is None
    assert template["metadata"]["namespace"] != names.NAMESPACE


def copy(old: Path, new: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the script of the Job, on these folders."""
    _, job = objects(DEPLOY / "samples" / "migration" / "copy.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    assert script.count("old=/old new=/new\n") == 1
    script = script.replace("old=/old new=/new\n", f"old={old} new={new}\n").replace("\nsync\n", "\n")
    return subprocess.run([*container["command"], script], capture_output=True, text=True)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("old", "new"):
        (tmp_path / name / "lost+found").mkdir(parents=True)
    return tmp_path / "old", tmp_path / "new"


def test_all_files_are_copied_as_they_are(folders: tuple[Path, Path]) -> None:
    old, new = folders
    (old / "lost+found" / "#12").write_text("not this")
    (old / "base" / "with space").mkdir(parents=True, mode=0o750)
    (old / "base" / "1").write_bytes(bytes(range(256)) * 100)
    (old / "base" / "1").chmod(0o640)
    (old / "base" / "with space" / "2").hardlink_to(old / "base" / "1")
    (old / ".hidden").symlink_to("base/1")
    old.chmod(0o700)
    done = copy(old, new)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "copied and compared: 2 files\n"
    assert sorted(str(each.relative_to(new)) for each in new.rglob("*")) == [
        ".hidden", "base", "base/1", "base/with space", "base/with space/2", "lost+found"
    ]  # fmt: skip
    first, second = new / "base" / "1", new / "base" / "with space" / "2"
    assert first.read_bytes() == (old / "base" / "1").read_bytes()
    assert first.stat().st_ino == second.stat().st_ino
    assert [each.stat().st_mode & 0o777 for each in (new, first.parent / "with space", first)] == [0o700, 0o750, 0o640]
    assert (new / ".hidden").readlink() == Path("base/1")


def test_an_empty_volume_is_copied_too(folders: tuple[Path, Path]) -> None:
    done = copy(*folders)
    assert (done.returncode, done.stdout) == (0, "copied and compared: 0 files\n"), done.stderr


def test_nothing_is_copied_over_files(folders: tuple[Path, Path]) -> None:
    old, new = folders
    (old / "file").write_text("old")
    (new / "file").write_text("new")
    done = copy(old, new)
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert (new / "file").read_text() == "new"
