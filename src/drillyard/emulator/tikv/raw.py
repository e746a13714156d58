"""RawKV: keys and values without transactions, API version 1.

Rules:
- Every answer is confined to the region that the request names, and to the range that the client believes it has: a
  range is cut off at the region's ends, a single key outside is refused.
- A write is answered when it has been applied after being committed on a quorum; a read when the leader's place was
  confirmed after the read arrived.
- Keys are at most 8 KiB, and a command at most what one log entry may hold. Time-to-live is not enabled. A client may
  name the column family `lock` or `write` instead of `default`, as it may of a TiKV; transactions keep their records
  there.
- A long scan reads a view in slices, and the loop runs between two slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from drillyard.emulator.storage import StorageFailed, View
from drillyard.emulator.store.commands import (
    CompareAndSwap,
    Delete,
    DeleteRange,
    Put,
    Swapped,
    Write,
    Written,
)
from drillyard.emulator.store.errors import KeyNotInRegion
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.replica import Context, Outcome, Readable
from drillyard.emulator.store.state import FAMILY_NAMES, Family, Span
from drillyard.emulator.store.transactions import Transacted
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.heartbeats import Traffic
from drillyard.emulator.tikv.records import data_place, data_range, key_at, pack_error
from drillyard.wire import errorpb, kvrpcpb

MAX_KEY_BYTES = 8 << 10
FIRST_SLICE_PAIRS = 16
SLICE_PAIRS = 256
SLICE_BYTES = 1 << 20
MAX_ANSWER_BYTES = 48 << 20  # of keys and values: a message, overhead included, holds 64 MiB

Value = TypeVar("Value")
Pairs = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request itself cannot be served, wherever it is sent: what the answer's `error` says."""


class Rejected(Exception):
    """A region error: the client has to look elsewhere, or later."""

    def __init__(self, error: errorpb.Error) -> None:
        super().__init__(error.message)
        self.error = error


class _HasErrors(Protocol):
    """What every answer has that can say one sentence about the request."""

    error: str

    @property
    def region_error(self) -> errorpb.Error: ...


class _RefusalsIn:
    """What is rejected or refused inside the block is told in the answer."""

    __slots__ = ("_answer",)

    def __init__(self, answer: _HasErrors) -> None:
        self._answer = answer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Rejected):
            self._answer.region_error.CopyFrom(error.error)
        elif isinstance(error, Refused):
            self._answer.error = str(error)
        else:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Scan:
    """What part of a region to read, and how."""

    start: bytes
    end: bytes
    limit: int
    reverse: bool
    key_only: bool
    family: Family


