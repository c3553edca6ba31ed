from pathlib import Path

import pytest

from daemon import settings as daemon_settings
from daemon.static import configuration
from daemon.static.configuration import StaticSettings
from service.environment import Environment, SettingsError


def read(**variables: str) -> StaticSettings | None:
    return configuration.read_settings(Environment(variables), "elastic-local")


def test_without_a_folder_there_are_no_static_volumes() -> None:
    assert read(DISCOVERY_PERIOD="1s") is None


def test_defaults() -> None:
    assert read(STATIC_CONFIG_DIR="/etc/provisioner/config") == StaticSettings(
        Path("/etc/provisioner/config"), "elastic-local", job_image="", discovery_period=10, config_sync_period=5
    )


def test_variables_of_the_local_static_provisioner() -> None:
    settings = read(
        STATIC_CONFIG_DIR="/c",
        MY_NAMESPACE="storage",
        JOB_CONTAINER_IMAGE="cleaner:1",
        DISCOVERY_PERIOD="1m30s",
        CONFIG_SYNC_PERIOD="500ms",
    )
    assert settings == StaticSettings(Path("/c"), "storage", "cleaner:1", 90, 0.5)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STATIC_CONFIG_DIR", "config", "STATIC_CONFIG_DIR is 'config': allowed is an absolute path"),
        ("DISCOVERY_PERIOD", "10", "DISCOVERY_PERIOD is '10': '10' is not a duration such as 10s"),
        ("CONFIG_SYNC_PERIOD", "0", "CONFIG_SYNC_PERIOD is '0': allowed is a duration above zero"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(**{"STATIC_CONFIG_DIR": "/c", variable: value})


def test_they_are_part_of_the_daemons_settings() -> None:
    settings = daemon_settings.read({"MY_NODE_NAME": "node-1", "STATIC_CONFIG_DIR": "/c", "NAMESPACE": "storage"})
    assert settings.node_name == "node-1"
    assert settings.static == StaticSettings(Path("/c"), "storage")
    assert daemon_settings.read({"NODE_NAME": "node-1"}).static is None
