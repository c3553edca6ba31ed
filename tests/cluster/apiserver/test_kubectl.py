"""Real kubectl, whatever version is on PATH, works on the stand-in as on a cluster."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.apiserver.samples import claim, config, maps, pod, pods, volume
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.process import ServerProcess
from tests.sandbox.apiserver.resources import Json

_SECONDS = 20


class Kubectl:
    """kubectl on one namespace of the server, with a cache of its own."""

    def __init__(self, server: ServerProcess, namespace: str, home: Path) -> None:
        program = shutil.which("kubectl")
        if program is None:
            pytest.fail("kubectl is not on PATH: install it with `make tools`")
        self.command = [program, "--kubeconfig", str(server.kubeconfig), "--cache-dir", str(home), "-n", namespace]

    def __call__(self, *arguments: str, given: Json | list[Json] | None = None, fails: bool = False) -> str:
        """What it prints, both streams when it is to fail."""
        manifests = given if isinstance(given, list) else [given] if given else []
        done = subprocess.run(
            [*self.command, *arguments],
            input=yaml.safe_dump_all(manifests),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    def table(self, *arguments: str) -> list[list[str]]:
        return [line.split() for line in self("get", *arguments).splitlines()]


@pytest.fixture
def kubectl(server: ServerProcess, namespace: str, tmp_path: Path) -> Kubectl:
    return Kubectl(server, namespace, tmp_path)


def manifest(kind: str, body: Json, api_version: str = "v1") -> Json:
    return {"apiVersion": api_version, "kind": kind, **body}


def test_apply_creates_leaves_alone_configures_and_prunes_fields(kubectl: Kubectl) -> None:
    body = manifest("Pod", pod("p", labels={"a": "1", "b": "2"}))
    assert kubectl("apply", "-f", "-", given=body) == "pod/p created\n"
    assert kubectl("apply", "-f", "-", given=body) == "pod/p unchanged\n"
    del body["metadata"]["labels"]["b"]
    body["spec"] = {"containers": [{"name": "main", "image": "busybox:2"}]}
    assert kubectl("apply", "-f", "-", given=body) == "pod/p configured\n"
    stored = json.loads(kubectl("get", "pod", "p", "-o", "json"))
    assert stored["metadata"]["labels"] == {"a": "1"}
    assert stored["spec"]["containers"][0]["image"] == "busybox:2"


def test_apply_of_a_kustomization(kubectl: Kubectl, tmp_path: Path, unique: str) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [objects.yaml]\nnameSuffix: -x\n")
    driver = manifest(
        "CSIDriver", {"metadata": {"name": unique}, "spec": {"storageCapacity": True}}, "storage.k8s.io/v1"
    )
    account = manifest("ServiceAccount", {"metadata": {"name": "daemon"}})
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    role = manifest("Role", {"metadata": {"name": "reader"}, "rules": rules}, "rbac.authorization.k8s.io/v1")
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all([driver, account, role]))
    applied = kubectl("apply", "-k", str(tmp_path))
    assert sorted(applied.splitlines()) == [
        f"csidriver.storage.k8s.io/{unique}-x created",
        "role.rbac.authorization.k8s.io/reader-x created",
        "serviceaccount/daemon-x created",
    ]
    assert kubectl("apply", "-k", str(tmp_path)).count("unchanged") == 3


def test_apply_on_the_server(kubectl: Kubectl) -> None:
    body = manifest("ConfigMap", config("a"))
    assert kubectl("apply", "--server-side", "-f", "-", given=body) == "configmap/a serverside-applied\n"
    assert kubectl("get", "cm", "a", "-o", "jsonpath={.data.key}") == "value"


def test_errors_reach_the_user(kubectl: Kubectl, unique: str) -> None:
    assert 'pods "nobody" not found' in kubectl("get", "pod", "nobody", fails=True)
    broken = manifest("PersistentVolume", volume(unique, capacity=None))
    assert "spec.capacity: Required value" in kubectl("create", "-f", "-", given=broken, fails=True)
    kubectl("create", "-f", "-", given=manifest("ConfigMap", config("a")))
    again = kubectl("create", "-f", "-", given=manifest("ConfigMap", config("a")), fails=True)
    assert 'configmaps "a" already exists' in again


def test_typed_commands(kubectl: Kubectl, unique: str) -> None:
    """They send protobuf."""
    assert kubectl("create", "namespace", unique) == f"namespace/{unique} created\n"
    kubectl("create", "configmap", "c", "--from-literal=a=b")
    assert kubectl("get", "configmap", "c", "-o", "jsonpath={.data}") == '{"a":"b"}'
    kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.a} {.type}") == "Yg== Opaque"
    kubectl("create", "serviceaccount", "sa")
    kubectl("create", "role", "r", "--verb=get,list", "--resource=pods", "--resource-name=x")
    rule = json.loads(kubectl("get", "role", "r", "-o", "json"))["rules"]
    assert rule == [{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"], "verbs": ["get", "list"]}]
    kubectl("create", "rolebinding", "rb", "--role=r", "--serviceaccount=default:sa")
    bound = json.loads(kubectl("get", "rolebinding", "rb", "-o", "json"))
    assert (bound["roleRef"]["name"], bound["subjects"][0]["namespace"]) == ("r", "default")
    kubectl("create", "priorityclass", unique, "--value=-5", "--description=low")
    assert kubectl("get", "priorityclass", unique, "-o", "jsonpath={.value}") == "-5"


def test_the_columns_of_storage(api: Client, kubectl: Kubectl, namespace: str, unique: str) -> None:
    storage_class = {"metadata": {"name": unique}, "provisioner": "example.com/p"}
    api.post("/apis/storage.k8s.io/v1/storageclasses", storage_class)
    bound = {"claimRef": {"namespace": namespace, "name": "c"}, "storageClassName": unique}
    api.post("/api/v1/persistentvolumes", volume(unique, **bound))
    api.post(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", claim("c", storageClassName=unique))
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/c"
    api.patch(path, {"spec": {"volumeName": unique}})
    status = {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}
    api.patch(f"{path}/status", {"status": status})
    head, row = kubectl.table("pvc")
    assert head == [
        "NAME",
        "STATUS",
        "VOLUME",
        "CAPACITY",
        "ACCESS",
        "MODES",
        "STORAGECLASS",
        "VOLUMEATTRIBUTESCLASS",
        "AGE",
    ]
    assert row[:6] == ["c", "Bound", unique, "1Gi", "RWO", unique]
    head, row = kubectl.table("pv", unique)
    assert row[:7] == [unique, "1Gi", "RWO", "Retain", "Pending", f"{namespace}/c", unique]
    head, row = kubectl.table("sc", unique)
    assert row[:5] == [unique, "example.com/p", "Delete", "Immediate", "false"]


def test_the_columns_of_pods_and_nodes(api: Client, kubectl: Kubectl, namespace: str, unique: str) -> None:
    ready = [{"type": "Ready", "status": "True"}]
    status = {"conditions": ready, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}
    node = {"metadata": {"name": unique}, "status": status | {"nodeInfo": {"kubeletVersion": "v1.36.0"}}}
    api.post("/api/v1/nodes", node)
    head, row = kubectl.table("node", unique, "-o", "wide")
    assert head[:6] == ["NAME", "STATUS", "ROLES", "AGE", "VERSION", "INTERNAL-IP"]
    assert row[:3] + row[4:6] == [unique, "Ready", "<none>", "v1.36.0", "10.0.0.1"]
    api.post(pods(namespace), pod("p"))
    api.post(pods(namespace, "p") + "/binding", {"target": {"kind": "Node", "name": unique}})
    running = {"name": "main", "ready": True, "restartCount": 2, "state": {"running": {}}}
    api.patch(pods(namespace, "p") + "/status", {"status": {"phase": "Running", "containerStatuses": [running]}})
    head, row = kubectl.table("pods", "-o", "wide")
    assert row[:4] + row[5:7] == ["p", "1/1", "Running", "2", "<none>", unique]
    api.delete(pods(namespace, "p"))
    assert kubectl.table("pods")[1][2] == "Terminating"


def test_describe_shows_what_happened(api: Client, kubectl: Kubectl, namespace: str) -> None:
    uid = api.post(pods(namespace), pod("p"))["metadata"]["uid"]
    for number, reason in enumerate(("FailedMount", "Mounted")):
        about = {"kind": "Pod", "namespace": namespace, "name": "p", "uid": uid}
        moment = f"2026-01-01T00:00:0{9 - number}Z"
        event = {"metadata": {"name": f"e{number}"}, "involvedObject": about, "reason": reason, "type": "Warning"}
        api.post(f"/api/v1/namespaces/{namespace}/events", event | {"message": "x", "lastTimestamp": moment})
    assert "FailedMount" in kubectl("describe", "pod", "p")
    ordered = kubectl("get", "events", "--sort-by=.lastTimestamp", "-o", "custom-columns=R:.reason", "--no-headers")
    assert ordered.split() == ["Mounted", "FailedMount"]
    api.post(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", claim("c"))
    assert "kubernetes.io/pvc-protection" in kubectl("describe", "pvc", "c")


def test_label_annotate_patch(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", given=manifest("Pod", pod("p")))
    kubectl("label", "pod", "p", "a=b")
    kubectl("annotate", "pod", "p", "note=x")
    kubectl("patch", "pod", "p", "--type=json", "-p", '[{"op":"add","path":"/metadata/labels/c","value":"d"}]')
    kubectl("patch", "pod", "p", "-p", '{"spec":{"containers":[{"name":"main","image":"other"}]}}')
    assert kubectl("get", "pods", "-l", "a=b,c in (d)", "-o", "name") == "pod/p\n"
    assert kubectl("get", "pod", "p", "-o", "jsonpath={.spec.containers[0].image}") == "other"


@pytest.fixture
def following(kubectl: Kubectl) -> Iterator[subprocess.Popen[str]]:
    # Not by its name: then kubectl takes whatever the watch tells first for what it has printed already, and a change
    # that comes before the watch is lost, with any API server.
    one = ("--field-selector", "metadata.name=a")
    command = [*kubectl.command, "get", "cm", *one, "-w", "-o", "jsonpath={.data.key}{'\\n'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = threading.Timer(_SECONDS, process.kill)
    deadline.start()
    yield process
    deadline.cancel()
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_get_follows_changes(api: Client, namespace: str, kubectl: Kubectl, request: pytest.FixtureRequest) -> None:
    api.post(maps(namespace), config("a"))
    lines = request.getfixturevalue("following").stdout
    assert lines.readline() == "value\n"
    api.patch(maps(namespace, "a"), {"data": {"key": "changed"}})
    assert lines.readline() == "changed\n"


def test_wait_for_a_condition_and_a_field(api: Client, kubectl: Kubectl, namespace: str) -> None:
    api.post(pods(namespace), pod("p"))
    command = [*kubectl.command, "wait", "--for=condition=Ready", "pod/p", f"--timeout={_SECONDS}s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        ready = [{"type": "Ready", "status": "True"}]
        api.patch(pods(namespace, "p") + "/status", {"status": {"phase": "Running", "conditions": ready}})
        assert waiting.communicate(timeout=_SECONDS)[0] == "pod/p condition met\n"
    assert kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/p", "--timeout=5s")


def test_delete_waits_until_the_object_is_gone(api: Client, kubectl: Kubectl, namespace: str) -> None:
    api.post(maps(namespace), config("a", finalizers=["example.com/hold"]))
    with subprocess.Popen([*kubectl.command, "delete", "cm", "a"], stdout=subprocess.DEVNULL) as deleting:
        deadline = time.monotonic() + _SECONDS
        while "deletionTimestamp" not in api.get(maps(namespace, "a"))["metadata"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert deleting.poll() is None
        api.patch(maps(namespace, "a"), {"metadata": {"finalizers": None}})
        assert deleting.wait(timeout=_SECONDS) == 0
    api.post(maps(namespace), config("b"))
    assert 'configmap "b" deleted' in kubectl("delete", "cm", "--all", "--wait=true")
    kubectl("wait", "--for=delete", "cm/b", "--timeout=5s")


def test_diff_and_dry_run_ask_the_server(api: Client, kubectl: Kubectl, namespace: str) -> None:
    body = manifest("ConfigMap", config("a"))
    assert "server dry run" in kubectl("apply", "--dry-run=server", "-f", "-", given=body)
    assert api.request("GET", maps(namespace, "a")).code == 404
    kubectl("apply", "-f", "-", given=body)
    body["data"]["key"] = "changed"
    assert "+  key: changed" in kubectl("diff", "-f", "-", given=body, fails=True)
