"""Transactions as clients call them: reads from views, everything else through the region's log.

Rules:
- Keys travel plain, and are encoded before they are compared with the bounds of regions or looked for on disk. Every
  answer is confined to the region that the request names.
- What changes anything is judged when it is applied (`store.transactions`). A request with very many keys goes in
  several commands, so that applying one takes a few milliseconds; the first that is refused ends it.
- Long reads run in slices over one view, and the loop runs between two slices.
- A pessimistic lock that meets another's lock waits here, on the leader (`lock_waits`), as long as the client allows.
- Asynchronous commit and commit in one phase are not done: their timestamps are answered as 0, and clients go on in two
  phases. Reads by followers and stale reads are answered by the leader alone. Isolation level RCCheckTS is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from drillyard.emulator.store.commands import DeleteRange, Write
from drillyard.emulator.store.errors import KeyNotInRegion
from drillyard.emulator.store.lock_waiting import Circle, hash_of
from drillyard.emulator.store.mvcc import Damaged
from drillyard.emulator.store.percolator import Aborted, ConflictReason, Refused, WriteConflict
from drillyard.emulator.store.reads import Found, Reader, Wanted, garbage_slice, get, locks_slice, scan_slice
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.state import FAMILIES, Span
from drillyard.emulator.store.transactions import (
    Kind,
    Transacted,
    garbage_of,
    key_error,
    lock_info,
    refuse,
    transact,
)
from drillyard.emulator.tikv.access import MAX_ANSWER_BYTES, MAX_KEY_BYTES, Rejected, ViewReading
from drillyard.emulator.tikv.heartbeats import Traffic
from drillyard.emulator.tikv.lock_waits import DEFAULT_TIMEOUT_MS, LockWaits, Waiting
from drillyard.emulator.tikv.records import pack_error
from drillyard.emulator.tikv.txn_metrics import TxnMetrics
from drillyard.wire import keys, kvrpcpb

COMMAND_KEYS = 128
RESOLVE_KEYS = 256

Answer = TypeVar("Answer", bound=Message)


class TxnKv:
    def __init__(self, waits: LockWaits, traffic: Traffic, metrics: TxnMetrics, *, has_ttl: bool) -> None:
        self._has_ttl = has_ttl
        self._access = waits.access
        self._waits = waits
        self._traffic = traffic
        self._metrics = metrics
        metrics.waiters.read_from(lambda: waits.count)
        self._loop = asyncio.get_running_loop()

    # ---- reading ----

    async def get(self, request: kvrpcpb.GetRequest) -> kvrpcpb.GetResponse:
        async def work(answer: kvrpcpb.GetResponse) -> None:
            check_keys(request.key)
            async with self._access.reading(request.context) as (region, reading):
                key = _inside(region, request.key)
                found = get(_reader(reading, request.context, request.version), key)
            answer.not_found = found is None
            if found is not None:
                answer.value = found.value
                answer.commit_ts = found.commit_ts if request.need_commit_ts else 0
                self._count_read(request.key, found.value)

        return await self._answered(request, kvrpcpb.GetResponse(), work)

    async def batch_get(self, request: kvrpcpb.BatchGetRequest) -> kvrpcpb.BatchGetResponse:
        async def work(answer: kvrpcpb.BatchGetResponse) -> None:
            check_keys(*request.keys)
            size = 0
            async with self._access.reading(request.context) as (region, reading):
                reader = _reader(reading, request.context, request.version)
                for number, plain in enumerate(request.keys, 1):
                    try:
                        found = get(reader, _inside(region, plain))
                    except Refused as refused:
                        answer.pairs.add(key=plain, error=key_error(refused.reason))
                        continue
                    if found is not None:
                        pair = answer.pairs.add(key=plain, value=found.value)
                        pair.commit_ts = found.commit_ts if request.need_commit_ts else 0
                        self._count_read(plain, found.value)
                        size = _checked_size(size + len(plain) + len(found.value))
                    if number % COMMAND_KEYS == 0:
                        await asyncio.sleep(0)

        return await self._answered(request, kvrpcpb.BatchGetResponse(), work)

    async def scan(self, request: kvrpcpb.ScanRequest) -> kvrpcpb.ScanResponse:
        async def work(answer: kvrpcpb.ScanResponse) -> None:
            if request.sample_step > 1:
                raise Refused(Aborted("this store does not sample: sample_step must be 0 or 1"))
            start, end = request.start_key, request.end_key
            if request.reverse:  # the request's start is where the scan begins: the upper end, itself not included
                start, end = end, start
            size = 0
            async with self._access.reading(request.context) as (region, reading):
                reader = _reader(reading, request.context, request.version)
                span: Span | None = _clipped(region, start, end)
                while span is not None and len(answer.pairs) < request.limit:
                    left = request.limit - len(answer.pairs)
                    part = scan_slice(reader, span, Wanted(left, request.reverse, request.key_only))
                    for found in part.found:
                        self._tell(answer, found)
                        size = _checked_size(size + len(found.key) + len(found.value))
                    span = part.rest
                    await asyncio.sleep(0)

        return await self._answered(request, kvrpcpb.ScanResponse(), work)

    def _tell(self, answer: kvrpcpb.ScanResponse, found: Found) -> None:
        plain = keys.decode(found.key)[0]
        if found.blocked is not None:
            answer.pairs.add(key=plain, error=key_error(found.blocked))
        else:
            answer.pairs.add(key=plain, value=found.value)
            self._count_read(plain, found.value)

    def _count_read(self, key: bytes, value: bytes) -> None:
        self._traffic.bytes_read += len(key) + len(value)
        self._traffic.keys_read += 1

    async def scan_lock(self, request: kvrpcpb.ScanLockRequest) -> kvrpcpb.ScanLockResponse:
        async def work(answer: kvrpcpb.ScanLockResponse) -> None:
            limit = request.limit or 1 << 32
            async with self._access.reading(request.context) as (region, reading):
                span: Span | None = _clipped(region, request.start_key, request.end_key)
                while span is not None and len(answer.locks) < limit:
                    part = locks_slice(reading, span, request.max_version)
                    for key, lock in part.locks[: limit - len(answer.locks)]:
                        answer.locks.append(lock_info(key, lock))
                    span = part.rest
                    await asyncio.sleep(0)

        return await self._answered(request, kvrpcpb.ScanLockResponse(), work)

    # ---- commands ----

    async def prewrite(self, request: kvrpcpb.PrewriteRequest) -> kvrpcpb.PrewriteResponse:
        check = (mutation.key for mutation in request.mutations)
        return await self._command(Kind.PREWRITE, request, kvrpcpb.PrewriteResponse(), check)

    async def commit(self, request: kvrpcpb.CommitRequest) -> kvrpcpb.CommitResponse:
        return await self._command(Kind.COMMIT, request, kvrpcpb.CommitResponse(), iter(request.keys))

    async def pessimistic_rollback(
        self, request: kvrpcpb.PessimisticRollbackRequest
    ) -> kvrpcpb.PessimisticRollbackResponse:
        answer = kvrpcpb.PessimisticRollbackResponse()
        return await self._command(Kind.PESSIMISTIC_ROLLBACK, request, answer, iter(request.keys))

    async def batch_rollback(self, request: kvrpcpb.BatchRollbackRequest) -> kvrpcpb.BatchRollbackResponse:
        answer = kvrpcpb.BatchRollbackResponse()
        return await self._command(Kind.BATCH_ROLLBACK, request, answer, iter(request.keys))

    async def cleanup(self, request: kvrpcpb.CleanupRequest) -> kvrpcpb.CleanupResponse:
        return await self._command(Kind.CLEANUP, request, kvrpcpb.CleanupResponse(), iter((request.key,)))

    async def check_txn_status(self, request: kvrpcpb.CheckTxnStatusRequest) -> kvrpcpb.CheckTxnStatusResponse:
        answer = kvrpcpb.CheckTxnStatusResponse()
        return await self._command(Kind.CHECK_TXN_STATUS, request, answer, iter((request.primary_key,)))

    async def check_secondary_locks(
        self, request: kvrpcpb.CheckSecondaryLocksRequest
    ) -> kvrpcpb.CheckSecondaryLocksResponse:
        async def work(answer: kvrpcpb.CheckSecondaryLocksResponse) -> None:
            check_keys(*request.keys)
            answer.CopyFrom((await self._transact(Kind.CHECK_SECONDARY_LOCKS, request)).answer)

        return await self._answered(request, kvrpcpb.CheckSecondaryLocksResponse(), work)

    async def txn_heart_beat(self, request: kvrpcpb.TxnHeartBeatRequest) -> kvrpcpb.TxnHeartBeatResponse:
        answer = kvrpcpb.TxnHeartBeatResponse()
        return await self._command(Kind.TXN_HEART_BEAT, request, answer, iter((request.primary_lock,)))

    async def _command(self, kind: Kind, request: Any, answer: Answer, plain: Iterator[bytes]) -> Answer:
        async def work(answer: Any) -> None:
            check_keys(*plain)
            for part in _parts_of(request):
                outcome = await self._transact(kind, part)
                answer.CopyFrom(outcome.answer)
                if _is_refused(answer):
                    return

        return await self._answered(request, answer, work)

    async def _transact(self, kind: Kind, request: Any) -> Transacted:
        with self._metrics.command(Kind.Name(kind).lower()):
            outcome = await self._access.transact(request.context, transact(kind, request), self._applied)
        self._traffic.keys_written += max(1, len(outcome.released))
        self._traffic.bytes_written += request.ByteSize()
        return outcome

    def _applied(self, outcome: Transacted) -> None:
        for released in outcome.released:
            self._waits.release(released)

    # ---- pessimistic locks ----

    async def pessimistic_lock(self, request: kvrpcpb.PessimisticLockRequest) -> kvrpcpb.PessimisticLockResponse:
        async def work(answer: kvrpcpb.PessimisticLockResponse) -> None:
            check_keys(*(mutation.key for mutation in request.mutations))
            timeout_ms = request.wait_timeout or DEFAULT_TIMEOUT_MS
            deadline_s = self._loop.time() + timeout_ms / 1000
            is_woken = True
            while is_woken:
                outcome, waiting = await self._lock_or_wait(request, deadline_s if timeout_ms > 0 else 0.0)
                answer.CopyFrom(outcome.answer)
                is_woken = waiting is not None and await self._wait(request, answer, waiting)

        return await self._answered(request, kvrpcpb.PessimisticLockResponse(), work)

    async def _lock_or_wait(
        self, request: kvrpcpb.PessimisticLockRequest, deadline_s: float
    ) -> tuple[Transacted, Waiting | None]:
        waiting: list[Waiting] = []
        is_there = True  # who asked

        def applied(outcome: Transacted) -> None:
            if is_there and outcome.blocked is not None and self._loop.time() < deadline_s:
                waiting.append(self._waits.begin(request.start_version, outcome.blocked, deadline_s))

        try:
            with self._metrics.command("acquire_pessimistic_lock"):
                command = transact(Kind.PESSIMISTIC_LOCK, request)
                outcome = await self._access.transact(request.context, command, applied)
        except BaseException:  # the client has gone: nobody is going to end the wait
            is_there = False
            for begun in waiting:
                self._waits.give_up(begun)
            raise
        return outcome, waiting[0] if waiting else None

    async def _wait(
        self, request: kvrpcpb.PessimisticLockRequest, answer: kvrpcpb.PessimisticLockResponse, waiting: Waiting
    ) -> bool:
        """Whether to try again. A client that does not force its locks decides that itself."""
        end = await self._waits.end(waiting, request.context, may_deadlock=not request.is_first_lock)
        if end is None:
            return False  # the lock that is still in the way is the answer
        if isinstance(end, Circle):
            answer.Clear()
            answer.errors.append(_deadlock_error(end, waiting))
            return False
        if request.wake_up_mode == kvrpcpb.PessimisticLockWakeUpMode.WakeUpModeForceLock:
            return True
        answer.Clear()
        reason = WriteConflict(
            end.key,
            request.start_version,
            end.start_ts,
            end.commit_ts,
            request.primary_lock,
            ConflictReason.PESSIMISTIC_RETRY,
        )
        answer.errors.append(key_error(reason))
        return False

    # ---- over a whole region ----

    async def resolve_lock(self, request: kvrpcpb.ResolveLockRequest) -> kvrpcpb.ResolveLockResponse:
        if request.keys:
            answer = kvrpcpb.ResolveLockResponse()
            return await self._command(Kind.RESOLVE_LOCK, request, answer, iter(request.keys))

        async def work(answer: kvrpcpb.ResolveLockResponse) -> None:
            fates = {info.txn: info.status for info in request.txn_infos}
            if not fates:
                fates = {request.start_version: request.commit_version}
            async with self._access.reading(request.context) as (region, reading):
                span: Span | None = _clipped(region, b"", b"")
                while span is not None:
                    part = locks_slice(reading, span, max(fates))
                    found: dict[int, list[bytes]] = {}
                    for key, lock in part.locks:
                        if lock.start_ts in fates:
                            found.setdefault(lock.start_ts, []).append(keys.decode(key)[0])
                    for start_ts, plain in found.items():
                        await self._resolve_found(request.context, (start_ts, fates[start_ts]), plain, answer)
                        if _is_refused(answer):
                            return
                    span = part.rest
                    await asyncio.sleep(0)

        return await self._answered(request, kvrpcpb.ResolveLockResponse(), work)

    async def _resolve_found(
        self,
        context: kvrpcpb.Context,
        fate: tuple[int, int],
        plain: list[bytes],
        answer: kvrpcpb.ResolveLockResponse,
    ) -> None:
        start_ts, commit_ts = fate
        request = kvrpcpb.ResolveLockRequest(
            context=context, start_version=start_ts, commit_version=commit_ts, keys=plain
        )
        for part in _parts_of(request):
            answer.CopyFrom((await self._transact(Kind.RESOLVE_FOUND, part)).answer)

    async def gc(self, request: kvrpcpb.GCRequest) -> kvrpcpb.GCResponse:
        async def work(answer: kvrpcpb.GCResponse) -> None:
            await self.collect(request.context, request.safe_point)

        return await self._answered(request, kvrpcpb.GCResponse(), work)

    async def collect(self, context: kvrpcpb.Context, safe_point: int) -> int:
        """Drops the old versions of a region; the number of keys that had some. Raises `Rejected`."""
        count = 0
        async with self._access.reading(context) as (region, reading):
            span: Span | None = _clipped(region, b"", b"")
            while span is not None:
                part = garbage_slice(reading, span, safe_point)
                for first in range(0, len(part.keys), COMMAND_KEYS):
                    command = garbage_of(part.keys[first : first + COMMAND_KEYS], safe_point)
                    await self._access.transact(context, command, self._applied)
                count += len(part.keys)
                span = part.rest
                await asyncio.sleep(0)
        return count

    async def delete_range(self, request: kvrpcpb.DeleteRangeRequest) -> kvrpcpb.DeleteRangeResponse:
        """Drops a range for good, locks and versions and all: for whoever knows that nobody uses it any more."""
        answer = kvrpcpb.DeleteRangeResponse()
        try:
            self._check_version(request)
            check_keys(request.start_key, request.end_key)
            if not request.notify_only:
                start = keys.encode(request.start_key)
                end = keys.encode(request.end_key) if request.end_key else b""
                await self._access.propose(
                    request.context, Write(tuple(DeleteRange(start, end, family) for family in FAMILIES))
                )
        except Rejected as rejected:
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            answer.error = key_error(refused.reason).abort
        return answer

    # ---- what all of them have in common ----

    async def _answered(self, request: Any, answer: Answer, work: Callable[[Any], Any]) -> Answer:
        """Lets the work fill the answer in; what it is refused with is told there, and nothing else."""
        try:
            self._check_version(request)
            await work(answer)
        except Rejected as rejected:
            answer.Clear()
            answer.region_error.CopyFrom(rejected.error)  # type: ignore[attr-defined]
        except Refused as refused:
            answer.Clear()
            refuse(answer, refused.reason)
        except Damaged as damaged:
            answer.Clear()
            refuse(answer, Aborted(f"damaged data: {damaged}"))
        return answer

    def _check_version(self, request: Any) -> None:
        """Transactions are of API version 1, and a store whose values carry their expiry has none."""
        asked = request.context.api_version
        if not self._has_ttl and asked not in (kvrpcpb.APIVersion.V1TTL, kvrpcpb.APIVersion.V2):
            return
        names = {kvrpcpb.APIVersion.V1TTL: "V1ttl", kvrpcpb.APIVersion.V2: "V2"}
        ours, command = "V1ttl" if self._has_ttl else "V1", type(request).__name__.removesuffix("Request")
        text = f"cmd: {command}, storage: {ours}, request: {names.get(asked, 'V1')}"
        raise Refused(Aborted(f"Api version in request does not match with TiKV storage, {text}"))


# ---- pieces ----


def _is_refused(answer: Any) -> bool:
    return bool(answer.errors) if "errors" in answer.DESCRIPTOR.fields_by_name else bool(answer.HasField("error"))


def check_keys(*plain: bytes) -> None:
    for key in plain:
        if len(key) > MAX_KEY_BYTES:
            text = f"max key size exceeded: {len(key)} bytes, the limit is {MAX_KEY_BYTES}"
            raise Refused(Aborted(text))


def _checked_size(size: int) -> int:
    if size > MAX_ANSWER_BYTES:
        raise Refused(Aborted(f"the answer would have more than {MAX_ANSWER_BYTES >> 20} MiB: ask for less at once"))
    return size


def _reader(reading: ViewReading, context: kvrpcpb.Context, at: int) -> Reader:
    if context.isolation_level not in (kvrpcpb.IsolationLevel.SI, kvrpcpb.IsolationLevel.RC):
        raise Refused(Aborted("this store does not know isolation level RCCheckTS"))
    return Reader(
        reading,
        at,
        context.isolation_level == kvrpcpb.IsolationLevel.RC,
        frozenset(context.resolved_locks),
        frozenset(context.committed_locks),
    )


def _inside(region: Region, plain: bytes) -> bytes:
    key = keys.encode(plain)
    if not region.has_key(key):
        raise Rejected(pack_error(KeyNotInRegion(key, region)))
    return key


def _clipped(region: Region, start: bytes, end: bytes) -> Span | None:
    """The part of the plain range that is this region's."""
    low, high = region.clip(keys.encode(start) if start else b"", keys.encode(end) if end else b"")
    return None if high and low >= high else Span(low, high)


