"""Settings, metrics and events that the docs name are those of the code, and each event has its line in
docs/troubleshooting.md."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.docs.test_pages import PAGES, ROOT

_CODE = (
    "contract",
    "host",
    "lvm",
    "kube",
    "service",
    "flexdriver",
    "daemon",
    "provisioner",
    "command",
    "deploy",
    "tools",
)
_KINDS = {".py", ".sh", ".yaml", ".json", ".mk", ""}
_QUOTED = re.compile(r"`([^`\n]+)`")
_SETTING = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_EVENT = re.compile(r"[A-Z]\w*[a-z][A-Z]\w*")
_METRIC = re.compile(
    r"(?:elastic_local|local_volume_provisioner|local_volume_node_cleanup|controller_persistentvolume)_\w+"
)

OF_OTHERS = {
    *("CLUSTER_ID", "KAFKA_LOG_DIRS"),
    *("AuthorizeWithSelectors", "ServiceAccountTokenPodNodeInfo", "NotTriggerScaleUp", "StatefulSet"),
}
"""Names in the docs that are not ours and do not stand in our code."""

NO_EVENTS = {
    *("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    *("NotIn", "DoesNotExist", "NoSchedule", "PreferNoSchedule", "NoExecute"),
    *("DiscovererReadyzCheck", "NodeResizePending", "NodeResizeInProgress", "NodeResizeInfeasible"),
    *("ControllerResizeInProgress", "ControllerResizeInfeasible"),
}
"""Constants of daemon and provisioner that look like reasons of events."""


@cache
def code() -> frozenset[str]:
    """The words of everything that is delivered, tools and targets included."""
    files = [ROOT / "Makefile", ROOT / "setup.py"]
    files += [
        path for folder in _CODE for path in (ROOT / folder).rglob("*") if path.suffix in _KINDS and path.is_file()
    ]
    files = [path for path in files if "build" not in path.parts and "samples" not in path.parts]
    return frozenset(word for path in files for word in re.findall(r"\w+", path.read_text(errors="replace")))


@cache
def metrics() -> frozenset[str]:
    """Of the page that is written from the code (tests/unit/command/test_metricspage.py)."""
    names = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return frozenset(f"{name}{end}" for name in names for end in ("", "_bucket", "_sum", "_count"))


def unknown(text: str) -> Iterator[str]:
    """Names in backquotes that nothing of ours has."""
    for quoted in _QUOTED.findall(text):
        for setting in _SETTING.findall(quoted.partition("=")[0]):
            if setting not in code() and setting not in OF_OTHERS:
                yield setting
        for metric in _METRIC.findall(quoted):
            if metric not in metrics():
                yield metric
        if _EVENT.fullmatch(quoted) and quoted not in code() and quoted not in OF_OTHERS:
            yield quoted


DOCS = [page for page in PAGES if "tests" not in page.relative_to(ROOT).parts]
"""The sandbox's own page names what Kubernetes has, and the sandbox."""


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert sorted(set(unknown(page.read_text()))) == []


def test_what_does_not_exist_is_found() -> None:
    text = "`NODE_NAME` `GONE_AWAY=1` `VolumeErased` `VolumeForgotten` `elastic_local_volumes` `elastic_local_gone{a}`"
    assert list(unknown(text)) == ["GONE_AWAY", "VolumeForgotten", "elastic_local_gone"]


def reasons(tree: ast.Module) -> Iterator[str]:
    """Words that look like reasons of events: constants of the module, and what its events are reported with."""

    def words(nodes: Iterable[ast.AST]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _EVENT.fullmatch(node.value):
                yield node.value

    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            yield from words(ast.walk(statement.value))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("normal", "warning")
        ):
            yield from words(node.args)


def test_every_event_has_its_line_among_the_events() -> None:
    """A new constant that is no event belongs into NO_EVENTS."""
    modules = [
        path
        for folder in ("daemon", "provisioner")
        for path in (ROOT / folder).rglob("*.py")
        if "proto" not in path.parts
    ]
    reported = {reason for path in modules for reason in reasons(ast.parse(path.read_text()))} - NO_EVENTS
    table = (ROOT / "docs" / "troubleshooting.md").read_text().partition("| event |")[2]
    told = {word for line in table.splitlines() if line.startswith("|") for word in _QUOTED.findall(line.split("|")[1])}
    assert reported == told
