"""The commands of transactions in a region's log: from a client's request to a draft, and from a verdict to an answer.

A command is judged when it is applied, like a compare-and-swap: it then reads what the entries before it have written,
every replica reads the same and does the same, and nothing has to be held in memory between judging and writing. That
is all the concurrency control between commands; the waiting for locks is the leader's own business and not in the log.

Rules: keys travel plain and are encoded here, before anything looks at them. A command belongs to its region with all
its keys or not at all. Whatever is wrong with a request or with what lies on disk is an answer, never a failure of the
store. Timestamps of asynchronous and one-phase commits are answered as 0: clients then commit in two phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message
from msgspec import Struct

from drillyard.emulator.store import percolator, resolution
from drillyard.emulator.store.mvcc import Damaged, Lock, LockKind, plain_of
from drillyard.emulator.store.percolator import (
    Aborted,
    AlreadyCommitted,
    AlreadyExists,
    AssertionFailed,
    AssertionLevel,
    Check,
    CommitTsExpired,
    Draft,
    KeyIsLocked,
    Locked,
    Mutation,
    Op,
    PessimisticLock,
    Prewrite,
    PrimaryMismatch,
    Reason,
    Refused,
    Released,
    TxnLockNotFound,
    TxnNotFound,
    WriteConflict,
)
from drillyard.emulator.store.state import State
from drillyard.wire import drillpb, keys, kvrpcpb

Kind = drillpb.Transaction.Kind
Count = Callable[[bytes, bytes | None], None]


class Transact(Struct, frozen=True):
    """A command to be proposed. `keys` are all that it touches, encoded."""

    record: drillpb.Transaction
    keys: tuple[bytes, ...]


class Transacted(Struct, frozen=True):
    """What came of it. `blocked`: the first lock of another transaction that stood in the way."""

    answer: Any  # the message of the kind's response
    released: tuple[Released, ...] = ()
    blocked: KeyIsLocked | None = None


def transact(kind: Kind, request: Any) -> Transact:
    """The command for a client's request, which is left as it is."""
    stripped = type(request)()
    stripped.CopyFrom(request)
    stripped.ClearField("context")
    if request.context.is_retry_request:
        stripped.context.is_retry_request = True
    record = drillpb.Transaction(kind=kind, request=stripped.SerializeToString())
    return Transact(record, tuple(map(keys.encode, _RULES[kind].keys(request))))


def garbage_of(encoded: Iterable[bytes], safe_point: int) -> Transact:
    """The command that drops the old versions of some keys, which are given encoded."""
    found = tuple(encoded)
    return Transact(drillpb.Transaction(kind=Kind.COLLECT_GARBAGE, keys=found, safe_point=safe_point), found)


def keys_of(record: drillpb.Transaction) -> tuple[bytes, ...]:
    """What the command touches, encoded."""
    if record.kind == Kind.COLLECT_GARBAGE:
        return tuple(record.keys)
    rule = _RULES[record.kind]
    return tuple(map(keys.encode, rule.keys(rule.request.FromString(record.request))))


def apply_transaction(record: drillpb.Transaction, state: State, count: Count) -> Transacted:
    """Judges the command by the state and carries it out. All or nothing of it takes effect."""
    if record.kind == Kind.COLLECT_GARBAGE:
        return _collect(record, state, count)
    rule = _RULES[record.kind]
    request = rule.request.FromString(record.request)
    draft = Draft(state, rule.start_ts(request))
    try:
        answer = rule.apply(draft, request)
    except Refused as refused:
        blocked = refused.reason if isinstance(refused.reason, KeyIsLocked) else None
        return Transacted(_refusal(rule.response, refused.reason), blocked=blocked)
    except Damaged as damaged:
        return Transacted(_refusal(rule.response, Aborted(f"damaged data: {damaged}")))
    except (ValueError, OverflowError) as error:  # numbers that mean nothing, such as an unknown op or a time before 0
        return Transacted(_refusal(rule.response, Aborted(f"malformed request: {error}")))
    if isinstance(answer, Transacted):
        return answer
    _carry_out(draft, state, count)
    return Transacted(answer, tuple(draft.released))


def _carry_out(draft: Draft, state: State, count: Count) -> None:
    for family, key, value in draft.edits:
        if value is None:
            state.delete(key, family)
        else:
            state.put(key, value, family)
        count(key, value)


def _collect(record: drillpb.Transaction, state: State, count: Count) -> Transacted:
    draft = Draft(state, record.safe_point)
    for key in record.keys:
        try:
            resolution.collect_garbage(draft, key, record.safe_point)
        except Damaged:
            continue  # what is no version is no garbage either
    _carry_out(draft, state, count)
    return Transacted(kvrpcpb.GCResponse())


# ---- one rule for each kind ----


