"""The make targets that work on a cluster, against programs that write down how they are called."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.unit.deploy.rendered import container, environment, with_components

_ROOT = Path(__file__).parents[3]

_RECORDER = f"""#!{sys.executable} -IS
import json, os, sys
from pathlib import Path
folder = Path(__file__).parent
words = " ".join(sys.argv[1:])
answers = json.loads((folder / "answers").read_text())
given = sys.stdin.read() if words.endswith("--filename -") else ""
with (folder / "calls").open("a") as file:
    file.write(json.dumps([Path(__file__).name, *sys.argv[1:]]) + "\\n")
if given:
    with (folder / "given").open("a") as file:
        file.write("---\\n" + given)
answer = next((answer for key, answer in answers.items() if key in words), "")
sys.exit(answer["fails"]) if isinstance(answer, dict) else sys.stdout.write(answer)
"""


_RENDERED = "kubectl kustomize deploy/overlays/minikube"


@dataclass
class Made:
    code: int
    output: str
    calls: list[str]
    """Command lines, in order, but for the rendering of the default overlay: it says the namespace."""
    given: list[dict[str, object]]
    """What was applied or deleted from stdin."""


Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    for name in ("kubectl", "minikube", "docker", "virsh", "VBoxManage"):
        (tmp_path / name).write_text(_RECORDER)
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, answers: Mapping[str, object] | None = None) -> Made:
        (tmp_path / "answers").write_text(json.dumps(answers or {}))
        done = subprocess.run(
            ["make", "--no-print-directory", f"PYTHON={sys.executable}", *arguments],
            cwd=_ROOT,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PATIENCE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        given = yaml.safe_load_all((tmp_path / "given").read_text()) if (tmp_path / "given").exists() else ()
        return Made(
            done.returncode,
            done.stdout + done.stderr,
            [call for call in (" ".join(json.loads(line)) for line in calls) if call != _RENDERED],
            [document for document in given if document],
        )

    return run


def minikube_of(driver: str) -> dict[str, str]:
    profiles = {
        "valid": [{"Name": "other", "Config": {"Driver": "none"}}, {"Name": "minikube", "Config": {"Driver": driver}}]
    }
    return {
        "profile list": json.dumps(profiles),
        "get nodes": "minikube minikube-m02",
        "get pod create-vg": "Succeeded",
        "logs create-vg": "GROUP elastic-local-vg",
    }


@pytest.mark.parametrize(
    ("driver", "arguments"),
    [
        ("kvm2", ["elastic-local-vg", "--any-disk", "--loop-size", "10Gi"]),
        ("docker", ["elastic-local-vg", "--loop-size", "10Gi"]),
        ("none", ["elastic-local-vg", "--loop-size", "10Gi"]),
    ],
)
def test_minikube_create_vg_runs_our_command_on_each_node(make: Make, driver: str, arguments: list[str]) -> None:
    made = make("minikube-create-vg", "IMAGE=registry/elastic-local:1", answers=minikube_of(driver))
    assert made.code == 0, made.output
    assert made.output.count("GROUP elastic-local-vg") == 2
    pods = [document["spec"] for document in made.given if document["kind"] == "Pod"]
    assert [pod["nodeName"] for pod in pods] == ["minikube", "minikube-m02"]  # type: ignore[index]
    for pod in pods:
        [container] = pod["containers"]  # type: ignore[index]
        assert container["command"] == ["elastic-local", "vg", "create", *arguments]
        assert container["image"] == "registry/elastic-local:1"
        assert container["securityContext"]["privileged"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        paths = {volume["hostPath"]["path"] for volume in pod["volumes"]}  # type: ignore[index]
        assert mounted == paths >= {"/dev", "/var/lib/elastic-local"}
    kubectl = [call for call in made.calls if call.startswith("kubectl")]
    assert all(call.startswith("kubectl --context minikube ") for call in kubectl)
    assert kubectl[-1].endswith("delete pod create-vg-minikube-m02 --wait=false")


def test_a_node_where_it_fails_fails_the_target_and_shows_why(make: Make) -> None:
    answers = {**minikube_of("kvm2"), "get pod create-vg": "Failed", "logs create-vg": "it holds ext4"}
    made = make("minikube-create-vg", answers=answers)
    assert made.code != 0
    assert "it holds ext4" in made.output

    made = make("minikube-create-vg", answers={**answers, "get pod create-vg": "Pending"})
    assert made.code != 0
    assert "is the image elastic-local on the node?" in made.output


def test_a_namespace_that_is_there_is_left_as_it_is(make: Make) -> None:
    """Its labels are those of the deployment, of Helm or of an administrator; a missing one is made as deploy/base
    has it, so that the deployment may apply its own."""
    answers = minikube_of("kvm2")
    made = make("minikube-create-vg", answers={**answers, "get namespace elastic-local": "namespace/elastic-local"})
    assert made.code == 0, made.output
    assert {document["kind"] for document in made.given} == {"Pod"}

    made = make("minikube-create-vg", answers=answers)
    assert made.code == 0, made.output
    [namespace] = [document for document in made.given if document["kind"] == "Namespace"]
    assert namespace == yaml.safe_load((_ROOT / "deploy/base/namespace.yaml").read_text())
    [call] = [call for call in made.calls if call.startswith("kubectl --context minikube create ")]
    assert "--save-config" in call


def test_a_pod_that_is_refused_ends_it_with_what_to_do(make: Make) -> None:
    refusing = {"apply --filename -": {"fails": "violates PodSecurity"}, "get nodes": "gke-1"}
    made = make("gke-create-vg", answers=refusing)
    assert made.code != 0
    assert "violates PodSecurity" in made.output
    assert "kubectl label namespace elastic-local pod-security.kubernetes.io/enforce=privileged" in made.output


def test_gke_create_vg_takes_the_nodes_with_raw_disks(make: Make) -> None:
    made = make("gke-create-vg", answers=minikube_of("") | {"get nodes": "gke-1"})
    assert made.code == 0, made.output
    assert "--selector cloud.google.com/gke-local-nvme-ssd=true" in made.calls[0]
    made = make("gke-create-vg", "DISKS=/dev/nvme0n1 /dev/nvme1n1", answers=minikube_of("") | {"get nodes": "gke-1"})
    [*_, pod] = made.given
    [container] = pod["spec"]["containers"]  # type: ignore[index]
    assert container["command"][3:] == ["elastic-local-vg", "/dev/nvme0n1", "/dev/nvme1n1"]
    made = make("gke-create-vg")
    assert made.code != 0
    assert "no node has the labels" in made.output


@pytest.mark.parametrize(
    ("driver", "code", "call"),
    [
        ("kvm2", 0, "virsh --connect qemu:///system attach-disk minikube"),
        ("virtualbox", 0, "VBoxManage storageattach minikube"),
        ("docker", 0, ""),
        ("hyperkit", 2, ""),
    ],
)
def test_minikube_attach_disk_does_what_the_driver_can(make: Make, driver: str, code: int, call: str) -> None:
    made = make("minikube-attach-disk", "DISK_GIB=5", answers=minikube_of(driver) | {"vol-path": "/pool/disk"})
    assert made.code == code, made.output
    assert any(each.startswith(call) for each in made.calls) if call else len(made.calls) == 1
    assert "minikube" in made.output
    made = make("minikube-attach-disk", "PROFILE=absent", answers=minikube_of(driver))
    assert made.code != 0
    assert "minikube start --profile absent" in made.output


def test_the_image_is_pushed_to_its_registry_or_loaded_into_minikube(make: Make) -> None:
    build, push = make("docker-build-push", "IMAGE=registry/elastic-local:1").calls
    assert re.fullmatch(
        r"docker build --file deploy/Dockerfile --build-arg VERSION=\d\S* --build-arg REVISION=\w+ "
        r"--tag registry/elastic-local:1 \.",
        build,
    )
    assert push == "docker push registry/elastic-local:1"
    assert make("docker-build-push").calls[-1] == "minikube --profile minikube image load elastic-local"


def test_a_release_is_for_both_architectures_on_a_base_that_stays_the_same(make: Make) -> None:
    inspect, build = make(
        "release-image",
        "IMAGE=registry/elastic-local:1",
        answers={"imagetools inspect debian:bookworm-slim": "sha256:0a1b\n"},
    ).calls
    assert inspect.startswith("docker buildx imagetools inspect debian:bookworm-slim ")
    assert re.fullmatch(
        r"docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=mode=max "
        r"--file deploy/Dockerfile --build-arg BASE=debian:bookworm-slim@sha256:0a1b "
        r"--build-arg VERSION=\d\S* --build-arg REVISION=\w+ "
        r"--tag registry/elastic-local:1 --push \.",
        build,
    )
    failed = make("release-image", "IMAGE=registry/elastic-local:1")
    assert failed.code != 0
    assert "the base has no digest" in failed.output


def test_the_plugin_is_for_the_release_that_was_named(make: Make) -> None:
    made = make("--dry-run", "krew", "REPOSITORY=https://example.com/owner/x", "RELEASE_URL=https://inside/1.2.0")
    assert made.code == 0, made.output
    (line,) = (line for line in made.output.replace("\\\n", "").splitlines() if "tools.krew" in line)
    assert re.search(
        r'-m tools\.krew build/krew "\$\(tools/version\)" "https://example.com/owner/x"\s+"https://inside/1\.2\.0"$',
        line,
    )


def test_deploy_puts_the_image_into_the_manifests_and_waits(make: Make) -> None:
    made = make("deploy", "OVERLAY=gke", "IMAGE=r/e:2", answers={"kustomize": "kind: X\nimage: elastic-local\n"})
    assert made.code == 0, made.output
    assert made.given == [{"kind": "X", "image": "r/e:2"}]
    assert "kubectl kustomize deploy/overlays/gke" in made.calls
    assert [call.split()[-1] for call in made.calls if "rollout status" in call] == [
        "deployment/provisioner",
        "daemonset/daemon",
    ]


def test_cleaning_jobs_get_the_same_image(make: Make, tmp_path: Path) -> None:
    objects = with_components(tmp_path)
    made = make("deploy", "IMAGE=r/e:2", answers={"kustomize": yaml.safe_dump_all(objects)})
    assert made.code == 0, made.output
    given = tuple(made.given)
    assert environment(container(given, "DaemonSet", "daemon"))["JOB_CONTAINER_IMAGE"]["value"] == "r/e:2"
    # Nothing else than images is rewritten.
    assert yaml.safe_dump_all(given).replace("r/e:2", "elastic-local") == yaml.safe_dump_all(objects)


def test_delete_is_refused_while_there_are_volumes_or_snapshots(make: Make) -> None:
    made = make("delete", answers={"get persistentvolumes": "pvc-1\npvc-2\n"})
    assert made.code != 0
    assert "delete the claims of these first" in made.output
    assert "pvc-1 pvc-2" in made.output
    assert len(made.calls) == 1

    snapshots = {"get volumesnapshotcontents": "content-1\ncontent-2\n"}
    made = make("delete", answers=snapshots | {"get customresourcedefinitions": "customresourcedefinition/..."})
    assert made.code != 0
    assert "delete the VolumeSnapshots of these first" in made.output
    assert "content-1 content-2" in made.output
    assert not [call for call in made.calls if "delete" in call]

    made = make("delete", answers=snapshots | {"kustomize": "kind: X\n"})
    assert made.code == 0, made.output
    assert made.calls[-1] == "kubectl delete --ignore-not-found --filename -"


def test_the_targets_that_follow_and_repeat(make: Make) -> None:
    calls = make("redeploy").calls
    assert calls[0].endswith("rollout restart deployment/provisioner daemonset/daemon")
    calls = make("redeploy-samples").calls
    assert calls[-2:] == [
        "kubectl delete --ignore-not-found --filename deploy/samples",
        "kubectl apply --filename deploy/samples",
    ]
    assert "component=daemon --prefix --follow" in make("driver-logs").calls[-1]
    assert "component=provisioner --prefix --follow" in make("provisioner-logs").calls[-1]


@pytest.mark.parametrize("arguments", [(), ("KUBECONFIG=",)])
def test_acceptance_tests_no_cluster_that_was_not_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/etc/production")
    made = make("acceptance", *arguments)
    assert made.code != 0
    assert "make acceptance KUBECONFIG=/path/of/its/kubeconfig" in made.output
    assert "pytest" not in made.output


def test_acceptance_tests_the_cluster_that_was_named(make: Make) -> None:
    made = make("--dry-run", "acceptance", "KUBECONFIG=/etc/staging", "POD_IMAGE=registry/busybox")
    assert made.code == 0, made.output
    assert "pytest tests/cluster/acceptance " in made.output
    assert ' --kubeconfig "/etc/staging" --pod-image "registry/busybox"' in made.output


def test_help_has_a_line_for_each_target(make: Make) -> None:
    lines = {line.split()[0] for line in make("help").output.splitlines() if len(line.split()) > 1}
    assert lines >= {
        *(
            "docker-build-push",
            "release-image",
            "deploy",
            "delete",
            "redeploy",
            "redeploy-samples",
            "driver-logs",
            "provisioner-logs",
        ),
        *("minikube-attach-disk", "minikube-create-vg", "gke-create-vg", "test", "demo", "acceptance"),
    }


RENAMED = """\
apiVersion: v1
kind: ServiceAccount
metadata:
  name: elastic-local-daemon
  namespace: another
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: daemon
  namespace: storage-system
