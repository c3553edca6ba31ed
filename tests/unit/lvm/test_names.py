import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvm import BadName, names

NAME = string.ascii_letters + string.digits + "+_.-"
TAG = string.ascii_letters + string.digits + "_+.-/=!:&#"


def test_the_names_we_use_pass() -> None:
    pv = "pvc-0f3c5a30-2d0a-4b53-b1f5-cf1b0d9ab9a1"
    assert names.volume("elastic-local-vg", pv) == f"elastic-local-vg/{pv}"
    assert names.tag(f"elastic-local/pv={pv}") == f"elastic-local/pv={pv}"
    assert names.device("/dev/disk/by-id/nvme-X_1") == "/dev/disk/by-id/nvme-X_1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "allowed are letters"),
        (".", "allowed are letters"),
        ("..", "allowed are letters"),
        ("-n", "no - first"),
        ("a/b", "allowed are letters"),
        ("a b", "allowed are letters"),
        ("a\n", "allowed are letters"),
        ("ä", "allowed are letters"),
        ("snapshot", "'snapshot'"),
        ("pvmove0", "'pvmove'"),
        ("data_tmeta", "'_tmeta'"),
        ("lvol0_pmspare", "'_pmspare'"),
        ("x" * 104, "too long"),
        ("-".join("x" * 40), "too long"),
    ],
)
def test_bad_volume_names(name: str, message: str) -> None:
    with pytest.raises(BadName, match=message) as raised:
        names.volume("vg", name)
    assert raised.value.exit_code is None


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_no_volume_name_is_an_option_or_leaves_its_place(group: str, name: str) -> None:
    try:
        path = names.volume(group, name)
    except BadName:
        return
    assert not path.startswith("-")
    assert path.split("/") == [group, name]
    assert set(group + name) <= set(NAME)
    assert {group, name}.isdisjoint({".", ".."})


@given(st.text(alphabet=NAME, max_size=20).filter(lambda name: not name.startswith("-")))
def test_mapped_names_are_distinct(name: str) -> None:
    """Undoing it gives the name back: no two volumes of a node share a device."""
    mapped = names.mapped("vg-a", name)
    group, volume = re.fullmatch(r"((?:[^-]|--)*)-((?:[^-]|--)*)", mapped).groups()  # type: ignore[union-attr]
    assert (group.replace("--", "-"), volume.replace("--", "-")) == ("vg-a", name)


@given(st.text(max_size=20))
def test_tags_are_lvms_alphabet_and_no_option(text: str) -> None:
    fine = bool(text) and set(text) <= set(TAG) and not text.startswith("-")
    try:
        assert names.tag(text) == text
        assert fine
    except BadName:
        assert not fine


def test_a_tag_has_a_longest() -> None:
    names.tag("t" * 1024)
    with pytest.raises(BadName, match="1025 characters"):
        names.tag("t" * 1025)


@pytest.mark.parametrize(
    "path", ["sdb", "", "/etc/passwd", "/dev/../etc/passwd", "/dev/", "/dev/a b", "--force", "/dev/a\n"]
)
def test_bad_devices(path: str) -> None:
    with pytest.raises(BadName, match="give one like /dev/sdb"):
        names.device(path)
