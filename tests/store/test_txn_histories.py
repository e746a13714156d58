"""Snapshot isolation under every order of events that the seeds bring, and bugs that must not pass for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from txn_world import World

from drillyard.emulator.store import mvcc, percolator, reads, resolution
from drillyard.emulator.store.mvcc import Fate, Lock, Write

STEPS = 700
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("first", range(0, 120, 10))
def test_snapshot_isolation(first: int) -> None:
    run_all(range(first, first + 10))


def run_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        World(seed).run(STEPS)


def test_the_seeds_see_what_they_are_meant_to_see() -> None:
    told: dict[str, int] = {}
    reads = collections = 0
    for seed in range(12):
        world = World(seed)
        world.run(STEPS)
        reads += world.reads
        collections += world.collections
        for transfer in world.transfers:
            told[transfer.told] = told.get(transfer.told, 0) + 1
    assert told["committed"] > 100
    assert told["rolled back"] > 20
    assert told[""] > 20
    assert reads > 50
    assert collections > 12


def _own_lock_of_anybody(draft: percolator.Draft, key: bytes) -> Lock | None:
    return mvcc.lock_on(draft.reading, key)


def _collect_too_much(draft: percolator.Draft, key: bytes, safe_point: int) -> None:
    for version in mvcc.versions(draft.reading, key, safe_point):
        draft.delete_write(key, version.commit_ts)


def _commit_at_any_time(draft: percolator.Draft, key: bytes, commit_ts: int) -> None:
    lock = draft.own_lock(key)
    if lock is None:
        if not draft.fate(key).is_committed:
            raise percolator.Refused(percolator.TxnLockNotFound(key, draft.start_ts, commit_ts))
        return
    kind = mvcc.WriteKind(lock.kind.value) if lock.kind.value in b"PDL" else mvcc.WriteKind.LOCK
    draft.put_write(key, commit_ts, Write(kind, draft.start_ts, lock.short_value))
    draft.release(key, commit_ts)


LOCK = percolator.lock_pessimistically


def _lock_in_spite_of_conflicts(
    draft: percolator.Draft, txn: percolator.PessimisticLock, key: bytes, *, needs_absence: bool = False
) -> percolator.Locked:
    try:
        return LOCK(draft, txn, key, needs_absence=needs_absence)
    except percolator.Refused as refused:
        if not isinstance(refused.reason, percolator.WriteConflict):
            raise
        draft.put_lock(key, percolator._pessimistic_lock(draft, txn, txn.for_update_ts))
        return percolator.Locked(mvcc.value_at(draft.reading, key, txn.for_update_ts) or b"100")


BUGS: dict[str, Patch] = {
    "an optimistic prewrite overlooks newer commits": lambda patch: patch.setattr(
        percolator, "_check_newest", lambda draft, txn, mutation: None
    ),
    "a pessimistic lock overlooks newer commits": lambda patch: patch.setattr(
        percolator, "lock_pessimistically", _lock_in_spite_of_conflicts
    ),
    "a lost pessimistic lock is always made up for": lambda patch: patch.setattr(
        percolator, "_amend", lambda draft, mutation: None
    ),
    "a reader passes every lock": lambda patch: patch.setattr(
        reads, "time_beside", lambda reader, key, lock: reader.at
    ),
    "a rollback leaves no record": lambda patch: patch.setattr(
        percolator, "_write_rollback", lambda draft, key, fate, is_protected: None
    ),
    "a commit does not look at the least timestamp": lambda patch: patch.setattr(
        percolator, "commit", _commit_at_any_time
    ),
    "a check takes a committed primary for rolled back": lambda patch: patch.setattr(
        resolution, "_check_missing", lambda draft, key, foreign, check: resolution.TxnStatus()
    ),
    "garbage collection drops what is still seen": lambda patch: patch.setattr(
        resolution, "collect_garbage", _collect_too_much
    ),
    "anybody's lock is one's own": lambda patch: patch.setattr(percolator.Draft, "own_lock", _own_lock_of_anybody),
    "the records behind the newest are not looked at": lambda patch: patch.setattr(
        percolator, "fate_of", lambda reading, key, start_ts: Fate()
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_die(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(AssertionError):
        run_all(range(100))
