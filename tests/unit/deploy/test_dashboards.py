"""The alerts and the dashboard: expressions that Prometheus can read, of series and labels that our programs export."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from daemon.metrics import Metrics as DaemonMetrics
from daemon.metrics import Sources
from daemon.settings import Settings
from daemon.static.metrics import StaticMetrics
from daemon.storage.inventory import Inventory, Pool, ThinPoolUsage, VolumeHealth
from host.command import Completed
from kube.workqueue import WorkQueue
from provisioner.metrics import Metrics as ProvisionerMetrics
from service.endpoints import HealthChecks, application
from tests.unit.deploy.rendered import DEPLOY

Json = dict[str, Any]

_FOLDER = DEPLOY / "dashboards"
_OF_THE_SCRAPE = {"node", "pod", "component", "job", "instance"}
"""Labels that components/monitoring or Prometheus itself gives each series."""


_OF_KUBERNETES = {
    **{
        f"kubelet_volume_stats_{figure}": {"namespace", "persistentvolumeclaim"}
        for figure in (
            "available_bytes",
            "capacity_bytes",
            "used_bytes",
            "inodes",
            "inodes_free",
            "inodes_used",
        )
    },
    "kube_persistentvolumeclaim_info": {"namespace", "persistentvolumeclaim", "storageclass", "volumename"},
    "kube_storageclass_info": {"storageclass", "provisioner"},
}
"""Series of the kubelet (pkg/kubelet/metrics/collectors/volume_stats.go) and kube-state-metrics (docs/metrics)."""


def exported() -> dict[str, set[str]]:
    """Every series of every program, with its labels: each metric was touched once."""
    daemon = DaemonMetrics(
        Sources(_inventory, unhealthy=lambda: {"pvc-1": next(iter(VolumeHealth))}, classes=Settings("n").classes)
    )
    daemon.operation("reclaim", "success", 1)
    daemon.callout("mount", "success", 1)
    daemon.csi("NodeStageVolume", "OK", 1)
    daemon.command(Completed(("mkfs.ext4",), 0, "", "", 1))
    static = StaticMetrics(daemon.registry)
    static.collect_from(invalid_entries=lambda: {"local-disks": 1}, changed_disks=lambda: {"local-disks": 1})
    static.delete_failed("Block", "process")
    with static.request("create"):
        pass
    with pytest.raises(OSError, match="lost"), static.request("create"):
        raise OSError("lost")
    provisioner = ProvisionerMetrics()
    provisioner.provisioned("fast", "", 1)
    provisioner.provision_failed("fast", "")
    provisioner.deleted("fast", 1)
    provisioner.delete_failed("fast")
    provisioner.observe_queue("claims", WorkQueue(_nothing, parallelism=1))
    for registry in (daemon.registry, provisioner.registry):
        application(HealthChecks({"storage": lambda: ""}), registry)
    labels_of: dict[str, set[str]] = {"up": set(), **_OF_KUBERNETES}  # Prometheus itself makes the first one
    for family in (*daemon.registry.collect(), *provisioner.registry.collect()):
        for sample in family.samples:
            labels_of.setdefault(sample.name, set()).update(sample.labels)
    return labels_of


def _inventory() -> Inventory:
    thin = ThinPoolUsage(data_percent=50, metadata_percent=10)
    return Inventory(pools=[Pool("group/pool", size=100, free=50, ours=0, granularity=1, thin=thin)])


async def _nothing(_: str) -> None:
    return


def _rules() -> list[Json]:
    (rules,) = yaml.safe_load_all((_FOLDER / "alerts.yaml").read_text())
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def _alerts() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]


def _panels() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((_FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def _selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Of the series that it reads. Raises ValueError when Prometheus could not read it."""
    selectors: list[promql_parser.VectorSelector] = []

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.MatrixSelector):
            selectors.append(part.vector_selector)
        elif isinstance(part, promql_parser.VectorSelector):
            selectors.append(part)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return selectors


EXPORTED = exported()
EXPRESSIONS = [*_alerts(), *_panels()]


def _known(expression: str) -> set[str]:
    """Labels that its series have."""
    return _OF_THE_SCRAPE.union(*(EXPORTED[str(each.name)] for each in _selectors(expression)))


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_every_series_and_label_is_exported(title: str, expression: str) -> None:
    selectors = _selectors(expression)
    assert selectors
    for selector in selectors:
        assert selector.name in EXPORTED
        assert {matcher.name for matcher in selector.matchers.matchers} <= EXPORTED[selector.name] | _OF_THE_SCRAPE


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_results_are_grouped_by_labels_that_there_are(title: str, expression: str) -> None:
    grouped: set[str] = set()

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            grouped.update(part.modifier.labels)
        elif isinstance(part, promql_parser.BinaryExpr) and part.modifier and part.modifier.matching:
            grouped.update(part.modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert grouped <= _known(expression)


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_about(rule: Json) -> None:
    message = " ".join(rule["annotations"][key] for key in ("summary", "description"))
    assert set(re.findall(r"\$labels\.(\w+)", message)) <= _known(rule["expr"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
