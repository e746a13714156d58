"""The same story told to an emulated PD and to a real one, and every question of the table asked of both.

Each side has the same stores, which exist only as their heartbeats: they register, report regions as they are told to,
and carry out nothing. So both PDs are in the same state, and what they answer differs only where they do. PD's own
splits are forestalled: the regions reported are cut where the real one would cut them.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from fake_stores import until
from google.protobuf import json_format, text_format
from normal_form import Names, in_order, is_unordered, normal, parts, unlike
from pd_processes import PdProcesses
from real_pd import RealPd

from drillyard.wire import metapb, pdpb
from drillyard.wire.keys import encode
from drillyard.wire.method import Kind as RpcKind
from drillyard.wire.rpc import Channel, ClientStream, RpcError
from drillyard.wire.services import PD
from tools.fidelity_table import V1, Question, State, Table

ANSWER_S = 20.0
BEAT_S = 2.0
LOST_S = 21.5  # PD calls a store disconnected after 20 s
GIB = 1 << 30
STRANGER = 1
LEARNER_REGION = 23


@dataclass(slots=True)
class Side:
    """One cluster, and how it is asked. Its first member leads."""

    name: str
    ports: list[int]
    names: Names
    cluster_id: int
    channels: list[Channel] = field(default_factory=list)
    stores: dict[int, metapb.Store] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    streams: dict[int, ClientStream[Any, Any]] = field(default_factory=dict)
    closing: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def header(self) -> pdpb.RequestHeader:
        return pdpb.RequestHeader(cluster_id=self.cluster_id)

    async def call(self, method: Any, request: Any) -> Any:
        request.header.CopyFrom(self.header)
        return await self.channels[0].unary(method, request, timeout_s=ANSWER_S)

    # ---- what its stores do ----

    async def put_store(self, store_id: int, **labels: str) -> None:
        store = metapb.Store(
            id=store_id,
            address=f"127.0.0.1:3{store_id}160",
            peer_address=f"127.0.0.1:3{store_id}160",
            status_address=f"127.0.0.1:3{store_id}180",
            version="8.1.0",
            git_hash="abc",
            start_timestamp=int(time.time()) - 100,
            deploy_path="/x",
            labels=[metapb.StoreLabel(key=key, value=value) for key, value in labels.items()],
        )
        answer = await self.call(PD.PutStore, pdpb.PutStoreRequest(store=store))
        assert not answer.header.error.message, answer
        self.stores[store_id] = store

    async def beat(self) -> None:
        for store_id, store in self.stores.items():
            if store_id in self.silent:
                continue
            stats = pdpb.StoreStats(
                store_id=store_id,
                capacity=100 * GIB,
                available=80 * GIB,
                used_size=1 << 20,
                region_count=5,
                start_time=store.start_timestamp,
                interval=pdpb.TimeInterval(start_timestamp=int(time.time()) - 10, end_timestamp=int(time.time())),
            )
            await self.call(PD.StoreHeartbeat, pdpb.StoreHeartbeatRequest(stats=stats))

    async def report(self, region: pdpb.RegionHeartbeatRequest) -> None:
        """From the store that leads the region, on its own stream."""
        store_id = region.leader.store_id
        if store_id not in self.streams:
            stream = await self.closing.enter_async_context(self.channels[0].open(PD.RegionHeartbeat))
            self.streams[store_id] = stream
            draining = asyncio.create_task(drain(stream))
            self.closing.callback(draining.cancel)
        region.header.CopyFrom(self.header)
        await self.streams[store_id].send(region)

    # ---- what it answers ----

    async def ask(self, question: Question) -> dict[str, str]:
        """The parts of its answer, in normal form."""
        place = 1 if question.whom == "follower" else 0
        if question.method == "rpc":
            told = await self._ask_rpc(question, place)
        else:
            told = await asyncio.to_thread(self._ask_http, question, place)
        if "body" in told and is_unordered(question.path.replace(V1, "~", 1)):
            told["body"] = in_order(told["body"])
        return {part: text for name, value in told.items() for part, text in parts(value, name).items()}

    def _ask_http(self, question: Question, place: int) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[place], timeout=ANSWER_S)
        try:
            headers = {"Content-Type": "application/json"} if question.body else {}
            path = self.names.called(question.path)
            connection.request(question.method, path, question.body.encode() or None, headers)
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
            kind = answer.headers.get("Content-Type", "")
        except (OSError, http.client.HTTPException) as error:
            return {"status": f"none: {type(error).__name__}"}
        finally:
            connection.close()
        told: dict[str, Any] = {"status": answer.status, "type": kind}
        try:
            told["body"] = normal(json.loads(body), self.names, question.path.rpartition("/")[2])
            told["layout"] = "indented" if body.endswith("\n") else "compact"
        except ValueError:
            told["text"] = self.names.plain(body)
        return told

    async def _ask_rpc(self, question: Question, place: int) -> dict[str, Any]:
        method = getattr(PD, question.path)
        request = text_format.Parse(question.body, method.request())
        request.header.cluster_id = STRANGER if question.whom == "stranger" else self.cluster_id
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._call(method, request, place)
        except RpcError as error:
            return {"status": error.status.name, "message": self.names.plain(error.message)}
        except TimeoutError:
            return {"status": "none: no answer"}
        if answer is None:
            return {"status": "none: the stream ended"}
        told = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        return {"status": "OK", "body": normal(told, self.names)}

    async def _call(self, method: Any, request: Any, place: int) -> Any:
        if method.kind is RpcKind.UNARY:
            return await self.channels[place].unary(method, request)
        async with self.channels[place].open(method) as stream:
            await stream.send(request)
            return await stream.recv()

    async def close(self) -> None:
        await self.closing.aclose()
        for channel in self.channels:
            channel.close()


async def drain(stream: ClientStream[Any, Any]) -> None:
    with contextlib.suppress(RpcError):
        while await stream.recv() is not None:
            pass


@dataclass(frozen=True, slots=True)
class Compared:
    """One question in one state, and where the two answers differ."""

    state: str
    question: str
    unlike: Mapping[str, tuple[str, str]]  # part -> ours, theirs
    real: Mapping[str, str]
    emulated: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"[{self.state}] {self.question}"]
        return "\n".join([*lines, *(f"    {part}: {one} | real: {other}" for part, (one, other) in self.told)])

    @property
    def told(self) -> list[tuple[str, tuple[str, str]]]:
        """The parts that say most: of an answer with another status not its body's parts."""
        shown = list(self.unlike.items())
        if "status" in self.unlike:
            shown = [item for item in shown if item[0] in ("status", "type", "message", "text", "body")]
        return [(part, (one[:300], other[:300])) for part, (one, other) in shown]