def _prewrite(draft: Draft, request: kvrpcpb.PrewriteRequest) -> Message | Transacted:
    txn = Prewrite(
        request.primary_lock,
        request.lock_ttl,
        request.txn_size,
        request.for_update_ts,
        request.min_commit_ts,
        request.skip_constraint_check,
        request.context.is_retry_request,
        AssertionLevel(request.assertion_level),
    )
    expected = {each.index: each.expected_for_update_ts for each in request.for_update_ts_constraints}
    blocked: list[KeyIsLocked] = []
    for number, packed in enumerate(request.mutations):
        check = request.pessimistic_actions[number] if number < len(request.pessimistic_actions) else 0
        mutation = _mutation(packed, Check(check), expected.get(number))
        try:
            percolator.prewrite(draft, txn, mutation)
        except Refused as refused:  # all locks are told, so that the client can resolve them together
            if not isinstance(refused.reason, KeyIsLocked):
                raise
            blocked.append(refused.reason)
    if blocked:
        return Transacted(kvrpcpb.PrewriteResponse(errors=map(key_error, blocked)), blocked=blocked[0])
    return kvrpcpb.PrewriteResponse()


_OPS = {
    kvrpcpb.Op.Put: Op.PUT,
    kvrpcpb.Op.Del: Op.DELETE,
    kvrpcpb.Op.Lock: Op.LOCK,
    kvrpcpb.Op.Insert: Op.INSERT,
    kvrpcpb.Op.CheckNotExists: Op.CHECK_NOT_EXISTS,
}


def _mutation(packed: kvrpcpb.Mutation, check: Check, expected_for_update_ts: int | None) -> Mutation:
    op = _OPS.get(packed.op)
    if op is None:
        raise Refused(Aborted(f"mutation op {kvrpcpb.Op.Name(packed.op)} cannot be prewritten"))
    must_exist = {kvrpcpb.Assertion.Exist: True, kvrpcpb.Assertion.NotExist: False}.get(packed.assertion)
    return Mutation(op, keys.encode(packed.key), packed.value, check, must_exist, expected_for_update_ts)


def _commit(draft: Draft, request: kvrpcpb.CommitRequest) -> Message:
    if request.commit_version <= request.start_version:
        raise Refused(_invalid_tso(request.start_version, request.commit_version))
    for key in request.keys:
        percolator.commit(draft, keys.encode(key), request.commit_version)
    return kvrpcpb.CommitResponse(commit_version=request.commit_version)


def _invalid_tso(start_ts: int, commit_ts: int) -> Aborted:
    return Aborted(f"invalid transaction tso with start_ts:{start_ts},commit_ts:{commit_ts}")


def _lock(draft: Draft, request: kvrpcpb.PessimisticLockRequest) -> Message:
    forced = request.wake_up_mode == kvrpcpb.PessimisticLockWakeUpMode.WakeUpModeForceLock
    txn = PessimisticLock(
        request.primary_lock,
        request.lock_ttl,
        request.for_update_ts,
        request.min_commit_ts,
        request.return_values,
        request.check_existence,
        request.lock_only_if_exists,
        accepts_conflict=forced,
    )
    answer = kvrpcpb.PessimisticLockResponse()
    for mutation in request.mutations:
        if mutation.op != kvrpcpb.Op.PessimisticLock:
            raise Refused(Aborted(f"mutation op {kvrpcpb.Op.Name(mutation.op)} is no pessimistic lock"))
        needs_absence = mutation.assertion == kvrpcpb.Assertion.NotExist
        locked = percolator.lock_pessimistically(draft, txn, keys.encode(mutation.key), needs_absence=needs_absence)
        if forced:
            _tell_forced(answer, request, locked)
        else:
            _tell_locked(answer, request, locked)
    return answer


def _tell_locked(
    answer: kvrpcpb.PessimisticLockResponse, request: kvrpcpb.PessimisticLockRequest, locked: Locked
) -> None:
    if request.return_values:
        answer.values.append(locked.value or b"")
    if request.return_values or request.check_existence:
        answer.not_founds.append(locked.value is None)


def _tell_forced(
    answer: kvrpcpb.PessimisticLockResponse, request: kvrpcpb.PessimisticLockRequest, locked: Locked
) -> None:
    types = kvrpcpb.PessimisticLockKeyResultType
    told = answer.results.add(type=types.LockResultNormal)
    if locked.conflict_ts:
        told.type = types.LockResultLockedWithConflict
        told.locked_with_conflict_ts = locked.conflict_ts
    if locked.conflict_ts or request.return_values:
        told.value = locked.value or b""
    if locked.conflict_ts or request.return_values or request.check_existence:
        told.existence = locked.value is not None


def _pessimistic_rollback(draft: Draft, request: kvrpcpb.PessimisticRollbackRequest) -> Message:
    for key in request.keys:
        percolator.roll_back_pessimistic_lock(draft, keys.encode(key), request.for_update_ts)
    return kvrpcpb.PessimisticRollbackResponse()


