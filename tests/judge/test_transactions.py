"""Strict serializability of transactions: tables, histories of banks with planted wrongs, and every order by force."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.checked_histories import of_a_bank
from drillyard.judge.consistency import Outcome, Verdict
from drillyard.judge.transactions import Transaction, check

A, B = b"a", b"b"
FINE, WRONG = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE


def took(called: float, returned: float, **more: object) -> Transaction:
    return Transaction(called, returned, **more)  # type: ignore[arg-type]


BOTH_0 = {A: b"0", B: b"0"}
TABLE: list[tuple[str, Verdict, list[Transaction]]] = [
    ("nothing", FINE, []),
    ("a read of what was there", FINE, [took(0, 1, reads=BOTH_0)]),
    ("a read of what never was", WRONG, [took(0, 1, reads={A: b"1"})]),
    ("a stale read", WRONG, [took(0, 1, writes={A: b"1"}), took(2, 3, reads={A: b"0"})]),
    ("an old value while the write is under way", FINE, [took(0, 4, writes={A: b"1"}), took(1, 3, reads={A: b"0"})]),
    (
        "a torn read",
        WRONG,
        [took(0, 4, writes={A: b"1", B: b"1"}), took(1, 3, reads={A: b"1", B: b"0"})],
    ),
    (
        "a lost update",
        WRONG,
        [took(0, 4, reads={A: b"0"}, writes={A: b"1"}), took(0, 4, reads={A: b"0"}, writes={A: b"2"})],
    ),
    (
        "write skew, which snapshot isolation allows",
        WRONG,
        [took(0, 4, reads=BOTH_0, writes={A: b"1"}), took(0, 4, reads=BOTH_0, writes={B: b"1"})],
    ),
    (
        "two reads that disagree on the order of two writes",
        WRONG,
        [
            took(0, 9, writes={A: b"1"}),
            took(0, 9, writes={B: b"1"}),
            took(1, 8, reads={A: b"1", B: b"0"}),
            took(1, 8, reads={A: b"0", B: b"1"}),
        ],
    ),
    (
        "an unknown outcome that was seen",
        FINE,
        [took(0, 1, writes={A: b"1"}, outcome=Outcome.UNKNOWN), took(5, 6, reads={A: b"1"})],
    ),
    (
        "an unknown outcome that was seen before its call",
        WRONG,
        [took(5, 6, writes={A: b"1"}, outcome=Outcome.UNKNOWN), took(0, 1, reads={A: b"1"})],
    ),
    (
        "an unknown outcome, seen by half",
        WRONG,
        [took(0, 1, writes={A: b"1", B: b"1"}, outcome=Outcome.UNKNOWN), took(5, 6, reads={A: b"1", B: b"0"})],
    ),
    (
        "a failure that was seen",
        WRONG,
        [took(0, 1, writes={A: b"1"}, outcome=Outcome.FAILED), took(5, 6, reads={A: b"1"})],
    ),
]


@pytest.mark.parametrize(("verdict", "history"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_verdict(verdict: Verdict, history: list[Transaction]) -> None:
    judged = check(history, initial=BOTH_0)
    assert judged.verdict is verdict, judged.explain()


def test_a_verdict_says_what_cannot_follow() -> None:
    judged = check(TABLE[3][2], initial=BOTH_0)
    assert judged.placed == 1
    assert judged.explain().splitlines() == [
        "not strictly serializable: 1 transactions fit an order, and none of these can follow",
        "  [2.000000 → 3.000000] read b'a' = b'0', wrote nothing",
    ]


# ---- a bank ----


def torn(history: list[Transaction], at: int) -> Transaction:
    """An audit with one account from some time before."""
    seen = dict(history[at].reads)
    audits = [each for each in history[:at] if not each.writes and each.returned < history[at].called]
    changed = [(key, old.reads[key]) for old in audits for key in seen if old.reads[key] != seen[key]]
    key, value = changed[-1]
    return replace(history[at], reads=seen | {key: value})


def half(history: list[Transaction], at: int) -> Transaction:
    """A transfer of which one account was not written."""
    return replace(history[at], writes=dict(list(history[at].writes.items())[:1]))


def unread(history: list[Transaction], at: int) -> Transaction:
    """A transfer that read another balance than there was."""
    key, value = next(iter(history[at].reads.items()))
    assert value is not None
    return replace(history[at], reads=dict(history[at].reads) | {key: b"%d" % (int(value) + 1)})


@pytest.mark.parametrize("seed", range(4))
def test_the_history_of_a_bank_is_decided(seed: int) -> None:
    history, opening = of_a_bank(400, seed)
    assert {each.outcome for each in history} == set(Outcome)
    judged = check(history, initial=opening)
    assert judged.verdict is FINE, judged.explain()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrong", [torn, half, unread])
def test_one_wrong_transaction_among_hundreds_is_found(
    wrong: Callable[[list[Transaction], int], Transaction], seed: int
) -> None:
    history, opening = of_a_bank(400, seed)
    wanted = [
        at
        for at, each in enumerate(history)
        if at > 200 and each.outcome is Outcome.OK and bool(each.writes) == (wrong is not torn)
    ]
    at = random.Random(seed).choice(wanted)
    history[at] = wrong(history, at)
    judged = check(history, initial=opening)
    assert judged.verdict is WRONG, judged.explain()


# ---- every order ----


def by_force(history: list[Transaction], initial: dict[bytes, bytes]) -> Verdict:
    required = [each for each in history if each.outcome is Outcome.OK]
    hopeful = [each for each in history if each.outcome is Outcome.UNKNOWN]
    chosen = chain.from_iterable(combinations(hopeful, size) for size in range(len(hopeful) + 1))
    orders = (order for some in chosen for order in permutations([*required, *some]))
    return FINE if any(fits(order, initial) for order in orders) else WRONG


def fits(order: Iterable[Transaction], initial: dict[bytes, bytes]) -> bool:
    values: dict[bytes, bytes | None] = dict(initial)
    latest = 0.0  # the call that came last so far: nobody after it may have returned before it
    for each in order:
        returned = each.returned if each.outcome is Outcome.OK else float("inf")
        if returned < latest or any(values.get(key) != value for key, value in each.reads.items()):
            return False
        latest = max(latest, each.called)
        values.update(each.writes)
    return True


values = st.sampled_from([None, b"0", b"1"])
pairs = st.dictionaries(st.sampled_from([A, B]), values, max_size=2)
transactions = st.builds(
    lambda called, lasting, reads, writes, outcome: Transaction(called, called + lasting, reads, writes, outcome),
    st.integers(0, 6),
    st.integers(0, 4),
    pairs,
    pairs,
    st.sampled_from([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED]),
)


@given(st.lists(transactions, max_size=5))
def test_the_search_agrees_with_every_order(history: list[Transaction]) -> None:
    assert check(history, initial=BOTH_0).verdict is by_force(history, BOTH_0)


def test_a_search_that_is_too_long_is_not_guessed() -> None:
    history = [took(0, 9, writes={A: b"%d" % number}) for number in range(12)]
    history.append(took(0, 9, reads={A: b"never"}))
    assert check(history, steps=5_000).verdict is Verdict.UNDECIDED