class RawKv:
    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic
        self._loop = asyncio.get_running_loop()

    # ---- reading ----

    async def get(self, request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
        answer = kvrpcpb.RawGetResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            value = await self._read(request.context, lambda region: self._get(region, request.key, family))
            answer.not_found = value is None
            answer.value = value or b""
        return answer

    async def batch_get(self, request: kvrpcpb.RawBatchGetRequest) -> kvrpcpb.RawBatchGetResponse:
        answer = kvrpcpb.RawBatchGetResponse()
        try:
            family = check_request(request.context, request.cf)
            async with _Viewing(self, request.context) as (region, view):
                size = 0
                for number, key in enumerate(request.keys):
                    if not region.has_key(key):
                        raise Rejected(pack_error(KeyNotInRegion(key, region)))
                    value = view.get(data_place(key, family))
                    if value is not None:
                        size += len(key) + len(value)
                        check_answer(size)
                        answer.pairs.add(key=key, value=value)
                        self._count_read(key, value)
                    if number % SLICE_PAIRS == SLICE_PAIRS - 1:
                        await asyncio.sleep(0)
        except Rejected as rejected:
            del answer.pairs[:]
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            del answer.pairs[:]
            answer.pairs.add().error.abort = str(refused)
        return answer

    async def scan(self, request: kvrpcpb.RawScanRequest) -> kvrpcpb.RawScanResponse:
        answer = kvrpcpb.RawScanResponse()
        try:
            family = check_request(request.context, request.cf)
            start, end = request.start_key, request.end_key
            if request.reverse:  # the request's start is where the scan begins: the upper end, itself not included
                start, end = end, start
            wanted = _Scan(start, end, request.limit, request.reverse, request.key_only, family)
            async with _Viewing(self, request.context) as (region, view):
                if not request.reverse and not region.has_key(start):
                    raise Rejected(pack_error(KeyNotInRegion(start, region)))
                for key, value in await self._scan(view, region, wanted):
                    answer.kvs.add(key=key, value=value)
        except Rejected as rejected:
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            answer.kvs.add().error.abort = str(refused)
        return answer

    async def batch_scan(self, request: kvrpcpb.RawBatchScanRequest) -> kvrpcpb.RawBatchScanResponse:
        answer = kvrpcpb.RawBatchScanResponse()
        try:
            family = check_request(request.context, request.cf)
            async with _Viewing(self, request.context) as (region, view):
                size = 0
                for part in request.ranges:
                    start, end = part.start_key, part.end_key
                    if request.reverse:
                        start, end = end, start
                    wanted = _Scan(start, end, request.each_limit, request.reverse, request.key_only, family)
                    for key, value in await self._scan(view, region, wanted):
                        size += len(key) + len(value)
                        check_answer(size)
                        answer.kvs.add(key=key, value=value)
        except Rejected as rejected:
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            del answer.kvs[:]
            answer.kvs.add().error.abort = str(refused)
        return answer

    async def _read(self, context: kvrpcpb.Context, take: Callable[[Region], Value]) -> Value:
        """What `take` gives at the moment at which the state may be read."""
        future: asyncio.Future[Value] = self._loop.create_future()

        def ticket(outcome: Outcome) -> None:
            if future.done():
                return
            if not isinstance(outcome, Readable):
                assert not isinstance(outcome, Written | Swapped | Transacted)
                future.set_exception(Rejected(pack_error(outcome)))
                return
            try:
                future.set_result(take(outcome.region))
            except (Rejected, StorageFailed) as error:
                future.set_exception(error)

        error = self._engine.read(ticket, context_of(context))
        if error is not None:
            raise Rejected(pack_error(error))
        return await future

    async def view(self, context: kvrpcpb.Context) -> tuple[Region, View]:
        return await self._read(context, lambda region: (region, self._engine.storage.view()))

    def _get(self, region: Region, key: bytes, family: Family) -> bytes | None:
        if not region.has_key(key):
            raise Rejected(pack_error(KeyNotInRegion(key, region)))
        value = self._engine.storage.get(data_place(key, family))
        self._count_read(key, value or b"")
        return value

    async def _scan(self, view: View, region: Region, wanted: _Scan) -> Pairs:
        start, end = region.clip(wanted.start, wanted.end)
        if end and start >= end:
            return []
        low, high = data_range(Span(start, end, wanted.family))
        found: Pairs = []
        total = 0
        slice_pairs = FIRST_SLICE_PAIRS  # before it is known how large they are
        while len(found) < wanted.limit:
            asked = min(slice_pairs, wanted.limit - len(found))
            pairs = view.scan(low, high, asked, reverse=wanted.reverse, keys_only=wanted.key_only)
            size = 0
            for place, value in pairs:
                key = key_at(place)
                found.append((key, value))
                size += len(key) + len(value)
                self._count_read(key, value)
            total += size
            check_answer(total)
            if len(pairs) < asked:
                break
            slice_pairs = max(1, min(SLICE_PAIRS, SLICE_BYTES * asked // max(size, 1)))
            if wanted.reverse:
                high = pairs[-1][0]
            else:
                low = pairs[-1][0] + b"\0"
            await asyncio.sleep(0)
        return found

    def _count_read(self, key: bytes, value: bytes) -> None:
        self._traffic.bytes_read += len(key) + len(value)
        self._traffic.keys_read += 1

    # ---- writing ----

    async def put(self, request: kvrpcpb.RawPutRequest) -> kvrpcpb.RawPutResponse:
        answer = kvrpcpb.RawPutResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_ttl(request.ttl)
            check_keys(request.key)
            await self._write(request.context, Write((Put(request.key, request.value, family),)))
        return answer

    async def batch_put(self, request: kvrpcpb.RawBatchPutRequest) -> kvrpcpb.RawBatchPutResponse:
        answer = kvrpcpb.RawBatchPutResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_ttl(request.ttl, *request.ttls)
            check_keys(*(pair.key for pair in request.pairs))
            await self._write(
                request.context, Write(tuple(Put(pair.key, pair.value, family) for pair in request.pairs))
            )
        return answer

    async def delete(self, request: kvrpcpb.RawDeleteRequest) -> kvrpcpb.RawDeleteResponse:
        answer = kvrpcpb.RawDeleteResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_keys(request.key)
            await self._write(request.context, Write((Delete(request.key, family),)))
        return answer

    async def batch_delete(self, request: kvrpcpb.RawBatchDeleteRequest) -> kvrpcpb.RawBatchDeleteResponse:
        answer = kvrpcpb.RawBatchDeleteResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_keys(*request.keys)
            await self._write(request.context, Write(tuple(Delete(key, family) for key in request.keys)))
        return answer

    async def delete_range(self, request: kvrpcpb.RawDeleteRangeRequest) -> kvrpcpb.RawDeleteRangeResponse:
        answer = kvrpcpb.RawDeleteRangeResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_keys(request.start_key, request.end_key)
            if request.end_key and request.start_key > request.end_key:
                raise Refused("the range to delete ends before it starts")
            await self._write(request.context, Write((DeleteRange(request.start_key, request.end_key, family),)))
        return answer

    async def compare_and_swap(self, request: kvrpcpb.RawCASRequest) -> kvrpcpb.RawCASResponse:
        answer = kvrpcpb.RawCASResponse()
        with _RefusalsIn(answer):
            family = check_request(request.context, request.cf)
            check_ttl(request.ttl)
            check_keys(request.key)
            expected = None if request.previous_not_exist else request.previous_value
            outcome = await self._write(request.context, CompareAndSwap(request.key, expected, request.value, family))
            assert isinstance(outcome, Swapped)
            answer.succeed = outcome.succeeded
            answer.previous_not_exist = outcome.previous is None
            answer.previous_value = outcome.previous or b""
        return answer

    async def key_ttl(self, request: kvrpcpb.RawGetKeyTTLRequest) -> kvrpcpb.RawGetKeyTTLResponse:
        return kvrpcpb.RawGetKeyTTLResponse(error=NO_TTL)

    async def _write(self, context: kvrpcpb.Context, command: Write | CompareAndSwap) -> Written | Swapped:
        future: asyncio.Future[Written | Swapped] = self._loop.create_future()

        def ticket(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, Written | Swapped):
                future.set_result(outcome)
            else:
                assert not isinstance(outcome, Readable | Transacted)
                future.set_exception(Rejected(pack_error(outcome)))

        error = self._engine.write(ticket, context_of(context), command)
        if error is not None:
            raise Rejected(pack_error(error))
        outcome = await future
        mutations = command.mutations if isinstance(command, Write) else (Put(command.key, command.value),)
        self._traffic.keys_written += len(mutations)
        self._traffic.bytes_written += sum(
            len(mutation.key) + len(mutation.value) for mutation in mutations if isinstance(mutation, Put)
        )
        return outcome


class _Viewing:
    """A view of the region, taken when it may be read and closed at the end."""

    def __init__(self, raw: RawKv, context: kvrpcpb.Context) -> None:
        self._raw = raw
        self._context = context

    async def __aenter__(self) -> tuple[Region, View]:
        region, self._view = await self._raw.view(self._context)
        return region, self._view

    async def __aexit__(self, *_: object) -> None:
        self._view.close()


NO_TTL = "ttl is not enabled on this store: nothing can be put with one, and no key has one"


def context_of(context: kvrpcpb.Context) -> Context:
    peer = context.peer
    return Context(context.region_id, context.region_epoch.version, peer.id, peer.store_id, context.term)


def check_request(context: kvrpcpb.Context, cf: str) -> Family:
    if context.api_version != kvrpcpb.APIVersion.V1:
        name = kvrpcpb.APIVersion.Name(context.api_version)
        raise Refused(f"api version in the request, {name}, does not match that of the store, V1")
    family = FAMILY_NAMES.get(cf)
    if family is None:
        raise Refused(f"invalid cf name: {cf}")
    return family


def check_answer(size: int) -> None:
    """Before it has been gathered: it could not be sent, and would take the memory of the member first."""
    if size > MAX_ANSWER_BYTES:
        raise Refused(f"the answer would have more than {MAX_ANSWER_BYTES >> 20} MiB: ask for less at once")


def check_ttl(*ttls: int) -> None:
    if any(ttls):
        raise Refused(NO_TTL)


def check_keys(*keys: bytes) -> None:
    for key in keys:
        if len(key) > MAX_KEY_BYTES:
            raise Refused(f"max key size exceeded: {len(key)} bytes, the limit is {MAX_KEY_BYTES}")