# ---- the two clusters ----


async def emulated_side(pd: PdProcesses) -> Side:
    leader = await asyncio.to_thread(pd.wait_for_leader)
    assert leader == 0, "the first-named member leads at first boot"
    ports = dict(zip(pd.names, zip(pd.client_ports, pd.peer_ports, strict=True), strict=True))
    return await _side("emulated", ports, str(pd.home))


async def real_side(pd: RealPd) -> Side:
    leader = await until(lambda: f"pd{place}" if (place := pd.leader()) is not None else "", "a leader of the real PD")
    ports = {f"pd{place}": pair for place, pair in enumerate(zip(pd.client_ports, pd.peer_ports, strict=True))}
    return await _side("real", ports, str(pd.home), leader)


async def _side(name: str, ports: dict[str, tuple[int, int]], home: str, leader: str = "pd0") -> Side:
    """Its members in the order of their names after the leader's was exchanged for pd0."""
    order = sorted(ports, key=lambda member: (member != leader, member if member != "pd0" else leader))
    channels = [Channel("127.0.0.1", ports[member][0]) for member in order]
    members = await channels[0].unary(PD.GetMembers, pdpb.GetMembersRequest(), timeout_s=ANSWER_S)
    stands = {str(members.header.cluster_id): "<cluster>", home: "<home>"}
    stands |= {str(member.member_id): f"<id of {member.name}>" for member in members.members}
    for member, (client, peer) in ports.items():
        stands |= {f"127.0.0.1:{client}": f"<client of {member}>", f"127.0.0.1:{peer}": f"<peer of {member}>"}
    client_ports = [ports[member][0] for member in order]
    return Side(name, client_ports, Names(stands, leader), members.header.cluster_id, channels)


# ---- the story ----


def bounds() -> list[bytes]:
    """Where a real PD cuts a new cluster's key space: around the raw and the transactional keys of keyspace 0."""
    marks = (b"r\x00\x00\x00", b"r\x00\x00\x01", b"x\x00\x00\x00", b"x\x00\x00\x01")
    return [b"", *(encode(mark) for mark in marks), b""]


def whole_region(place: int) -> pdpb.RegionHeartbeatRequest:
    """One of five, each with three voters; the last keeps the id of the region that was there first."""
    region_id = (20, 21, 22, LEARNER_REGION, 4)[place]
    first = 101 + 10 * place
    peers = [metapb.Peer(id=first + at, store_id=1 + at) for at in range(3)]
    cuts = bounds()
    region = metapb.Region(
        id=region_id,
        start_key=cuts[place],
        end_key=cuts[place + 1],
        region_epoch=metapb.RegionEpoch(conf_ver=5, version=5),
        peers=peers,
    )
    now = int(time.time())
    return pdpb.RegionHeartbeatRequest(
        region=region,
        leader=peers[place % 2],
        term=6,
        approximate_size=(place + 1) << 20,
        approximate_keys=1000 * (place + 1),
        bytes_written=1000 * (place + 1),
        keys_written=10 * (place + 1),
        interval=pdpb.TimeInterval(start_timestamp=now - 60, end_timestamp=now),
    )


def ailing_region() -> pdpb.RegionHeartbeatRequest:
    """Four peers: one learns and is pending, one is down."""
    told = whole_region(3)
    told.region.peers.append(metapb.Peer(id=135, store_id=4, role=metapb.Learner))
    told.region.region_epoch.conf_ver = 6
    told.pending_peers.append(told.region.peers[3])
    told.down_peers.append(pdpb.PeerStats(peer=told.region.peers[2], down_seconds=7))
    return told


