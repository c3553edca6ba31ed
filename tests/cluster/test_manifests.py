"""kubectl applies each way to install."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.sandbox import snapshots
from tests.sandbox.apiserver.process import ServerProcess
from tests.unit.deploy.rendered import BASE, DEPLOY, OVERLAYS, with_components


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path / "apiserver")
    process.start()
    yield process
    process.stop()


def kubectl(server: ServerProcess, *arguments: str | Path) -> list[str]:
    """The lines that it prints."""
    done = subprocess.run(
        ["kubectl", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_each_way_to_install_applies(server: ServerProcess, folder: Path) -> None:
    assert all(line.endswith(" created") for line in kubectl(server, "apply", "-k", folder))


def test_applying_again_changes_nothing(server: ServerProcess) -> None:
    kubectl(server, "apply", "-k", BASE)
    objects = ("get", "-k", BASE, "-o", "custom-columns=NAME:.metadata.name,VERSION:.metadata.resourceVersion")
    before = kubectl(server, *objects)
    kubectl(server, "apply", "-k", BASE)
    assert kubectl(server, *objects) == before


def test_all_components_apply(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "definitions.yaml").write_text(yaml.safe_dump_all(snapshots.definitions()))
    kubectl(server, "apply", "-f", tmp_path / "definitions.yaml")
    (tmp_path / "all").mkdir()
    with_components(tmp_path / "all")
    assert all(line.endswith(" created") for line in kubectl(server, "apply", "-k", tmp_path / "all"))


def test_the_samples_of_databases_apply(server: ServerProcess) -> None:
    folder = DEPLOY / "samples" / "databases"
    made = kubectl(server, "apply", "-f", folder)
    assert [line for line in made if not line.endswith(" created")] == []
    names = kubectl(server, "get", "statefulsets", "-o", "name")
    assert names == [f"statefulset.apps/{path.stem}" for path in sorted(folder.iterdir())]
