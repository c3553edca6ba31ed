import pytest

from provisioner import settings
from service.environment import SettingsError


def test_nothing_has_to_be_set() -> None:
    read = settings.read({})
    assert (read.namespace, read.listen_host, read.listen_port) == ("elastic-local", "", 8080)
    assert read.kubeconfig is None


def test_what_is_set_counts_and_two_processes_of_a_pod_differ() -> None:
    read = settings.read(
        {"POD_NAME": "p-0", "NAMESPACE": "storage", "LISTEN_ADDRESS": "[::1]:9090", "LOG_FORMAT": "JSON"}
    )
    assert read.identity.startswith("p-0_")
    assert read.identity != settings.read({"POD_NAME": "p-0"}).identity
    assert (read.namespace, read.listen_host, read.listen_port) == ("storage", "::1", 9090)
    assert read.log_format == "json"


def test_how_long_a_node_may_be_away_and_whose_claims_go_with_it() -> None:
    assert settings.read({}).node_loss_delay == 60
    assert settings.read({"NODE_LOSS_DELAY": "10m"}).node_loss_delay == 600
    assert settings.read({"NODE_LOSS_DELAY": "0"}).node_loss_delay == 0
    assert settings.read({"NODE_LOSS_DELAY": "Never"}).node_loss_delay is None
    assert settings.read({}).node_cleanup_classes == frozenset()
    assert settings.read({"NODE_CLEANUP_CLASSES": "fast, disks,"}).node_cleanup_classes == {"fast", "disks"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("LISTEN_ADDRESS", "8080", "HOST:PORT"),
        ("LISTEN_ADDRESS", ":99999", "HOST:PORT"),
        ("NODE_LOSS_DELAY", "60", "10s, 5m0s or 1h30m, or never"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is '{value}': allowed is .*{allowed}"):
        settings.read({name: value})
