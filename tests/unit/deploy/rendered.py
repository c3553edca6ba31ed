"""What deploy/ becomes under `kubectl kustomize`: the objects of each way to install."""

import subprocess
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


@cache
def kustomize(folder: Path) -> tuple[Json, ...]:
    """Not to be changed: the next caller gets the same objects."""
    rendered = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    return tuple(yaml.safe_load_all(rendered.stdout))


def with_components(folder: Path, components: Iterable[Path] = ADDING, **more: Any) -> tuple[Json, ...]:
    """Base with components, and `more` in the kustomization of whoever deploys them. `folder` is a fresh one, on the
    file system of the repository or not."""
    relative = [str(Path(*[".."] * (len(folder.parts) - 1)) / path.relative_to("/")) for path in (BASE, *components)]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": relative[:1],
        "components": relative[1:],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(folder)


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
