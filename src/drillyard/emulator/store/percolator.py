"""Percolator, as TiKV does it: what each command of a transaction does to one key.

The protocol in short. A client takes a timestamp from PD, reads as of it, and gathers its writes. To commit, it picks
one key as the *primary* and *prewrites* every key: the value goes in, under a lock that names the primary. When all
locks are held it takes a second timestamp and *commits the primary*: its lock is replaced by a record of the commit.
That is the moment at which the transaction is decided; the other keys are committed afterwards, by the client or by
whoever meets their locks. Whoever meets a lock looks at its primary: is there a record of the commit, the lock is
committed too; is the primary's lock older than its time to live, the transaction is rolled back there, and a rollback
is written down, so that a late prewrite or commit of the same transaction must fail; is it alive, one waits.

A *pessimistic* transaction locks keys before it knows what to write. Such a lock keeps writers away and no readers; its
prewrite turns it into a real one. The newest commit that it may have seen is its `for_update_ts`.

Rules:
- Each function reads the key's lock and records, and either adds edits to the draft or raises `Refused` with a reason
  that clients know. A draft is applied as a whole or not at all: whoever raises has changed nothing.
- Every command may come twice, or late: a repeated one changes nothing and succeeds, a late one meets the record.
- A record of a rollback may be dropped in favour of a later one on the same key (`collapse`) unless it is protected:
  the primary of a pessimistic transaction, and what a stranger rolled back by `cleanup` or by a check, stay.
- A transaction that began exactly when another one committed shares the place of its rollback with that commit's
  record, which is then marked (`has_overlapped_rollback`).
- Physical time comes in the requests, so each replica decides the same.

Keys are in their encoded form here. Waiting for locks is not done here (`lock_waiting`), nor reading (`reads`). Commits
in one phase and asynchronous commits are not done at all: their timestamps are answered as 0, and clients go on in two
phases.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct, field
from msgspec.structs import replace

from drillyard.emulator.store.mvcc import (
    SHORT_VALUE_BYTES,
    Fate,
    Lock,
    LockKind,
    Version,
    Write,
    WriteKind,
    encode_lock,
    encode_write,
    fate_of,
    has_value_at,
    lock_on,
    newest_change,
    newest_version,
    physical_ms,
    plain_of,
    rollback_of,
    value_at,
    versioned,
)
from drillyard.emulator.store.state import Family, Reading

# ---- why a command is refused ----


class KeyIsLocked(Struct, frozen=True):
    key: bytes
    lock: Lock


class ConflictReason(Enum):
    """The numbers are those of kvrpcpb.WriteConflict.Reason."""

    OPTIMISTIC = 1
    PESSIMISTIC_RETRY = 2
    SELF_ROLLED_BACK = 3
    LAZY_UNIQUENESS_CHECK = 5


class WriteConflict(Struct, frozen=True):
    """Somebody has committed since, or has rolled this transaction back."""

    key: bytes
    start_ts: int
    conflict_start_ts: int
    conflict_commit_ts: int
    primary: bytes
    reason: ConflictReason


class AlreadyExists(Struct, frozen=True):
    key: bytes


class AssertionFailed(Struct, frozen=True):
    key: bytes
    start_ts: int
    must_exist: bool
    existing_start_ts: int
    existing_commit_ts: int


class CommitTsExpired(Struct, frozen=True):
    key: bytes
    start_ts: int
    commit_ts: int
    min_commit_ts: int


class TxnNotFound(Struct, frozen=True):
    key: bytes
    start_ts: int


class PrimaryMismatch(Struct, frozen=True):
    key: bytes
    lock: Lock


class AlreadyCommitted(Struct, frozen=True):
    key: bytes
    start_ts: int
    commit_ts: int


class TxnLockNotFound(Struct, frozen=True):
    """The lock to be committed is gone: the transaction was rolled back. Clients try it again as a whole."""

    key: bytes
    start_ts: int
    commit_ts: int


class Aborted(Struct, frozen=True):
    """For what no field of an error exists: clients give up."""

    text: str


Reason = (
    KeyIsLocked
    | WriteConflict
    | AlreadyExists
    | AssertionFailed
    | CommitTsExpired
    | TxnNotFound
    | PrimaryMismatch
    | AlreadyCommitted
    | TxnLockNotFound
    | Aborted
)


class Refused(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


# ---- what a command changes ----


class Released(Struct, frozen=True):
    """A lock that is gone, for those who wait. A `commit_ts` of 0: it was rolled back."""

    key: bytes
    start_ts: int
    commit_ts: int


class Draft(Struct):
    """One command of one transaction: what it reads, and what it would change if nothing refuses it."""

    reading: Reading
    start_ts: int
    edits: list[tuple[Family, bytes, bytes | None]] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)

    def own_lock(self, key: bytes) -> Lock | None:
        lock = lock_on(self.reading, key)
        return lock if lock is not None and lock.start_ts == self.start_ts else None

    def fate(self, key: bytes) -> Fate:
        return fate_of(self.reading, key, self.start_ts)

    def put_lock(self, key: bytes, lock: Lock) -> None:
        self.edits.append((Family.LOCK, key, encode_lock(lock)))

    def release(self, key: bytes, commit_ts: int = 0) -> None:
        self.edits.append((Family.LOCK, key, None))
        self.released.append(Released(key, self.start_ts, commit_ts))

    def put_write(self, key: bytes, commit_ts: int, write: Write) -> None:
        self.edits.append((Family.WRITE, versioned(key, commit_ts), encode_write(write)))

    def delete_write(self, key: bytes, commit_ts: int) -> None:
        self.edits.append((Family.WRITE, versioned(key, commit_ts), None))

    def put_value(self, key: bytes, value: bytes) -> None:
        self.edits.append((Family.DEFAULT, versioned(key, self.start_ts), value))

    def delete_value(self, key: bytes, start_ts: int) -> None:
        self.edits.append((Family.DEFAULT, versioned(key, start_ts), None))


# ---- prewrite ----


class Op(Enum):
    PUT = "put"
    DELETE = "delete"
    LOCK = "lock"
    INSERT = "insert"  # a put of a key that must not exist
    CHECK_NOT_EXISTS = "check not exists"  # writes nothing at all

    @property
    def needs_absence(self) -> bool:
        return self in (Op.INSERT, Op.CHECK_NOT_EXISTS)


_LOCK_OF = {Op.PUT: LockKind.PUT, Op.INSERT: LockKind.PUT, Op.DELETE: LockKind.DELETE, Op.LOCK: LockKind.LOCK}


class Check(Enum):
    """What the prewrite of a pessimistic transaction relies on. The numbers are those of PessimisticAction."""

    NOTHING = 0  # the key was not locked before, and needs no check: an index entry under a locked row
    OWN_LOCK = 1  # the key must still bear this transaction's pessimistic lock
    CONSTRAINTS = 2  # as if it were optimistic


class AssertionLevel(Enum):
    OFF = 0
    FAST = 1  # where the record is read anyway
    STRICT = 2


class Prewrite(Struct, frozen=True):
    """What holds for all keys of one prewrite."""

    primary: bytes
    ttl_ms: int
    txn_size: int = 0
    for_update_ts: int = 0
    min_commit_ts: int = 0
    skips_checks: bool = False
    is_retry: bool = False
    assertion_level: AssertionLevel = AssertionLevel.OFF

    @property
    def is_pessimistic(self) -> bool:
        return self.for_update_ts != 0


class Mutation(Struct, frozen=True):
    op: Op
    key: bytes
    value: bytes = b""
    check: Check = Check.NOTHING
    must_exist: bool | None = None  # an assertion of the client about what it expects to be there
    expected_for_update_ts: int | None = None


def prewrite(draft: Draft, txn: Prewrite, mutation: Mutation) -> None:
    """Takes the lock and puts the value under it."""
    if txn.is_pessimistic and mutation.op is Op.CHECK_NOT_EXISTS:
        raise Refused(Aborted("cannot handle checkNotExists in pessimistic prewrite"))
    present = lock_on(draft.reading, mutation.key)
    if present is not None and present.start_ts != draft.start_ts:
        _refuse_foreign_lock(draft, txn, mutation, present)
    if present is not None and present.kind is not LockKind.PESSIMISTIC:
        return  # it came before
    newest = _check_prewrite(draft, txn, mutation, present)
    _check_assertion(draft, txn, mutation, newest)
    if mutation.op is not Op.CHECK_NOT_EXISTS:
        _lock_and_put(draft, txn, mutation, present)


def _refuse_foreign_lock(draft: Draft, txn: Prewrite, mutation: Mutation, present: Lock) -> None:
    if mutation.check is Check.OWN_LOCK:
        raise Refused(_pessimistic_lock_not_found(draft, mutation.key))
    if txn.is_pessimistic:  # what it wants was decided when it took its locks: this one is to be resolved at once
        present = replace(present, ttl_ms=0)
    raise Refused(KeyIsLocked(mutation.key, present))


def _check_prewrite(draft: Draft, txn: Prewrite, mutation: Mutation, present: Lock | None) -> Version | None:
    """The newest record, if it had to be read."""
    if present is not None:
        if not txn.is_pessimistic:
            raise Refused(_lock_type_not_match(draft, mutation.key))
        expected = mutation.expected_for_update_ts
        if expected is not None and present.for_update_ts != expected:
            raise Refused(_pessimistic_lock_not_found(draft, mutation.key))
    elif mutation.check is Check.OWN_LOCK:
        return _amend(draft, mutation)
    if _needs_no_check(txn, mutation):
        return None
    return _check_newest(draft, txn, mutation)


def _amend(draft: Draft, mutation: Mutation) -> Version | None:
    """The pessimistic lock is lost, as they may be. Nobody has written since the start: then it makes no difference."""
    newest = newest_version(draft.reading, mutation.key)
    if newest is not None and newest.commit_ts >= draft.start_ts:
        raise Refused(_pessimistic_lock_not_found(draft, mutation.key))
    return newest


def _needs_no_check(txn: Prewrite, mutation: Mutation) -> bool:
    if not txn.is_pessimistic:
        return txn.skips_checks
    if mutation.check is Check.OWN_LOCK:
        return True
    return mutation.check is Check.NOTHING and not txn.is_retry  # a retry may come after the commit


def _check_newest(draft: Draft, txn: Prewrite, mutation: Mutation) -> Version | None:
    newest = newest_version(draft.reading, mutation.key)
    if newest is None:
        return None

    def conflict(reason: ConflictReason) -> Refused:
        write = newest.write
        found = WriteConflict(mutation.key, draft.start_ts, write.start_ts, newest.commit_ts, txn.primary, reason)
        return Refused(found)

    if newest.commit_ts == draft.start_ts and newest.write.is_rollback_of_itself:
        raise conflict(ConflictReason.SELF_ROLLED_BACK)
    if not txn.is_pessimistic and newest.commit_ts > draft.start_ts:
        raise conflict(ConflictReason.OPTIMISTIC)
    if txn.is_pessimistic and mutation.check is Check.CONSTRAINTS and newest.commit_ts > draft.start_ts:
        raise conflict(ConflictReason.LAZY_UNIQUENESS_CHECK)
    if txn.is_pessimistic and newest.commit_ts > txn.for_update_ts:
        raise Refused(_pessimistic_lock_not_found(draft, mutation.key))
    if mutation.op.needs_absence:
        _check_absence(draft, mutation.key, newest)
    return newest


def _check_absence(draft: Draft, key: bytes, newest: Version) -> None:
    kind = newest.write.kind
    if kind is WriteKind.DELETE:
        return
    if kind is WriteKind.PUT or has_value_at(draft.reading, key, newest.commit_ts - 1):
        raise Refused(AlreadyExists(key))


def _check_assertion(draft: Draft, txn: Prewrite, mutation: Mutation, newest: Version | None) -> None:
    if mutation.must_exist is None or txn.assertion_level is AssertionLevel.OFF:
        return
    if newest is None and txn.assertion_level is AssertionLevel.FAST:
        return
    if newest is None or newest.write.kind not in (WriteKind.PUT, WriteKind.DELETE):
        newest = newest_change(draft.reading, mutation.key)
    exists = newest is not None and newest.write.kind is WriteKind.PUT
    if exists == mutation.must_exist:
        return
    if _needs_no_check(txn, mutation):
        _check_newest(draft, txn, mutation)  # a conflict explains it better than a broken assertion
    starts, commits = (newest.write.start_ts, newest.commit_ts) if newest is not None else (0, 0)
    raise Refused(AssertionFailed(mutation.key, draft.start_ts, mutation.must_exist, starts, commits))


def _lock_and_put(draft: Draft, txn: Prewrite, mutation: Mutation, present: Lock | None) -> None:
    kind = _LOCK_OF[mutation.op]
    short = None
    if kind is LockKind.PUT:
        if len(mutation.value) <= SHORT_VALUE_BYTES:
            short = mutation.value
        else:
            draft.put_value(mutation.key, mutation.value)
    ttl_ms, min_commit_ts = txn.ttl_ms, txn.min_commit_ts
    rollbacks: tuple[int, ...] = ()
    if present is not None:  # what heartbeats and readers made of the pessimistic lock stays
        ttl_ms = max(ttl_ms, present.ttl_ms)
        min_commit_ts = max(min_commit_ts, present.min_commit_ts)
        rollbacks = present.rollbacks
    lock = Lock(
        kind, txn.primary, draft.start_ts, ttl_ms, short, txn.for_update_ts, txn.txn_size, min_commit_ts, rollbacks
    )
    draft.put_lock(mutation.key, lock)


# ---- commit ----


def commit(draft: Draft, key: bytes, commit_ts: int) -> None:
    """Replaces the lock by a record."""
    lock = draft.own_lock(key)
    if lock is None:
        if not draft.fate(key).is_committed:
            raise Refused(TxnLockNotFound(key, draft.start_ts, commit_ts))
        return  # it came before, or somebody has resolved the lock
    if commit_ts < lock.min_commit_ts:
        raise Refused(CommitTsExpired(key, draft.start_ts, commit_ts, lock.min_commit_ts))
    kinds = {LockKind.PUT: WriteKind.PUT, LockKind.DELETE: WriteKind.DELETE}
    # A pessimistic lock can be left over on a key that the transaction did not write in the end.
    kind = kinds.get(lock.kind, WriteKind.LOCK)
    write = Write(kind, draft.start_ts, lock.short_value, has_overlapped_rollback=commit_ts in lock.rollbacks)
    draft.put_write(key, commit_ts, write)
    draft.release(key, commit_ts)


# ---- rollback ----


def roll_back(draft: Draft, key: bytes, *, current_ts: int = 0, is_protected: bool = False) -> None:
    """Ends the transaction on the key, whether it ever came there or not. With a time: only if its lock has expired."""
    present = lock_on(draft.reading, key)
    if present is not None and present.start_ts == draft.start_ts:
        if current_ts and not has_expired(present, current_ts):
            raise Refused(KeyIsLocked(key, present))
        roll_back_lock(draft, key, present, collapses=not is_protected)
        return
    fate = draft.fate(key)
    if fate.is_committed:
        assert fate.version is not None
        raise Refused(AlreadyCommitted(key, draft.start_ts, fate.version.commit_ts))
    if not fate.is_rolled_back:
        forbid(draft, key, present, is_protected=is_protected)


def has_expired(lock: Lock, current_ts: int) -> bool:
    return physical_ms(lock.start_ts) + lock.ttl_ms < physical_ms(current_ts)


def roll_back_lock(draft: Draft, key: bytes, lock: Lock, *, collapses: bool) -> None:
    fate = draft.fate(key)
    if not fate.is_rolled_back and not fate.is_committed:
        if lock.kind is LockKind.PUT and lock.short_value is None:
            draft.delete_value(key, lock.start_ts)
        _write_rollback(draft, key, fate, is_protected=lock.is_pessimistic_txn and _is_primary(key, lock))
        if collapses:
            _collapse(draft, key)
    draft.release(key)


def _is_primary(key: bytes, lock: Lock) -> bool:
    return plain_of(key) == lock.primary


def forbid(draft: Draft, key: bytes, foreign: Lock | None, *, is_protected: bool) -> None:
    """Writes a rollback where the transaction has never been, so that its late prewrite fails."""
    fate = draft.fate(key)
    if not is_protected:
        _collapse(draft, key)
    if is_protected and fate.covered is None and foreign is not None and _may_commit_at(foreign, draft.start_ts):
        # Should the one who holds the lock commit at exactly this timestamp, its record has to tell of the rollback.
        draft.put_lock(key, replace(foreign, rollbacks=(*foreign.rollbacks, draft.start_ts)))
    _write_rollback(draft, key, fate, is_protected=is_protected)


def _may_commit_at(lock: Lock, ts: int) -> bool:
    return lock.start_ts < ts and lock.min_commit_ts <= ts


def _write_rollback(draft: Draft, key: bytes, fate: Fate, *, is_protected: bool) -> None:
    if fate.covered is None:
        draft.put_write(key, draft.start_ts, rollback_of(draft.start_ts, is_protected=is_protected))
    elif is_protected:  # the place is taken by another's commit
        draft.put_write(key, draft.start_ts, replace(fate.covered.write, has_overlapped_rollback=True))


def _collapse(draft: Draft, key: bytes) -> None:
    """Drops the rollback before this one: records of many failed attempts would slow down every reader."""
    before = newest_version(draft.reading, key, draft.start_ts - 1)
    if before is not None and before.write.kind is WriteKind.ROLLBACK and not before.write.is_protected:
        draft.delete_write(key, before.commit_ts)


def roll_back_pessimistic_lock(draft: Draft, key: bytes, for_update_ts: int) -> None:
    """Lets go of a lock under which nothing was written; a lock that was renewed since stays."""
    lock = draft.own_lock(key)
    if lock is not None and lock.kind is LockKind.PESSIMISTIC and lock.for_update_ts <= for_update_ts:
        draft.release(key)


# ---- pessimistic locks ----


class PessimisticLock(Struct, frozen=True):
    """What holds for all keys of one request."""

    primary: bytes
    ttl_ms: int
    for_update_ts: int
    min_commit_ts: int = 0
    returns_values: bool = False
    checks_existence: bool = False
    only_if_exists: bool = False
    accepts_conflict: bool = False  # take the lock all the same, and say since when the key has changed


class Locked(Struct, frozen=True):
    """`value` is None for a key that does not exist; without `returns_values` it is empty for one that does."""

    value: bytes | None = None
    conflict_ts: int = 0


def lock_pessimistically(draft: Draft, txn: PessimisticLock, key: bytes, *, needs_absence: bool = False) -> Locked:
    if txn.only_if_exists and not txn.returns_values:
        raise Refused(Aborted("lock_only_if_exists needs return_values: LockIfExistsFailed"))
    present = lock_on(draft.reading, key)
    if present is not None:
        return _lock_again(draft, txn, key, present)
    newest = newest_version(draft.reading, key)
    for_update_ts, conflict_ts, value = txn.for_update_ts, 0, None
    if newest is not None:
        if newest.commit_ts > for_update_ts:
            if not txn.accepts_conflict:
                reason = ConflictReason.PESSIMISTIC_RETRY
                starts, commits = newest.write.start_ts, newest.commit_ts
                raise Refused(WriteConflict(key, draft.start_ts, starts, commits, txn.primary, reason))
            conflict_ts = for_update_ts = newest.commit_ts
        if draft.fate(key).is_rolled_back:
            raise Refused(Aborted(f"pessimistic lock already rollbacked, start_ts:{draft.start_ts}"))
        if needs_absence and not conflict_ts:
            _check_absence(draft, key, newest)
        value = _value_to_return(draft, txn, key, for_update_ts, conflict_ts)
    if value is not None or not txn.only_if_exists:
        draft.put_lock(key, _pessimistic_lock(draft, txn, for_update_ts))
    return Locked(value, conflict_ts)


def _lock_again(draft: Draft, txn: PessimisticLock, key: bytes, present: Lock) -> Locked:
    if present.start_ts != draft.start_ts:
        raise Refused(KeyIsLocked(key, present))
    if present.kind is not LockKind.PESSIMISTIC:
        raise Refused(_lock_type_not_match(draft, key))
    for_update_ts, conflict_ts = txn.for_update_ts, 0
    if txn.accepts_conflict and for_update_ts < present.for_update_ts:
        conflict_ts = for_update_ts = present.for_update_ts
    value = _value_to_return(draft, txn, key, for_update_ts, conflict_ts)
    if for_update_ts > present.for_update_ts:
        renewed = _pessimistic_lock(draft, txn, for_update_ts)
        ttl_ms = max(renewed.ttl_ms, present.ttl_ms)
        min_commit_ts = max(renewed.min_commit_ts, present.min_commit_ts)
        renewed = replace(renewed, ttl_ms=ttl_ms, min_commit_ts=min_commit_ts, rollbacks=present.rollbacks)
        draft.put_lock(key, renewed)
    return Locked(value, conflict_ts)


def _pessimistic_lock(draft: Draft, txn: PessimisticLock, for_update_ts: int) -> Lock:
    return Lock(
        LockKind.PESSIMISTIC,
        txn.primary,
        draft.start_ts,
        txn.ttl_ms,
        for_update_ts=for_update_ts,
        min_commit_ts=txn.min_commit_ts,
    )


def _value_to_return(draft: Draft, txn: PessimisticLock, key: bytes, at: int, conflict_ts: int) -> bytes | None:
    if txn.returns_values or conflict_ts:
        return value_at(draft.reading, key, at)
    if txn.checks_existence:
        return b"" if has_value_at(draft.reading, key, at) else None
    return None


def _lock_type_not_match(draft: Draft, key: bytes) -> Reason:
    return Aborted(f"lock type not match, start_ts:{draft.start_ts}, key:{plain_of(key).hex().upper()}")


def _pessimistic_lock_not_found(draft: Draft, key: bytes) -> Reason:
    return Aborted(f"pessimistic lock not found, start_ts:{draft.start_ts}, key:{plain_of(key).hex().upper()}")
