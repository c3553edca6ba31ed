"""How long to wait before the next try."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow by `factor` from `first` up to `limit` seconds.

    Each is made up to `jitter` longer by chance, so that many who failed together don't come back together."""

    first: float = 0.5
    factor: float = 2
    limit: float = 300
    jitter: float = 0.2

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row, the first being 1."""
        # The exponent is capped because a key may fail for weeks and a float overflows.
        wait: float = min(self.limit, self.first * self.factor ** min(failures - 1, 64))
        return wait * (1 + self.jitter * random.random())  # noqa: S311
