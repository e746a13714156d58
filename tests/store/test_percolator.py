"""Every rule of the transactions, on one key or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from txn_bench import Bench, Op, delete, insert, kind_of, put, ts

from drillyard.emulator.store.mvcc import MAX_TS, LockKind, Write, WriteKind
from drillyard.emulator.store.percolator import Released
from drillyard.emulator.store.state import Family, Span
from drillyard.emulator.store.transactions import Kind, apply_transaction, garbage_of
from drillyard.wire import keys, kvrpcpb

K, L = b"k", b"l"
LONG = b"x" * 256
Reason = kvrpcpb.WriteConflict.Reason


@pytest.fixture
def bench() -> Bench:
    return Bench()


def error_of(answer: Any) -> kvrpcpb.KeyError:
    error: kvrpcpb.KeyError = answer.errors[0] if hasattr(answer, "errors") else answer.error
    return error


# ---- two phases ----


@pytest.mark.parametrize("value", [b"", b"short", b"x" * 255, LONG])
def test_a_value_is_there_from_its_commit_on(bench: Bench, value: bytes) -> None:
    assert bench.prewrite(10, put(K, value), put(L, b"other")) == ""
    assert bench.get(K, 9) is None
    assert bench.get(K, 10) == bench.get(L, 30) == "locked"
    assert bench.commit(10, 20, K) == ""
    assert [bench.get(K, at) for at in (19, 20, MAX_TS)] == [None, value, value]
    assert bench.commit(10, 20, L) == ""
    assert bench.scan(20) == [(K, value), (L, b"other")]
    assert bench.state.scan(Span(b"", b"", Family.LOCK), 9) == []
    assert len(bench.state.scan(Span(b"", b""), 9)) == (len(value) > 255)


def test_a_delete_hides_and_a_lock_does_not(bench: Bench) -> None:
    bench.write(10, 20, put(K, LONG))
    bench.write(30, 40, kvrpcpb.Mutation(op=Op.Lock, key=K))
    bench.write(50, 60, delete(K))
    assert [bench.get(K, at) for at in (20, 45, 60)] == [LONG, LONG, None]


def test_whatever_comes_twice_succeeds_and_changes_nothing(bench: Bench) -> None:
    def twice(act: Callable[[], str]) -> None:
        assert act() == ""
        before = {family: dict(pairs) for family, pairs in bench.state.pairs.items()}
        assert act() == ""
        assert bench.state.pairs == before

    twice(lambda: bench.prewrite(10, put(K)))
    twice(lambda: bench.commit(10, 20, K))
    twice(lambda: bench.roll_back(30, K))
    twice(lambda: kind_of(bench.lock(40, 40, K)))
    twice(lambda: bench.prewrite(40, put(K), for_update_ts=40, pessimistic_actions=[1]))
    twice(lambda: bench.resolve(40, 0, K))
    twice(lambda: kind_of(bench.check(50, K, rollback_if_not_exist=True)))


@pytest.mark.parametrize(
    ("mutation", "start", "expected"),
    [
        (put(K), 15, "conflict"),  # it began before the commit that is there
        (put(K), 20, ""),  # another transaction's commit at its very start
        (put(K), 25, ""),
        (insert(K), 25, "already_exist"),
        (insert(b"new"), 25, ""),
        (insert(b"gone"), 25, ""),
        (insert(b"touched"), 55, "already_exist"),  # a lock record hides nothing
        (kvrpcpb.Mutation(op=Op.CheckNotExists, key=K), 25, "already_exist"),
        (kvrpcpb.Mutation(op=Op.CheckNotExists, key=b"new"), 25, ""),
        (kvrpcpb.Mutation(op=Op.Rollback, key=K), 25, "abort"),
        (kvrpcpb.Mutation(op=Op.PessimisticLock, key=K), 25, "abort"),
    ],
)
def test_prewrite_against_what_is_committed(
    bench: Bench, mutation: kvrpcpb.Mutation, start: int, expected: str
) -> None:
    bench.write(10, 20, put(K), put(b"gone"), put(b"touched"))
    bench.write(21, 22, delete(b"gone"))
    bench.write(30, 40, kvrpcpb.Mutation(op=Op.Lock, key=b"touched"))
    assert bench.prewrite(start, mutation, primary_lock=K) == expected
    is_locked = bench.lock_of(mutation.key) is not None
    assert is_locked == (expected == "" and mutation.op != Op.CheckNotExists)


def test_a_conflict_says_with_whom(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    assert bench.prewrite(15, put(K), primary_lock=L) == "conflict"
    error = bench.outcome.answer.errors[0]
    assert error.conflict == kvrpcpb.WriteConflict(
        start_ts=15, conflict_ts=10, conflict_commit_ts=20, key=K, primary=L, reason=Reason.Optimistic
    )
    assert error.retryable  # for old clients


def test_all_locks_in_the_way_are_told_and_nothing_is_written(bench: Bench) -> None:
    bench.prewrite(10, put(K), put(L), lock_ttl=77)
    assert bench.prewrite(20, put(b"a"), put(K), put(L)) == "locked"
    errors = bench.outcome.answer.errors
    assert [(error.locked.key, error.locked.primary_lock) for error in errors] == [(K, K), (L, K)]
    assert errors[0].locked.lock_version == 10
    assert errors[0].locked.lock_ttl == 77
    assert bench.lock_of(b"a") is None


@pytest.mark.parametrize(
    ("assertion", "level", "key", "expected"),
    [
        ("Exist", 2, K, ""),
        ("Exist", 2, L, "assertion_failed"),
        ("NotExist", 2, L, ""),
        ("NotExist", 2, K, "assertion_failed"),
        ("NotExist", 1, K, "assertion_failed"),
        ("Exist", 1, L, ""),  # no record was read that could tell
        ("NotExist", 0, K, ""),
    ],
)
def test_assertions(bench: Bench, assertion: Any, level: Any, key: bytes, expected: str) -> None:
    bench.write(10, 20, put(K))
    assert bench.prewrite(30, put(key, assertion=assertion), assertion_level=level) == expected
    if expected:
        failed = bench.outcome.answer.errors[0].assertion_failed
        assert (failed.existing_start_ts, failed.existing_commit_ts) == ((10, 20) if key == K else (0, 0))


def test_a_commit_needs_its_lock_and_the_least_timestamp(bench: Bench) -> None:
    assert bench.commit(10, 20, K) == "retryable"
    assert bench.prewrite(10, put(K), min_commit_ts=30) == ""
    assert bench.commit(10, 10, K) == "abort"
    assert bench.commit(10, 29, K) == "commit_ts_expired"
    assert bench.outcome.answer.error.commit_ts_expired.min_commit_ts == 30
    assert bench.commit(10, 30, K) == ""
    assert bench.outcome.released == (Released(keys.encode(K), 10, 30),)
    assert bench.roll_back(10, K) == "abort"


def test_a_command_takes_effect_as_a_whole_or_not_at_all(bench: Bench) -> None:
    bench.prewrite(10, put(K))
    assert bench.commit(10, 20, K, L) == "retryable"
    assert bench.lock_of(K) is not None


# ---- rollback ----


def test_what_was_rolled_back_never_comes_back(bench: Bench) -> None:
    bench.prewrite(10, put(K, LONG))
    assert bench.roll_back(10, K) == ""
    assert bench.state.scan(Span(b"", b""), 9) == []  # the long value is gone too
    assert bench.prewrite(10, put(K)) == "conflict"
    assert error_of(bench.outcome.answer).conflict.reason == Reason.SelfRolledBack
    assert bench.commit(10, 20, K) == "retryable"
    assert bench.roll_back(30, L) == ""  # before its prewrite came
    assert bench.prewrite(30, put(L)) == "conflict"


def test_later_rollbacks_replace_earlier_ones_unless_they_are_protected(bench: Bench) -> None:
    for start in (10, 20, 30):
        bench.roll_back(start, K)
    assert set(bench.writes_of(K)) == {30}
    bench.check(40, K, rollback_if_not_exist=True)
    bench.roll_back(50, K)
    bench.roll_back(60, K)
    assert set(bench.writes_of(K)) == {30, 40, 60}
    assert bench.writes_of(K)[40].is_protected


def test_a_rollback_shares_the_place_of_a_commit(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    bench.roll_back(20, K)  # unprotected: the commit's record stays as it is
    assert bench.writes_of(K) == {20: Write(WriteKind.PUT, 10, b"v")}
    bench.check(20, K, rollback_if_not_exist=True)
    assert bench.writes_of(K) == {20: Write(WriteKind.PUT, 10, b"v", has_overlapped_rollback=True)}
    assert bench.prewrite(20, put(K)) == "conflict"
    assert bench.get(K, 20) == b"v"
    assert bench.check(20, K).action == kvrpcpb.Action.NoAction


def test_a_lock_remembers_a_rollback_at_the_time_of_its_commit(bench: Bench) -> None:
    bench.prewrite(10, put(K))
    bench.check(20, K, rollback_if_not_exist=True)
    assert bench.commit(10, 20, K) == ""
    assert bench.writes_of(K)[20].has_overlapped_rollback
    assert bench.prewrite(20, put(K)) == "conflict"


def test_clean_up_waits_for_the_time_to_live(bench: Bench) -> None:
    bench.prewrite(ts(1000), put(K), lock_ttl=500)
    assert kind_of(bench.clean_up(ts(1000), K, ts(1500))) == "locked"
    assert kind_of(bench.clean_up(ts(1000), K, ts(1501))) == ""
    assert bench.lock_of(K) is None
    bench.write(ts(2000), ts(2001), put(K))
    assert bench.clean_up(ts(2000), K, 0).commit_version == ts(2001)


# ---- the state of a transaction ----


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ({"now": ts(1500)}, {"lock_ttl": 500, "action": "NoAction"}),
        ({"now": ts(1501)}, {"action": "TTLExpireRollback"}),
        ({"caller": ts(900)}, {"lock_ttl": 500, "action": "MinCommitTSPushed"}),  # the reader began before
        ({"caller": ts(1200), "now": ts(1300)}, {"lock_ttl": 500, "action": "MinCommitTSPushed"}),
        ({"caller": MAX_TS}, {"lock_ttl": 500, "action": "MinCommitTSPushed"}),
        ({"verify_is_primary": True}, {"lock_ttl": 500}),
    ],
)
def test_the_state_of_a_living_transaction(bench: Bench, check: dict[str, Any], expected: dict[str, Any]) -> None:
    start = ts(1000)
    bench.prewrite(start, put(K), lock_ttl=500, min_commit_ts=start + 1)
    answer = bench.check(start, K, **check)
    for name, value in expected.items():
        assert getattr(answer, name) == (kvrpcpb.Action.Value(value) if name == "action" else value)
    assert (bench.lock_of(K) is None) == (expected.get("action") == "TTLExpireRollback")


def test_pushing_lets_a_reader_pass(bench: Bench) -> None:
    start = ts(1000)
    bench.prewrite(start, put(K), put(L), min_commit_ts=start + 1)
    reader = ts(1200)
    assert bench.get(L, reader) == "locked"
    assert bench.check(start, K, caller=reader, now=ts(1100)).lock_info.min_commit_ts == reader + 1
    assert bench.get(L, reader, resolved=frozenset({start})) is None
    assert bench.get(K, reader) is None  # the primary's own lock tells
    assert bench.commit(start, reader, K) == "commit_ts_expired"


def test_the_state_of_a_transaction_without_a_lock(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    assert bench.check(10, K).commit_version == 20
    bench.roll_back(30, K)
    rolled_back = bench.check(30, K)
    assert (rolled_back.commit_version, rolled_back.action) == (0, kvrpcpb.Action.NoAction)
    missing = bench.check(40, K)
    assert missing.error.txn_not_found == kvrpcpb.TxnNotFound(start_ts=40, primary_key=K)
    nothing = bench.check(40, K, rollback_if_not_exist=True, resolving_pessimistic_lock=True)
    assert nothing.action == kvrpcpb.Action.LockNotExistDoNothing
    assert bench.check(40, K, rollback_if_not_exist=True).action == kvrpcpb.Action.LockNotExistRollback
    assert bench.prewrite(40, put(K)) == "conflict"


def test_a_lock_that_is_not_the_primary(bench: Bench) -> None:
    bench.prewrite(10, put(K), primary_lock=L)
    mismatch = bench.check(10, K, now=ts(9999), verify_is_primary=True).error.primary_mismatch
    assert (mismatch.lock_info.key, mismatch.lock_info.primary_lock) == (K, L)
    assert bench.lock_of(K) is not None


def test_an_expired_pessimistic_lock_leaves_no_record_for_a_resolver(bench: Bench) -> None:
    bench.lock(ts(1000), ts(1000), K, lock_ttl=10)
    answer = bench.check(ts(1000), K, now=ts(2000), resolving_pessimistic_lock=True)
    assert answer.action == kvrpcpb.Action.TTLExpirePessimisticRollback
    assert bench.writes_of(K) == {}
    bench.lock(ts(1000), ts(1000), K, lock_ttl=10)
    assert bench.check(ts(1000), K, now=ts(2000)).action == kvrpcpb.Action.TTLExpireRollback
    assert bench.writes_of(K)[ts(1000)].is_protected


def test_heart_beats_prolong_and_never_shorten(bench: Bench) -> None:
    bench.prewrite(10, put(K), lock_ttl=100)
    assert [bench.heart_beat(10, K, ttl).lock_ttl for ttl in (50, 300, 200)] == [100, 300, 300]
    assert bench.heart_beat(11, K, 1).error.HasField("txn_not_found")


def test_checking_secondaries(bench: Bench) -> None:
    bench.prewrite(10, put(K), put(L))
    assert [lock.key for lock in bench.check_secondaries(10, K, L).locks] == [K, L]
    bench.commit(10, 20, K)
    assert bench.check_secondaries(10, L, K).commit_ts == 20
    missing = bench.check_secondaries(30, b"m")
    assert (list(missing.locks), missing.commit_ts) == ([], 0)
    assert bench.prewrite(30, put(b"m")) == "conflict"
    bench.lock(40, 40, b"p")
    bench.check_secondaries(40, b"p")
    assert bench.lock_of(b"p") is None
    assert bench.prewrite(40, put(b"p"), for_update_ts=40, pessimistic_actions=[1]) == "abort"


def test_resolving(bench: Bench) -> None:
    bench.prewrite(10, put(K), put(L))
    assert bench.resolve(10, 20, K) == ""
    assert bench.resolve(10, 0, L) == ""
    assert (bench.get(K, 30), bench.get(L, 30)) == (b"v", None)
    assert bench.resolve(10, 25, b"m") == "retryable"
    assert bench.resolve(10, 25, b"m", kind=Kind.RESOLVE_FOUND) == ""
    assert bench.resolve(10, 9, b"m", kind=Kind.RESOLVE_FOUND) == "abort"


# ---- pessimistic ----


def test_a_pessimistic_lock_keeps_writers_away_and_no_readers(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    assert kind_of(bench.lock(30, 30, K)) == ""
    assert bench.get(K, 40) == b"v"
    assert bench.prewrite(40, put(K)) == "locked"
    assert bench.outcome.blocked is not None
    assert kind_of(bench.lock(50, 50, K)) == "locked"
    assert bench.prewrite(30, put(K, b"w"), for_update_ts=30, pessimistic_actions=[1]) == ""
    assert bench.commit(30, 60, K) == ""
    assert bench.get(K, 60) == b"w"


@pytest.mark.parametrize(
    ("fields", "values", "not_founds"),
    [
        ({}, [], []),
        ({"return_values": True}, [b"v", b""], [False, True]),
        ({"check_existence": True}, [], [False, True]),
    ],
)
def test_what_a_pessimistic_lock_returns(
    bench: Bench, fields: dict[str, Any], values: list[bytes], not_founds: list[bool]
) -> None:
    bench.write(10, 20, put(K))
    bench.write(21, 22, kvrpcpb.Mutation(op=Op.Lock, key=K))
    for _ in range(2):  # the second time it has the locks
        answer = bench.lock(30, 30, K, L, **fields)
        assert (list(answer.values), list(answer.not_founds)) == (values, not_founds)


def test_a_pessimistic_lock_against_what_is_committed(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    conflict = bench.lock(5, 15, K).errors[0].conflict
    assert (conflict.conflict_commit_ts, conflict.reason) == (20, Reason.PessimisticRetry)
    assert kind_of(bench.lock(5, 20, K)) == ""
    assert bench.unlock(5, 19, K) == ""
    assert bench.lock_of(K) is not None  # it was renewed since
    assert bench.unlock(5, 20, K) == ""
    assert bench.lock_of(K) is None
    assert kind_of(bench.lock(30, 30, K, must_be_new=True)) == "already_exist"
    bench.roll_back(40, K)
    assert kind_of(bench.lock(40, 50, K)) == "abort"


def test_locking_only_what_exists(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    assert kind_of(bench.lock(30, 30, K, L, return_values=True, lock_only_if_exists=True)) == ""
    assert (bench.lock_of(K) is None, bench.lock_of(L) is None) == (False, True)
    assert kind_of(bench.lock(40, 40, b"m", lock_only_if_exists=True)) == "abort"


def test_a_forced_lock_is_taken_in_spite_of_a_conflict(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    forced = kvrpcpb.PessimisticLockWakeUpMode.WakeUpModeForceLock
    (result,) = bench.lock(5, 15, K, wake_up_mode=forced).results
    assert result.type == kvrpcpb.PessimisticLockKeyResultType.LockResultLockedWithConflict
    assert (result.locked_with_conflict_ts, result.value, result.existence) == (20, b"v", True)
    lock = bench.lock_of(K)
    assert lock is not None
    assert (lock.kind, lock.for_update_ts) == (LockKind.PESSIMISTIC, 20)


@pytest.mark.parametrize(
    ("history", "check", "expected"),
    [
        ("kept", 1, ""),
        ("lost", 1, ""),  # nobody has written since: the lock is made up for
        ("lost and written", 1, "abort"),
        ("taken by another", 1, "abort"),
        ("taken by another", 0, "locked"),
        ("lost and written", 0, ""),  # the client relies on another key's lock
        ("lost and written", 2, "conflict"),
        ("lost", 2, ""),
    ],
)
def test_prewrite_over_a_pessimistic_lock(bench: Bench, history: str, check: Any, expected: str) -> None:
    bench.lock(30, 30, K)
    if history != "kept":
        bench.unlock(30, 30, K)
    if history == "lost and written":
        bench.write(40, 50, put(K))
    if history == "taken by another":
        bench.lock(40, 40, K)
    assert bench.prewrite(30, put(K), for_update_ts=30, pessimistic_actions=[check]) == expected
    if expected == "locked":
        assert error_of(bench.outcome.answer).locked.lock_ttl == 0  # to be resolved at once


def test_prewrite_keeps_what_was_made_of_the_pessimistic_lock(bench: Bench) -> None:
    bench.lock(30, 30, K, lock_ttl=100, min_commit_ts=31)
    bench.heart_beat(30, K, 9000)
    bench.check(30, K, caller=70)
    bench.prewrite(30, put(K), for_update_ts=30, pessimistic_actions=[1], lock_ttl=100)
    lock = bench.lock_of(K)
    assert lock is not None
    assert (lock.ttl_ms, lock.min_commit_ts) == (9000, 71)


def test_optimistic_and_pessimistic_do_not_mix(bench: Bench) -> None:
    bench.lock(30, 30, K)
    assert bench.prewrite(30, put(K)) == "abort"
    bench.prewrite(40, put(L))
    assert kind_of(bench.lock(40, 40, L)) == "abort"
    constraint = kvrpcpb.PrewriteRequest.ForUpdateTSConstraint(index=0, expected_for_update_ts=29)
    refused = bench.prewrite(
        30, put(K), for_update_ts=30, pessimistic_actions=[1], for_update_ts_constraints=[constraint]
    )
    assert refused == "abort"


def test_a_pessimistic_lock_left_behind_is_committed_as_a_lock(bench: Bench) -> None:
    bench.write(10, 20, put(K))
    bench.lock(30, 30, K)
    assert bench.commit(30, 40, K) == ""
    assert bench.writes_of(K)[40].kind is WriteKind.LOCK
    assert bench.get(K, 50) == b"v"


# ---- reading ----


def test_who_may_pass_a_lock(bench: Bench) -> None:
    bench.write(10, 20, put(K, b"old"))
    bench.prewrite(30, put(K, b"new"), put(L, LONG), primary_lock=K)
    assert bench.get(K, 29) == b"old"
    assert bench.get(K, 30) == "locked"
    assert bench.get(K, 40, ignores_locks=True) == b"old"
    assert bench.get(K, 40, resolved=frozenset({30})) == b"old"
    assert bench.get(K, 40, committed=frozenset({30})) == b"new"
    assert bench.get(L, 40, committed=frozenset({30})) == LONG
    assert bench.get(K, MAX_TS) == b"old"  # the primary is not committed yet
    assert bench.get(L, MAX_TS) == "locked"
    assert bench.scan(40) == [(K, "locked"), (L, "locked")]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_many_slices(bench: Bench, reverse: bool) -> None:
    expected: dict[bytes, bytes | str] = {}
    for number in range(400):
        key = b"%04d" % number
        bench.write(10, 20, put(key, LONG if number % 7 == 0 else b"v"))
        expected[key] = LONG if number % 7 == 0 else b"v"
    for time in range(30, 1100, 2):  # more versions of one key than a slice holds
        bench.write(time, time + 1, put(b"0100", b"%d" % time))
    expected[b"0100"] = b"1098"
    for number in range(100, 400):
        if number % 3 == 0:
            bench.write(2000, 2001, delete(b"%04d" % number))
            del expected[b"%04d" % number]
    for number in range(300):  # more locks than a slice holds, on keys that exist and others
        key = b"%04d.5" % number
        bench.prewrite(3000, put(key))
        expected[key] = "locked"
    rows = sorted(expected.items(), reverse=reverse)
    assert bench.scan(4000, reverse=reverse) == rows
    assert bench.scan(4000, reverse=reverse, limit=333) == rows[:333]
    assert bench.scan(4000, b"0050", b"0110", reverse=reverse) == [row for row in rows if b"0050" <= row[0] < b"0110"]
    assert bench.scan(25, b"0100", b"0101", reverse=reverse) == [(b"0100", b"v")]
    assert bench.scan(4000, limit=1, key_only=True) == [(b"0000", b"")]


# ---- garbage ----


def test_garbage_collection_changes_nothing_that_a_reader_sees(bench: Bench) -> None:
    bench.write(10, 20, put(K, LONG))
    bench.write(30, 40, put(K, b"x" * 300))
    bench.write(45, 46, kvrpcpb.Mutation(op=Op.Lock, key=K))
    bench.roll_back(47, K)
    bench.write(60, 70, delete(K))
    bench.write(80, 90, put(K, b"last"))
    bench.write(10, 20, put(L))
    bench.write(30, 40, delete(L))
    ask = [(key, at) for key in (K, L) for at in (50, 55, 70, 75, 90, MAX_TS)]
    before = [bench.get(*question) for question in ask]
    both = [keys.encode(K), keys.encode(L)]
    apply_transaction(garbage_of(both, 50).record, bench.state, lambda key, value: None)
    assert [bench.get(*question) for question in ask] == before
    assert set(bench.writes_of(K)) == {40, 70, 90}
    assert bench.writes_of(L) == {}
    assert len(bench.state.scan(Span(b"", b""), 9)) == 1
    apply_transaction(garbage_of(both, 75).record, bench.state, lambda key, value: None)
    assert set(bench.writes_of(K)) == {90}


# ---- what must never stop a store ----


@pytest.mark.parametrize(
    "act",
    [
        lambda bench: bench.prewrite(0, put(K)),
        lambda bench: bench.roll_back(0, K),
        lambda bench: bench.prewrite(1, put(K), assertion_level=9),
        lambda bench: bench.prewrite(1, put(K), for_update_ts=1, pessimistic_actions=[7]),
        lambda bench: bench.prewrite(1, kvrpcpb.Mutation(op=99, key=K)),  # type: ignore[arg-type]
        lambda bench: kind_of(bench.check(MAX_TS, K, caller=MAX_TS, now=MAX_TS, rollback_if_not_exist=True)),
        lambda bench: bench.prewrite(MAX_TS, put(K), primary_lock=b"", lock_ttl=MAX_TS, min_commit_ts=MAX_TS),
    ],
)
def test_numbers_without_meaning_are_answered(bench: Bench, act: Callable[[Bench], str]) -> None:
    assert act(bench) in ("", "abort")


@pytest.mark.parametrize("family", [Family.LOCK, Family.WRITE])
def test_foreign_bytes_are_answered(bench: Bench, family: Family) -> None:
    key = keys.encode(K)
    bench.state.put(key if family is Family.LOCK else key + b"\0" * 8, b"P", family)
    assert bench.prewrite(10, put(K)) == "abort"
    assert bench.roll_back(10, K) == "abort"
    bench.state.delete_range(Span(b"", b"", family))
    bench.write(10, 20, put(K, LONG))
    bench.state.delete_range(Span(b"", b""))
    assert kind_of(bench.lock(30, 30, K, return_values=True)) == "abort"
