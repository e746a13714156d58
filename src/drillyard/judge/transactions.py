"""Is a history of transactions strictly serializable? All must fit one order, each at an instant between its call and
its return, and each must have read what those before it left.

What `consistency` judges key by key is judged here over all keys together: a transfer that moved one account and not
the other, a sum of balances that never were at the same time. The search is of the same kind: depth first, with a
memory of the states already tried. Rules:

- A transaction precedes another only if it returned strictly before the other was called.
- Reads come before writes; what a transaction read of its own writes is not recorded. `None` is the value of a key that
  is not there.
- `OK` happened once, in its interval. `FAILED` certainly did not, and what it read says nothing. `UNKNOWN` may have
  happened at any time after its call, or never; what it read must fit if it did.
- The search is bounded: a history that needs more steps than its budget is `UNDECIDED`, never guessed. What keeps it
  small are reads: a transaction that has read what it writes fits few places. Many blind writes at once do not.
- Snapshot isolation is weaker. A history of transactions that write whatever they read, and of reads at a fresh
  timestamp, is strictly serializable under it as well; one with write skew is not.

It does not record histories and knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from drillyard.judge.consistency import Outcome, Verdict

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as its client saw it. Times are of any one clock that all clients share."""

    called: float
    returned: float
    reads: Mapping[bytes, bytes | None] = field(default_factory=dict)
    writes: Mapping[bytes, bytes | None] = field(default_factory=dict)
    outcome: Outcome = Outcome.OK
    client: str = ""

    def __str__(self) -> str:
        until = f"{self.returned:.6f}" if self.outcome is Outcome.OK else "…"
        who = f"{self.client}: " if self.client else ""
        return f"[{self.called:.6f} → {until}] {who}read {_words(self.reads)}, wrote {_words(self.writes)}"


def _words(pairs: Mapping[bytes, bytes | None]) -> str:
    return ", ".join(f"{key!r} = {value!r}" for key, value in pairs.items()) or "nothing"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a history. If it is not serializable, `placed` is how many transactions the longest order that was
    found has, and `stuck` those of which one would have to follow, none of them reading what is there."""

    verdict: Verdict
    steps: int
    placed: int = 0
    stuck: tuple[Transaction, ...] = ()

    def explain(self) -> str:
        if self.verdict is Verdict.LINEARIZABLE:
            return f"strictly serializable ({self.steps} steps)"
        if self.verdict is Verdict.UNDECIDED:
            return f"undecided after {self.steps} steps"
        lines = [f"not strictly serializable: {self.placed} transactions fit an order, and none of these can follow"]
        return "\n".join(lines + [f"  {transaction}" for transaction in self.stuck])


def check(
    history: Iterable[Transaction],
    *,
    initial: Mapping[bytes, bytes] | None = None,
    steps: int = 1_000_000,
) -> Judgement:
    """Judge a history; `initial` holds the values before it. A step is one transaction that is weighed for a place, so
    a million are a few seconds."""
    return _Search(tuple(history), initial or {}, steps).run()


class _Search:
    """What is placed is undone along a trail. The transactions that may come next, the hopeful ones that were placed
    and the values name the whole state: everything required that was called before those has been placed."""

    def __init__(self, history: Sequence[Transaction], initial: Mapping[bytes, bytes], budget: int) -> None:
        required = [each for each in history if each.outcome is Outcome.OK]
        hopeful = [each for each in history if each.outcome is Outcome.UNKNOWN and each.writes]
        self._all = sorted(required, key=lambda each: each.called) + sorted(hopeful, key=lambda each: each.called)
        self._required = len(required)
        self._values: dict[bytes, bytes | None] = dict(initial)
        for each in self._all:  # all keys from the start, so that states compare
            for key in (*each.reads, *each.writes):
                self._values.setdefault(key, None)
        self._placed = bytearray(len(self._all))
        self._first = 0  # no required one before it is to be placed
        self._trail: list[tuple[int, int, list[tuple[bytes, bytes | None]]]] = []
        self._budget = budget
        self._steps = 0
        self._most = -1
        self._stuck: tuple[Transaction, ...] = ()

    def run(self) -> Judgement:
        tried: set[tuple[object, ...]] = set()
        stack: list[tuple[int, list[int]]] = []
        while True:
            enabled, bound = self._settle()
            if not enabled:
                return Judgement(Verdict.LINEARIZABLE, self._steps, len(self._trail))
            moves = self._moves(enabled, bound)
            if len(moves) > 1:
                state = (*enabled, -1, *self._hopes_placed(), -1, *self._values.values())
                if state in tried:
                    moves = []
                tried.add(state)
            if self._steps > self._budget:
                return Judgement(Verdict.UNDECIDED, self._steps)
            stack.append((len(self._trail), moves))
            while stack and not stack[-1][1]:
                stack.pop()
            if not stack:
                return Judgement(Verdict.NOT_LINEARIZABLE, self._steps, self._most, self._stuck)
            mark, rest = stack[-1]
            self._undo(mark)
            self._place(rest.pop())

    def _settle(self) -> tuple[list[int], float]:
        """Place every required transaction that only reads, and fits: it changes nothing and can only unblock others.
        Then those required ones that may come next, and the first return among them."""
        while True:
            enabled, bound = self._window()
            fitting = [at for at in enabled if not self._all[at].writes and self._fits(at)]
            if not fitting:
                return enabled, bound
            for at in fitting:
                self._place(at)

    def _window(self) -> tuple[list[int], float]:
        enabled, bound, at = [], _NEVER, self._first
        while at < self._required and self._all[at].called <= bound:
            if not self._placed[at]:
                enabled.append(at)
                bound = min(bound, self._all[at].returned)
            at += 1
        return enabled, bound

    def _moves(self, enabled: list[int], bound: float) -> list[int]:
        """Those that fit, the most urgent last; a hopeful one only where no required one leads on."""
        hopeful = [
            at
            for at in range(self._required, len(self._all))
            if not self._placed[at] and self._all[at].called <= bound and self._fits(at)
        ]
        fitting = [at for at in enabled if self._fits(at)]
        if not fitting and len(self._trail) > self._most:
            self._most, self._stuck = len(self._trail), tuple(self._all[at] for at in enabled)
        return hopeful[::-1] + sorted(fitting, key=lambda at: -self._all[at].returned)

    def _fits(self, at: int) -> bool:
        self._steps += 1
        return all(self._values[key] == value for key, value in self._all[at].reads.items())

    def _hopes_placed(self) -> list[int]:
        return [at for at in range(self._required, len(self._all)) if self._placed[at]]

    def _place(self, at: int) -> None:
        writes = self._all[at].writes
        self._trail.append((at, self._first, [(key, self._values[key]) for key in writes]))
        self._values.update(writes)
        self._placed[at] = 1
        while self._first < self._required and self._placed[self._first]:
            self._first += 1

    def _undo(self, mark: int) -> None:
        while len(self._trail) > mark:
            at, self._first, before = self._trail.pop()
            self._values.update(before)
            self._placed[at] = 0
