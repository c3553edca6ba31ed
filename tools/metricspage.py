"""docs/metrics.md, made from the code: `make docs`. A test holds the page to it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

import daemon.metrics
import provisioner.metrics
from daemon.static.metrics import StaticMetrics
from service.endpoints import HealthChecks, application

_HEAD = """\
# Metrics

Written by `make docs` from the code: changes here are lost. Both programs serve them at `/metrics` on `LISTEN_ADDRESS`.
Histograms have `_bucket`, `_sum` and `_count`. What the process takes (`process_cpu_seconds_total` and the others of
that kind) both have, too.
Alerts and a dashboard: `deploy/dashboards`. How full the filesystem of each volume is, the kubelet exports
(`kubelet_volume_stats_*`), and which claims are of which class, kube-state-metrics; both read them, too.
"""
_ROW = "| `{name}` | {kind} | {labels} | {meaning} |"
_TABLE = "\n## {title}\n\n| name | type | labels | meaning |\n|---|---|---|---|"


def page() -> str:
    both, static = CollectorRegistry(), CollectorRegistry()
    application(HealthChecks({}), both)
    StaticMetrics(static)
    node = daemon.metrics.Metrics()
    sections = {
        "Both": both,
        "Daemon": node.registry,
        "Daemon, static volumes": static,
        "Provisioner": provisioner.metrics.Metrics().registry,
    }
    parts = [_HEAD.rstrip("\n")]
    for title, registry in sections.items():
        parts += [_TABLE.format(title=title), *sorted(_rows(registry))]
    return "\n".join(parts) + "\n"


def _rows(registry: CollectorRegistry) -> Iterator[str]:
    labels = _labels(registry)
    for family in registry.collect():
        if family.name.startswith("process_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        of_family: tuple[str, ...] = labels.get(family.name) or getattr(family, "_labelnames", None) or ()
        of_labels = ", ".join(f"`{label}`" for label in of_family)
        yield _ROW.format(name=name, kind=family.type, labels=of_labels, meaning=family.documentation)


def _labels(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    """A metric without samples does not show its labels, so they are asked of the collectors."""
    collectors = getattr(registry, "_collector_to_names", {})
    return {
        collector._name: tuple(collector._labelnames)
        for collector in collectors
        if isinstance(collector, MetricWrapperBase)
    }


if __name__ == "__main__":
    print(page(), end="")
