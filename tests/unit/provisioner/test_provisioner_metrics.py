"""The labels of the provisioner's figures come from closed sets, and series go with their class."""

from prometheus_client import generate_latest

from kube.records import read_storage_class
from provisioner.metrics import Metrics

CLASS = read_storage_class({"metadata": {"name": "fast"}, "provisioner": "p"})


def labels(metrics: Metrics) -> set[tuple[str, str]]:
    return {
        (sample.labels["class"], sample.labels.get("source", ""))
        for family in metrics.registry.collect()
        for sample in family.samples
        if "class" in sample.labels
    }


def test_no_text_of_a_user_becomes_a_label() -> None:
    metrics = Metrics()
    metrics.class_changed("fast", None, CLASS)
    metrics.provisioned("fast", "PersistentVolumeClaim", 1)
    for number in range(300):
        metrics.provision_failed(f"nosuch{number}", f"{number}{'K' * 100_000}.x.io")
        metrics.provision_failed("fast", f"kind-{number}")
        metrics.finalizer_removed(f"gone{number}")
    assert labels(metrics) == {("fast", "PersistentVolumeClaim"), ("fast", "other"), ("other", "other"), ("other", "")}
    assert len(generate_latest(metrics.registry)) < 20_000


def test_the_series_of_a_class_go_with_it() -> None:
    metrics = Metrics()
    metrics.class_changed("fast", None, CLASS)
    metrics.provisioned("fast", "", 1)
    metrics.deleted("fast", 1)
    metrics.class_changed("fast", CLASS, None)
    assert labels(metrics) == set()
    metrics.deleted("fast", 1)
    assert labels(metrics) == {("other", "")}
