"""PD's gRPC interface, for stores and clients: real methods, real shapes of answers and errors.

Rules: GetMembers and GetClusterInfo are answered by every member, all else only by one that leads and serves; the
others say UNAVAILABLE "not leader", and the client looks for the leader. Another cluster's id is refused before
anything else is looked at. What the real PD says inside the answer's header (a gRPC status of OK) is said there, what
it says as a status is said as a status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from drillyard.emulator import health
from drillyard.emulator.pd.cluster import FOREVER_S, GC_WORKER, NOT_BOOTSTRAPPED, Cluster, bootstrap_mistake
from drillyard.emulator.pd.consensus import Undetermined
from drillyard.emulator.pd.leadership import Leadership, Outlet
from drillyard.emulator.pd.member import PdMember, to_pdpb
from drillyard.emulator.pd.operators import CannotBuild
from drillyard.emulator.pd.outcomes import Refusal
from drillyard.emulator.pd.requests import Desk, Refused
from drillyard.emulator.pd.scatter import summary
from drillyard.emulator.pd.stores import merged_labels, strict_mistake
from drillyard.emulator.pd.timestamps import LOGICAL_END
from drillyard.emulator.raft.types import ProposalDropped
from drillyard.wire import drillpb, metapb, pdpb
from drillyard.wire.rpc import Handlers, RpcError, ServerStream, Status
from drillyard.wire.services import PD

KEEP_ALIVE_S = 60.0
MAX_SPLIT = 1024
SCATTER_SLICE = 50  # regions that are scattered at a time: about 5 ms
MAX_RETRIES = 10
MAX_PAUSE_S = 10.0
SPLIT_LOOK_S = 0.1
SPLIT_LOOKS = 600
NOT_LEADER = "not leader"
NO_FOLLOWER = "not leader and follower handling not allowed"  # where the real one could let followers answer
NO_TIMESTAMP = "[PD:tso:ErrGenerateTimestamp]generate timestamp failed, "
Answer = TypeVar("Answer")
HeartbeatStream = ServerStream[pdpb.RegionHeartbeatRequest, pdpb.RegionHeartbeatResponse]
TsoStream = ServerStream[pdpb.TsoRequest, pdpb.TsoResponse]


class PdService:
    """The handlers. Each is a translation: the decisions are in the leadership and in the replicated state."""

    def __init__(self, member: PdMember) -> None:
        self._member = member

    def handlers(self) -> Handlers:
        return {
            PD.GetMembers: self.get_members,
            PD.GetClusterInfo: self.get_cluster_info,
            PD.GetMinTS: self.get_min_ts,
            PD.Tso: self.tso,
            PD.Bootstrap: self.bootstrap,
            PD.IsBootstrapped: self.is_bootstrapped,
            PD.AllocID: self.alloc_id,
            PD.GetStore: self.get_store,
            PD.PutStore: self.put_store,
            PD.GetAllStores: self.get_all_stores,
            PD.StoreHeartbeat: self.store_heartbeat,
            PD.RegionHeartbeat: self.region_heartbeat,
            PD.GetRegion: self.get_region,
            PD.GetPrevRegion: self.get_prev_region,
            PD.GetRegionByID: self.get_region_by_id,
            PD.ScanRegions: self.scan_regions,
            PD.AskBatchSplit: self.ask_batch_split,
            PD.ReportBatchSplit: self.report_batch_split,
            PD.GetClusterConfig: self.get_cluster_config,
            PD.GetGCSafePoint: self.get_gc_safe_point,
            PD.UpdateGCSafePoint: self.update_gc_safe_point,
            PD.UpdateServiceGCSafePoint: self.update_service_gc_safe_point,
            PD.GetOperator: self.get_operator,
            PD.ScatterRegion: self.scatter_region,
            PD.SplitRegions: self.split_regions,
            **health.handlers(),
        }

    # ---- every member answers ----

    async def get_members(self, request: pdpb.GetMembersRequest) -> pdpb.GetMembersResponse:
        response = pdpb.GetMembersResponse(header=self._header())
        response.members.extend(to_pdpb(record) for record in self._member.records())
        if (leader := self._member.leader()) is not None:
            response.leader.CopyFrom(to_pdpb(leader))
            response.etcd_leader.CopyFrom(response.leader)
        return response

    async def get_cluster_info(self, request: pdpb.GetClusterInfoRequest) -> pdpb.GetClusterInfoResponse:
        return pdpb.GetClusterInfoResponse(header=self._header(), serviceModes=[pdpb.PD_SVC_MODE])

    # ---- timestamps and ids ----

    async def tso(self, stream: TsoStream) -> None:
        async for request in stream:
            self._check_cluster(request.header.cluster_id)
            lead = self._member.lead
            if lead is None:
                raise RpcError(Status.UNKNOWN, f"{NO_TIMESTAMP}requested pd is not leader of cluster")
            if request.count == 0:
                raise RpcError(Status.UNKNOWN, f"{NO_TIMESTAMP}tso count should be positive")
            if request.count >= LOGICAL_END:
                raise RpcError(Status.UNKNOWN, f"{NO_TIMESTAMP}tso count should be less than {LOGICAL_END}")
            try:
                stamp = await lead.timestamp(request.count)
            except (ProposalDropped, Undetermined) as error:
                raise RpcError(
                    Status.UNKNOWN, f"{NO_TIMESTAMP}requested pd is not leader of cluster anymore"
                ) from error
            timestamp = pdpb.Timestamp(physical=stamp.physical, logical=stamp.logical)
            await stream.send(pdpb.TsoResponse(header=self._header(), count=request.count, timestamp=timestamp))

    async def get_min_ts(self, request: pdpb.GetMinTSRequest) -> pdpb.GetMinTSResponse:
        """No timestamp before this one will be granted. There is one source of them here: itself is the lowest."""
        stamp = await self._settle(self._lead(request).timestamp(1))
        timestamp = pdpb.Timestamp(physical=stamp.physical, logical=stamp.logical)
        return pdpb.GetMinTSResponse(header=self._header(), timestamp=timestamp)

    async def alloc_id(self, request: pdpb.AllocIDRequest) -> pdpb.AllocIDResponse:
        ids = await self._settle(self._lead(request).ids(1))
        return pdpb.AllocIDResponse(header=self._header(), id=ids[0])

    # ---- the start of a cluster ----

    async def is_bootstrapped(self, request: pdpb.IsBootstrappedRequest) -> pdpb.IsBootstrappedResponse:
        self._lead(request)
        return pdpb.IsBootstrappedResponse(header=self._header(), bootstrapped=self._cluster.bootstrapped)

    async def bootstrap(self, request: pdpb.BootstrapRequest) -> pdpb.BootstrapResponse:
        lead = self._lead(request)
        if not self._cluster.bootstrapped and (mistake := bootstrap_mistake(request, self._member.cluster_id)):
            return pdpb.BootstrapResponse(header=self._header(Refusal(pdpb.UNKNOWN, mistake)))
        record = drillpb.PdBootstrap(store=request.store, region=request.region, now_ns=lead.clock.now_ns())
        outcome = await self._settle(lead.consensus.submit(drillpb.PdCommand(bootstrap=record)))
        return pdpb.BootstrapResponse(header=self._header(outcome.refusal))

    # ---- stores ----

    async def put_store(self, request: pdpb.PutStoreRequest) -> pdpb.PutStoreResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.PutStoreResponse(header=self._header(refusal))
        if mistake := self._label_mistake(request.store):
            return pdpb.PutStoreResponse(header=self._header(Refusal(pdpb.UNKNOWN, mistake)))
        outcome = await self._settle(lead.consensus.submit(drillpb.PdCommand(put_store=request.store)))
        return pdpb.PutStoreResponse(header=self._header(outcome.refusal))

    def _label_mistake(self, store: metapb.Store) -> str:
        placing = self._member.settings.placing()
        known = self._cluster.stores.get(store.id)
        if not placing.strictly_match_label or (known is not None and known.state == metapb.Tombstone):
            return ""
        labels = merged_labels(known.labels if known is not None else (), store.labels)
        return strict_mistake(labels, placing.location_labels)

    async def get_store(self, request: pdpb.GetStoreRequest) -> pdpb.GetStoreResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.GetStoreResponse(header=self._header(refusal))
        store = self._cluster.stores.get(request.store_id)
        if store is None:
            refusal = Refusal(pdpb.UNKNOWN, f"invalid store ID {request.store_id}, not found")
            return pdpb.GetStoreResponse(header=self._header(refusal))
        report = lead.reports.stores.get(store.id)
        stats = report.stats if report is not None else pdpb.StoreStats()
        return pdpb.GetStoreResponse(header=self._header(), store=self._live(lead, store), stats=stats)

    async def get_all_stores(self, request: pdpb.GetAllStoresRequest) -> pdpb.GetAllStoresResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.GetAllStoresResponse(header=self._header(refusal))
        stores = [
            self._live(lead, store)
            for _, store in sorted(self._cluster.stores.items())
            if not (request.exclude_tombstone_stores and store.state == metapb.Tombstone)
        ]
        return pdpb.GetAllStoresResponse(header=self._header(), stores=stores)

    async def store_heartbeat(self, request: pdpb.StoreHeartbeatRequest) -> pdpb.StoreHeartbeatResponse:
        lead = self._lead(request)
        if not request.HasField("stats"):
            raise RpcError(Status.UNKNOWN, "invalid store heartbeat command, but it has no stats")
        refusal = self._not_bootstrapped() or lead.hear_store(request.stats)
        response = pdpb.StoreHeartbeatResponse(header=self._header(refusal))
        if refusal is None:
            response.cluster_version = self._cluster.cluster_version
            response.state = self._cluster.stores[request.stats.store_id].node_state
        return response

    # ---- regions ----

    async def region_heartbeat(self, stream: HeartbeatStream) -> None:
        """The store talks, the outlet answers; whichever ends first ends the stream, as does the lead."""
        lead = self._member.lead
        if lead is None:
            raise RpcError(Status.UNAVAILABLE, NOT_LEADER)
        stream.greet()
        outlet = Outlet()
        loop = asyncio.get_running_loop()
        parts = [
            loop.create_task(self._hear(stream, lead, outlet)),
            loop.create_task(self._talk(stream, lead, outlet)),
            loop.create_task(lead.ended.wait()),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lead.unbind(outlet)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        if parts[2] in done:
            raise RpcError(Status.UNAVAILABLE, NOT_LEADER)
        for part in done:
            part.result()  # raises what ended it

    async def _hear(self, stream: HeartbeatStream, lead: Leadership, outlet: Outlet) -> None:
        bound = 0
        async for request in stream:
            self._check_cluster(request.header.cluster_id)
            if (refusal := self._not_bootstrapped()) is not None:
                await stream.send(pdpb.RegionHeartbeatResponse(header=self._header(refusal)))
                return
            store_id = request.leader.store_id
            if store_id not in self._cluster.stores:
                raise RpcError(Status.UNKNOWN, f"invalid store ID {store_id}, not found")
            if bound != store_id:
                lead.bind(store_id, outlet)
                bound = store_id
            if mistake := _mistake_of(request):
                outlet.put(
                    pdpb.RegionHeartbeatResponse(
                        header=self._header(Refusal(pdpb.UNKNOWN, mistake)), target_peer=request.leader
                    )
                )
                continue
            lead.hear_region(request)

    async def _talk(self, stream: HeartbeatStream, lead: Leadership, outlet: Outlet) -> None:
        while True:
            try:
                # Not `wait_for`: before Python 3.12 it may answer a cancellation with what came at the same moment.
                async with asyncio.timeout(KEEP_ALIVE_S):
                    response = await outlet.queue.get()
            except TimeoutError:
                response = pdpb.RegionHeartbeatResponse(header=self._header())
                lead.count_keep_alive(outlet)
            await stream.send(response)

    async def get_region(self, request: pdpb.GetRegionRequest) -> pdpb.GetRegionResponse:
        return self._region(request, lambda: self._cluster.regions.find(request.region_key))

    async def get_prev_region(self, request: pdpb.GetRegionRequest) -> pdpb.GetRegionResponse:
        return self._region(request, lambda: self._cluster.regions.before(request.region_key))

    async def get_region_by_id(self, request: pdpb.GetRegionByIDRequest) -> pdpb.GetRegionResponse:
        return self._region(request, lambda: self._cluster.regions.get(request.region_id))

    def _region(self, request: Any, find: Callable[[], metapb.Region | None]) -> pdpb.GetRegionResponse:
        lead = self._lead(request, NO_FOLLOWER)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.GetRegionResponse(header=self._header(refusal))
        meta = find()
        if meta is None:
            return pdpb.GetRegionResponse(header=self._header())
        found = self._described(lead, meta)
        return pdpb.GetRegionResponse(
            header=self._header(),
            region=found.region,
            leader=found.leader if found.HasField("leader") else None,
            down_peers=found.down_peers,
            pending_peers=found.pending_peers,
        )

    async def scan_regions(self, request: pdpb.ScanRegionsRequest) -> pdpb.ScanRegionsResponse:
        lead = self._lead(request, NO_FOLLOWER)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.ScanRegionsResponse(header=self._header(refusal))
        response = pdpb.ScanRegionsResponse(header=self._header())
        for meta in self._cluster.regions.scan(request.start_key, request.end_key, request.limit):
            described = self._described(lead, meta)
            described.leader.SetInParent()  # present even while nobody knows it
            response.region_metas.append(meta)
            response.leaders.append(described.leader)
            response.regions.append(described)
        return response

    async def ask_batch_split(self, request: pdpb.AskBatchSplitRequest) -> pdpb.AskBatchSplitResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.AskBatchSplitResponse(header=self._header(refusal))
        if (refusal := self._no_split(request)) is not None:
            return pdpb.AskBatchSplitResponse(header=self._header(refusal))
        response = pdpb.AskBatchSplitResponse(header=self._header())
        for _ in range(request.split_count):
            ids = await self._settle(lead.ids(1 + len(request.region.peers)))
            response.ids.add(new_region_id=ids[0], new_peer_ids=ids[1:])
        parts = [request.region.id, *(each.new_region_id for each in response.ids)]
        lead.placement.record_split(parts, lead.clock.now_ns())
        return response

    def _no_split(self, request: pdpb.AskBatchSplitRequest) -> Refusal | None:
        """Why no ids are given for a split."""
        if not request.HasField("region"):
            return Refusal(pdpb.REGION_NOT_FOUND, "missing region for split")
        if not 0 < request.split_count <= MAX_SPLIT:
            return Refusal(pdpb.UNKNOWN, f"a region is split into 1 to {MAX_SPLIT} more, not {request.split_count}")
        stale = self._cluster.regions.staleness(request.region)
        return Refusal(pdpb.UNKNOWN, stale) if stale else None

    async def report_batch_split(self, request: pdpb.ReportBatchSplitRequest) -> pdpb.ReportBatchSplitResponse:
        """Only a notice: the heartbeats of the new regions bring their metas."""
        self._lead(request)
        refusal = self._not_bootstrapped()
        if refusal is None and not _are_neighbours(request.regions):
            refusal = Refusal(pdpb.UNKNOWN, "invalid split region")
        return pdpb.ReportBatchSplitResponse(header=self._header(refusal))

    async def get_operator(self, request: pdpb.GetOperatorRequest) -> pdpb.GetOperatorResponse:
        lead = self._lead(request)
        refusal = self._not_bootstrapped()
        found = lead.placement.controller.status_of(request.region_id, lead.clock.now_ns())
        if refusal is None and found is None:
            refusal = Refusal(pdpb.REGION_NOT_FOUND, "Not Found")
        if refusal is not None or found is None:
            return pdpb.GetOperatorResponse(header=self._header(refusal))
        return pdpb.GetOperatorResponse(
            header=self._header(),
            region_id=found.region_id,
            desc=found.desc.encode(),
            status=found.status.on_the_wire,
            kind=found.kind.text.encode(),
        )

    async def scatter_region(self, request: pdpb.ScatterRegionRequest) -> pdpb.ScatterRegionResponse:
        """One region by its id, or several, which are tried again as often as the client says."""
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.ScatterRegionResponse(header=self._header(refusal))
        if request.regions_id:
            return await self._scatter_many(lead, request)
        desk = Desk.at(lead.placement, lead.clock.now_ns())
        region = desk.picture.region(request.region_id)
        if region is None:
            unknown = Refusal(pdpb.REGION_NOT_FOUND, "region %d not found")  # as the real one says it, number and all
            return pdpb.ScatterRegionResponse(header=self._header(unknown))
        try:
            desk.scatter(region, request.group)
        except CannotBuild as error:
            raise RpcError(Status.UNKNOWN, str(error)) from error
        except Refused:
            queued = "operator canceled because cannot add an operator to the execute queue"
            return pdpb.ScatterRegionResponse(header=self._header(Refusal(pdpb.UNKNOWN, queued)))
        finally:
            lead.carry_out()
        return pdpb.ScatterRegionResponse(header=self._header(), finished_percentage=100)

    async def _scatter_many(self, lead: Leadership, request: pdpb.ScatterRegionRequest) -> pdpb.ScatterRegionResponse:
        left = list(request.regions_id)
        for attempt in range(min(request.retry_limit, MAX_RETRIES) + 1):
            try:
                Desk.at(lead.placement, lead.clock.now_ns()).check_scatter(left)
            except Refused as refused:
                raise RpcError(Status.UNKNOWN, refused.message) from refused
            asked, left = left, []
            for start in range(0, len(asked), SCATTER_SLICE):
                desk = Desk.at(lead.placement, lead.clock.now_ns())
                left += desk.scatter_all(asked[start : start + SCATTER_SLICE], request.group)
                lead.carry_out()
                await asyncio.sleep(0)
            if not left or lead.ended.is_set():
                break
            await asyncio.sleep(min(0.1 * 2**attempt, MAX_PAUSE_S))
        done = len(request.regions_id) - len(left)
        return pdpb.ScatterRegionResponse(header=self._header(), finished_percentage=summary(done, len(left)))

    async def split_regions(self, request: pdpb.SplitRegionsRequest) -> pdpb.SplitRegionsResponse:
        """Splits at keys, and waits until the regions are there, or for a minute."""
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.SplitRegionsResponse(header=self._header(refusal))
        left = set(request.split_keys)
        for attempt in range(min(request.retry_limit, MAX_RETRIES) + 1):
            started = Desk.at(lead.placement, lead.clock.now_ns()).split_at(sorted(left))
            lead.carry_out()
            awaited = {key for keys in started.values() for key in keys}
            for _ in range(SPLIT_LOOKS):
                left -= {key for key in left if self._begins(key)}
                if not awaited & left or lead.ended.is_set():
                    break
                await asyncio.sleep(SPLIT_LOOK_S)
            if not left or lead.ended.is_set():
                break
            await asyncio.sleep(min(0.1 * 2**attempt, MAX_PAUSE_S))
        asked = len(request.split_keys)
        found = {region.id for key in set(request.split_keys) - left if (region := self._cluster.regions.find(key))}
        return pdpb.SplitRegionsResponse(
            header=self._header(),
            finished_percentage=100 - len(left) * 100 // asked if asked else 0,
            regions_id=sorted(found),
        )

    def _begins(self, key: bytes) -> bool:
        region = self._cluster.regions.find(key)
        return region is not None and region.start_key == key

    # ---- the whole cluster ----

    async def get_cluster_config(self, request: pdpb.GetClusterConfigRequest) -> pdpb.GetClusterConfigResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.GetClusterConfigResponse(header=self._header(refusal))
        config = metapb.Cluster(id=self._member.cluster_id, max_peer_count=lead.settings.replicas())
        return pdpb.GetClusterConfigResponse(header=self._header(), cluster=config)

    async def get_gc_safe_point(self, request: pdpb.GetGCSafePointRequest) -> pdpb.GetGCSafePointResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.GetGCSafePointResponse(header=self._header(refusal))
        await self._settle(lead.consensus.confirm())
        return pdpb.GetGCSafePointResponse(header=self._header(), safe_point=self._cluster.safe_point)

    async def update_gc_safe_point(self, request: pdpb.UpdateGCSafePointRequest) -> pdpb.UpdateGCSafePointResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.UpdateGCSafePointResponse(header=self._header(refusal))
        outcome = await self._settle(lead.consensus.submit(drillpb.PdCommand(safe_point=request.safe_point)))
        return pdpb.UpdateGCSafePointResponse(header=self._header(), new_safe_point=outcome.value)

    async def update_service_gc_safe_point(
        self, request: pdpb.UpdateServiceGCSafePointRequest
    ) -> pdpb.UpdateServiceGCSafePointResponse:
        lead = self._lead(request)
        if (refusal := self._not_bootstrapped()) is not None:
            return pdpb.UpdateServiceGCSafePointResponse(header=self._header(refusal))
        if not request.service_id:
            raise RpcError(Status.UNKNOWN, "service id of service safepoint cannot be empty")
        if request.service_id == GC_WORKER.encode() and request.TTL != FOREVER_S:
            mistake = "TTL of gc_worker's service safe point must be infinity"
            raise RpcError(
                Status.UNKNOWN, mistake if request.TTL > 0 else "cannot remove service safe point of gc_worker"
            )
        now_s = lead.clock.now_ns() // 10**9
        wanted = drillpb.PdServiceSafePoint(
            service_id=request.service_id.decode("utf-8", "backslashreplace"),
            expires_s=min(now_s + request.TTL, FOREVER_S) if request.TTL > 0 else 0,
            safe_point=request.safe_point,
            now_s=now_s,
        )
        outcome = await self._settle(lead.consensus.submit(drillpb.PdCommand(service_safe_point=wanted)))
        kept = self._cluster.service_safe_points.values()
        lowest = min(kept, key=lambda each: each.safe_point, default=drillpb.PdServiceSafePoint(expires_s=now_s))
        return pdpb.UpdateServiceGCSafePointResponse(
            header=self._header(),
            service_id=lowest.service_id.encode(),
            TTL=lowest.expires_s - now_s,
            min_safe_point=outcome.value,
        )

    # ---- what all of them need ----

    @property
    def _cluster(self) -> Cluster:
        return self._member.consensus.cluster

    def _header(self, refusal: Refusal | None = None) -> pdpb.ResponseHeader:
        error = None if refusal is None else pdpb.Error(type=refusal.type, message=refusal.message)
        return pdpb.ResponseHeader(cluster_id=self._member.cluster_id, error=error)

    def _check_cluster(self, cluster_id: int) -> None:
        if cluster_id != self._member.cluster_id:
            raise RpcError(
                Status.FAILED_PRECONDITION,
                f"mismatch cluster id, need {self._member.cluster_id} but got {cluster_id}",
            )

    def _lead(self, request: Any, otherwise: str = NOT_LEADER) -> Leadership:
        """The lead, for a request that only the leader answers."""
        lead = self._member.lead
        if lead is None:
            raise RpcError(Status.UNAVAILABLE, otherwise)
        self._check_cluster(request.header.cluster_id)
        return lead

    def _not_bootstrapped(self) -> Refusal | None:
        return None if self._cluster.bootstrapped else Refusal(pdpb.NOT_BOOTSTRAPPED, NOT_BOOTSTRAPPED)

    async def _settle(self, work: Awaitable[Answer]) -> Answer:
        """The lead may be lost while a command is on its way: the client has to ask the next leader."""
        try:
            return await work
        except (ProposalDropped, Undetermined) as error:
            raise RpcError(Status.UNAVAILABLE, f"{NOT_LEADER}: {error}") from error

    def _live(self, lead: Leadership, store: metapb.Store) -> metapb.Store:
        live = metapb.Store()
        live.CopyFrom(store)
        live.last_heartbeat = lead.reports.last_heard_ns(store)
        return live

    def _described(self, lead: Leadership, meta: metapb.Region) -> pdpb.Region:
        report = lead.reports.regions.get(meta.id)
        if report is None:
            return pdpb.Region(region=meta)
        return pdpb.Region(
            region=meta,
            leader=lead.reports.leader_of(meta),
            down_peers=report.request.down_peers,
            pending_peers=report.request.pending_peers,
        )


def _are_neighbours(regions: Sequence[metapb.Region]) -> bool:
    """Whether they can be what became of one region: several, each beginning where the one before it ends."""
    return len(regions) > 1 and all(
        left.end_key == right.start_key and (not right.end_key or left.start_key < right.end_key)
        for left, right in pairwise(regions)
    )


def _mistake_of(request: pdpb.RegionHeartbeatRequest) -> str:
    if request.leader.id == 0:
        return "invalid request leader"
    if request.region.id == 0:
        return "invalid request region"
    if not request.region.peers:
        return "invalid region, zero region peer count"
    if request.region.end_key and request.region.start_key >= request.region.end_key:
        return "invalid region, its end key is not after its start key"
    return ""
