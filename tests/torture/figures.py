"""What a campaign did and found."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Figures:
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    """Each loss, leak or wrong sum; then what happened before. Empty: all is well."""

    def __str__(self) -> str:
        counts = "\n".join(f"{name:<26}{number:>8}" for name, number in sorted(self.counts.items()))
        end = "\n".join(["LOSSES OR LEAKS", *self.complaints]) if self.complaints else "no loss, no leak"
        return f"{counts}\n{end}"
