"""Just enough of PD to let stores start: one member, or several that share one mind, on a loop in a thread.

It hands out ids, bootstraps once, and asks for learners and promotions until a region has three voters. As PD does, it
says its step with every heartbeat of the region, and again, unasked, with every heartbeat of a store: a region that
sleeps tells nothing for long. What it was told is kept for tests to look at; what it should say next can be queued.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drillyard.wire import eraftpb, metapb, pdpb, services
from drillyard.wire.rpc import Handlers, RpcError, ServerStream, Status, protocol_factory

Value = TypeVar("Value")
Stream = ServerStream[pdpb.RegionHeartbeatRequest, pdpb.RegionHeartbeatResponse]


@dataclass
class Mind:
    """What all members know."""

    cluster_id: int = 4711
    wanted_voters: int = 3
    ids: int = 0
    region: metapb.Region | None = None
    leader: metapb.Peer | None = None
    stores: dict[int, metapb.Store] = field(default_factory=dict)
    beats: dict[int, pdpb.StoreStats] = field(default_factory=dict)
    reports: list[pdpb.RegionHeartbeatRequest] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)  # store -> the way to it
    queued: list[pdpb.RegionHeartbeatResponse] = field(default_factory=list)
    learner: metapb.Peer | None = None  # the one that was asked for last
    leads: int = 0  # which member

    def next_id(self) -> int:
        self.ids += 1
        return self.ids

    def step(self, report: pdpb.RegionHeartbeatRequest) -> pdpb.RegionHeartbeatResponse | None:
        region = report.region
        answer = pdpb.RegionHeartbeatResponse(header=pdpb.ResponseHeader(cluster_id=self.cluster_id))
        answer.region_id = region.id
        answer.region_epoch.CopyFrom(region.region_epoch)
        answer.target_peer.CopyFrom(report.leader)
        pending = {peer.id for peer in report.pending_peers}
        learner = next((peer for peer in region.peers if peer.role == metapb.PeerRole.Learner), None)
        free = sorted(self.stores.keys() - {peer.store_id for peer in region.peers})
        change = answer.change_peer_v2.changes
        if learner is not None and learner.id not in pending:
            change.add(peer=metapb.Peer(id=learner.id, store_id=learner.store_id))
        elif learner is None and len(region.peers) < self.wanted_voters and free:
            if self.learner is None or self.learner.store_id != free[0]:
                self.learner = metapb.Peer(id=self.next_id(), store_id=free[0], role=metapb.PeerRole.Learner)
            change.add(peer=self.learner, change_type=eraftpb.ConfChangeType.AddLearnerNode)
        else:
            return None
        return answer

    async def push(self) -> None:
        """Says the step of the region as it was reported last, if its leader can be reached."""
        if not self.reports:
            return
        report = self.reports[-1]
        stream = self.streams.get(report.leader.store_id)
        step = (self.queued.pop(0) if self.queued else self.step(report)) if stream is not None else None
        if stream is not None and step is not None:
            await stream.send(step)


class FakePd:
    def __init__(self, members: int = 1, cluster_id: int = 4711) -> None:
        self.mind = Mind(cluster_id)
        self.ports: list[int] = []
        self._members = members
        self._servers: list[asyncio.Server | None] = []
        self._protocols: list[set[Any]] = []
        self._streams: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakePd:
        self._thread.start()
        for index in range(self._members):
            self.do(lambda index=index: self._listen(index, 0))  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(self._members):
            self.kill(index)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def endpoints(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def do(self, call: Callable[[], Any]) -> Any:
        """Runs something on the loop, and waits for it."""
        done: Future[Any] = Future()

        async def run() -> None:
            try:
                result = call()
                done.set_result(await result if asyncio.iscoroutine(result) else result)
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(run()))
        return done.result(20)

    def kill(self, index: int) -> None:
        def stop() -> None:
            server = self._servers[index]
            if server is not None:
                server.close()
                self._servers[index] = None
                for protocol in self._protocols[index]:
                    protocol.end_connection()

        self.do(stop)

    def lead(self, index: int) -> None:
        """Another member leads; the streams of the old one end."""

        def change() -> None:
            self.mind.leads = index
            for task in self._streams:
                task.cancel()

        self.do(change)

    def snapshot(self, look: Callable[[Mind], Value]) -> Value:
        result: Value = self.do(lambda: look(self.mind))
        return result

    async def _listen(self, index: int, port: int) -> None:
        protocols: set[Any] = set()
        make = protocol_factory(self._handlers(index))

        def tracked() -> asyncio.Protocol:
            protocol = make()
            protocols.add(protocol)
            return protocol

        server = await self._loop.create_server(tracked, "127.0.0.1", port)
        self._servers.append(server)
        self._protocols.append(protocols)
        self.ports.append(server.sockets[0].getsockname()[1])

    def _handlers(self, index: int) -> Handlers:
        mind = self.mind

        def header(request: Any) -> pdpb.ResponseHeader:
            if mind.leads != index:
                raise RpcError(Status.UNAVAILABLE, "not leader")
            if request.header.cluster_id != mind.cluster_id:
                raise RpcError(
                    Status.FAILED_PRECONDITION,
                    f"mismatch cluster id, need {mind.cluster_id} but got {request.header.cluster_id}",
                )
            return pdpb.ResponseHeader(cluster_id=mind.cluster_id)

        async def get_members(request: pdpb.GetMembersRequest) -> pdpb.GetMembersResponse:
            members = [
                pdpb.Member(name=f"pd{number}", member_id=number + 1, client_urls=[f"http://127.0.0.1:{port}"])
                for number, port in enumerate(self.ports)
            ]
            head = pdpb.ResponseHeader(cluster_id=mind.cluster_id)
            return pdpb.GetMembersResponse(header=head, members=members, leader=members[mind.leads])

        async def alloc_id(request: pdpb.AllocIDRequest) -> pdpb.AllocIDResponse:
            return pdpb.AllocIDResponse(header=header(request), id=mind.next_id())

        async def is_bootstrapped(request: pdpb.IsBootstrappedRequest) -> pdpb.IsBootstrappedResponse:
            return pdpb.IsBootstrappedResponse(header=header(request), bootstrapped=mind.region is not None)

        async def bootstrap(request: pdpb.BootstrapRequest) -> pdpb.BootstrapResponse:
            head = header(request)
            if mind.region is not None:
                head.error.type = pdpb.ErrorType.ALREADY_BOOTSTRAPPED
                head.error.message = "cluster is already bootstrapped"
            else:
                mind.region = request.region
            return pdpb.BootstrapResponse(header=head)

        async def put_store(request: pdpb.PutStoreRequest) -> pdpb.PutStoreResponse:
            head = header(request)
            for store in mind.stores.values():
                if store.address == request.store.address and store.id != request.store.id:
                    head.error.type = pdpb.ErrorType.UNKNOWN
                    head.error.message = f"duplicated store address: {store.address}"
                    return pdpb.PutStoreResponse(header=head)
            mind.stores[request.store.id] = request.store
            await mind.push()
            return pdpb.PutStoreResponse(header=head)

        async def get_store(request: pdpb.GetStoreRequest) -> pdpb.GetStoreResponse:
            return pdpb.GetStoreResponse(header=header(request), store=mind.stores.get(request.store_id))

        async def store_heartbeat(request: pdpb.StoreHeartbeatRequest) -> pdpb.StoreHeartbeatResponse:
            mind.beats[request.stats.store_id] = request.stats
            await mind.push()
            return pdpb.StoreHeartbeatResponse(header=header(request))

        async def get_region(request: pdpb.GetRegionRequest) -> pdpb.GetRegionResponse:
            return pdpb.GetRegionResponse(header=header(request), region=mind.region, leader=mind.leader)

        async def scan_regions(request: pdpb.ScanRegionsRequest) -> pdpb.ScanRegionsResponse:
            found = [pdpb.Region(region=mind.region, leader=mind.leader)]
            return pdpb.ScanRegionsResponse(header=header(request), regions=found)

        async def region_heartbeat(stream: Stream) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            stream.greet()
            try:
                async for report in stream:
                    header(report)
                    mind.reports.append(report)
                    mind.region, mind.leader = report.region, report.leader
                    mind.streams[report.leader.store_id] = stream
                    await mind.push()
            except asyncio.CancelledError:
                raise RpcError(Status.UNAVAILABLE, "not leader") from None
            finally:
                self._streams.discard(task)
                for store_id in [each for each, bound in mind.streams.items() if bound is stream]:
                    del mind.streams[store_id]

        pd = services.PD
        return {
            pd.GetMembers: get_members,
            pd.AllocID: alloc_id,
            pd.IsBootstrapped: is_bootstrapped,
            pd.Bootstrap: bootstrap,
            pd.PutStore: put_store,
            pd.GetStore: get_store,
            pd.StoreHeartbeat: store_heartbeat,
            pd.GetRegion: get_region,
            pd.GetPrevRegion: get_region,
            pd.ScanRegions: scan_regions,
            pd.RegionHeartbeat: region_heartbeat,
        }
