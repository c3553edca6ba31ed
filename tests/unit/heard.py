"""An environment that knows what it was asked for: it tells which settings a program reads."""

from collections.abc import Iterator, Mapping


class Heard(Mapping[str, str]):
    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