def _batch_rollback(draft: Draft, request: kvrpcpb.BatchRollbackRequest) -> Message:
    for key in request.keys:
        percolator.roll_back(draft, keys.encode(key))
    return kvrpcpb.BatchRollbackResponse()


def _clean_up(draft: Draft, request: kvrpcpb.CleanupRequest) -> Message:
    commit_ts = resolution.clean_up(draft, keys.encode(request.key), request.current_ts)
    return kvrpcpb.CleanupResponse(commit_version=commit_ts)


def _check_txn_status(draft: Draft, request: kvrpcpb.CheckTxnStatusRequest) -> Message:
    check = resolution.StatusCheck(
        request.caller_start_ts,
        request.current_ts,
        request.rollback_if_not_exist,
        request.resolving_pessimistic_lock,
        request.verify_is_primary,
    )
    key = keys.encode(request.primary_key)
    status = resolution.check_txn_status(draft, key, check)
    answer = kvrpcpb.CheckTxnStatusResponse(
        commit_version=status.commit_ts, action=kvrpcpb.Action.Name(status.action.value)
    )
    if status.lock is not None:
        answer.lock_ttl = status.lock.ttl_ms
        answer.lock_info.CopyFrom(lock_info(key, status.lock))
    return answer


def _check_secondary_locks(draft: Draft, request: kvrpcpb.CheckSecondaryLocksRequest) -> Message:
    secondaries = resolution.check_secondary_locks(draft, tuple(map(keys.encode, request.keys)))
    locks = [lock_info(key, lock) for key, lock in secondaries.locks]
    return kvrpcpb.CheckSecondaryLocksResponse(locks=locks, commit_ts=secondaries.commit_ts)


def _resolve_lock(draft: Draft, request: kvrpcpb.ResolveLockRequest) -> Message:
    for key in request.keys:
        resolution.resolve(draft, keys.encode(key), request.commit_version)
    return kvrpcpb.ResolveLockResponse()


def _resolve_found(draft: Draft, request: kvrpcpb.ResolveLockRequest) -> Message:
    if 0 < request.commit_version <= request.start_version:
        raise Refused(_invalid_tso(request.start_version, request.commit_version))
    for key in request.keys:
        resolution.resolve_if_locked(draft, keys.encode(key), request.commit_version)
    return kvrpcpb.ResolveLockResponse()


def _heart_beat(draft: Draft, request: kvrpcpb.TxnHeartBeatRequest) -> Message:
    key = keys.encode(request.primary_lock)
    ttl_ms = resolution.heart_beat(draft, key, request.advise_lock_ttl, request.min_commit_ts)
    return kvrpcpb.TxnHeartBeatResponse(lock_ttl=ttl_ms)


class _Rule(Struct, frozen=True):
    request: Any
    response: Any
    apply: Callable[[Draft, Any], Message | Transacted]
    keys: Callable[[Any], Iterable[bytes]] = lambda request: request.keys
    start_ts: Callable[[Any], int] = lambda request: int(request.start_version)


def _mutated(request: Any) -> list[bytes]:
    return [mutation.key for mutation in request.mutations]


_RULES: dict[Kind, _Rule] = {
    Kind.PREWRITE: _Rule(kvrpcpb.PrewriteRequest, kvrpcpb.PrewriteResponse, _prewrite, _mutated),
    Kind.COMMIT: _Rule(kvrpcpb.CommitRequest, kvrpcpb.CommitResponse, _commit),
    Kind.PESSIMISTIC_LOCK: _Rule(kvrpcpb.PessimisticLockRequest, kvrpcpb.PessimisticLockResponse, _lock, _mutated),
    Kind.PESSIMISTIC_ROLLBACK: _Rule(
        kvrpcpb.PessimisticRollbackRequest, kvrpcpb.PessimisticRollbackResponse, _pessimistic_rollback
    ),
    Kind.BATCH_ROLLBACK: _Rule(kvrpcpb.BatchRollbackRequest, kvrpcpb.BatchRollbackResponse, _batch_rollback),
    Kind.CLEANUP: _Rule(kvrpcpb.CleanupRequest, kvrpcpb.CleanupResponse, _clean_up, lambda request: (request.key,)),
    Kind.CHECK_TXN_STATUS: _Rule(
        kvrpcpb.CheckTxnStatusRequest,
        kvrpcpb.CheckTxnStatusResponse,
        _check_txn_status,
        lambda request: (request.primary_key,),
        lambda request: int(request.lock_ts),
    ),
    Kind.CHECK_SECONDARY_LOCKS: _Rule(
        kvrpcpb.CheckSecondaryLocksRequest, kvrpcpb.CheckSecondaryLocksResponse, _check_secondary_locks
    ),
    Kind.RESOLVE_LOCK: _Rule(kvrpcpb.ResolveLockRequest, kvrpcpb.ResolveLockResponse, _resolve_lock),
    Kind.RESOLVE_FOUND: _Rule(kvrpcpb.ResolveLockRequest, kvrpcpb.ResolveLockResponse, _resolve_found),
    Kind.TXN_HEART_BEAT: _Rule(
        kvrpcpb.TxnHeartBeatRequest,
        kvrpcpb.TxnHeartBeatResponse,
        _heart_beat,
        lambda request: (request.primary_lock,),
    ),
}


