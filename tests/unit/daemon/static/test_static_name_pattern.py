import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.static.entries import PatternError, name_matcher

MATCHES = [
    # Cases of Go's path/filepath/match_test.go, as facts about its semantics.
    ("abc", "abc"),
    ("*", "abc"),
    ("*c", "abc"),
    ("a*", "a"),
    ("a*", "abc"),
    ("a*b*c*d*e*", "axbxcxdxe"),
    ("a*b?c*x", "abxbbxdbxebxczzx"),
    ("ab[c]", "abc"),
    ("ab[b-d]", "abc"),
    ("ab[^e-g]", "abc"),
    ("a\\*b", "a*b"),
    ("a?b", "a☺b"),
    ("a[^a]b", "a☺b"),
    ("[a-ζ]*", "α"),
    ("[\\]a]", "]"),
    ("[\\-]", "-"),
    ("[x\\-]", "x"),
    ("[x\\-]", "-"),
    ("[\\-x]", "x"),
    ("*x", "xxx"),
    ("*", ".hidden"),
    ("[!a]", "!"),
    ("nvme*,sd[a-f]", "sdc"),
    ("a\nb?", "a\nb\n"),
]
DIFFERS = [
    ("*c", "abcd"),
    ("a*", "ba"),
    ("ab[e-g]", "abc"),
    ("ab[^c]", "abc"),
    ("ab[^b-d]", "abc"),
    ("a\\*b", "axb"),
    ("a???b", "a☺b"),
    ("*[a-ζ]", "A"),
    ("[x\\-]", "z"),
    ("[b-a]", "b"),
    ("[!a]", "b"),
    ("nvme*,sd[a-f]", "sdg"),
    ("a, b", "b"),
    ("", "a"),
]


@pytest.mark.parametrize(("pattern", "name"), MATCHES)
def test_matches(pattern: str, name: str) -> None:
    assert name_matcher(pattern)(name)


@pytest.mark.parametrize(("pattern", "name"), DIFFERS)
def test_does_not_match(pattern: str, name: str) -> None:
    assert not name_matcher(pattern)(name)


@pytest.mark.parametrize(
    "pattern", ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[", "a[\\", "[a-", "[]", "ok,[a"]
)
def test_a_malformed_pattern_is_an_error_for_any_name(pattern: str) -> None:
    with pytest.raises(PatternError, match="malformed name pattern"):
        name_matcher(pattern)


@given(st.text().filter(lambda name: "," not in name))
def test_an_escaped_name_matches_itself_alone(name: str) -> None:
    pattern = "".join(f"\\{character}" for character in name)
    assert name_matcher(pattern)(name)
    assert not name_matcher(pattern)(name + "x")


@given(st.text())
def test_any_string_is_a_pattern_or_a_pattern_error(text: str) -> None:
    with contextlib.suppress(PatternError):
        name_matcher(text)("name")