def joint_region() -> pdpb.RegionHeartbeatRequest:
    """In the middle of a change: one peer comes, another goes."""
    told = whole_region(2)
    told.region.peers[1].role = metapb.IncomingVoter
    told.region.peers[2].role = metapb.DemotingVoter
    told.region.region_epoch.conf_ver = 7
    return told


async def bootstrapped(side: Side) -> None:
    epoch = metapb.RegionEpoch(conf_ver=1, version=1)
    region = metapb.Region(id=4, region_epoch=epoch, peers=[metapb.Peer(id=5, store_id=1)])
    store = metapb.Store(id=1, address="127.0.0.1:31160", version="8.1.0")
    await side.call(PD.Bootstrap, pdpb.BootstrapRequest(store=store, region=region))


async def whole(side: Side) -> None:
    for store_id in (1, 2, 3):
        await side.put_store(store_id, zone=f"z{store_id}", host=f"h{store_id}")
    await side.beat()
    for place in range(5):
        await side.report(whole_region(place))
    await until(lambda: _are_serving(side), f"three stores serve, {side.name}")
    await until(lambda: _count(side, "regions/count") == 5, f"five regions, {side.name}")
    await until(lambda: _leaders(side) == 5, f"five leaders, {side.name}")


async def a_store_leaves(side: Side) -> None:
    await side.put_store(4)
    side.silent.add(3)
    await side.beat()
    await side.report(ailing_region())
    await side.report(joint_region())
    await until(lambda: _are_serving(side), f"the fourth store serves, {side.name}")
    await until(lambda: _count(side, "regions/check/learner-peer"), f"the learner is known, {side.name}")


async def a_store_is_gone(side: Side) -> None:
    """The learner goes, and with it the last region of the store that was told to go."""
    for place, conf_ver in ((2, 9), (3, 7)):
        healed = whole_region(place)
        healed.region.region_epoch.conf_ver = conf_ver
        await side.report(healed)
    await until(lambda: _state_of(side, 4) == "Tombstone", f"store 4 is buried, {side.name}", within_s=30)
    await until(lambda: _state_of(side, 3) == "Disconnected", f"store 3 is missed, {side.name}", within_s=LOST_S + 5)


RESIGNS = "led by another"
DRIVERS: Mapping[str, Callable[[Side], Coroutine[Any, Any, None]]] = {
    "bootstrapped": bootstrapped,
    "whole": whole,
    "a store leaves": a_store_leaves,
    "a store is gone": a_store_is_gone,
}


def _get(side: Side, path: str) -> Any:
    return side._ask_http(Question.of(f"GET ~/{path}"), 0).get("body")


def _count(side: Side, path: str) -> int:
    told = _get(side, path)
    return int(told["count"]) if isinstance(told, dict) else 0


def _leaders(side: Side) -> int:
    told = _get(side, "regions")
    regions = (told.get("regions") or []) if isinstance(told, dict) else []
    return sum(1 for region in regions if region["leader"].get("store_id"))


def _are_serving(side: Side) -> bool:
    """The real one looks every ten seconds whether a new store may."""
    told = _get(side, "stores")
    stores = told["stores"] if isinstance(told, dict) else []
    return all(store["store"].get("node_state") == 1 for store in stores)


def _state_of(side: Side, store_id: int) -> str:
    told = _get(side, f"store/{store_id}")
    return str(told["store"]["state_name"]) if isinstance(told, dict) and "store" in told else ""


class LeaderLost(Exception):
    """A PD has another leader than at the beginning, and nobody told the first to go."""


async def tell(table: Table, sides: tuple[Side, Side]) -> list[Compared]:
    """The whole story, and what was found."""
    found: list[Compared] = []
    hearts = [asyncio.create_task(_beat_on(side)) for side in sides]
    try:
        for state in table.states:
            if state.name == RESIGNS:
                await _check_leaders(sides)
            if state.name in DRIVERS:
                await asyncio.gather(*(DRIVERS[state.name](side) for side in sides))
            found += await _compare(state, sides)
    except (AssertionError, RpcError):
        await _check_leaders(sides)
        raise
    finally:
        for heart in hearts:
            heart.cancel()
        await asyncio.gather(*hearts, return_exceptions=True)
        await asyncio.gather(*(side.close() for side in sides))
    return found


async def _check_leaders(sides: tuple[Side, Side]) -> None:
    for side in sides:
        members = await side.channels[0].unary(PD.GetMembers, pdpb.GetMembersRequest(), timeout_s=ANSWER_S)
        if members.leader.name != side.names.leader:
            raise LeaderLost(f"{side.name}: {members.leader.name or 'nobody'} instead of {side.names.leader}")


async def _beat_on(side: Side) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        await side.beat()


async def _compare(state: State, sides: tuple[Side, Side]) -> list[Compared]:
    found = []
    for question in state.questions:
        ours, theirs = await asyncio.gather(*(side.ask(question) for side in sides))
        found.append(Compared(state.name, question.text, unlike(ours, theirs), theirs, ours))
    return found
