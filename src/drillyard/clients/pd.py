"""A client of one PD member: its HTTP API and its gRPC, asked as they are and answered as they answer.

Rules: one `PdClient` speaks to one member and never wanders off to another, so that every PD can be asked for its own
word. Which questions a PD answers itself is a fact of the real server: gRPC GetMembers and the root /health come from
the member asked (the latter after a read through its own quorum); everything under /pd/api/v1 is forwarded to the
leader, and so proves nothing about the member asked but the way through it. Every failure is a `CallFailed`.

Not here: what the answers mean, and retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial, directly
from drillyard.clients.http import HttpAnswer, HttpClient
from drillyard.wire import pdpb, services
from drillyard.wire.rpc import Channel, RpcError, Status

T = TypeVar("T")

API = "/pd/api/v1"


class PdClient:
    """One PD member, by its client address; `dial` says where that is reached."""

    def __init__(self, name: str, address: str, dial: Dial = directly) -> None:
        self.name = name
        self.address = address
        self._http = HttpClient(address, dial)
        self._channel = channel_to(address, dial)

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def own_health(self, *, timeout_s: float) -> HttpAnswer:
        """The member's own /health: it reads through its own quorum before it says so."""
        return await self._http.get("/health", timeout_s=timeout_s)

    async def health(self, *, timeout_s: float) -> Any:
        """PD's opinion of every member; a 200 alone proves only that some leader exists."""
        return await self._http.get_json(f"{API}/health", timeout_s=timeout_s)

    async def http_members(self, *, timeout_s: float) -> Any:
        """The leader's list of members, with the version of each."""
        return await self._http.get_json(f"{API}/members", timeout_s=timeout_s)

    async def stores(self, *, timeout_s: float) -> Any:
        return await self._http.get_json(f"{API}/stores", timeout_s=timeout_s)

    async def region_count(self, *, timeout_s: float) -> Any:
        return await self._http.get_json(f"{API}/regions/count", timeout_s=timeout_s)

    async def first_regions(self, limit: int, *, timeout_s: float) -> Any:
        """The first regions in the order of their keys. `/regions` would be all of them, whatever limit it is given."""
        return await self._http.get_json(f"{API}/regions/key?key=&limit={limit}", timeout_s=timeout_s)

    async def region_check(self, kind: str, *, timeout_s: float) -> Any:
        return await self._http.get_json(f"{API}/regions/check/{kind}", timeout_s=timeout_s)

    async def replication(self, *, timeout_s: float) -> Any:
        return await self._http.get_json(f"{API}/config/replicate", timeout_s=timeout_s)

    # --- gRPC --------------------------------------------------------------------------------------------------------

    async def members(self, *, timeout_s: float) -> pdpb.GetMembersResponse:
        """Who is in the cluster and who leads it, in this member's own view."""
        call = self._channel.unary(services.PD.GetMembers, pdpb.GetMembersRequest(), timeout_s=timeout_s)
        view = await self._ask(call, timeout_s)
        if view.header.HasField("error"):
            raise CallFailed(calls.STATUS, f"{self.address} answered: {view.header.error.message}")
        return view

    async def timestamps(self, cluster_id: int, count: int, *, timeout_s: float) -> list[tuple[int, int]]:
        """`count` timestamps, asked for one after the other on one stream, each (physical ms, logical)."""
        return await self._ask(self._timestamps(cluster_id, count), timeout_s)

    async def region(self, cluster_id: int, key: bytes, *, timeout_s: float) -> pdpb.GetRegionResponse:
        request = pdpb.GetRegionRequest(header=_header(cluster_id), region_key=key)
        return await self._ask(self._channel.unary(services.PD.GetRegion, request, timeout_s=timeout_s), timeout_s)

    async def scan_regions(self, cluster_id: int, limit: int, *, timeout_s: float) -> pdpb.ScanRegionsResponse:
        """The first regions of the key space, at most `limit`."""
        request = pdpb.ScanRegionsRequest(header=_header(cluster_id), limit=limit)
        return await self._ask(self._channel.unary(services.PD.ScanRegions, request, timeout_s=timeout_s), timeout_s)

    async def store(self, cluster_id: int, store_id: int, *, timeout_s: float) -> pdpb.GetStoreResponse:
        request = pdpb.GetStoreRequest(header=_header(cluster_id), store_id=store_id)
        return await self._ask(self._channel.unary(services.PD.GetStore, request, timeout_s=timeout_s), timeout_s)

    async def _timestamps(self, cluster_id: int, count: int) -> list[tuple[int, int]]:
        granted = []
        async with self._channel.open(services.PD.Tso) as stream:
            for _ in range(count):
                await stream.send(pdpb.TsoRequest(header=_header(cluster_id), count=1))
                answer = await stream.recv()
                if answer is None:
                    raise CallFailed(calls.BROKEN, f"{self.address} ended the timestamp stream")
                granted.append((answer.timestamp.physical, answer.timestamp.logical))
        return granted

    async def _ask(self, call: Awaitable[T], timeout_s: float) -> T:
        return await ask(call, self.address, timeout_s)


def channel_to(address: str, dial: Dial) -> Channel:
    """A channel to the member that is known by this address."""
    return Channel(*calls.split_address(address), dial=lambda: calls.split_address(dial(address)))


async def ask(call: Awaitable[T], address: str, timeout_s: float) -> T:
    """A gRPC call, every way to fail of it told as a `CallFailed`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError:
        raise calls.timed_out(address, timeout_s) from None
    except RpcError as error:
        if isinstance(error.__cause__, OSError):
            raise calls.from_os_error(address, error.__cause__) from error
        if error.status is Status.DEADLINE_EXCEEDED:
            raise calls.timed_out(address, timeout_s) from None
        raise CallFailed(calls.STATUS, f"{address} answered {error.status.name}: {error.message}") from error


def _header(cluster_id: int) -> pdpb.RequestHeader:
    return pdpb.RequestHeader(cluster_id=cluster_id)
