from pathlib import Path

from tests.unit.deploy.test_dashboards import exported
from tools.metricspage import page


def test_the_page_about_metrics_is_what_the_code_has() -> None:
    written = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert written.read_text() == page(), "docs/metrics.md is old: make docs"


def test_every_series_of_ours_stands_on_the_page() -> None:
    of_a_histogram = ("_bucket", "_sum", "_count")
    document = page()
    for series in exported():
        family = next((series.removesuffix(end) for end in of_a_histogram if series.endswith(end)), series)
        if series.startswith(("elastic_local_", "controller_", "local_volume_")) and not series.endswith("_created"):
            assert f"| `{family}` |" in document, series