"""


@pytest.mark.parametrize("target", ["deploy", "redeploy", "driver-logs", "provisioner-logs", "gke-create-vg"])
def test_every_target_follows_the_namespace_of_the_overlay(make: Make, target: str) -> None:
    answers = {**minikube_of("kvm2"), "kustomize deploy/overlays/mine": RENAMED}
    made = make(target, "OVERLAY=mine", "IMAGE=registry/elastic-local:1", answers=answers)
    assert made.code == 0, made.output
    named = [call for call in made.calls if "--namespace" in call]
    assert named
    assert all("--namespace storage-system " in call for call in named)
    for document in made.given:
        if document["kind"] in ("Pod", "Namespace"):
            metadata = document["metadata"]
            assert isinstance(metadata, dict)
            assert metadata.get("namespace", metadata["name"]) == "storage-system"


def test_the_overlays_here_are_all_in_the_namespace_of_the_base(make: Make) -> None:
    made = make("driver-logs")
    assert any("--namespace elastic-local " in call for call in made.calls)


@pytest.mark.parametrize(("running", "expected"), [("storage-system\n", "storage-system"), ("", "elastic-local")])
def test_create_vg_by_itself_goes_where_the_daemons_are(
    make: Make, running: str, expected: str, tmp_path: Path
) -> None:
    make("help", answers={**minikube_of("kvm2"), "get daemonsets --all-namespaces": running})
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PATIENCE": "1"}
    environment.pop("NAMESPACE", None)
    done = subprocess.run(
        [_ROOT / "deploy/create-vg", "vg"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls = [" ".join(json.loads(line)) for line in (tmp_path / "calls").read_text().splitlines()]
    assert {word for call in calls for word in call.split("--namespace ")[1:]}
    assert all(f"--namespace {expected} " in call for call in calls if "--namespace" in call)
