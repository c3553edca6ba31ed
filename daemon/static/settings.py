"""What the static part is told, beside its configuration folder.

Part of the daemon's settings. The variables of the original are read too, so that its DaemonSet can be adapted and not
written anew.
"""

from dataclasses import dataclass
from pathlib import Path

from service.environment import Environment, period

CONFIG_DIR = "STATIC_CONFIG_DIR"


@dataclass(frozen=True)
class StaticSettings:
    config_dir: Path
    """The mounted ConfigMap."""
    namespace: str
    """Where cleaning Jobs run."""
    job_image: str = ""
    """The image of cleaning Jobs. Empty: none is configured, and useJobForCleaning can't work."""
    discovery_period: float = 10.0
    """Seconds between two passes when nothing happens."""
    config_sync_period: float = 5.0
    """Seconds between two looks at the configuration folder."""


def read(set_to: Environment, namespace: str) -> StaticSettings | None:
    """None when no configuration folder is set: then this node offers no static volumes. `namespace` is the
    daemon's. Raises SettingsError."""
    config_dir = set_to.value(CONFIG_DIR, _folder, None)
    if config_dir is None:
        return None
    default = StaticSettings(config_dir, namespace)
    return StaticSettings(
        config_dir,
        set_to.text("MY_NAMESPACE") or namespace,
        set_to.text("JOB_CONTAINER_IMAGE"),
        set_to.value("DISCOVERY_PERIOD", period, default.discovery_period),
        set_to.value("CONFIG_SYNC_PERIOD", period, default.config_sync_period),
    )


def _folder(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError("allowed is an absolute path, that of the mounted ConfigMap")
    return Path(text)
