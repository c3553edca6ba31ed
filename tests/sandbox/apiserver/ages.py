"""Ages as kubectl shows them: 5s, 3m12s, 4h, 12d. Source: k8s.io/apimachinery/pkg/util/duration."""

from datetime import UTC, datetime

from tests.sandbox.apiserver.resources import Json


def age_of(body: Json) -> str:
    return since(body["metadata"].get("creationTimestamp"))


def since(moment: str | None, *, until: str | None = None) -> str:
    """The time from `moment` to `until`, or to now."""
    if not moment:
        return "<unknown>"
    end = datetime.fromisoformat(until) if until else datetime.now(UTC)
    return human(int((end - datetime.fromisoformat(moment)).total_seconds()))


def human(seconds: int) -> str:
    """Two units at most, and the lesser one only while it says something."""
    if seconds < -1:
        return "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    if minutes < 10:
        return _both(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _both(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _both(days, "d", hours % 24, "h")
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        return _both(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _both(many: int, unit: str, few: int, lesser: str) -> str:
    return f"{many}{unit}{few}{lesser}" if few else f"{many}{unit}"
