"""An index: keys by a value that they have, so that those with one value are found without going through all.

Like the indexers of client-go, for keys of any kind.
"""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)


class Index(Generic[V]):
    def __init__(self) -> None:
        self._values: dict[str, frozenset[V]] = {}
        self._keys: dict[V, dict[str, None]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def put(self, key: str, values: Iterable[V]) -> None:
        """The key has these values now, and no others."""
        after = frozenset(values)
        before = self._values.get(key, frozenset())
        for value in before - after:
            keys = self._keys[value]
            del keys[key]
            if not keys:
                del self._keys[value]
        for value in after - before:
            self._keys.setdefault(value, {})[key] = None
        if after:
            self._values[key] = after
        else:
            self._values.pop(key, None)

    def discard(self, key: str) -> None:
        self.put(key, ())

    def get(self, value: V) -> list[str]:
        """The keys that have a value, in the order in which they got it."""
        return list(self._keys.get(value, ()))
