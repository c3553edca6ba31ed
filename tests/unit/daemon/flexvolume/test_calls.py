"""What the kubelet's words mean: examples as a real kubelet calls, and calls that none makes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import callout
from daemon.flexvolume.calls import Call, Expand, Init, Malformed, Mount, Unmount, read

FOLDER = "/var/lib/kubelet/pods/1/volumes/v~d/pvc-1"


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["init"], Init()),
        (["mount", FOLDER, '{"size": "1", "größe": "2"}'], Mount(FOLDER, {"size": "1", "größe": "2"})),
        (["unmount", FOLDER], Unmount(FOLDER)),
        (["unmount", "/größe/😀"], Unmount("/größe/😀")),
        (["expandfs", '{"a": "b"}', "", FOLDER, "32", "16"], Expand(FOLDER, {"a": "b"}, 32, 16)),
    ],
)
def test_a_call_is_read(words: list[str], call: Call) -> None:
    assert read(callout.request(words)) == call
    as_bytes = [word.encode().decode("ascii", "surrogateescape") for word in words]
    assert read(callout.request(as_bytes)) == call


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[]", "JSON object"),
        (b'{"argv": "init"}', '"argv"'),
        (b'{"argv": ["mount", 1]}', '"argv"'),
        (b'{"argv": ["unmount", "/\\ud800"]}', "not UTF-8"),
        (b'{"argv": ["unmount", "/\\udcff"]}', "not UTF-8"),
        ([], "no call"),
        (["attach"], "'attach'"),
        (["mount", FOLDER], "1 arguments"),
        (["unmount", FOLDER, "more"], "2 arguments"),
        (["unmount"], "0 arguments"),
        (["mount", "relative", "{}"], "absolute path"),
        (["mount", "/a\0b", "{}"], "absolute path"),
        (["mount", FOLDER, "{"], "not JSON"),
        (["mount", FOLDER, "[" * 100_000], "not JSON"),
        (["mount", FOLDER, "[]"], "object whose values are strings"),
        (["mount", FOLDER, '{"size": 1}'], "object whose values are strings"),
        (["expandfs", "{}", "", FOLDER, "1e9", "0"], "'1e9' is not a size"),
        (["expandfs", "{}", "", FOLDER, "-1", "0"], "'-1' is not a size"),
        (["expandfs", "{}", "", FOLDER, "1", "²"], "'²' is not a size"),
        (["expandfs", "{}", "", FOLDER, "9" * 5000, "1"], "is not a size"),
    ],
)
def test_what_makes_no_sense_is_refused_with_words(body: list[str] | bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read(body if isinstance(body, bytes) else callout.request(body))


@given(st.lists(st.one_of(st.sampled_from([*callout.DEADLINES, FOLDER, "{}", "7"]), st.text(max_size=10)), max_size=6))
def test_any_words_are_a_call_or_refused(words: list[str]) -> None:
    try:
        call = read(json.dumps({"argv": words}).encode())
    except Malformed:
        return
    assert words[0] in callout.DEADLINES
    assert isinstance(call, Init) or call.dir in words
