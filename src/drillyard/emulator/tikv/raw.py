"""RawKV: keys and values without transactions, API version 1.

Rules:
- Every answer is confined to the region that the request names, and to the range that the client believes it has: a
  range is cut off at the region's ends, a single key outside is refused.
- A write is answered when it has been applied after being committed on a quorum; a read when the leader's place was
  confirmed after the read arrived.
- Keys are at most 8 KiB, and a command at most what one log entry may hold. A client may name the column family `lock`
  or `write` instead of `default`, as it may of a TiKV; transactions keep their records there.
- With `storage.enable-ttl` every value carries its expiry, and what has expired is nowhere shown, deleted or not. What
  time it is is asked once for each request. Without it a time to live is refused.
- What is refused is told in TiKV's words, in the field in which TiKV tells it.
- A long scan reads a view in slices, and the loop runs between two slices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Protocol, TypeVar

from msgspec import Struct

from drillyard.emulator.storage import View
from drillyard.emulator.store import expiry
from drillyard.emulator.store.checksum import Crc64
from drillyard.emulator.store.commands import (
    CompareAndSwap,
    Delete,
    DeleteRange,
    Lifetime,
    Put,
    Swapped,
    Write,
    Written,
)
from drillyard.emulator.store.errors import KeyNotInRegion
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.state import FAMILY_NAMES, Family, Span
from drillyard.emulator.tikv.access import MAX_ANSWER_BYTES, MAX_KEY_BYTES, Access, Rejected
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.heartbeats import Traffic
from drillyard.emulator.tikv.records import data_place, data_range, key_at, pack_error
from drillyard.wire import errorpb, kvrpcpb

FIRST_SLICE_PAIRS = 16
SLICE_PAIRS = 256
SLICE_BYTES = 1 << 20
CHECKSUM_SLICE_BYTES = 32 << 10

Value = TypeVar("Value")
Pairs = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request itself cannot be served, wherever it is sent: what the answer's `error` says.

    Answers that hold pairs have no such field; the error is told instead of a pair, in the form that Rust shows.
    """

    def __init__(self, text: str, shown: str = "") -> None:
        super().__init__(text)
        self.shown = f"Error({shown})" if shown else f'Error(Other("{text}"))'


class _HasErrors(Protocol):
    """What every answer has that can say one sentence about the request."""

    error: str

    @property
    def region_error(self) -> errorpb.Error: ...


class _Placed(Protocol):
    """What every request has that names a column family."""

    @property
    def context(self) -> kvrpcpb.Context: ...
    @property
    def cf(self) -> str: ...


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


class _Scan(Struct, frozen=True):
    """What part of a region to read, and how."""

    start: bytes
    end: bytes
    limit: int
    reverse: bool
    key_only: bool
    family: Family
    now_s: int


class _Checksum:
    """Of the pairs so far; their order does not matter."""

    def __init__(self) -> None:
        self.value = self.pairs = self.size = 0

    def add(self, crc: int, size: int) -> None:
        self.value ^= crc
        self.pairs += 1
        self.size += size


