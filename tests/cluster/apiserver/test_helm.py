"""Real Helm installs, upgrades and removes the chart."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract import names
from tests.sandbox.apiserver.client import Client
from tests.sandbox.apiserver.process import ServerProcess
from tests.unit.deploy.rendered import BASE, CHART, helm_program

_SECONDS = 60


class Helm:
    """On one server."""

    def __init__(self, server: ServerProcess, home: Path) -> None:
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig),
            **{f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def __call__(self, *arguments: str | Path, fails: bool = False) -> str:
        """What it prints, both streams when it is to fail."""
        return self._run(helm_program(), "--namespace", names.NAMESPACE, *arguments, fails=fails)

    def kubectl(self, *arguments: str | Path) -> str:
        return self._run("kubectl", *arguments)

    def _run(self, *command: str | Path, fails: bool = False) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """One for each test: what the chart makes is the cluster's."""
    process = ServerProcess(tmp_path / "apiserver")
    process.start()
    yield process
    assert process.stop() == 0


@pytest.fixture
def helm(server: ServerProcess, tmp_path: Path) -> Helm:
    return Helm(server, tmp_path)


def _settings(api: Client, name: str = "daemon") -> dict[str, str]:
    found: dict[str, str] = api.get(f"/api/v1/namespaces/{names.NAMESPACE}/configmaps/{name}")["data"]
    return found


def _names(api: Client, path: str) -> set[str]:
    return {each["metadata"]["name"] for each in api.get(path)["items"]}


def _uninstall(helm: Helm, api: Client, outcome: dict[str, str]) -> str:
    """What helm prints while its check ends so: no Job runs on an API server alone."""
    jobs = f"/apis/batch/v1/namespaces/{names.NAMESPACE}/jobs"
    before = {each["metadata"]["uid"] for each in api.get(jobs)["items"]}
    with ThreadPoolExecutor() as beside:
        said = beside.submit(helm, "uninstall", "elastic-local", fails=outcome["type"] == "Failed")
        deadline = time.monotonic() + _SECONDS
        while not (checks := [each for each in api.get(jobs)["items"] if each["metadata"]["uid"] not in before]):
            assert not said.done(), said.result()
            assert time.monotonic() < deadline, "helm asks nobody"
            time.sleep(0.05)
        (check,) = checks
        assert check["spec"]["template"]["spec"]["containers"][0]["command"] == [
            "elastic-local",
            "doctor",
            "--uninstall",
        ]
        path = f"{jobs}/{check['metadata']['name']}/status"
        api.patch(path, {"status": {"conditions": [{**outcome, "status": "True"}]}})
        return said.result()


def test_install_upgrade_and_uninstall(helm: Helm, server: ServerProcess) -> None:
    api = Client(server.port)
    told = helm("install", "elastic-local", CHART, "--create-namespace", "--set=static.enabled=true")
    assert "STATUS: deployed" in told
    assert "Make a volume group on each node" in told
    assert _names(api, "/apis/storage.k8s.io/v1/csidrivers") == {names.PROVISIONER}
    assert "local-disks" in _names(api, "/apis/storage.k8s.io/v1/storageclasses")
    helm("upgrade", "elastic-local", CHART, "--set=storage.reserve=1Gi")
    assert _settings(api)["RESERVE"] == "1Gi"
    assert "local-disks" not in _names(api, "/apis/storage.k8s.io/v1/storageclasses")
    refused = _uninstall(helm, api, {"type": "Failed", "reason": "BackoffLimitExceeded"})
    assert "uninstall-check" in refused
    assert _names(api, "/apis/storage.k8s.io/v1/csidrivers") == {names.PROVISIONER}, "all is as it was"
    helm("rollback", "elastic-local")
    assert "STATUS: deployed" in helm("status", "elastic-local")
    _uninstall(helm, api, {"type": "Complete"})
    for path in (
        f"/apis/apps/v1/namespaces/{names.NAMESPACE}/daemonsets",
        f"/apis/apps/v1/namespaces/{names.NAMESPACE}/deployments",
        "/apis/storage.k8s.io/v1/csidrivers",
        "/apis/storage.k8s.io/v1/storageclasses",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ):
        assert not {each for each in _names(api, path) if not each.startswith("system:")}, path


def test_an_installation_of_kustomize_is_taken_over(helm: Helm, server: ServerProcess) -> None:
    """As docs/install.md says it. The classes stay what they are, and the pods find their settings."""
    api = Client(server.port)
    helm.kubectl("apply", "-k", BASE)
    refused = helm("install", "elastic-local", CHART, "--set=volumeSource=flexVolume", fails=True)
    assert "cannot be imported into the current release" in refused
    before = {each["metadata"]["name"]: each for each in api.get("/apis/storage.k8s.io/v1/storageclasses")["items"]}
    helm("install", "elastic-local", CHART, "--set=volumeSource=flexVolume", "--take-ownership")
    for each in api.get("/apis/storage.k8s.io/v1/storageclasses")["items"]:
        was = before[each["metadata"]["name"]]
        assert each["metadata"]["uid"] == was["metadata"]["uid"]
        assert each.get("parameters") == was.get("parameters")
    for kind, name in (("daemonsets", "daemon"), ("deployments", "provisioner")):
        pod = api.get(f"/apis/apps/v1/namespaces/{names.NAMESPACE}/{kind}/{name}")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": name}}]
        assert _settings(api, name)["LOG_FORMAT"] == "json"
        assert container["image"] == "elastic-local:0.0.0"