def _parts_of(request: Any) -> Iterator[Any]:
    """The request, or several that together ask the same."""
    name = "mutations" if "mutations" in request.DESCRIPTOR.fields_by_name else "keys"
    if name not in request.DESCRIPTOR.fields_by_name or len(getattr(request, name)) <= COMMAND_KEYS:
        yield request
        return
    lists = [name, *(other for other in ("pessimistic_actions",) if other in request.DESCRIPTOR.fields_by_name)]
    for first in range(0, len(getattr(request, name)), COMMAND_KEYS):
        part = type(request)()
        part.CopyFrom(request)
        for each in lists:
            kept = getattr(request, each)[first : first + COMMAND_KEYS]
            part.ClearField(each)
            getattr(part, each).extend(kept)
        if name == "mutations":
            part.ClearField("for_update_ts_constraints")
            for constraint in request.for_update_ts_constraints:
                if first <= constraint.index < first + COMMAND_KEYS:
                    moved = part.for_update_ts_constraints.add(index=constraint.index - first)
                    moved.expected_for_update_ts = constraint.expected_for_update_ts
        yield part


def _deadlock_error(circle: Circle, waiting: Waiting) -> kvrpcpb.KeyError:
    waiter = waiting.waiter
    plain = keys.decode(waiter.key)[0]
    error = kvrpcpb.KeyError()
    deadlock = error.deadlock
    deadlock.lock_ts, deadlock.lock_key, deadlock.deadlock_key = waiter.holder_ts, plain, circle.waits[-1].key
    deadlock.deadlock_key_hash = hash_of(circle.waits[-1].key)
    for wait in circle.waits:
        deadlock.wait_chain.add(txn=wait.txn, wait_for_txn=wait.holder, key=wait.key, key_hash=hash_of(wait.key))
    deadlock.wait_chain.add(txn=waiter.start_ts, wait_for_txn=waiter.holder_ts, key=plain, key_hash=hash_of(plain))
    return error
