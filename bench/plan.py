"""What a bench is: a name, and one round of measuring that adds samples to the results.

Rule: on a machine that is too slow a bench has fewer samples, and the table says how many; it does not take for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.figures import Results


class BenchFailed(Exception):
    """Something did not do what the measurement needs."""


@dataclass(frozen=True, slots=True)
class Bench:
    """`measure` is one round, on clusters that it starts and removes itself."""

    name: str
    what: str
    measure: Callable[[Results], None]
    rounds: int = 5
    is_usual: bool = True  # taken when none is named
    limit_s: float = 300.0  # after so long no round is begun


def spans(most: int, limit_s: float) -> Iterator[int]:
    """So many, of which none is begun after so long; the first in any case."""
    began = time.monotonic()
    for number in range(1, most + 1):
        yield number
        if time.monotonic() - began > limit_s:
            return
