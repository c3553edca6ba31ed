"""What the static part is told, beside its configuration folder. Names and defaults: daemon/settings.py."""

from dataclasses import dataclass
from pathlib import Path


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
