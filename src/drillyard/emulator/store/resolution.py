"""What is done about transactions by others than their own client: find out their fate, end them, forget old versions.

Whoever meets a lock asks for the state of its primary (`check_txn_status`) and then resolves the lock by the answer.
The primary decides alone, and checking it can decide it: an expired lock is rolled back, and where there is neither a
lock nor a record, a protected rollback is written, so that the answer stays true. Garbage collection keeps, at and
below a safe point, one version of each key: the one that a reader at the safe point sees.

Rules: those of `percolator`, whose drafts and reasons are used. Locks at or below the safe point must have been
resolved before garbage is collected; a key that still has one is left alone.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.store.mvcc import (
    MAX_TS,
    Lock,
    LockKind,
    WriteKind,
    lock_on,
    plain_of,
    versions,
)
from drillyard.emulator.store.percolator import (
    AlreadyCommitted,
    Draft,
    PrimaryMismatch,
    Refused,
    TxnNotFound,
    commit,
    forbid,
    has_expired,
    roll_back,
    roll_back_lock,
)

# ---- the state of a transaction ----


class Action(Enum):
    """What a check has done. The numbers are those of kvrpcpb.Action."""

    NONE = 0
    TTL_EXPIRE_ROLLBACK = 1
    LOCK_NOT_EXIST_ROLLBACK = 2
    MIN_COMMIT_TS_PUSHED = 3
    TTL_EXPIRE_PESSIMISTIC_ROLLBACK = 4
    LOCK_NOT_EXIST_DO_NOTHING = 5


class TxnStatus(Struct, frozen=True):
    """Alive while it has a lock; else committed at `commit_ts`, or rolled back if that is 0."""

    lock: Lock | None = None
    commit_ts: int = 0
    action: Action = Action.NONE


class StatusCheck(Struct, frozen=True):
    caller_start_ts: int
    current_ts: int
    rolls_back_if_missing: bool = False
    resolves_pessimistic_lock: bool = False
    verifies_primary: bool = False


def check_txn_status(draft: Draft, key: bytes, check: StatusCheck) -> TxnStatus:
    present = lock_on(draft.reading, key)
    if present is None or present.start_ts != draft.start_ts:
        return _check_missing(draft, key, present, check)
    if check.verifies_primary and plain_of(key) != present.primary:
        raise Refused(PrimaryMismatch(key, present))
    if has_expired(present, check.current_ts):
        if check.resolves_pessimistic_lock and present.kind is LockKind.PESSIMISTIC:
            draft.release(key)
            return TxnStatus(action=Action.TTL_EXPIRE_PESSIMISTIC_ROLLBACK)
        roll_back_lock(draft, key, present, collapses=True)
        return TxnStatus(action=Action.TTL_EXPIRE_ROLLBACK)
    return _push(draft, key, present, check)


def _push(draft: Draft, key: bytes, lock: Lock, check: StatusCheck) -> TxnStatus:
    """A reader need not wait for a transaction that can only commit after it. 0: its client does not allow that."""
    caller = check.caller_start_ts
    if lock.min_commit_ts and caller != MAX_TS and caller >= lock.min_commit_ts:
        lock = replace(lock, min_commit_ts=max(caller + 1, check.current_ts))
        draft.put_lock(key, lock)
    is_pushed = caller == MAX_TS or 0 < caller < lock.min_commit_ts
    return TxnStatus(lock, action=Action.MIN_COMMIT_TS_PUSHED if is_pushed else Action.NONE)


def _check_missing(draft: Draft, key: bytes, foreign: Lock | None, check: StatusCheck) -> TxnStatus:
    fate = draft.fate(key)
    if fate.is_committed:
        assert fate.version is not None
        return TxnStatus(commit_ts=fate.version.commit_ts)
    if fate.is_rolled_back:
        return TxnStatus()
    if not check.rolls_back_if_missing:
        raise Refused(TxnNotFound(key, draft.start_ts))
    if check.resolves_pessimistic_lock:
        return TxnStatus(action=Action.LOCK_NOT_EXIST_DO_NOTHING)
    forbid(draft, key, foreign, is_protected=True)
    return TxnStatus(action=Action.LOCK_NOT_EXIST_ROLLBACK)


def heart_beat(draft: Draft, key: bytes, advised_ttl_ms: int, min_commit_ts: int = 0) -> int:
    """Lets the primary's lock live longer; the answer is how long it does."""
    lock = draft.own_lock(key)
    if lock is None:
        raise Refused(TxnNotFound(key, draft.start_ts))
    longer = replace(
        lock, ttl_ms=max(lock.ttl_ms, advised_ttl_ms), min_commit_ts=max(lock.min_commit_ts, min_commit_ts)
    )
    if longer != lock:
        draft.put_lock(key, longer)
    return longer.ttl_ms


class Secondaries(Struct, frozen=True):
    """All the locks, or a commit, or (with neither) a rollback."""

    locks: tuple[tuple[bytes, Lock], ...] = ()
    commit_ts: int = 0


def check_secondary_locks(draft: Draft, keys: tuple[bytes, ...]) -> Secondaries:
    """Whether all of these keys were prewritten; a key that was not is never going to be."""
    locks: list[tuple[bytes, Lock]] = []
    for key in keys:
        present = lock_on(draft.reading, key)
        if present is not None and present.start_ts == draft.start_ts:
            if present.kind is not LockKind.PESSIMISTIC:
                locks.append((key, present))
                continue
            draft.release(key)
            forbid(draft, key, None, is_protected=True)
            return Secondaries()
        fate = draft.fate(key)
        if fate.is_committed:
            assert fate.version is not None
            return Secondaries(commit_ts=fate.version.commit_ts)
        if not fate.is_rolled_back:
            forbid(draft, key, present, is_protected=True)
        return Secondaries()
    return Secondaries(tuple(locks))


# ---- resolving ----


def resolve(draft: Draft, key: bytes, commit_ts: int) -> None:
    """Ends the transaction on a key whose lock somebody has met: commits it, or with 0 rolls it back."""
    if commit_ts:
        commit(draft, key, commit_ts)
    else:
        roll_back(draft, key)


def resolve_if_locked(draft: Draft, key: bytes, commit_ts: int) -> None:
    """The same for a lock that was found by a scan and may be gone by now."""
    if draft.own_lock(key) is not None:
        resolve(draft, key, commit_ts)


def clean_up(draft: Draft, key: bytes, current_ts: int) -> int:
    """Rolls back a transaction whose lock has expired; a commit that was there before is the answer instead."""
    try:
        roll_back(draft, key, current_ts=current_ts, is_protected=True)
    except Refused as refused:
        if isinstance(refused.reason, AlreadyCommitted):
            return refused.reason.commit_ts
        raise
    return 0


# ---- garbage ----


def collect_garbage(draft: Draft, key: bytes, safe_point: int) -> None:
    """Drops what no reader at or after the safe point can see."""
    lock = lock_on(draft.reading, key)
    if lock is not None and lock.start_ts <= safe_point:
        return
    is_covered = False
    for version in versions(draft.reading, key, safe_point):
        write = version.write
        if not is_covered and write.kind is WriteKind.PUT:
            is_covered = True
            continue
        is_covered = is_covered or write.kind is WriteKind.DELETE
        draft.delete_write(key, version.commit_ts)
        if write.kind is WriteKind.PUT and write.short_value is None:
            draft.delete_value(key, write.start_ts)
