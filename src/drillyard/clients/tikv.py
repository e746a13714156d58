"""A small RawKV client that never retries in silence: one call, one attempt, one outcome.

Rules: an outcome is `OK` (it happened), `FAILED` (it certainly did not) or `UNKNOWN` (a write that may or may not have
happened). That is what a history needs to be judged, and what a probe needs to be honest. A region error or a lost
connection makes the client forget what it believed about the region, so that the caller's next call looks it up again.
A region error counts as `FAILED`, because a store refuses before it proposes; `StaleCommand` on a write counts as
`UNKNOWN`, because a store says that after it proposed. Scans and delete ranges go region by region and stop at the
first that fails.

Not here: retries, back-off, transactions.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial, directly
from drillyard.clients.pd import PdClient, ask, channel_to
from drillyard.wire import errorpb, kvrpcpb, metapb, services
from drillyard.wire.method import Method
from drillyard.wire.rpc import Channel

# Failures that do not contradict what was believed about the region.
_PROVES_NOTHING = {"error", "server_is_busy", "raft_entry_too_large"}


class Result(Enum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call came to. `store` is the address that was asked last, empty when none was."""

    result: Result
    value: bytes | None = None
    pairs: tuple[tuple[bytes, bytes], ...] = ()
    swapped: bool = False
    previous: bytes | None = None
    region_id: int = 0
    store: str = ""
    kind: str = ""
    reason: str = ""

    @property
    def is_ok(self) -> bool:
        return self.result is Result.OK


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One region as it was last known, and one peer of it: the leader, as far as the caller knows."""

    start: bytes
    end: bytes = field(compare=False)
    region: metapb.Region = field(compare=False)
    peer: metapb.Peer = field(compare=False)
    address: str = field(compare=False)

    def has(self, key: bytes) -> bool:
        return self.start <= key and (not self.end or key < self.end)

    def context(self) -> kvrpcpb.Context:
        return kvrpcpb.Context(region_id=self.region.id, region_epoch=self.region.region_epoch, peer=self.peer)


class Stores:
    """Single attempts at the very peer that a route names, over one connection to each store."""

    def __init__(self, timeout_s: float, dial: Dial = directly) -> None:
        self._timeout_s = timeout_s
        self._dial = dial
        self._channels: dict[str, Channel] = {}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    async def attempt(
        self, method: Method[Any, Any], request: Any, route: Route, *, is_write: bool
    ) -> tuple[Outcome, Any | None]:
        """The outcome, and the answer if it is `OK`."""
        request.context.CopyFrom(route.context())
        told = Outcome(Result.OK, region_id=route.region.id, store=route.address)
        lost = Result.UNKNOWN if is_write else Result.FAILED
        try:
            answer = await self._call(method, request, route.address)
        except CallFailed as failure:
            result = Result.FAILED if failure.kind == calls.REFUSED else lost
            return replace(told, result=result, kind=failure.kind, reason=failure.text), None
        if answer.HasField("region_error"):
            error: errorpb.Error = answer.region_error
            result = lost if error.HasField("stale_command") else Result.FAILED
            return replace(told, result=result, kind=_kind_of(error), reason=_words_of(error)), None
        if getattr(answer, "error", ""):
            return replace(told, result=Result.FAILED, kind="error", reason=answer.error), None
        return told, answer

    async def _call(self, method: Method[Any, Any], request: Any, address: str) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = channel_to(address, self._dial)
        return await ask(channel.unary(method, request, timeout_s=self._timeout_s), address, self._timeout_s)


class RawClient:
    """RawKV on one cluster, by the client addresses of its PD members; `dial` says where any address is reached."""

    def __init__(self, pd_addresses: Sequence[str], *, timeout_s: float = 5.0, dial: Dial = directly) -> None:
        self._pds = [PdClient(address, address, dial) for address in pd_addresses]
        self._timeout_s = timeout_s
        self._stores = Stores(timeout_s, dial)
        self._leader: PdClient | None = None
        self._cluster_id = 0
        self._routes: list[Route] = []

    def close(self) -> None:
        for client in self._pds:
            client.close()
        self._stores.close()

    # --- one key -----------------------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> Outcome:
        request = kvrpcpb.RawGetRequest(key=key)
        outcome, answer = await self._at_key(services.TIKV.RawGet, request, key, is_write=False)
        return outcome if answer is None else replace(outcome, value=None if answer.not_found else answer.value)

    async def put(self, key: bytes, value: bytes) -> Outcome:
        request = kvrpcpb.RawPutRequest(key=key, value=value)
        return (await self._at_key(services.TIKV.RawPut, request, key, is_write=True))[0]

    async def delete(self, key: bytes) -> Outcome:
        request = kvrpcpb.RawDeleteRequest(key=key)
        return (await self._at_key(services.TIKV.RawDelete, request, key, is_write=True))[0]

    async def compare_and_swap(self, key: bytes, expected: bytes | None, value: bytes) -> Outcome:
        """Write `value` if the key holds `expected` (None: if it is not there)."""
        request = kvrpcpb.RawCASRequest(
            key=key, value=value, previous_not_exist=expected is None, previous_value=expected or b""
        )
        outcome, answer = await self._at_key(services.TIKV.RawCompareAndSwap, request, key, is_write=True)
        if answer is None:
            return outcome
        previous = None if answer.previous_not_exist else answer.previous_value
        return replace(outcome, swapped=answer.succeed, previous=previous)

    # --- ranges ------------------------------------------------------------------------------------------------------

    async def scan(self, start: bytes, end: bytes, limit: int, cf: str = "") -> Outcome:
        """Up to `limit` pairs from `start` up to `end` (empty: no end), region by region."""
        found: list[tuple[bytes, bytes]] = []
        key: bytes | None = start
        while True:
            assert key is not None
            request = kvrpcpb.RawScanRequest(start_key=key, end_key=end, limit=limit - len(found), cf=cf)
            outcome, answer = await self._at_key(services.TIKV.RawScan, request, key, is_write=False)
            if answer is None:
                return replace(outcome, pairs=tuple(found))
            refused = next((pair.error for pair in answer.kvs if pair.HasField("error")), None)
            if refused is not None:
                said = refused.abort or refused.retryable or "the store refuses to scan"
                return replace(outcome, result=Result.FAILED, kind="error", reason=said, pairs=tuple(found))
            found.extend((pair.key, pair.value) for pair in answer.kvs)
            key = self._after(outcome, key, end)
            if key is None or len(found) >= limit:
                return replace(outcome, pairs=tuple(found[:limit]))

    async def delete_range(self, start: bytes, end: bytes, cf: str = "") -> Outcome:
        """Delete from `start` up to `end` (empty: no end), region by region: the regions before one that failed are
        deleted."""
        key: bytes | None = start
        is_first = True
        while True:
            assert key is not None
            route, refused = await self._route(key)
            if route is None:
                return refused if is_first else replace(refused, result=Result.UNKNOWN)
            stop = min(end, route.end) if end and route.end else end or route.end
            request = kvrpcpb.RawDeleteRangeRequest(start_key=key, end_key=stop, cf=cf)
            outcome, answer = await self._at_key(services.TIKV.RawDeleteRange, request, key, is_write=True)
            if answer is None:
                return outcome if is_first else replace(outcome, result=Result.UNKNOWN)
            key, is_first = self._after(outcome, key, end), False
            if key is None:
                return outcome

    def _after(self, outcome: Outcome, key: bytes, end: bytes) -> bytes | None:
        """Where the region that was just asked ends, or None when that is the end of the range."""
        route = self._known(key)
        if route is None or route.region.id != outcome.region_id or not route.end or (end and route.end >= end):
            return None
        return route.end

    # --- routing -----------------------------------------------------------------------------------------------------

    async def _at_key(
        self, method: Method[Any, Any], request: Any, key: bytes, *, is_write: bool
    ) -> tuple[Outcome, Any | None]:
        """One attempt at the leader of the region that holds `key`: the outcome, and the answer if it is `OK`."""
        route, refused = await self._route(key)
        if route is None:
            return refused, None
        outcome, answer = await self._stores.attempt(method, request, route, is_write=is_write)
        if not outcome.is_ok and outcome.kind not in _PROVES_NOTHING:
            self._routes = [old for old in self._routes if old is not route]
        return outcome, answer

    async def _route(self, key: bytes) -> tuple[Route | None, Outcome]:
        known = self._known(key)
        if known is not None:
            return known, Outcome(Result.OK)
        try:
            route = await self._look_up(key)
        except CallFailed as failure:
            self._leader = None
            return None, Outcome(Result.FAILED, kind=failure.kind, reason=failure.text)
        self._routes = [old for old in self._routes if old.region.id != route.region.id and old.start != route.start]
        insort(self._routes, route)
        return route, Outcome(Result.OK)

    async def _look_up(self, key: bytes) -> Route:
        leader = await self._pd_leader()
        found = await leader.region(self._cluster_id, key, timeout_s=self._timeout_s)
        if found.header.HasField("error"):
            raise CallFailed(calls.STATUS, f"PD: {found.header.error.message}")
        if not found.HasField("region") or not found.region.id:
            raise CallFailed(calls.STATUS, "PD knows no region for this key")
        if not found.leader.id:
            raise CallFailed(calls.NO_LEADER, f"PD knows no leader of region {found.region.id}")
        address = await self._address_of(leader, found.leader.store_id)
        return Route(found.region.start_key, found.region.end_key, found.region, found.leader, address)

    async def _address_of(self, leader: PdClient, store_id: int) -> str:
        answer = await leader.store(self._cluster_id, store_id, timeout_s=self._timeout_s)
        if not answer.store.address:
            raise CallFailed(calls.STATUS, f"PD knows no address of store {store_id}")
        return answer.store.address

    async def _pd_leader(self) -> PdClient:
        """The PD leader, by the word of the first member that answers."""
        if self._leader is not None:
            return self._leader
        failures = []
        for client in self._pds:
            try:
                view = await client.members(timeout_s=self._timeout_s)
            except CallFailed as failure:
                failures.append(failure)
                continue
            urls = {calls.strip_scheme(url) for url in view.leader.client_urls}
            leader = next((other for other in self._pds if other.address in urls), None)
            if leader is not None:
                self._leader, self._cluster_id = leader, view.header.cluster_id
                return leader
        if failures:
            raise failures[0]
        raise CallFailed(calls.NO_LEADER, "no PD leader is known")

    def _known(self, key: bytes) -> Route | None:
        at = bisect_right(self._routes, key, key=lambda route: route.start)
        return self._routes[at - 1] if at and self._routes[at - 1].has(key) else None


def _kind_of(error: errorpb.Error) -> str:
    return next((field.name for field, _ in error.ListFields() if field.name != "message"), "region-error")


def _words_of(error: errorpb.Error) -> str:
    kind = _kind_of(error).replace("_", " ")
    return f"{kind}: {error.message}" if error.message else kind