# ---- answers ----


def _refusal(response: Any, reason: Reason) -> Message:
    answer: Message = response()
    refuse(answer, reason)
    return answer


def refuse(answer: Any, reason: Reason) -> None:
    """Some answers have a list of errors, and some have one."""
    if "errors" in answer.DESCRIPTOR.fields_by_name:
        answer.errors.append(key_error(reason))
    else:
        answer.error.CopyFrom(key_error(reason))


_LOCK_OPS = {
    LockKind.PUT: kvrpcpb.Op.Put,
    LockKind.DELETE: kvrpcpb.Op.Del,
    LockKind.LOCK: kvrpcpb.Op.Lock,
    LockKind.PESSIMISTIC: kvrpcpb.Op.PessimisticLock,
}


def lock_info(key: bytes, lock: Lock) -> kvrpcpb.LockInfo:
    return kvrpcpb.LockInfo(
        primary_lock=lock.primary,
        lock_version=lock.start_ts,
        key=plain_of(key),
        lock_ttl=lock.ttl_ms,
        txn_size=lock.txn_size,
        lock_type=_LOCK_OPS[lock.kind],
        lock_for_update_ts=lock.for_update_ts,
        min_commit_ts=lock.min_commit_ts,
    )


def key_error(reason: Reason) -> kvrpcpb.KeyError:
    """The error as clients know it. Where a field has no words of its own, the text is for people."""
    match reason:
        case KeyIsLocked(key, lock):
            return kvrpcpb.KeyError(locked=lock_info(key, lock))
        case WriteConflict():
            return _conflict_error(reason)
        case AlreadyExists(key):
            return kvrpcpb.KeyError(already_exist=kvrpcpb.AlreadyExist(key=plain_of(key)))
        case AssertionFailed():
            return _assertion_error(reason)
        case CommitTsExpired(key, start_ts, commit_ts, min_commit_ts):
            expired = kvrpcpb.CommitTsExpired(
                start_ts=start_ts, attempted_commit_ts=commit_ts, key=plain_of(key), min_commit_ts=min_commit_ts
            )
            return kvrpcpb.KeyError(commit_ts_expired=expired)
        case TxnNotFound(key, start_ts):
            missing = kvrpcpb.TxnNotFound(start_ts=start_ts, primary_key=plain_of(key))
            return kvrpcpb.KeyError(txn_not_found=missing)
        case PrimaryMismatch(key, lock):
            return kvrpcpb.KeyError(primary_mismatch=kvrpcpb.PrimaryMismatch(lock_info=lock_info(key, lock)))
        case AlreadyCommitted(key, start_ts, commit_ts):
            return kvrpcpb.KeyError(abort=f"txn already committed, start_ts:{start_ts}, commit_ts:{commit_ts}")
        case TxnLockNotFound(key, start_ts, commit_ts):
            text = f"txn lock not found {start_ts}-{commit_ts} key:{plain_of(key).hex().upper()}"
            return kvrpcpb.KeyError(retryable=text)
        case Aborted(text):
            return kvrpcpb.KeyError(abort=text)


def _conflict_error(reason: WriteConflict) -> kvrpcpb.KeyError:
    conflict = kvrpcpb.WriteConflict(
        start_ts=reason.start_ts,
        conflict_ts=reason.conflict_start_ts,
        key=plain_of(reason.key),
        primary=reason.primary,
        conflict_commit_ts=reason.conflict_commit_ts,
        reason=kvrpcpb.WriteConflict.Reason.Name(reason.reason.value),
    )
    text = f"write conflict, start_ts:{reason.start_ts}, conflict_commit_ts:{reason.conflict_commit_ts}"
    return kvrpcpb.KeyError(conflict=conflict, retryable=text)


def _assertion_error(reason: AssertionFailed) -> kvrpcpb.KeyError:
    asserted = kvrpcpb.Assertion.Exist if reason.must_exist else kvrpcpb.Assertion.NotExist
    failed = kvrpcpb.AssertionFailed(
        start_ts=reason.start_ts,
        key=plain_of(reason.key),
        assertion=asserted,
        existing_start_ts=reason.existing_start_ts,
        existing_commit_ts=reason.existing_commit_ts,
    )
    return kvrpcpb.KeyError(assertion_failed=failed)
