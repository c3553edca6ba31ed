"""Settings, metrics and events that the docs name are those of the code, and each event has its line in
docs/troubleshooting.md."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from command.main import app
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
    *("ControllerResizeInProgress", "ControllerResizeInfeasible", "InProgress"),
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
    """Of the page that is written from the code (tests/unit/tools/test_metricspage.py)."""
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


@cache
def commands() -> dict[str, frozenset[str]]:
    """The commands of `elastic-local`, with those below them."""

    def below(command: object) -> Mapping[str, Any]:
        return command.commands if isinstance(command, TyperGroup) else {}

    return {name: frozenset(below(command)) for name, command in below(typer.main.get_command(app)).items()}


@cache
def targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text() + (ROOT / "deploy" / "targets.mk").read_text()
    return frozenset(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def spelled(text: str) -> Iterator[str]:
    """What stands in backquotes, and in blocks of code without their comments."""
    yield from _QUOTED.findall(text)
    yield from (line.partition(" # ")[0] for line in re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE))


def not_to_be_run(text: str) -> Iterator[str]:
    """Commands of ours, and targets of make, that there are not."""
    for line in spelled(text):
        line = re.sub(r"(-n|--namespace|helm \w+) elastic-local\b", "", line)
        for name, below in re.findall(r"(?<![\w/.-])elastic-local ([a-z]+)(?![\w.-])(?: ([a-z]+)\b)?", line):
            if name not in commands() or (commands()[name] and below not in commands()[name]):
                yield f"elastic-local {name} {below}".strip()
        for called in re.findall(r"(?:^|[`;&] ?)make((?: [a-z][a-z-]+\b(?!=))+)", line):
            yield from (f"make {target}" for target in called.split() if target not in targets())


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_can_be_run(page: Path) -> None:
    assert sorted(set(not_to_be_run(page.read_text()))) == []


def test_what_can_not_be_run_is_found() -> None:
    text = "`elastic-local doctor` `elastic-local heal`\n\n    elastic-local vg melt  # now\n    make demo fly\n"
    assert list(not_to_be_run(text)) == ["elastic-local heal", "elastic-local vg melt", "make fly"]


OF_KUBERNETES = {
    "node(s) did not have enough free storage",
    "node(s) had volume node affinity conflict",
    "node(s) exceed max volume count",
    "waiting for first consumer to be created",
    "driver name ... not found in the list of registered CSI drivers",
    "fetching NodeStageSecretRef ... failed",
    "failed to get NodeStageSecretRef",
    "failed to get NodeExpandSecretRef",
    "no such driver",
    "failed to get Plugin from volumeSpec",
    "only dynamically provisioned pvc can be resized and the storageclass ... must support resize",
}
"""Messages in the docs that are not ours."""


@cache
def said() -> tuple[str, ...]:
    """The texts in the code. A field of one is an end of line."""
    texts = []
    for path in (path for folder in _CODE for path in (ROOT / folder).rglob("*.py") if "build" not in path.parts):
        tree = ast.parse(path.read_text())
        comments = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in comments:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    policies = (ROOT / "deploy" / "base" / "policies.yaml").read_text()
    return (*texts, policies)


def is_said(message: str) -> bool:
    """Parts of a message that are left out are written `...`."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in said())


def quoted_messages(page: str) -> Iterator[str]:
    """What stands in backquotes and is a sentence, not a command."""
    for text in _QUOTED.findall(page):
        words = text.split()
        if words[0] in {*("ProvisioningFailed", "VolumeFailedDelete")} and words[1:2] == ["..."]:
            yield " ".join(words[2:])
        elif len(words) > 2 and not re.match(r"(kubectl|elastic-local|lv|vg|curl|make|dd|[A-Za-z./]+:)", text):
            yield text


def test_messages_in_troubleshooting_are_said() -> None:
    messages = set(quoted_messages((ROOT / "docs" / "troubleshooting.md").read_text()))
    assert "can't ask the API server" in messages
    assert sorted(message for message in messages - OF_KUBERNETES if not is_said(message)) == []
    assert not is_said("volume ... was eaten")


def listed(heading: str) -> set[str]:
    """What the first column of that table in docs/troubleshooting.md has in backquotes."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return {word for line in table.splitlines()[1:] for word in _QUOTED.findall(line.split("|")[1])}


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
        if "proto" not in path.parts and path.name != "unserved.py"  # names of RPCs
    ]
    reported = {reason for path in modules for reason in reasons(ast.parse(path.read_text()))} - NO_EVENTS
    assert reported == listed("event")


def test_every_alert_has_its_line_among_the_alerts() -> None:
    alerts = re.findall(
        r"^ *- alert: (\w+)$", (ROOT / "deploy" / "dashboards" / "alerts.yaml").read_text(), re.MULTILINE
    )
    assert alerts
    assert set(alerts) == listed("alert")
