"""The JSON Schemas of configuration files: those that editors read are what the programs check by, and each file that
we ship, show or render is valid."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from daemon.storage import deviceclasses
from service import yamldecoder
from tests.unit.deploy.rendered import DEPLOY, charted, one
from tools import schemas

ROOT = DEPLOY.parent
SHIPPED = DEPLOY / "schemas"
DEVICE_CLASSES, STATIC_VOLUMES = "device-classes.schema.json", "static-volumes.schema.json"
_SELECTOR = {"paths": ["/dev/nvme*"], "models": ["A*"], "minimumSize": "1Gi", "rotational": False}
_CHART: dict[str, Any] = {
    "deviceClasses": {
        "default": "thin",
        "classes": {
            "thin": {"kind": "LVM", "group": "g", "thin": True, "thinPool": "p", "devices": _SELECTOR},
            "scratch": {"kind": "LOOP", "folder": "/mnt/scratch/volumes", "capacity": "100Gi", "reserve": "1Gi"},
        },
    },
    "static": {
        "enabled": True,
        "jobs": True,
        "taint": True,
        "classes": {"local-disks": {"hostDir": "/mnt/a", "mountDir": "/mnt/a", "volumeMode": "Block"}},
        "configuration": {
            "nodeLabelsForPV": ["zone"],
            "jobTolerations": [{"key": "disks", "operator": "Exists"}],
            "minResyncPeriod": "5m",
            "maxParallelCleanings": 2,
            "cleaningTimeout": "1h",
            "provisionerNotReadyNodeTaintKey": "not-ready",
        },
    },
}


def validate(schema: str, document: object) -> None:
    jsonschema.Draft7Validator(json.loads((SHIPPED / schema).read_text())).validate(document)


def decoded(data: dict[str, str]) -> dict[str, Any]:
    return {key: yamldecoder.load(text) for key, text in data.items()}


def test_the_schemas_are_those_of_the_code() -> None:
    """`make docs` writes them anew."""
    assert {path.name: path.read_text() for path in SHIPPED.iterdir()} == schemas.files()
    for text in schemas.files().values():
        jsonschema.Draft7Validator.check_schema(json.loads(text))


def shown() -> Iterator[tuple[str, str]]:
    """The device classes that pages and docstrings show, and where."""
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    for name, text in {**pages, "deviceclasses.py": deviceclasses.__doc__ or ""}.items():
        for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
            if re.search(r"^ {4}classes:$", block, re.MULTILINE):
                yield name, textwrap.dedent(block)


def test_device_classes_are_shown() -> None:
    assert {name for name, _ in shown()} == {"operations.md", "autoscaler.md", "deviceclasses.py"}


@pytest.mark.parametrize("text", [text for _, text in shown()])
def test_what_is_shown_is_valid(text: str) -> None:
    validate(DEVICE_CLASSES, yamldecoder.load_strict(text))


def test_the_file_of_device_classes_names_its_schema() -> None:
    file = DEPLOY / "components" / "device-classes" / "classes.yaml"
    first, _, rest = file.read_text().partition("\n")
    assert (file.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == (
        SHIPPED / DEVICE_CLASSES
    ).resolve()
    validate(DEVICE_CLASSES, yamldecoder.load_strict(rest))
    commented = re.sub(r"^(\s*)# (?=default:|\w+: \{)", r"\1", rest, flags=re.MULTILINE)
    assert set(yaml.safe_load(commented)["classes"]) == {"nvme", "hdd", "local", "thin", "scratch"}
    validate(DEVICE_CLASSES, yamldecoder.load_strict(commented))


def test_what_is_rendered_is_valid() -> None:
    component = yaml.safe_load((DEPLOY / "components" / "static" / "configuration.yaml").read_text())
    rendered = charted(**_CHART)
    for static in (component, one(rendered, "ConfigMap", "static-volumes")):
        validate(STATIC_VOLUMES, decoded(static["data"]))
    classes = one(rendered, "ConfigMap", "device-classes")["data"]["classes.yaml"]
    validate(DEVICE_CLASSES, yamldecoder.load_strict(classes))
