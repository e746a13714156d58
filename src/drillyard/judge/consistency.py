"""Is a history of key-value operations linearizable? Every answer must fit one order of operations, each at an instant
between its call and its return.

The search is Wing and Gong's, with Lowe's memory of the states already tried, on each key by itself: linearizability is
local, so a history is linearizable exactly when its part on each key is. Rules:

- An operation precedes another only if it returned strictly before the other was called; equal times leave both orders.
- `OK` happened once, in its interval. `FAILED` certainly did not happen. `UNKNOWN` may have taken effect at any time
  after its call, or never: no return bounds it, and a read with an unknown outcome says nothing.
- A client that sends a write again after an attempt that may have been applied has made two writes: its history needs
  one more `UNKNOWN` write for each such attempt, or a correct cluster can look wrong.
- A batch, a delete range or a scan may be recorded as one operation per key, all with the interval of the whole: each
  key is still read or written at one instant inside it. That holds for a scan's missing keys too, as long as no limit
  cut the scan before them. A delete range may be split only over keys whose whole history is recorded. What is lost
  is whether the keys changed *together*, on which a verdict of this module therefore says nothing. A batch that failed
  half way is `UNKNOWN` for each of its keys.
- The search is bounded: a key that needs more steps than its budget is `UNDECIDED`, never guessed. Two values that must
  have held at the same time are found before, without a search.

Three short cuts keep the search small, and lose no solution:

- a read that fits the current value is placed at once, for it changes nothing and can only unblock others;
- a value that is still to be observed and that nobody will write again must not be left;
- a blind write whose value is observed only by reads that could be placed right now is placed, with them, just before
  the next blind write: nothing sees the difference.

It does not record histories, knows no clock, and does not judge operations over several keys.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

_NONE = -1  # "observes nothing" or "writes nothing", where a number of a value is expected
_NEVER = float("inf")


class Kind(Enum):
    GET = "get"
    PUT = "put"
    DELETE = "delete"
    SWAP = "compare-and-swap"


class Outcome(Enum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Verdict(Enum):
    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as its client saw it; `None` is the value of a key that is not there.

    `value` is what a get returned, what a put wrote, or what a swap wanted to write. `expected`, `swapped` and
    `previous` belong to swaps alone. Times are of any one clock that all clients share.
    """

    kind: Kind
    key: bytes
    called: float
    returned: float
    value: bytes | None = None
    outcome: Outcome = Outcome.OK
    expected: bytes | None = None
    swapped: bool = False
    previous: bytes | None = None
    client: str = ""

    def __str__(self) -> str:
        until = f"{self.returned:.6f}" if self.outcome is Outcome.OK else "…"
        who = f"{self.client}: " if self.client else ""
        return f"[{self.called:.6f} → {until}] {who}{self._words()}"

    def _words(self) -> str:
        if self.kind is Kind.GET:
            return f"get → {self.value!r}"
        done = "" if self.outcome is Outcome.OK else f" ({self.outcome.value})"
        if self.kind is Kind.PUT:
            return f"put {self.value!r}{done}"
        if self.kind is Kind.DELETE:
            return f"delete{done}"
        if done:
            return f"swap {self.expected!r} for {self.value!r}{done}"
        answer = "swapped" if self.swapped else "refused"
        return f"swap {self.expected!r} for {self.value!r} → {answer}, previous {self.previous!r}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a history. `operations` is empty unless it is not linearizable: then it is a smallest set, found
    by weakening one operation after another, of operations on `key` that no order satisfies."""

    verdict: Verdict
    steps: int
    key: bytes | None = None
    operations: tuple[Operation, ...] = ()
    undecided: tuple[bytes, ...] = ()

    def explain(self) -> str:
        if self.verdict is Verdict.LINEARIZABLE:
            return f"linearizable ({self.steps} steps)"
        if self.verdict is Verdict.UNDECIDED:
            return f"undecided after {self.steps} steps, on the keys {', '.join(map(repr, self.undecided))}"
        lines = [f"not linearizable: no order of these operations on the key {self.key!r} fits what they returned"]
        return "\n".join(lines + [f"  {operation}" for operation in self.operations])


def check(
    history: Iterable[Operation],
    *,
    initial: Mapping[bytes, bytes] | None = None,
    steps_per_key: int = 1_000_000,
) -> Judgement:
    """Judge a history; `initial` holds the values before it, for keys that were there.

    A step is one operation placed or one choice weighed, so a million are a few seconds.
    """
    before = initial or {}
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    steps, undecided = 0, []
    for key, operations in by_key.items():
        verdict, spent = _check_key(operations, before.get(key), steps_per_key)
        steps += spent
        if verdict is Verdict.NOT_LINEARIZABLE:
            core = _Weakening(before.get(key), steps_per_key).smallest(operations)
            return Judgement(verdict, steps, key, core)
        if verdict is Verdict.UNDECIDED:
            undecided.append(key)
    if undecided:
        return Judgement(Verdict.UNDECIDED, steps, undecided=tuple(undecided))
    return Judgement(Verdict.LINEARIZABLE, steps)


def _check_key(operations: Sequence[Operation], initial: bytes | None, budget: int) -> tuple[Verdict, int]:
    acts = _relevant(operations)
    if any(act.impossible for act in acts) or _must_overlap(acts, initial):
        return Verdict.NOT_LINEARIZABLE, 0
    return _Search(acts, initial, budget).run()


@dataclass(frozen=True, slots=True)
class _Act:
    """An operation reduced to what the search needs: the value that it must meet and the one that it leaves, if any."""

    operation: Operation
    meets: tuple[bytes | None] | None
    leaves: tuple[bytes | None] | None
    required: bool

    @property
    def impossible(self) -> bool:
        """A swap whose answer contradicts itself fits nowhere."""
        swap = self.operation
        return self.required and swap.kind is Kind.SWAP and swap.swapped != (swap.previous == swap.expected)

    @property
    def returned(self) -> float:
        return self.operation.returned if self.required else _NEVER


def _act(operation: Operation) -> _Act | None:
    required = operation.outcome is Outcome.OK
    match operation.kind:
        case Kind.GET:
            return _Act(operation, (operation.value,), None, required) if required else None
        case Kind.PUT | Kind.DELETE:
            written = operation.value if operation.kind is Kind.PUT else None
            return _Act(operation, None, (written,), required)
        case Kind.SWAP:
            if not required:
                changes = operation.expected != operation.value
                return _Act(operation, (operation.expected,), (operation.value,), False) if changes else None
            changes = operation.swapped and operation.previous != operation.value
            return _Act(operation, (operation.previous,), (operation.value,) if changes else None, True)


def _relevant(operations: Iterable[Operation]) -> list[_Act]:
    """The acts that can matter: a write of unknown outcome that nobody observes may as well not have happened."""
    acts = [act for op in operations if op.outcome is not Outcome.FAILED and (act := _act(op)) is not None]
    while True:
        observed = {act.meets for act in acts if act.meets is not None}
        kept = [act for act in acts if act.required or act.leaves in observed]
        if len(kept) == len(acts):
            return sorted(kept, key=lambda act: act.operation.called)
        acts = kept


@dataclass(frozen=True, slots=True)
class _Reign:
    """A value that was written once held, without a break, from the first return to the last call of those that wrote
    or met it; there is one only if that return came before that call."""

    value: tuple[bytes | None]
    begin: float
    end: float

    def excludes(self, act: _Act) -> bool:
        """The act happened wholly within, and met or left another value."""
        inside = self.begin < act.operation.called and act.returned < self.end
        return inside and (act.leaves is not None or act.meets != self.value)


def _must_overlap(acts: Iterable[_Act], initial: bytes | None) -> bool:
    """Whether two values must have held at once: proves without any search what goes wrong most, a stale read or a
    lost write, however many operations are under way."""
    writers: Counter[tuple[bytes | None]] = Counter([(initial,)])
    begins: dict[tuple[bytes | None], float] = {(initial,): -_NEVER}
    ends: dict[tuple[bytes | None], float] = {}
    certain = [act for act in acts if act.required]
    for act in acts:
        if act.leaves is not None:
            writers[act.leaves] += 1
    for act in certain:
        for value in {value for value in (act.meets, act.leaves) if value is not None}:
            begins[value] = min(begins.get(value, _NEVER), act.returned)
            ends[value] = max(ends.get(value, -_NEVER), act.operation.called)
    once = [_Reign(value, begins[value], end) for value, end in ends.items() if writers[value] == 1]
    reigns = sorted((reign for reign in once if reign.begin < reign.end), key=lambda reign: reign.begin)
    if any(later.begin < earlier.end for earlier, later in pairwise(reigns)):
        return True
    starts = [reign.begin for reign in reigns]
    for act in certain:
        at = bisect_left(starts, act.operation.called)
        if at and reigns[at - 1].excludes(act):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Move:
    """Acts to place one after the other, and the value that holds then."""

    acts: tuple[int, ...]
    value: int


class _Window:
    """The acts that could be placed next, sorted by what they do."""

    __slots__ = ("reads", "swaps", "writes")

    def __init__(self) -> None:
        self.reads: dict[int, list[int]] = {}  # by the value that they observed
        self.writes: dict[int, list[int]] = {}  # by the value that they write; the one to prefer first
        self.swaps: dict[int, int] = {}  # those that fit the current value, by the value that they write


class _Search:
    """Depth first, with an explicit stack; what was placed is undone along a trail.

    The calls and returns of the required acts form a linked list in the order of time; placing an act takes its two
    entries out. What stands before the first return may be placed next, and since nothing behind it ever was, those
    acts and the current value name the whole state.
    """

    def __init__(self, acts: Sequence[_Act], initial: bytes | None, budget: int) -> None:
        numbers: dict[tuple[bytes | None], int] = {(initial,): 0}
        self._required = [act for act in acts if act.required]
        self._all = self._required + [act for act in acts if not act.required]
        count = len(self._required)
        self._meets = [_NONE if a.meets is None else numbers.setdefault(a.meets, len(numbers)) for a in self._all]
        self._leaves = [_NONE if a.leaves is None else numbers.setdefault(a.leaves, len(numbers)) for a in self._all]
        self._returned = [act.returned for act in self._all]
        self._hopeful = range(count, len(self._all))  # outcome unknown: may be placed, need not be
        self._observers = [0] * len(numbers)  # required acts still to be placed that must meet this value
        self._hopes = [0] * len(numbers)  # the same among the hopeful
        self._swappers = [0] * len(numbers)  # of both, those that write as well
        self._writers = [0] * len(numbers)
        self._head = 2 * count
        self._next, self._previous = self._link(count)
        self._placed = bytearray(len(self._all))
        self._trail: list[int] = []
        self._value = 0
        self._budget = budget
        self._steps = 0
        for act in range(len(self._all)):
            self._count(act, 1)

    def _link(self, count: int) -> tuple[list[int], list[int]]:
        """Entry 2i is the call of act i, 2i + 1 its return; the head closes the ring. At equal times calls go first."""
        times = [(self._all[i].operation.called, 0, 2 * i) for i in range(count)]
        times += [(self._returned[i], 1, 2 * i + 1) for i in range(count)]
        times.sort()
        following, preceding = [0] * (2 * count + 1), [0] * (2 * count + 1)
        last = self._head
        for _, _, entry in times:
            following[last], preceding[entry] = entry, last
            last = entry
        following[last], preceding[self._head] = self._head, last
        return following, preceding

    def run(self) -> tuple[Verdict, int]:
        tried: set[tuple[int, ...]] = set()
        stack: list[tuple[int, int, list[_Move]]] = []
        if any(self._observers[v] and not self._writers[v] for v in range(1, len(self._writers))):
            return Verdict.NOT_LINEARIZABLE, 0
        while True:
            enabled = self._settle()
            if not enabled:
                return Verdict.LINEARIZABLE, self._steps
            moves = self._moves(enabled)
            if len(moves) > 1:
                state = (self._value, *(a for a in self._hopeful if self._placed[a]), _NONE, *enabled)
                if state in tried:
                    moves = []
                else:
                    tried.add(state)
            self._steps += 1 + len(moves)
            if self._steps > self._budget:
                return Verdict.UNDECIDED, self._steps
            if len(moves) > 1:
                stack.append((len(self._trail), self._value, moves))
            elif moves:
                self._do(moves[0])
                continue
            while stack and not stack[-1][2]:
                stack.pop()
            if not stack:
                return Verdict.NOT_LINEARIZABLE, self._steps
            mark, value, rest = stack[-1]
            self._undo(mark)
            self._value = value
            self._do(rest.pop())

    def _settle(self) -> list[int]:
        """Place every read that fits, until none does; what could be placed next then."""
        following, meets, leaves = self._next, self._meets, self._leaves
        while True:
            enabled: list[int] = []
            entry = following[self._head]
            while not entry & 1 and entry != self._head:
                enabled.append(entry >> 1)
                entry = following[entry]
            value = self._value
            fitting = [act for act in enabled if meets[act] == value and leaves[act] == _NONE]
            if not fitting:
                return enabled
            for act in fitting:
                self._place(act)

    def _moves(self, enabled: list[int]) -> list[_Move]:
        """The choices from here that may lead on, the most urgent last."""
        window = self._look(enabled)
        value = self._value
        moves = [_Move((act,), new) for new, act in window.swaps.items() if self._may_leave(value, act)]
        waiting = self._observers[value]
        if waiting and not self._writers[value]:
            return moves
        closed: list[int] = []
        for new, writers in window.writes.items():
            reads = window.reads.get(new, [])
            if not self._swappers[new] and self._observers[new] == len(reads):
                closed += [act for act in writers if self._all[act].required] or writers[:1]
                closed += reads
        if closed:
            last = next(act for act in reversed(closed) if self._leaves[act] != _NONE)
            return [_Move(tuple(closed), self._leaves[last]), *moves]
        blind = [(writers[0], new) for new, writers in window.writes.items() if self._may_leave(value, writers[0])]
        moves += [_Move((act,), new) for act, new in blind]
        moves.sort(key=lambda move: -self._urgency(move, window))
        return moves

    def _look(self, enabled: list[int]) -> _Window:
        window = _Window()
        first_return = min(map(self._returned.__getitem__, enabled))
        hopeful = [a for a in self._hopeful if not self._placed[a] and self._all[a].operation.called <= first_return]
        for act in sorted(enabled, key=self._returned.__getitem__) + hopeful:
            meets, leaves = self._meets[act], self._leaves[act]
            if leaves == _NONE:
                window.reads.setdefault(meets, []).append(act)
                continue
            if not self._all[act].required and not (self._observers[leaves] or self._hopes[leaves]):
                continue
            if meets == _NONE:
                window.writes.setdefault(leaves, []).append(act)
            elif meets == self._value:
                window.swaps.setdefault(leaves, act)
        return window

    def _may_leave(self, value: int, act: int) -> bool:
        """Whether placing this write leaves no observer of the current value without a writer."""
        if self._leaves[act] == value:
            return True
        met = self._meets[act] == value and self._all[act].required
        return self._observers[value] == met or self._writers[value] > 0

    def _urgency(self, move: _Move, window: _Window) -> float:
        """The earliest return among the write and the reads that wait for it."""
        waiting = window.reads.get(move.value, [])
        return min(self._returned[act] for act in (*move.acts, *waiting))

    def _do(self, move: _Move) -> None:
        for act in move.acts:
            self._place(act)
        self._value = move.value

    def _place(self, act: int) -> None:
        self._steps += 1
        self._trail.append(act)
        self._placed[act] = 1
        self._count(act, -1)
        if act < len(self._required):
            following, preceding = self._next, self._previous
            for entry in (2 * act, 2 * act + 1):
                before, after = preceding[entry], following[entry]
                following[before], preceding[after] = after, before

    def _undo(self, mark: int) -> None:
        following, preceding = self._next, self._previous
        while len(self._trail) > mark:
            act = self._trail.pop()
            self._placed[act] = 0
            self._count(act, 1)
            if act < len(self._required):
                for entry in (2 * act + 1, 2 * act):
                    following[preceding[entry]] = preceding[following[entry]] = entry

    def _count(self, act: int, change: int) -> None:
        meets, leaves = self._meets[act], self._leaves[act]
        if meets != _NONE:
            (self._observers if act < len(self._required) else self._hopes)[meets] += change
            if leaves != _NONE:
                self._swappers[meets] += change
        if leaves != _NONE:
            self._writers[leaves] += change


_Pair = tuple[Operation, Operation | None]  # as the history has it, and what is left of it


class _Weakening:
    """Finds operations of a history that fails, as few and as weak as still fail.

    Forgetting what an operation observed, and then when a write returned, only makes a history easier, so what still
    fails after that is at fault. An easier history can be harder to refute: an attempt may spend little, and all of
    them together one budget.
    """

    def __init__(self, initial: bytes | None, budget: int) -> None:
        self._initial = initial
        self._left = budget

    def smallest(self, operations: Sequence[Operation]) -> tuple[Operation, ...]:
        """First the shortest part in time, then ever smaller pieces of it are weakened."""
        ends = sorted(op.returned for op in operations if op.outcome is Outcome.OK)
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high) // 2
            failed = self._fails(_until(operations, ends[middle]))
            low, high = (low, middle) if failed else (middle + 1, high)
        core = _until(operations, ends[low])
        core = self._weakened(core, _blind)
        core = self._weakened(core, _endless)
        return tuple(seen for seen, _ in core)

    def _fails(self, core: Iterable[_Pair]) -> bool:
        operations = [now for _, now in core if now is not None]
        verdict, spent = _check_key(operations, self._initial, min(self._left, 20 * len(operations) + 1000))
        self._left = max(0, self._left - spent)
        return verdict is Verdict.NOT_LINEARIZABLE

    def _weakened(self, core: list[_Pair], weaken: Callable[[Operation], Operation | None]) -> list[_Pair]:
        size = len(core)
        while size:
            start = 0
            while start < len(core):
                piece = core[start : start + size]
                weaker = [(seen, weaken(now)) for seen, now in piece if now is not None]
                if weaker != piece and self._fails([*core[:start], *weaker, *core[start + size :]]):
                    core[start : start + size] = weaker
                start += size
            core = _that_matter(core)
            size = min(size, len(core)) // 2 if size > 1 else 0
        return core


def _blind(operation: Operation) -> Operation | None:
    """The operation without what it observed: a swap that was done is at least a put, the rest says nothing."""
    if operation.kind is Kind.GET:
        return None
    if operation.kind is not Kind.SWAP:
        return operation
    if operation.outcome is Outcome.OK and not operation.swapped:
        return None
    return replace(operation, kind=Kind.PUT, expected=None, swapped=False, previous=None)


def _endless(operation: Operation) -> Operation | None:
    """A write without its return."""
    act = _act(operation)
    return operation if act is None or act.leaves is None else replace(operation, outcome=Outcome.UNKNOWN)


def _until(operations: Iterable[Operation], time: float) -> list[_Pair]:
    """The history as it stood at that time: what had not returned has an unknown outcome."""
    known = [op for op in operations if op.called <= time and op.outcome is not Outcome.FAILED]
    pairs = [(op, op if op.returned <= time else replace(op, outcome=Outcome.UNKNOWN)) for op in known]
    return _that_matter(pairs)


def _that_matter(core: Iterable[_Pair]) -> list[_Pair]:
    kept = {id(act.operation) for act in _relevant(now for _, now in core if now is not None)}
    return sorted((pair for pair in core if id(pair[1]) in kept), key=lambda pair: pair[0].called)
