"""The linearizability checker: tables of good and bad histories, and brute force over every order on tiny ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drillyard.judge.consistency import Judgement, Kind, Operation, Outcome, Verdict, check

KEY = b"k"
GOOD, BAD = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE


def encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def get(called: float, returned: float, value: str | None, key: bytes = KEY) -> Operation:
    return Operation(Kind.GET, key, called, returned, encoded(value))


def put(called: float, returned: float, value: str, key: bytes = KEY) -> Operation:
    return Operation(Kind.PUT, key, called, returned, encoded(value))


def delete(called: float, returned: float) -> Operation:
    return Operation(Kind.DELETE, KEY, called, returned)


def swap(called: float, returned: float, change: tuple[str | None, str], previous: str | None) -> Operation:
    expected, new = change
    return Operation(
        Kind.SWAP,
        KEY,
        called,
        returned,
        encoded(new),
        expected=encoded(expected),
        swapped=previous == expected,
        previous=encoded(previous),
    )


def unknown(operation: Operation) -> Operation:
    return replace(operation, outcome=Outcome.UNKNOWN)


def failed(operation: Operation) -> Operation:
    return replace(operation, outcome=Outcome.FAILED)


HISTORIES = [
    ("nothing happened", [], GOOD),
    ("an absent key reads as absent", [get(0, 1, None)], GOOD),
    ("a value out of nowhere", [get(0, 1, "a")], BAD),
    ("read your write", [put(0, 1, "a"), get(2, 3, "a")], GOOD),
    ("a write is lost", [put(0, 1, "a"), get(2, 3, None)], BAD),
    ("a stale read", [put(0, 1, "a"), put(2, 3, "b"), get(4, 5, "a")], BAD),
    ("concurrent writes, either may be last", [put(0, 3, "a"), put(0, 3, "b"), get(4, 5, "a")], GOOD),
    ("two readers disagree", [put(0, 3, "a"), put(0, 3, "b"), get(4, 5, "a"), get(6, 7, "b")], BAD),
    ("a read during a write sees either value", [put(0, 5, "a"), get(1, 2, None), get(3, 4, "a")], GOOD),
    ("a read during a write goes back", [put(0, 5, "a"), get(1, 2, "a"), get(3, 4, None)], BAD),
    ("a read before the write was called", [get(0, 1, "a"), put(2, 3, "a")], BAD),
    ("equal times are not an order", [put(0, 1, "a"), get(1, 2, None)], GOOD),
    ("the same value twice", [put(0, 1, "a"), put(2, 3, "b"), put(4, 5, "a"), get(6, 7, "a")], GOOD),
    ("delete, then absent", [put(0, 1, "a"), delete(2, 3), get(4, 5, None)], GOOD),
    ("a deleted key comes back", [put(0, 1, "a"), delete(2, 3), get(4, 5, "a")], BAD),
    ("a swap that fits", [put(0, 1, "a"), swap(2, 3, ("a", "b"), "a"), get(4, 5, "b")], GOOD),
    ("a swap of an absent key", [swap(0, 1, (None, "b"), None), get(2, 3, "b")], GOOD),
    ("a swap is refused", [put(0, 1, "a"), swap(2, 3, ("x", "b"), "a"), get(4, 5, "a")], GOOD),
    ("a refused swap wrote", [put(0, 1, "a"), swap(2, 3, ("x", "b"), "a"), get(4, 5, "b")], BAD),
    ("both of two swaps win", [put(0, 1, "a"), swap(2, 3, ("a", "b"), "a"), swap(2, 3, ("a", "c"), "a")], BAD),
    ("swaps in a chain", [swap(0, 9, (None, "1"), None), swap(0, 9, ("1", "2"), "1"), get(0, 9, "2")], GOOD),
    ("a chain goes round", [swap(0, 9, ("1", "2"), "1"), swap(0, 9, ("2", "1"), "2"), get(0, 9, "1")], BAD),
    ("a swap that contradicts itself", [put(0, 1, "a"), replace(swap(2, 3, ("a", "b"), "a"), swapped=False)], BAD),
    ("a swap for the same value", [put(0, 1, "a"), swap(2, 3, ("a", "a"), "a"), get(4, 5, "a")], GOOD),
    ("unknown, and it happened late", [unknown(put(0, 1, "a")), get(2, 3, None), get(4, 5, "a")], GOOD),
    ("unknown, and it never happened", [unknown(put(0, 1, "a")), get(2, 3, None)], GOOD),
    ("unknown, but not before its call", [get(0, 1, "a"), unknown(put(2, 3, "a"))], BAD),
    (
        "unknown happens once only",
        [unknown(put(0, 1, "a")), get(2, 3, "a"), put(4, 5, "b"), get(6, 7, "a")],
        BAD,
    ),
    (
        "sent twice in silence, recorded as two",
        [put(0, 5, "a"), unknown(put(0, 1, "a")), get(1, 2, "a"), put(2.5, 3, "b"), get(3.5, 4, "b"), get(6, 7, "a")],
        GOOD,
    ),
    ("unknown delete", [put(0, 1, "a"), unknown(delete(2, 3)), get(4, 5, "a"), get(6, 7, None)], GOOD),
    ("unknown swap took effect", [put(0, 1, "a"), unknown(swap(2, 3, ("a", "b"), "a")), get(4, 5, "b")], GOOD),
    ("unknown swap cannot fit", [put(0, 1, "a"), unknown(swap(2, 3, ("x", "b"), "x")), get(4, 5, "b")], BAD),
    (
        "an unread write feeds an unknown swap",
        [put(0, 1, "v"), unknown(swap(0, 1, ("v", "n"), "v")), put(0, 9, "z"), get(2, 3, "n"), get(10, 11, "z")],
        GOOD,
    ),
    ("failed did not happen", [put(0, 1, "a"), failed(put(2, 3, "b")), get(4, 5, "a")], GOOD),
    ("failed, and yet it is read", [put(0, 1, "a"), failed(put(2, 3, "b")), get(4, 5, "b")], BAD),
    ("an unknown read says nothing", [unknown(get(0, 1, "nonsense")), get(2, 3, None)], GOOD),
]


@pytest.mark.parametrize(("history", "verdict"), [case[1:] for case in HISTORIES], ids=[case[0] for case in HISTORIES])
def test_judges_the_table(history: list[Operation], verdict: Verdict) -> None:
    assert check(history).verdict is verdict
    assert check(reversed(history)).verdict is verdict, "the order of recording must not matter"


def test_a_value_from_before_the_history() -> None:
    history = [get(0, 1, "old"), swap(2, 3, ("old", "new"), "old"), get(4, 5, "new")]
    assert check(history, initial={KEY: b"old"}).verdict is GOOD
    assert check(history).verdict is BAD


def test_keys_are_judged_apart() -> None:
    good = [put(0, 1, "a", b"one"), get(2, 3, "a", b"one")]
    bad = [put(0, 1, "a", b"two"), get(2, 3, None, b"two")]
    judgement = check(good + bad)
    assert (judgement.verdict, judgement.key) == (BAD, b"two")
    assert check([*good, put(0, 1, "b", b"two")]).verdict is GOOD


# --- what it says of a bad history ---


def test_names_the_operations_that_no_order_satisfies() -> None:
    noise = [put(i, i + 0.5, f"n{i}") for i in range(50)] + [get(i + 0.6, i + 0.7, f"n{i}") for i in range(50)]
    lost, over, stale = put(100, 101, "a"), put(102, 103, "b"), get(104, 105, "a")
    later = [put(200 + i, 200.5 + i, f"l{i}") for i in range(20)]
    judgement = check([*noise, lost, over, stale, *later])
    assert judgement.operations == (lost, over, stale)
    words = judgement.explain()
    assert "b'k'" in words
    assert "put b'a'" in words
    assert "get → b'a'" in words


def test_leaves_out_what_does_not_matter_beside_a_conflict() -> None:
    first, second = swap(10, 20, ("a", "b"), "a"), swap(10, 20, ("a", "c"), "a")
    judgement = check([put(0, 1, "a"), get(2, 3, "a"), get(9, 30, "b"), first, second, get(40, 41, "c")])
    assert set(judgement.operations) >= {first, second}
    assert all(operation.kind is not Kind.GET for operation in judgement.operations)


# --- limits and size ---


def tangle(writers: int) -> list[Operation]:
    """Swaps over a few values, all at once, and an end that parity forbids: every order would have to be tried."""
    swaps = [swap(0, 1000, (str(i % 4), str((i * 3 + 1) % 4)), str(i % 4)) for i in range(writers)]
    deletes = [delete(0, 1000) for _ in range(writers)]
    puts = [put(0, 1000, str(i % 4)) for i in range(writers)]
    return [*swaps, *deletes, *puts, *(get(2000 + i, 2000.5 + i, str(i % 2)) for i in range(2))]


def test_gives_up_at_its_budget_and_names_the_key() -> None:
    judgement = check(tangle(60), steps_per_key=500)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.undecided == (KEY,)
    assert judgement.steps <= 1000
    assert "undecided" in judgement.explain()


def test_one_hard_key_hides_no_fault_on_another() -> None:
    bad = [get(0, 1, "a", b"z")]
    assert check(tangle(60) + bad, steps_per_key=500).key == b"z"


def simulated(operations: int, keys: int, concurrency: int, distinct: int) -> list[Operation]:
    """What correct registers would have answered: each operation takes effect at one instant of its interval."""
    chance = random.Random(f"{operations} {keys} {concurrency}")
    state: dict[bytes, bytes | None] = {}
    history: list[Operation] = []
    for number in range(operations):
        at = float(number)
        called, returned = at - chance.random() * concurrency / 2, at + chance.random() * concurrency / 2
        key = b"%d" % chance.randrange(keys)
        value = b"%d" % chance.randrange(distinct)
        now = state.get(key)
        known = Outcome.OK if chance.random() < 0.98 else Outcome.UNKNOWN
        match chance.randrange(5):
            case 0 | 1:
                history.append(Operation(Kind.GET, key, called, returned, now))
            case 2:
                history.append(Operation(Kind.PUT, key, called, returned, value, known))
                state[key] = value
            case 3:
                history.append(Operation(Kind.DELETE, key, called, returned, None, known))
                state[key] = None
            case _:
                expected = now if chance.random() < 0.7 else value
                done = expected == now
                history.append(
                    Operation(Kind.SWAP, key, called, returned, value, known, expected, swapped=done, previous=now)
                )
                state[key] = value if done else now
    return history


@pytest.mark.parametrize(
    ("operations", "keys", "concurrency", "distinct"),
    [(100_000, 1000, 64, 10**9), (20_000, 1000, 400, 10**9), (4_000, 1, 30, 10**9), (4_000, 20, 40, 5)],
    ids=["many", "400 at once on many keys", "one key, distinct values", "few values"],
)
def test_judges_big_histories_almost_without_search(
    operations: int, keys: int, concurrency: int, distinct: int
) -> None:
    judgement = check(simulated(operations, keys, concurrency, distinct))
    assert judgement.verdict is GOOD
    assert judgement.steps < 6 * operations


def test_four_hundred_at_once_on_one_key() -> None:
    puts = [put(i / 1000, 10 + i / 1000, f"{i}") for i in range(200)]
    gets = [get(i / 1000, 10 + i / 1000, f"{199 - i}") for i in range(200)]
    judgement = check([*puts, *gets])
    assert judgement.verdict is GOOD
    assert judgement.steps < 2000
    bad = check([*puts, *gets, get(20, 21, "7"), get(22, 23, "8")])
    assert bad.verdict is BAD
    assert bad.operations == (puts[7], puts[8], *bad.operations[2:])
    assert len(bad.operations) == 4


def test_finds_the_one_wrong_answer_in_a_big_history() -> None:
    history = simulated(5_000, 10, 20, 10**9)
    place = next(i for i in range(4_000, 5_000) if history[i].kind is Kind.GET and history[i].value is not None)
    key = history[place].key
    first = next(op for op in history if op.key == key and op.kind is Kind.PUT and op.outcome is Outcome.OK)
    history[place] = replace(history[place], value=first.value)
    judgement = check(history)
    assert (judgement.verdict, judgement.key) == (BAD, key)
    assert history[place] in judgement.operations
    assert len(judgement.operations) <= 4


@pytest.mark.parametrize("concurrency", [10, 60, 200])
def test_a_stale_read_is_found_however_much_goes_on_at_once(concurrency: int) -> None:
    history = simulated(2_000, 1, concurrency, 10**9)
    old = next(op for op in history[:200] if op.kind is Kind.PUT and op.outcome is Outcome.OK)
    place = next(i for i in range(1_500, 2_000) if history[i].kind is Kind.GET)
    history[place] = replace(history[place], value=old.value)
    judgement = check(history)
    assert judgement.verdict is BAD
    assert len(judgement.operations) <= 4


# --- against brute force ---


def apply(operation: Operation, value: bytes | None) -> tuple[bool, bytes | None]:
    """Whether the operation may stand here with what it answered, and the value after it."""
    known = operation.outcome is Outcome.OK
    match operation.kind:
        case Kind.GET:
            return not known or operation.value == value, value
        case Kind.PUT:
            return True, operation.value
        case Kind.DELETE:
            return True, None
        case Kind.SWAP:
            done = value == operation.expected
            fits = not known or (operation.swapped == done and operation.previous == value)
            return fits, operation.value if done else value


def fits(order: Sequence[Operation]) -> bool:
    value: bytes | None = None
    for place, operation in enumerate(order):
        if any(later.outcome is Outcome.OK and later.returned < operation.called for later in order[place + 1 :]):
            return False
        allowed, value = apply(operation, value)
        if not allowed:
            return False
    return True


def brute_force(history: Sequence[Operation]) -> Verdict:
    """Every order of every choice of the operations that may or may not have happened."""
    certain = [op for op in history if op.outcome is Outcome.OK]
    perhaps = [op for op in history if op.outcome is Outcome.UNKNOWN]
    for count in range(len(perhaps) + 1):
        for chosen in itertools.combinations(perhaps, count):
            if any(fits(order) for order in itertools.permutations([*certain, *chosen])):
                return GOOD
    return BAD


VALUES = st.sampled_from([None, b"a", b"b"])
WRITTEN = st.sampled_from([b"a", b"b", b"c"])


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    called = draw(st.integers(0, 8))
    returned = called + draw(st.integers(0, 4))
    kind = draw(st.sampled_from([Kind.GET, Kind.GET, Kind.PUT, Kind.DELETE, Kind.SWAP]))
    outcome = draw(st.sampled_from([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED]))
    value = draw({Kind.GET: VALUES, Kind.DELETE: st.none()}.get(kind, WRITTEN))
    if kind is not Kind.SWAP:
        return Operation(kind, KEY, called, returned, value, outcome)
    expected, previous = draw(VALUES), draw(VALUES)
    honest = draw(st.integers(0, 9)) > 0
    swapped = (expected == previous) is honest
    return Operation(kind, KEY, called, returned, value, outcome, expected, swapped, previous)


@settings(max_examples=600)
@given(st.lists(operations(), max_size=6))
@example([put(0, 9, "a"), put(0, 9, "a"), get(1, 2, "a"), delete(3, 4), get(5, 6, "a")])
def test_agrees_with_brute_force(history: list[Operation]) -> None:
    judgement = check(history)
    assert judgement.verdict is brute_force(history)
    if judgement.verdict is BAD:
        assert_is_a_reason(judgement, history)


def assert_is_a_reason(judgement: Judgement, history: Sequence[Operation]) -> None:
    assert all(operation in history for operation in judgement.operations)
    assert brute_force(judgement.operations) is BAD


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_accepts_whatever_a_correct_register_answers(seed: int, distinct: int) -> None:
    chance = random.Random(seed)
    value: bytes | None = None
    history: list[Operation] = []
    for number in range(40):
        called, returned = number - chance.random() * 8, number + chance.random() * 8
        new = b"%d" % chance.randrange(distinct)
        match chance.randrange(4):
            case 0:
                history.append(Operation(Kind.GET, KEY, called, returned, value))
            case 1:
                history.append(Operation(Kind.PUT, KEY, called, returned, new))
                value = new
            case 2:
                history.append(unknown(Operation(Kind.PUT, KEY, called, called, new)))
                value = new if chance.random() < 0.5 else value
            case _:
                expected = chance.choice([value, new])
                done = expected == value
                history.append(
                    Operation(Kind.SWAP, KEY, called, returned, new, expected=expected, swapped=done, previous=value)
                )
                value = new if done else value
    assert check(history).verdict is GOOD
