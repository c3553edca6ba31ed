import pytest

from service.environment import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("5m0s", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("0", 0),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("+2µs", 2e-6),
    ],
)
def test_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "-5s", "s", "5 s", "1h30", "1d", ".s", "+", "٣s"])
def test_anything_else_is_reported_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration such as 10s, 5m0s or 1h30m"):
        parse_duration(text)
