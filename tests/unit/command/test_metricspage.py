from pathlib import Path

from command.metricspage import page


def test_the_page_about_metrics_is_what_the_code_has() -> None:
    written = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert written.read_text() == page(), "docs/metrics.md is old: make docs"
