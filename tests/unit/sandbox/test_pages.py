"""Pages of a list are of one moment, whatever is written between them, and cost what they have."""

import random

import pytest

from tests.sandbox.apiserver import reading
from tests.sandbox.apiserver.journal import NoJournal
from tests.sandbox.apiserver.resources import BY_PATH, Json
from tests.sandbox.apiserver.store import Store

_MAPS = BY_PATH["", "v1", "configmaps"]
_NAMESPACES = ("a", "a-b", "a.b", "b")
"""In the order of keys "a-b/x" comes before "a/x"."""


def _write(store: Store, namespace: str, name: str, text: str) -> None:
    labels = {"parity": "odd" if len(text) % 2 else "even"}
    metadata = {"name": name, "namespace": namespace, "uid": name, "labels": labels}
    store.write(_MAPS, {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"text": text}})


def _change(store: Store, chance: random.Random) -> None:
    namespace, name = chance.choice(_NAMESPACES), f"m{chance.randrange(12)}"
    present = store.get(_MAPS, namespace, name)
    if present is not None and chance.random() < 0.4:
        store.remove(present)
    else:
        _write(store, namespace, name, "x" * chance.randrange(5))


def _plain(store: Store, namespace: str, selector: str) -> list[tuple[str, Json]]:
    wanted = selector.removeprefix("parity=")
    return [
        (each.key, each.object)
        for each in sorted(store.all(_MAPS), key=lambda each: each.key)
        if namespace in ("", each.namespace) and (not selector or each.object["metadata"]["labels"]["parity"] == wanted)
    ]


@pytest.mark.parametrize("selector", ["", "parity=odd"])
@pytest.mark.parametrize("namespace", ["", "a", "b", "none"])
def test_pages_are_of_the_moment_of_the_first(namespace: str, selector: str) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        store = Store(NoJournal(), history=1000)
        for _ in range(30):
            _change(store, chance)
        expected = _plain(store, namespace, selector)
        found: list[tuple[str, Json]] = []
        query = {"limit": str(chance.randint(1, 9)), "labelSelector": selector}
        while True:
            page = reading.select(store, _MAPS, namespace, query)
            found += [(each.key, each.object) for each in page.items]
            assert len(page.items) <= int(query["limit"])
            assert page.remaining == (None if selector or not page.proceed else len(expected) - len(found))
            if not page.proceed:
                break
            query["continue"] = page.proceed
            for _ in range(chance.randrange(6)):
                _change(store, chance)
        assert found == expected


def test_a_list_of_an_earlier_revision_has_what_was_there() -> None:
    chance = random.Random(1)
    store = Store(NoJournal(), history=1000)
    moments = {}
    for _ in range(60):
        _change(store, chance)
        moments[store.revision] = _plain(store, "", "")
    for revision, expected in moments.items():
        query = {"resourceVersion": str(revision), "resourceVersionMatch": "Exact"}
        found = reading.select(store, _MAPS, "", query).items
        assert [(each.key, each.object) for each in found] == expected
