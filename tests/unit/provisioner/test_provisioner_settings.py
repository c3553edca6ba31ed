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
    assert read.identity != "p-0_"
    assert (read.namespace, read.listen_host, read.listen_port) == ("storage", "::1", 9090)
    assert read.log_format == "json"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("LISTEN_ADDRESS", "8080", "HOST:PORT"),
        ("LISTEN_ADDRESS", ":99999", "HOST:PORT"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("LOG_LEVEL", "LOUD", "DEBUG, INFO"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is '{value}': allowed is .*{allowed}"):
        settings.read({name: value})
