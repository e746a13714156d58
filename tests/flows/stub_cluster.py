"""A cluster that says what a test wants it to say: stub PD and TiKV servers, and a runtime that only tells of them.

Every stub speaks the real protocols on a free port, so that clients and probes are tested over sockets; what it answers
comes from `World`, which a test changes while it runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from drillyard.emulator.http import HttpRequest, HttpResponse, Router, json_response, text_response
from drillyard.emulator.logs import open_log
from drillyard.emulator.member import Listener
from drillyard.flows.report import Entry, Picture, Trouble
from drillyard.flows.up import Scope
from drillyard.runtimes import logs
from drillyard.runtimes.abilities import (
    DeployedMember,
    Deployment,
    EventKind,
    Exit,
    LogTail,
    MemberEvent,
    MemberFiles,
    Network,
    Reach,
    RuntimeRefusal,
)
from drillyard.runtimes.choice import Runtimes, Wish
from drillyard.runtimes.local import ABILITIES
from drillyard.topology import Purpose, Role, Topology
from drillyard.waiting import Clock
from drillyard.wire import errorpb, kvrpcpb, metapb, pdpb, services
from drillyard.wire.rpc import Handlers, ServerStream

CLUSTER = 7711284821453302416
PDS = ("pd0", "pd1", "pd2")
TIKVS = ("tikv0", "tikv1", "tikv2")


@dataclass
class World:
    """What the stubs answer. Per-member answers are keyed by name; a member in `hanging` answers nothing at all."""

    cluster_id: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PDS, CLUSTER))
    leader: dict[str, str] = field(default_factory=lambda: dict.fromkeys(PDS, "pd0"))
    own_health: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(PDS, True))
    health: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(PDS, True))
    hanging: set[str] = field(default_factory=set)
    bodies: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # path -> what to answer instead
    timestamps: list[tuple[int, int]] = field(
        default_factory=lambda: [(int(time.time() * 1000), n) for n in range(1, 1000)]
    )
    store_state: dict[str, str] = field(default_factory=lambda: dict.fromkeys(TIKVS, "Up"))
    heartbeat_age_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIKVS, 0.0))
    pd_hash: str = "drillyard-stub"
    regions: int = 1
    max_replicas: int = 3
    checks: dict[str, int] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)  # the stores whose replicas still catch up
    keys: dict[bytes, bytes] = field(default_factory=dict)
    refusal: errorpb.Error | None = None
    loses_writes: bool = False
    puts: int = 0
    asked: list[str] = field(default_factory=list)  # of the PD members, over HTTP
    scan_refusal: str = ""
    returning_keys: int = 0  # how many deletions of a range are followed by somebody's write


def regions_of(count: int) -> list[metapb.Region]:
    """So many regions, from 2 on, with a peer on each store."""
    bounds = [b"", *(b"%04d" % at for at in range(1, count)), b""]
    peers = [metapb.Peer(id=10 + at, store_id=at + 1) for at in range(3)]
    epoch = metapb.RegionEpoch(conf_ver=5, version=1)
    return [
        metapb.Region(id=2 + at, start_key=start, end_key=end, region_epoch=epoch, peers=peers)
        for at, (start, end) in enumerate(pairwise(bounds))
    ]


class StubCluster:
    """Servers for three PD and three TiKV. Use as an async context."""

    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.directory = directory
        self._log = open_log(os.devnull)
        self._listeners: dict[tuple[str, Purpose], Listener] = {}
        self.addresses: dict[str, str] = {}
        self.runtime: StubRuntime

    async def __aenter__(self) -> StubCluster:
        for name in PDS:
            await self._listen(name, Purpose.CLIENT, self._pd_grpc(name), self._pd_http(name))
            await self._listen(name, Purpose.PEER, {}, Router())
        for name in TIKVS:
            await self._listen(name, Purpose.CLIENT, self._tikv_grpc(name), None)
            await self._listen(name, Purpose.STATUS, {}, self._tikv_http(name))
        ports = {key: listener.port for key, listener in self._listeners.items()}
        topology = Topology.of().settle(ports)
        self.addresses = {member.name: member.address(Purpose.CLIENT) for member in topology.members}
        self.runtime = StubRuntime(topology, self.directory)
        return self

    async def __aexit__(self, *_: object) -> None:
        for listener in self._listeners.values():
            await listener.close()

    def scope(self, listener: Heard | None = None) -> Scope:
        return Scope(cast(Runtimes, self.runtime), Clock(), listener or Heard())

    async def cut(self, name: str) -> None:
        """Close every port of a member."""
        for key, listener in self._listeners.items():
            if key[0] == name:
                await listener.close()

    async def _listen(self, name: str, purpose: Purpose, handlers: Handlers, router: Router | None) -> None:
        listener = Listener(self._log)
        await listener.start("127.0.0.1", 0, handlers, router)
        self._listeners[name, purpose] = listener

    async def _gate(self, name: str) -> None:
        if name in self.world.hanging:
            await asyncio.Event().wait()  # until the caller hangs up

    # --- PD ----------------------------------------------------------------------------------------------------------

    def _pd_http(self, name: str) -> Router:
        router = Router()

        async def answer(request: HttpRequest) -> HttpResponse:
            self.world.asked.append(request.path)
            await self._gate(name)
            if request.path in self.world.bodies:
                status, body = self.world.bodies[request.path]
                return HttpResponse(status, body, "text/plain")
            if request.path == "/health":
                healthy = self.world.own_health[name]
                return text_response('{"health":"true"}' if healthy else '{"health":"false"}', 200 if healthy else 503)
            return json_response(self._pd_view(request.path, int(request.first("limit", "16"))))

        for path in ("/health", "/pd/api/v1/{a}", "/pd/api/v1/{a}/{b}", "/pd/api/v1/{a}/{b}/{c}"):
            router.add("GET", path, answer)
        return router

    def _pd_view(self, path: str, limit: int) -> Any:
        world = self.world
        leaf = path.removeprefix("/pd/api/v1/")
        if leaf == "health":
            return [{"name": name, "health": healthy} for name, healthy in world.health.items()]
        if leaf == "members":
            members = [{"name": pd, "binary_version": "v8.1.0", "git_hash": world.pd_hash} for pd in PDS]
            return {"header": {"cluster_id": CLUSTER}, "members": members}
        if leaf == "stores":
            stores = [self._store(at, name) for at, name in enumerate(TIKVS) if name in world.store_state]
            return {"count": len(stores), "stores": stores}
        if leaf == "regions/count":
            return {"count": world.regions, "regions": None}
        if leaf == "regions/key":
            regions = [self._region(2 + n) for n in range(min(limit, world.regions))]
            return {"count": len(regions), "regions": regions}
        if leaf == "config/replicate":
            return {"max-replicas": world.max_replicas}
        if leaf.startswith("regions/check/"):
            count = world.checks.get(leaf.rpartition("/")[2], 0)
            return {"count": count, "regions": [{"id": 2 + n} for n in range(count)]}
        return {}

    def _region(self, region_id: int) -> dict[str, Any]:
        peers = [{"role_name": "Voter", "id": 10 * region_id + at, "store_id": at} for at in (1, 2, 3)]
        region = {"id": region_id, "peers": peers, "leader": peers[0]}
        return {**region, "pending_peers": [peer for peer in peers if peer["store_id"] in self.world.pending]}

    def _store(self, at: int, name: str) -> dict[str, Any]:
        heartbeat = int((time.time() - self.world.heartbeat_age_s[name]) * 1e9)
        meta = {"id": at + 1, "address": self.addresses[name], "version": "8.1.0", "git_hash": "drillyard-stub"}
        store = {**meta, "state_name": self.world.store_state[name], "last_heartbeat": heartbeat}
        status = {"region_count": self.world.regions} | ({"leader_count": self.world.regions} if at == 0 else {})
        return {"store": store, "status": status}

    def _pd_grpc(self, name: str) -> Handlers:
        world = self.world

        async def members(_: pdpb.GetMembersRequest) -> pdpb.GetMembersResponse:
            await self._gate(name)
            listed = [
                pdpb.Member(
                    name=pd,
                    member_id=at + 1,
                    client_urls=[f"http://{self.addresses[pd]}"],
                )
                for at, pd in enumerate(PDS)
            ]
            leader = next((one for one in listed if one.name == world.leader[name]), None)
            header = pdpb.ResponseHeader(cluster_id=world.cluster_id[name])
            return pdpb.GetMembersResponse(header=header, members=listed, leader=leader)

        async def tso(stream: ServerStream[pdpb.TsoRequest, pdpb.TsoResponse]) -> None:
            async for _ in stream:
                physical, logical = world.timestamps.pop(0)
                await stream.send(
                    pdpb.TsoResponse(count=1, timestamp=pdpb.Timestamp(physical=physical, logical=logical))
                )

        async def region(request: pdpb.GetRegionRequest) -> pdpb.GetRegionResponse:
            found = next(one for one in reversed(regions_of(world.regions)) if one.start_key <= request.region_key)
            return pdpb.GetRegionResponse(region=found, leader=found.peers[0])

        async def scan_regions(request: pdpb.ScanRegionsRequest) -> pdpb.ScanRegionsResponse:
            await self._gate(name)
            found = regions_of(world.regions)[: request.limit]
            return pdpb.ScanRegionsResponse(regions=[pdpb.Region(region=one, leader=one.peers[0]) for one in found])

        async def store(request: pdpb.GetStoreRequest) -> pdpb.GetStoreResponse:
            address = self.addresses[TIKVS[request.store_id - 1]]
            return pdpb.GetStoreResponse(store=metapb.Store(id=request.store_id, address=address))

        return {
            services.PD.GetMembers: members,
            services.PD.Tso: tso,
            services.PD.GetRegion: region,
            services.PD.ScanRegions: scan_regions,
            services.PD.GetStore: store,
        }

    # --- TiKV --------------------------------------------------------------------------------------------------------

    def _tikv_http(self, name: str) -> Router:
        router = Router()

        async def answer(_: HttpRequest) -> HttpResponse:
            await self._gate(name)
            return HttpResponse()

        router.add("GET", "/status", answer)
        return router

    def _tikv_grpc(self, name: str) -> Handlers:
        world = self.world

        async def put(request: kvrpcpb.RawPutRequest) -> kvrpcpb.RawPutResponse:
            await self._gate(name)
            world.puts += 1
            if world.refusal is not None:
                return kvrpcpb.RawPutResponse(region_error=world.refusal)
            if not world.loses_writes:
                world.keys[request.key] = request.value
            return kvrpcpb.RawPutResponse()

        async def get(request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
            await self._gate(name)
            value = world.keys.get(request.key)
            return kvrpcpb.RawGetResponse(value=value or b"", not_found=value is None)

        async def delete(request: kvrpcpb.RawDeleteRequest) -> kvrpcpb.RawDeleteResponse:
            world.keys.pop(request.key, None)
            return kvrpcpb.RawDeleteResponse()

        async def swap(request: kvrpcpb.RawCASRequest) -> kvrpcpb.RawCASResponse:
            now = world.keys.get(request.key)
            wanted = None if request.previous_not_exist else request.previous_value
            if now == wanted:
                world.keys[request.key] = request.value
            return kvrpcpb.RawCASResponse(
                succeed=now == wanted, previous_not_exist=now is None, previous_value=now or b""
            )

        async def scan(request: kvrpcpb.RawScanRequest) -> kvrpcpb.RawScanResponse:
            if refused := world.scan_refusal or _family_refusal(request.cf):
                return kvrpcpb.RawScanResponse(kvs=[kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort=refused))])
            found = sorted(
                (k, v)
                for k, v in world.keys.items()
                if k >= request.start_key and (not request.end_key or k < request.end_key)
            )
            pairs = [kvrpcpb.KvPair(key=k, value=v) for k, v in found[: request.limit]]
            return kvrpcpb.RawScanResponse(kvs=pairs)

        async def delete_range(request: kvrpcpb.RawDeleteRangeRequest) -> kvrpcpb.RawDeleteRangeResponse:
            if refused := _family_refusal(request.cf):
                return kvrpcpb.RawDeleteRangeResponse(error=refused)
            start, end = request.start_key, request.end_key
            for key in [k for k in world.keys if start <= k and (not end or k < end)]:
                del world.keys[key]
            if world.returning_keys:
                world.returning_keys -= 1
                world.keys[b"late"] = b"write"
            return kvrpcpb.RawDeleteRangeResponse()

        return {
            services.TIKV.RawPut: put,
            services.TIKV.RawGet: get,
            services.TIKV.RawDelete: delete,
            services.TIKV.RawCompareAndSwap: swap,
            services.TIKV.RawScan: scan,
            services.TIKV.RawDeleteRange: delete_range,
        }


def _family_refusal(name: str) -> str:
    return "" if name in ("", "default") else f"invalid cf name: {name}"


class StubRuntime:
    """Tells of members that "run"; `end` makes one exit, as the keeper would push it."""

    name = "stub"

    def __init__(self, topology: Topology, directory: Path) -> None:
        self._directory = directory
        self._topology = topology
        self._events: list[asyncio.Queue[MemberEvent]] = []
        self.network: Network | None = None
        self.started_again: list[str] = []
        self.rest_starts = 0
        self.rest_refusal: RuntimeRefusal | None = None
        self.operated: list[tuple[str, str]] = []
        self.at_operation: Callable[[str], None] = lambda member: None  # hears of each member that something is done to
        self.after_start: Callable[[str], None] = lambda member: None  # hears of each member that was started
        for part in ("data", "logs", "config"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        self._members = {member.name: self._member(member.name, member.role) for member in topology.members}

    def _member(self, name: str, role: Role) -> DeployedMember:
        log = self._directory / "logs" / f"{name}.log"
        log.write_text(f'[INFO] ["Welcome, I am {name}"]\n')
        return DeployedMember(
            name=name,
            role=role,
            kind="emulated",
            pid=4000 + len(name),
            running=True,
            paused=False,
            exit=None,
            starts=1,
            started_at=time.time() - 30,
            addresses=self._topology.member(name).addresses,
            argv=("stub", name),
            files=MemberFiles(self._directory / "data" / name, log, log.with_suffix(".out")),
        )

    def change(self, member: str, **changes: Any) -> None:
        self._members[member] = replace(self._members[member], **changes)

    def end(self, member: str, exit_: Exit) -> None:
        self.change(member, running=False, pid=None, exit=exit_)
        for queue in self._events:
            queue.put_nowait(MemberEvent("stub", member, EventKind.EXITED, exit_.at, None, exit_))

    async def deployment(self, name: str) -> Deployment:
        members = tuple(self._members.values())
        directory, topology = self._directory, self._topology
        return Deployment(name, "stub", ABILITIES, directory, topology, members, 1, 0.0, network=self.network)

    async def plan(self, wish: Wish) -> None:
        """There is nothing to plan: what `up` finds runs already."""

    def hold_back(self, *members: str) -> None:
        for member in members:
            self.change(member, running=False, pid=None, started_at=None, starts=0)

    async def start_member(self, name: str, member: str) -> None:
        self.started_again.append(member)
        self.change(member, running=True, pid=5000)
        self.after_start(member)

    async def kill_member(self, name: str, member: str) -> None:
        self._operate("kill", member)

    async def stop_member(self, name: str, member: str) -> None:
        self._operate("stop", member)

    async def restart_member(self, name: str, member: str) -> None:
        self._operate("restart", member)

    async def pause_member(self, name: str, member: str) -> None:
        self._operate("pause", member)

    async def resume_member(self, name: str, member: str) -> None:
        self.change(member, paused=False)
        self._operate("resume", member)

    def _operate(self, what: str, member: str) -> None:
        """Nothing is done but what a test does then."""
        self.operated.append((what, member))
        self.at_operation(member)

    async def start_rest(self, name: str) -> None:
        self.rest_starts += 1
        if self.rest_refusal is not None:
            raise self.rest_refusal
        for member in [one.name for one in self._members.values() if one.is_held_back]:
            self.change(member, running=True, pid=5000, started_at=time.time() - 1, starts=1)
            self.after_start(member)

    async def tails(self, name: str, member: str, lines: int, ended_at: float | None = None) -> tuple[LogTail, ...]:
        found = self._members[member]
        paths = logs.by_last_written((found.log_path, found.out_path))
        return tuple(LogTail(str(path), logs.tail_lines(path, lines)) for path in paths)

    async def keepsakes(self, name: str) -> dict[str, bytes]:
        return {f"logs/{one}.log": logs.tail(member.log_path) for one, member in self._members.items()}

    @asynccontextmanager
    async def reach(self, deployment: Deployment) -> AsyncIterator[Reach]:
        yield Reach()

    async def watch(self, name: str) -> AsyncIterator[MemberEvent]:
        queue: asyncio.Queue[MemberEvent] = asyncio.Queue()
        self._events.append(queue)
        while True:
            yield await queue.get()


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.entries: list[Entry] = []
        self.trouble: Trouble | None = None

    def see(self, picture: Picture) -> None:
        self.pictures.append(picture)

    def hear(self, entry: Entry) -> None:
        self.entries.append(entry)

    def cut_short(self, trouble: Trouble) -> None:
        self.trouble = trouble
