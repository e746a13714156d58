"""A cluster without Raft, on virtual time: stores that obey PD's steps or lose them, and the real mind of PD's leader.

Regions are kept as one truth each: who its peers are, which of them leads, who has caught up. A step is taken only if
it reaches the region's leader while the region's epoch is the one that came with it, as a store takes it. Everything is
by one seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from drillyard.emulator.chance import Chance
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.coordinator import Candidate, Coordinator, Send, first_command, start_of
from drillyard.emulator.pd.settings import full_name, mistake_of
from drillyard.wire import drillpb, eraftpb, metapb, pdpb

SECOND_NS = 10**9
MIB = 1 << 20
GIB = 1 << 30
STORE_BEAT_NS = 5 * SECOND_NS
REGION_BEAT_NS = 10 * SECOND_NS
V, L, IN, OUT = metapb.Voter, metapb.Learner, metapb.IncomingVoter, metapb.DemotingVoter


@dataclass(slots=True)
class Region:
    meta: metapb.Region
    leader: int  # a peer
    size: int
    term: int = 6
    beat_ns: int = 0
    pending: dict[int, int] = field(default_factory=dict)  # peer -> when it will have caught up

    def peer(self, peer_id: int) -> metapb.Peer | None:
        return next((peer for peer in self.meta.peers if peer.id == peer_id), None)


@dataclass(slots=True)
class Store:
    id: int
    silent_since: int = -1  # -1: it is there
    beat_ns: int = 0
    slow_score: int = 1

    @property
    def is_alive(self) -> bool:
        return self.silent_since < 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong, in percent."""

    lost_steps: int = 0
    lost_beats: int = 0
    late_steps: int = 0