class RawKv:
    """`clock` gives the Unix second and makes values carry their expiry; without it they are bare."""

    def __init__(self, engine: Engine, traffic: Traffic, clock: Callable[[], int] | None = None) -> None:
        self._engine = engine
        self._access = Access(engine)
        self._traffic = traffic
        self._clock = clock
        self._loop = asyncio.get_running_loop()

    # ---- reading ----

    async def get(self, request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
        answer = kvrpcpb.RawGetResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_get")
            value = await self._access.read(request.context, lambda region: self._get(region, request.key, family))
            answer.not_found = value is None
            answer.value = value or b""
        return answer

    async def batch_get(self, request: kvrpcpb.RawBatchGetRequest) -> kvrpcpb.RawBatchGetResponse:
        answer = kvrpcpb.RawBatchGetResponse()
        try:
            family = self._admit(request, "raw_batch_get")
            async with self._access.viewing(request.context) as (region, view):
                size, now_s = 0, self._now_s()
                for number, key in enumerate(request.keys):
                    if not region.has_key(key):
                        raise Rejected(pack_error(KeyNotInRegion(key, region)))
                    value = self._living(view.get(data_place(key, family)), now_s)
                    if value is not None:
                        size += len(key) + len(value)
                        check_answer(size)
                        answer.pairs.add(key=key, value=value)
                        self._count_read(1, len(key) + len(value))
                    if number % SLICE_PAIRS == SLICE_PAIRS - 1:
                        await asyncio.sleep(0)
        except Rejected as rejected:
            del answer.pairs[:]
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            del answer.pairs[:]
            answer.pairs.add().error.abort = refused.shown
        return answer

    async def scan(self, request: kvrpcpb.RawScanRequest) -> kvrpcpb.RawScanResponse:
        answer = kvrpcpb.RawScanResponse()
        try:
            family = self._admit(request, "raw_scan")
            start, end = request.start_key, request.end_key
            if request.reverse:  # the request's start is where the scan begins: the upper end, itself not included
                start, end = end, start
            wanted = _Scan(start, end, request.limit, request.reverse, request.key_only, family, self._now_s())
            async with self._access.viewing(request.context) as (region, view):
                if not request.reverse and not region.has_key(start):
                    raise Rejected(pack_error(KeyNotInRegion(start, region)))
                add = answer.kvs.add  # looked up once, for protobuf takes as long for that as for a third of a pair
                for key, value in await self._scan(view, region, wanted):
                    add(key=key, value=value)
        except Rejected as rejected:
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            answer.kvs.add().error.abort = refused.shown
        return answer

    async def batch_scan(self, request: kvrpcpb.RawBatchScanRequest) -> kvrpcpb.RawBatchScanResponse:
        answer = kvrpcpb.RawBatchScanResponse()
        try:
            family = self._admit(request, "raw_batch_scan")
            ranges = ranges_of(request)
            async with self._access.viewing(request.context) as (region, view):
                size, now_s, add = 0, self._now_s(), answer.kvs.add
                for start, end in ranges:
                    wanted = _Scan(start, end, request.each_limit, request.reverse, request.key_only, family, now_s)
                    for key, value in await self._scan(view, region, wanted):
                        size += len(key) + len(value)
                        check_answer(size)
                        add(key=key, value=value)
        except Rejected as rejected:
            answer.region_error.CopyFrom(rejected.error)
        except Refused as refused:
            del answer.kvs[:]
            answer.kvs.add().error.abort = refused.shown
        return answer

    async def key_ttl(self, request: kvrpcpb.RawGetKeyTTLRequest) -> kvrpcpb.RawGetKeyTTLResponse:
        answer = kvrpcpb.RawGetKeyTTLResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_get_key_ttl")
            if self._clock is None:
                raise Refused("get ttl on non-ttl store")
            packed = await self._access.read(
                request.context, lambda region: self._packed_at(region, request.key, family)
            )
            now_s = self._now_s()
            answer.not_found = self._living(packed, now_s) is None
            if packed is not None and not answer.not_found:
                expires_s = expiry.unpack(packed).expires_s
                answer.ttl = expires_s - now_s if expires_s else 0
        return answer

    async def checksum(self, request: kvrpcpb.RawChecksumRequest) -> kvrpcpb.RawChecksumResponse:
        answer = kvrpcpb.RawChecksumResponse()
        with _RefusalsIn(answer):
            if request.algorithm != kvrpcpb.ChecksumAlgorithm.Crc64_Xor:
                raise Refused(f"unknown checksum algorithm {request.algorithm}")
            check_version(request.context, "raw_checksum", has_ttl=self._clock is not None)
            async with self._access.viewing(request.context) as (region, view):
                sum_ = _Checksum()
                for part in request.ranges:
                    if not region.has_key(part.start_key):
                        raise Rejected(pack_error(KeyNotInRegion(part.start_key, region)))
                    span = Span(*region.clip(part.start_key, part.end_key))
                    if not span.end or span.start < span.end:
                        await self._sum_up(view, span, sum_)
            answer.checksum, answer.total_kvs, answer.total_bytes = sum_.value, sum_.pairs, sum_.size
        return answer

    async def _sum_up(self, view: View, span: Span, sum_: _Checksum) -> None:
        now_s, until_pause = self._now_s(), CHECKSUM_SLICE_BYTES
        for place, packed in view.walk(*data_range(span)):
            value = self._living(packed, now_s)
            if value is None:
                continue
            crc, data = Crc64(), key_at(place) + value
            for start in range(0, len(data), CHECKSUM_SLICE_BYTES):
                piece = data[start : start + CHECKSUM_SLICE_BYTES]
                crc.update(piece)
                until_pause -= len(piece)
                if until_pause <= 0:
                    until_pause = CHECKSUM_SLICE_BYTES
                    await asyncio.sleep(0)
            sum_.add(crc.value, len(data))
            self._count_read(1, len(data))

    def _get(self, region: Region, key: bytes, family: Family) -> bytes | None:
        return self._living(self._packed_at(region, key, family), self._now_s())

    def _packed_at(self, region: Region, key: bytes, family: Family) -> bytes | None:
        if not region.has_key(key):
            raise Rejected(pack_error(KeyNotInRegion(key, region)))
        packed = self._engine.storage.get(data_place(key, family))
        self._count_read(1, len(key) + len(packed or b""))
        return packed

    def _admit(self, request: _Placed, command: str) -> Family:
        check_version(request.context, command, has_ttl=self._clock is not None)
        return family_of(request.cf)

    def _now_s(self) -> int:
        return 0 if self._clock is None else self._clock()

    def _living(self, packed: bytes | None, now_s: int) -> bytes | None:
        """The value as clients know it, unless it is not there or has expired."""
        if self._clock is None:
            return packed
        try:
            return expiry.living(packed, now_s)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _packed(self, value: bytes, ttl_s: int) -> bytes:
        return value if self._clock is None else expiry.pack(value, expiry.expiry_of(ttl_s, self._clock()))

    def _check_ttl(self, *ttls: int) -> None:
        if self._clock is None and any(ttls):
            raise Refused("ttl is not enabled, but get put request with ttl", "TtlNotEnabled")

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
            is_bare = wanted.key_only and self._clock is None
            pairs = view.scan(low, high, asked, reverse=wanted.reverse, keys_only=is_bare)
            size, before = 0, (len(found), total)
            for place, packed in pairs:
                size += len(place) + len(packed)
                value = self._living(packed, wanted.now_s)
                if value is not None:
                    key, value = key_at(place), b"" if wanted.key_only else value
                    found.append((key, value))
                    total += len(key) + len(value)
            self._count_read(len(found) - before[0], total - before[1])
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

    def _count_read(self, keys: int, size: int) -> None:
        self._traffic.keys_read += keys
        self._traffic.bytes_read += size

    # ---- writing ----

    async def put(self, request: kvrpcpb.RawPutRequest) -> kvrpcpb.RawPutResponse:
        answer = kvrpcpb.RawPutResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_put")
            check_keys(request.key)
            self._check_ttl(request.ttl)
            value = self._packed(request.value, request.ttl)
            await self._write(request.context, Write((Put(request.key, value, family),)))
        return answer

    async def batch_put(self, request: kvrpcpb.RawBatchPutRequest) -> kvrpcpb.RawBatchPutResponse:
        answer = kvrpcpb.RawBatchPutResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_batch_put")
            check_keys(*(pair.key for pair in request.pairs))
            ttls = ttls_of(request)
            self._check_ttl(*ttls)
            puts = (
                Put(pair.key, self._packed(pair.value, ttl_s), family)
                for pair, ttl_s in zip(request.pairs, ttls, strict=True)
            )
            await self._write(request.context, Write(tuple(puts)))
        return answer

    async def delete(self, request: kvrpcpb.RawDeleteRequest) -> kvrpcpb.RawDeleteResponse:
        answer = kvrpcpb.RawDeleteResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_delete")
            check_keys(request.key)
            await self._write(request.context, Write((Delete(request.key, family),)))
        return answer

    async def batch_delete(self, request: kvrpcpb.RawBatchDeleteRequest) -> kvrpcpb.RawBatchDeleteResponse:
        answer = kvrpcpb.RawBatchDeleteResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_batch_delete")
            check_keys(*request.keys)
            await self._write(request.context, Write(tuple(Delete(key, family) for key in request.keys)))
        return answer

    async def delete_range(self, request: kvrpcpb.RawDeleteRangeRequest) -> kvrpcpb.RawDeleteRangeResponse:
        answer = kvrpcpb.RawDeleteRangeResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_delete_range")
            check_keys(request.start_key, request.end_key)
            if request.end_key and request.start_key >= request.end_key:
                raise Rejected(errorpb.Error(message=f"invalid delete range command, {_shown_range(request)}"))
            await self._write(request.context, Write((DeleteRange(request.start_key, request.end_key, family),)))
        return answer

    async def compare_and_swap(self, request: kvrpcpb.RawCASRequest) -> kvrpcpb.RawCASResponse:
        answer = kvrpcpb.RawCASResponse()
        with _RefusalsIn(answer):
            family = self._admit(request, "raw_compare_and_swap")
            check_keys(request.key)
            self._check_ttl(request.ttl)
            expected = None if request.previous_not_exist else request.previous_value
            lifetime = None
            if self._clock is not None:
                now_s = self._clock()
                lifetime = Lifetime(now_s, expiry.expiry_of(request.ttl, now_s))
            swap = CompareAndSwap(request.key, expected, request.value, family, lifetime)
            outcome = await self._write(request.context, swap)
            assert isinstance(outcome, Swapped)
            answer.succeed = outcome.succeeded
            answer.previous_not_exist = outcome.previous is None
            answer.previous_value = outcome.previous or b""
        return answer

    async def _write(self, context: kvrpcpb.Context, command: Write | CompareAndSwap) -> Written | Swapped:
        outcome = await self._access.propose(context, command)
        assert isinstance(outcome, Written | Swapped)
        mutations = command.mutations if isinstance(command, Write) else (Put(command.key, command.value),)
        self._traffic.keys_written += len(mutations)
        self._traffic.bytes_written += sum(
            len(mutation.key) + len(mutation.value) for mutation in mutations if isinstance(mutation, Put)
        )
        return outcome


def check_version(context: kvrpcpb.Context, command: str, *, has_ttl: bool) -> None:
    """Requests are of API version 1, also where values carry their expiry. A number that is no version counts as 1."""
    versions = kvrpcpb.APIVersion
    if context.api_version not in (versions.V1TTL, versions.V2):
        return
    asked = "V2" if context.api_version == versions.V2 else "V1ttl"
    ours = "V1ttl" if has_ttl else "V1"
    raise Refused(
        f"Api version in request does not match with TiKV storage, cmd: {command}, storage: {ours}, request: {asked}",
        f"ApiVersionNotMatched {{ cmd: {command}, storage_api_version: {ours}, req_api_version: {asked} }}",
    )


def family_of(cf: str) -> Family:
    family = FAMILY_NAMES.get(cf)
    if family is None:
        raise Refused(f"invalid cf name: {cf}", f"InvalidCf({json.dumps(cf)})")
    return family


def ranges_of(request: kvrpcpb.RawBatchScanRequest) -> list[tuple[bytes, bytes]]:
    """From where to where, the lower end first. A range without an end ends where the next one begins."""
    starts = [part.start_key for part in request.ranges]
    following = (*starts[1:], b"")[: len(starts)]
    ends = [part.end_key or start for part, start in zip(request.ranges, following, strict=True)]
    for start, end in zip(starts, ends, strict=True):
        if end and (start <= end if request.reverse else start >= end):
            raise Refused("Invalid KeyRanges")
    return list(zip(ends, starts, strict=True) if request.reverse else zip(starts, ends, strict=True))


def ttls_of(request: kvrpcpb.RawBatchPutRequest) -> list[int]:
    """One for each pair. One for all of them may be given once, and none at all is none."""
    ttls, count = list(request.ttls), len(request.pairs)
    if len(ttls) <= 1:
        return (ttls or [0]) * count
    if len(ttls) != count:
        raise Refused("The length of ttls does not equal to the length of pairs", "TtlLenNotEqualsToPairs")
    return ttls


def _shown_range(request: kvrpcpb.RawDeleteRangeRequest) -> str:
    return f"start_key: {list(request.start_key)}, end_key: {list(request.end_key)}"


def check_answer(size: int) -> None:
    """Before it has been gathered: it could not be sent, and would take the memory of the member first."""
    if size > MAX_ANSWER_BYTES:
        raise Refused(f"the answer would have more than {MAX_ANSWER_BYTES >> 20} MiB: ask for less at once")


def check_keys(*keys: bytes) -> None:
    for key in keys:
        if len(key) > MAX_KEY_BYTES:
            raise Refused(
                f"max key size exceeded, size: {len(key)}, limit: {MAX_KEY_BYTES}",
                f"KeyTooLarge {{ size: {len(key)}, limit: {MAX_KEY_BYTES} }}",
            )
