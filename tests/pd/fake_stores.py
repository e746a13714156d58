"""Stores without data, for tests of PD: they register, send heartbeats and carry out PD's steps, as real ones would.

One `FakeStores` is all stores of a cluster, with one region that it leads from its first store. It follows PD's leader
as clients do, by asking all members.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from drillyard.wire import eraftpb, metapb, pdpb
from drillyard.wire.method import Method
from drillyard.wire.rpc import Channel, RpcError, Status
from drillyard.wire.services import PD

Answer = TypeVar("Answer", bound=Message)


async def until(condition: Callable[[], Any], what: str, within_s: float = 20.0) -> Any:
    """Polls until a condition holds, and returns what it gave."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {what}")


class PdClient:
    """Calls PD's leader; a call is repeated while there is none, for those that may be repeated."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.channels = {port: Channel("127.0.0.1", port) for port in ports}
        self.cluster_id = 0
        self.leader_port = 0

    def header(self) -> pdpb.RequestHeader:
        return pdpb.RequestHeader(cluster_id=self.cluster_id)

    async def find_leader(self) -> int:
        async def ask() -> int:
            for channel in self.channels.values():
                try:
                    members = await channel.unary(PD.GetMembers, pdpb.GetMembersRequest(), timeout_s=2)
                except RpcError:
                    continue
                if members.leader.client_urls and members.header.cluster_id:
                    self.cluster_id = members.header.cluster_id
                    port = int(members.leader.client_urls[0].rpartition(":")[2])
                    request = pdpb.IsBootstrappedRequest(header=self.header())
                    try:
                        await self.channels[port].unary(PD.IsBootstrapped, request, timeout_s=2)
                    except RpcError:
                        continue
                    return port
            return 0

        self.leader_port = await until(ask, "a PD leader that serves")
        return self.leader_port

    async def call(self, method: Method[Any, Answer], request: Any, *, repeat: bool = True) -> Answer:
        while True:
            if not self.leader_port:
                await self.find_leader()
            request.header.cluster_id = self.cluster_id
            try:
                return await self.channels[self.leader_port].unary(method, request, timeout_s=5)
            except RpcError as error:
                if not repeat or error.status not in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                    raise
                self.leader_port = 0

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()


class FakeStores:
    def __init__(self, ports: Sequence[int], addresses: Sequence[str]) -> None:
        self.pd = PdClient(ports)
        self.addresses = addresses
        self.stores: list[metapb.Store] = []
        self.region = metapb.Region()
        self.steps: list[pdpb.RegionHeartbeatResponse] = []
        self.errors: list[str] = []
        self._silent: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        """The start sequence of all stores; the first one bootstraps the cluster."""
        for address in self.addresses:
            allocated = await self.pd.call(PD.AllocID, pdpb.AllocIDRequest())
            self.stores.append(_store(allocated.id, address))
        ids = [(await self.pd.call(PD.AllocID, pdpb.AllocIDRequest())).id for _ in range(2)]
        self.region = metapb.Region(
            id=ids[0],
            region_epoch=metapb.RegionEpoch(conf_ver=1, version=1),
            peers=[metapb.Peer(id=ids[1], store_id=self.stores[0].id)],
        )
        await self.pd.call(PD.Bootstrap, pdpb.BootstrapRequest(store=self.stores[0], region=self.region))
        for store in self.stores:
            await self.pd.call(PD.PutStore, pdpb.PutStoreRequest(store=store))

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._beat()), loop.create_task(self._report())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pd.close()

    def silence(self, store_id: int) -> None:
        self._silent.add(store_id)

    def has_three_voters(self) -> bool:
        return [peer.role for peer in self.region.peers] == [metapb.Voter] * 3

    async def beat_once(self) -> None:
        for store in self.stores:
            if store.id in self._silent:
                continue
            stats = pdpb.StoreStats(
                store_id=store.id,
                capacity=100 << 30,
                available=80 << 30,
                used_size=1 << 20,
                region_count=1,
                start_time=store.start_timestamp,
            )
            answer = await self.pd.call(PD.StoreHeartbeat, pdpb.StoreHeartbeatRequest(stats=stats))
            if answer.header.error.message:
                self.errors.append(answer.header.error.message)

    async def _beat(self) -> None:
        while True:
            await self.beat_once()
            await asyncio.sleep(0.2)

    def heartbeat(self) -> pdpb.RegionHeartbeatRequest:
        return pdpb.RegionHeartbeatRequest(
            header=self.pd.header(),
            region=self.region,
            leader=self.region.peers[0],
            term=6,
            approximate_size=1 << 20,
            approximate_keys=1,
            bytes_written=1000,
            keys_written=10,
        )

    async def _report(self) -> None:
        """One stream of heartbeats from the region's leader; again to the next leader of PD when it ends."""
        while True:
            if not self.pd.leader_port:
                await self.pd.find_leader()
            try:
                await self._stream(self.pd.channels[self.pd.leader_port])
            except RpcError:
                await self.pd.find_leader()

    async def _stream(self, channel: Channel) -> None:
        async with channel.open(PD.RegionHeartbeat) as stream:
            await stream.send(self.heartbeat())
            while (answer := await stream.recv()) is not None:
                if answer.header.error.message:
                    self.errors.append(answer.header.error.message)
                elif answer.HasField("change_peer_v2"):
                    self.steps.append(answer)
                    self._obey(answer)
                    await stream.send(self.heartbeat())

    def _obey(self, step: pdpb.RegionHeartbeatResponse) -> None:
        if step.region_epoch != self.region.region_epoch:
            return
        for change in step.change_peer_v2.changes:
            self.region.region_epoch.conf_ver += 1
            kept = [peer for peer in self.region.peers if peer.id != change.peer.id]
            if change.change_type != eraftpb.RemoveNode:
                role = metapb.Learner if change.change_type == eraftpb.AddLearnerNode else metapb.Voter
                kept.append(metapb.Peer(id=change.peer.id, store_id=change.peer.store_id, role=role))
            del self.region.peers[:]
            self.region.peers.extend(kept)


def _store(store_id: int, address: str) -> metapb.Store:
    return metapb.Store(
        id=store_id,
        address=address,
        peer_address=address,
        status_address=address.replace(":3", ":4"),
        version="8.1.0",
        git_hash="abc",
        start_timestamp=int(time.time()),
        deploy_path="/x",
    )