class World:
    def __init__(self, seed: int, stores: int, settings: Mapping[str, object] | None = None) -> None:
        self.chance = Chance(seed)
        self.now_ns = 10**18
        self.cluster = Cluster()
        self.stores = {store_id: Store(store_id) for store_id in range(1, stores + 1)}
        self.regions: dict[int, Region] = {}
        self.trouble = Trouble()
        self.orders: list[str] = []  # every step that was sent, in words
        self._late: list[tuple[int, Send]] = []
        self._term = 0
        self._seen_peers: set[int] = set()
        self.set({"patrol-region-interval": "1s", **(settings or {})})
        self.mind = self.lead()

    # ---- PD ----

    def lead(self) -> Coordinator:
        """A leader of PD that knows what was agreed on, and nothing else."""
        self._term += 1
        self._late.clear()
        command = first_command(Candidate(1, 7), self._term, self.now_ns // 10**6)
        start = start_of(self.cluster.apply(command.SerializeToString()), self.cluster)
        settings = Settings(Options("pd0", "", "", "", "", "", ""), lambda: self.cluster.settings)
        for region in self.regions.values():
            region.beat_ns = 0
        for store in self.stores.values():
            store.beat_ns = 0
        self.mind = Coordinator(self.cluster, settings, start.ids)
        return self.mind

    def apply(self, command: drillpb.PdCommand) -> None:
        outcome = self.cluster.apply(command.SerializeToString())
        assert outcome.refusal is None, outcome.refusal

    def set(self, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            name = key if key.startswith("scheduler.") else full_name(key)
            assert name is not None
            assert key.startswith("scheduler.") or not mistake_of(name, value)
            self.apply(drillpb.PdCommand(setting=drillpb.PdSetting(key=name, value=json.dumps(value))))

    # ---- the beginning ----

    def bootstrap(self, cuts: int, size: int, voters: int = 1) -> None:
        """The whole key space in regions of one size, all on the first stores."""
        metas: list[metapb.Region] = []
        edges = [b"", *(b"k%04d" % place for place in range(1, cuts)), b""]
        for place in range(cuts):
            ids = [self.take_id() for _ in range(voters + 1)]
            peers = [metapb.Peer(id=peer, store_id=store) for store, peer in enumerate(ids[1:], 1)]
            epoch = metapb.RegionEpoch(version=cuts, conf_ver=voters)
            meta = metapb.Region(
                id=ids[0], start_key=edges[place], end_key=edges[place + 1], region_epoch=epoch, peers=peers
            )
            metas.append(meta)
            self.regions[meta.id] = Region(meta, ids[1], size)
            self._seen_peers.update(ids[1:])
        first = drillpb.PdBootstrap(store=self._meta(1), region=metas[0])
        self.apply(drillpb.PdCommand(bootstrap=first))
        for store_id in self.stores:
            self.apply(drillpb.PdCommand(put_store=self._meta(store_id)))

    def _meta(self, store_id: int) -> metapb.Store:
        return metapb.Store(id=store_id, address=f"s{store_id}", version="8.1.0")

    def add_store(self, store_id: int) -> None:
        self.stores[store_id] = Store(store_id)
        self.apply(drillpb.PdCommand(put_store=self._meta(store_id)))

    def label(self, store_id: int, **labels: str) -> None:
        pairs = [metapb.StoreLabel(key=key, value=value) for key, value in labels.items()]
        self.apply(drillpb.PdCommand(label_store=drillpb.PdStoreLabels(store_id=store_id, labels=pairs)))

    def take_id(self) -> int:
        taken = self.mind.take_id()
        if not taken:
            self._drive()
            taken = self.mind.take_id()
        assert taken
        return taken

    # ---- time ----

    def run(self, seconds: float, step_ns: int = SECOND_NS // 2) -> None:
        end = self.now_ns + int(seconds * SECOND_NS)
        while self.now_ns < end:
            self.step(step_ns)

    def step(self, step_ns: int) -> None:
        self.now_ns += step_ns
        for store in self.stores.values():
            if (
                store.is_alive
                and self.now_ns - store.beat_ns >= STORE_BEAT_NS
                and not self._is(self.trouble.lost_beats)
            ):
                store.beat_ns = self.now_ns
                self._beat(store)
        for region in list(self.regions.values()):
            self._live(region)
        due = [send for at_ns, send in self._late if at_ns <= self.now_ns]
        self._late = [(at_ns, send) for at_ns, send in self._late if at_ns > self.now_ns]
        for send in due:
            self._obey(send)
        while self.mind.tick(self.now_ns):
            self._drive()
        self._drive()

    def _is(self, percent: int) -> bool:
        return self.chance.below(100) < percent

    def _beat(self, store: Store) -> None:
        meta = self.cluster.stores.get(store.id)
        if meta is None or meta.state == metapb.Tombstone:
            return
        held = [
            region for region in self.regions.values() if any(peer.store_id == store.id for peer in region.meta.peers)
        ]
        stats = pdpb.StoreStats(
            store_id=store.id,
            capacity=1000 * GIB,
            available=1000 * GIB - sum(region.size for region in held) * MIB,
            region_count=len(held),
            slow_score=store.slow_score,
        )
        assert self.mind.hear_store(stats, self.now_ns) is None
        self._drive()

    def _drive(self) -> None:
        """Carries out what the mind wants, until it wants nothing more."""
        while (output := self.mind.take_output()).proposals or output.sends:
            for proposal in output.proposals:
                outcome = self.cluster.apply(proposal.command.SerializeToString())
                self.mind.settle(proposal, outcome, self.now_ns)
            for send in output.sends:
                if send.response.HasField("header") and send.response.header.HasField("error"):
                    continue
                self.orders.append(str(send.response))
                if self._is(self.trouble.lost_steps):
                    continue
                delay_ns = self.chance.below(3 * SECOND_NS) if self._is(self.trouble.late_steps) else 0
                self._late.append((self.now_ns + delay_ns, send))

    # ---- regions ----

    def _live(self, region: Region) -> None:
        region.pending = {peer: at_ns for peer, at_ns in region.pending.items() if at_ns > self.now_ns}
        leader = region.peer(region.leader)
        if leader is None or not self.stores[leader.store_id].is_alive:
            self._elect(region)
        elif self.now_ns - region.beat_ns >= REGION_BEAT_NS and not self._is(self.trouble.lost_beats):
            self.report(region)

    def _elect(self, region: Region) -> None:
        voting = [peer for peer in region.meta.peers if peer.role != L]
        alive = [peer for peer in voting if self.stores[peer.store_id].is_alive]
        able = [peer for peer in alive if peer.id not in region.pending]
        if able and 2 * len(alive) > len(voting):
            region.leader = able[self.chance.below(len(able))].id
            region.term += 1
            self.report(region)

    def report(self, region: Region) -> None:
        """The leader tells PD, unless it lags behind a merge that took the region away."""
        region.beat_ns = self.now_ns
        leader = region.peer(region.leader)
        if leader is None or not self.stores[leader.store_id].is_alive:
            return
        meta = metapb.Region()
        meta.CopyFrom(region.meta)
        dead = [peer for peer in meta.peers if not self.stores[peer.store_id].is_alive]
        down = [
            pdpb.PeerStats(peer=peer, down_seconds=(self.now_ns - self.stores[peer.store_id].silent_since) // SECOND_NS)
            for peer in dead
        ]
        request = pdpb.RegionHeartbeatRequest(
            region=meta,
            leader=leader,
            term=region.term,
            approximate_size=region.size * MIB,
            approximate_keys=region.size * 1000,
            down_peers=[stats for stats in down if stats.down_seconds >= 30],
            pending_peers=[peer for peer in meta.peers if peer.id in region.pending or peer in dead],
        )
        self.mind.hear_region(request, self.now_ns)
        self._drive()

    # ---- steps ----

    def _obey(self, send: Send) -> None:
        order = send.response
        region = self.regions.get(order.region_id)
        if region is None or order.region_epoch != region.meta.region_epoch or order.target_peer.id != region.leader:
            return
        store = self.stores.get(send.store_id)
        if store is None or not store.is_alive or not self._has_quorum(region):
            return
        kind = [name for name in ("change_peer_v2", "transfer_leader", "split_region", "merge") if order.HasField(name)]
        getattr(self, f"_{kind[0]}")(region, order)

    def _has_quorum(self, region: Region) -> bool:
        voting = [peer for peer in region.meta.peers if peer.role != L]
        return 2 * sum(1 for peer in voting if self.stores[peer.store_id].is_alive) > len(voting)

    def _change_peer_v2(self, region: Region, order: pdpb.RegionHeartbeatResponse) -> None:
        changes = list(order.change_peer_v2.changes)
        peers = {peer.id: peer for peer in region.meta.peers}
        is_joint = any(peer.role in (IN, OUT) for peer in peers.values())
        if not changes:
            moved = [peer for peer in peers.values() if peer.role in (IN, OUT)]
            if peers[region.leader].role == OUT:
                return  # no store demotes its leader
            for peer in moved:
                peer.role = V if peer.role == IN else L
            region.meta.region_epoch.conf_ver += len(moved)
        elif is_joint:
            return
        else:
            for change in changes:
                self._change(region, change, joint=len(changes) > 1)
            region.meta.region_epoch.conf_ver += len(changes)
        self.report(region)

    def _change(self, region: Region, change: pdpb.ChangePeer, *, joint: bool) -> None:
        peer, known = change.peer, region.peer(change.peer.id)
        on_store = next((each for each in region.meta.peers if each.store_id == peer.store_id), None)
        if change.change_type == eraftpb.RemoveNode:
            assert known is not None, "a peer that is not there is removed"
            assert known.id != region.leader, "a leader is removed"
            region.meta.peers.remove(known)
            region.pending.pop(known.id, None)
            return
        if known is None:
            assert change.change_type == eraftpb.AddLearnerNode, "a voter is added at once"
            assert on_store is None, "two peers on one store"
            assert peer.id not in self._seen_peers, "an id was given to two peers"
            self._seen_peers.add(peer.id)
            region.meta.peers.add(id=peer.id, store_id=peer.store_id, role=L)
            region.pending[peer.id] = self.now_ns + self.chance.below(4 * SECOND_NS)
        elif change.change_type == eraftpb.AddNode:
            assert known.role == L, "a voter is promoted"
            assert peer.id not in region.pending, "a learner that lags behind is promoted"
            known.role = IN if joint else V
        else:
            assert joint or known.id != region.leader, "a leader is demoted"
            known.role = OUT if joint else L

    def _transfer_leader(self, region: Region, order: pdpb.RegionHeartbeatResponse) -> None:
        for peer in order.transfer_leader.peers or [order.transfer_leader.peer]:
            known = region.peer(peer.id)
            alive = known is not None and self.stores[known.store_id].is_alive and known.id not in region.pending
            if known is not None and alive and known.role in (V, IN):
                region.leader = known.id
                region.term += 1
                self.report(region)
                return

    def _split_region(self, region: Region, order: pdpb.RegionHeartbeatResponse) -> None:
        keys = [key for key in order.split_region.keys if region.meta.start_key < key]
        keys = keys or [(region.meta.start_key or b"a") + b"m"]
        self.split(region, keys[0])

    def split(self, region: Region, key: bytes) -> None:
        meta = region.meta
        assert not meta.end_key or key < meta.end_key
        ids = [self.take_id() for _ in range(1 + len(meta.peers))]
        self.mind.placement.record_split([meta.id, ids[0]], self.now_ns)
        left = metapb.Region()
        left.CopyFrom(meta)
        left.id, left.end_key = ids[0], key
        for peer, peer_id in zip(left.peers, ids[1:], strict=True):
            peer.id = peer_id
        self._seen_peers.update(ids[1:])
        meta.region_epoch.version += 1
        left.region_epoch.version += 1
        meta.start_key = key
        places = [peer.id for peer in meta.peers]
        size = max(1, region.size // 2)
        region.size = max(1, region.size - size)
        new = Region(left, left.peers[places.index(region.leader)].id, size)
        self.regions[left.id] = new
        self.report(new)
        self.report(region)

    def _merge(self, region: Region, order: pdpb.RegionHeartbeatResponse) -> None:
        target = self.regions.get(order.merge.target.id)
        if target is None or target.meta.region_epoch != order.merge.target.region_epoch:
            return
        mine = {peer.store_id: peer.role for peer in region.meta.peers}
        assert mine == {peer.store_id: peer.role for peer in target.meta.peers}, "merged before they were aligned"
        if region.pending or target.pending or not self._has_quorum(target):
            return
        if region.meta.end_key and region.meta.end_key == target.meta.start_key:
            target.meta.start_key = region.meta.start_key
        else:
            assert target.meta.end_key == region.meta.start_key
            target.meta.end_key = region.meta.end_key
        version = max(region.meta.region_epoch.version, target.meta.region_epoch.version) + 1
        target.meta.region_epoch.version = version
        target.size += region.size
        del self.regions[region.meta.id]
        self.report(target)

    # ---- judgement ----

    def kill(self, store_id: int) -> None:
        self.stores[store_id].silent_since = self.now_ns

    def revive(self, store_id: int) -> None:
        self.stores[store_id].silent_since = -1
        self.stores[store_id].beat_ns = 0

    def counts(self) -> dict[int, int]:
        """Peers on each store."""
        found = dict.fromkeys(self.stores, 0)
        for region in self.regions.values():
            for peer in region.meta.peers:
                found[peer.store_id] += 1
        return found

    def leaders(self) -> dict[int, int]:
        found = dict.fromkeys(self.stores, 0)
        for region in self.regions.values():
            leader = region.peer(region.leader)
            assert leader is not None
            found[leader.store_id] += 1
        return found

    def complaints(self, replicas: int) -> list[str]:
        """What is wrong with the regions as they are."""
        found: list[str] = []
        reached = b""
        for region in sorted(self.regions.values(), key=lambda each: each.meta.start_key):
            meta = region.meta
            if meta.start_key != reached:
                found.append(f"nothing covers {reached!r} to {meta.start_key!r}")
            reached = meta.end_key
            if [peer.role for peer in meta.peers] != [V] * replicas:
                found.append(f"region {meta.id} has {[(peer.store_id, peer.role) for peer in meta.peers]}")
            dead = [peer.store_id for peer in meta.peers if not self.stores[peer.store_id].is_alive]
            if dead or region.pending:
                found.append(f"region {meta.id} is not healthy: {dead} {region.pending}")
        if reached:
            found.append(f"nothing covers {reached!r} to the end")
        for region_id, operator in self.mind.placement.controller.running.items():
            found.append(f"region {region_id} is still being worked on: {operator.desc}")
        return found
