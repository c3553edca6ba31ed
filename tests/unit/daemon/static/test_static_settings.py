from pathlib import Path

import pytest

from daemon import settings as daemon_settings
from daemon.static import configuration
from daemon.static.configuration import StaticSettings
from service.environment import Environment, SettingsError


def read(**variables: str) -> StaticSettings | None:
    return configuration.read_settings(Environment(variables), "elastic-local")


def test_without_a_folder_the_static_part_is_off() -> None:
    assert read(DISCOVERY_PERIOD="1s") is None


def test_defaults() -> None:
    assert read(STATIC_CONFIG_DIR="/etc/provisioner/config") == StaticSettings(
        Path("/etc/provisioner/config"), "elastic-local", job_image="", discovery_period=10, config_sync_period=5
    )


def test_the_originals_variables() -> None:
    found = read(
        STATIC_CONFIG_DIR="/c",
        MY_NAMESPACE="storage",
        JOB_CONTAINER_IMAGE="cleaner:1",
        DISCOVERY_PERIOD="1m30s",
        CONFIG_SYNC_PERIOD="500ms",
    )
    assert found == StaticSettings(Path("/c"), "storage", "cleaner:1", 90, 0.5)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("STATIC_CONFIG_DIR", "config", "STATIC_CONFIG_DIR is 'config': allowed is an absolute path"),
        ("DISCOVERY_PERIOD", "10", "DISCOVERY_PERIOD is '10': '10' is not a duration such as 10s"),
        ("CONFIG_SYNC_PERIOD", "0", "CONFIG_SYNC_PERIOD is '0': allowed is a duration above zero"),
    ],
)
def test_what_is_wrong_is_told_with_its_variable(variable: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(**{"STATIC_CONFIG_DIR": "/c", variable: value})


def test_they_are_part_of_the_daemons_and_so_is_the_originals_name_of_the_node() -> None:
    found = daemon_settings.read({"MY_NODE_NAME": "node-1", "STATIC_CONFIG_DIR": "/c", "NAMESPACE": "storage"})
    assert found.node_name == "node-1"
    assert found.static == StaticSettings(Path("/c"), "storage")
    assert daemon_settings.read({"NODE_NAME": "node-1"}).static is None
