"""Quantities as k8s.io/apimachinery reads and writes them."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1073741824", 2**30),
        ("1Gi", 2**30),
        ("1.5Gi", 3 * 2**29),
        (".5Ki", 512),
        ("5.", 5),
        ("+7", 7),
        ("1k", 1000),
        ("500M", 500_000_000),
        ("2T", 2 * 10**12),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e3", 1000),
        ("1.25e2", 125),
        ("12e-1", 2),
        ("128974848000m", 128974848),
        ("1m", 1),
        ("1001m", 2),
        ("1u", 1),
        ("1n", 1),
        ("1000000000n", 1),
        ("0.1Ki", 103),
        ("8Ei", 2**63),
        ("7.999999999999999999Ei", 2**63 - 1),
    ],
)
def test_kubernetes_quantities(text: str, value: int) -> None:
    assert quantity.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Gi",
        "1 Gi",
        "1gi",
        "1ki",
        "1K",
        "1mi",
        "1GiB",
        "0x10",
        "1e",
        "1e5Gi",
        "1,5Gi",
        "--1",
        "ten",
        "\u0661Gi",
        "1\n",
    ],
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity such as"):
        quantity.parse(text)


def test_a_number_beyond_reason_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="is not a quantity such as"):
        quantity.parse("1e999999999")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1000"),
        (1024, "1Ki"),
        (1536, "1536"),
        (1_610_612_736, "1536Mi"),
        (5 * 2**30, "5Gi"),
        (1024 * 2**30, "1Ti"),
        (2**30 + 1, "1073741825"),
        (2**63, "8Ei"),
    ],
)
def test_canonical_form(count: int, text: str) -> None:
    assert quantity.render(count) == text


@given(st.integers(min_value=0, max_value=2**63))
def test_what_is_rendered_is_read_back(count: int) -> None:
    assert quantity.parse(quantity.render(count)) == count


@given(
    st.integers(min_value=0, max_value=10**12),
    st.integers(min_value=0, max_value=10**9 - 1),
    st.sampled_from([("", 1), ("k", 1000), ("Ki", 1024), ("G", 10**9), ("Gi", 2**30), ("Ei", 2**60), ("E", 10**18)]),
)
def test_fractions_are_rounded_up_and_never_down(whole: int, billionths: int, suffix: tuple[str, int]) -> None:
    exact = (whole + Fraction(billionths, 10**9)) * suffix[1]
    assert quantity.parse(f"{whole}.{billionths:09d}{suffix[0]}") == ceil(exact)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (2**30, "1Gi"),
        (2**40 - 1, "1023.9Gi"),
        (1536, "1.5Ki"),
        (10**9, "953.6Mi"),
    ],
)
def test_for_people(count: int, message: str) -> None:
    assert quantity.humane(count) == message
