"""What a bench is: a name, and one round of measuring that adds samples to the results."""

from __future__ import annotations

from collections.abc import Callable
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
