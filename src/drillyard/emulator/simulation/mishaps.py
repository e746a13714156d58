"""What goes wrong in a simulated cluster, and the person who keeps asking PD for changes.

Rules: mishaps strike at random moments and, as *ambushes*, just when something delicate has begun (an election, a step
of PD's, an installation), at the member that began it or around it. Each seed does much of some things and nothing of
others: what hides behind one misfortune shows then. All of it ends when the world is healed.

The operator orders splits, merges, moves, transfers and removals as PD would send them: for a region as PD knows it now
or knew it a while ago. It does not care whether they make sense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from drillyard.emulator.raft.types import ChangeKind
from drillyard.emulator.simulation.clients import KEYS, Client
from drillyard.emulator.simulation.pds import PdMember
from drillyard.emulator.simulation.stage import TICK_US, Stage
from drillyard.emulator.simulation.stores import StoreMember
from drillyard.emulator.simulation.world import MILLISECOND_US, SECOND_US, Member
from drillyard.emulator.store.commands import unpack_peer
from drillyard.emulator.store.region import Peer, PeerChange, PeerRole, Region
from drillyard.emulator.store.store import ChangePeers, Merge, Split, Step, TransferLeader
from drillyard.emulator.tikv.records import unpack_region

Server = PdMember | StoreMember
KINDS = ("split", "split", "split", "merge", "merge", "transfer", "move", "move", "add", "remove", "promote")


class Mishaps:
    def __init__(
        self, stage: Stage, clients: list[Client], wanted: tuple[str, ...] | None = None, steps: tuple[str, ...] = KINDS
    ) -> None:
        """`wanted`: names of methods here, without the underscore, instead of what the seed draws."""
        self._stage = stage
        self._world = stage.world
        self._clients = clients
        self._operator = Operator(stage, steps)
        drawn = self._draw()
        self._kinds = drawn if wanted is None else tuple(getattr(self, f"_{name}") for name in wanted)
        self.crashes = 0
        self.lost_batches = 0
        self._world.ambush = self._ambush

    @property
    def steps(self) -> int:
        return self._operator.steps

    def start(self) -> None:
        self._world.after(self._delay_us(), self._strike)
        self._operator.start()

    def _draw(self) -> tuple[Callable[[], None], ...]:
        dice = self._world.dice
        kinds = (
            *(self._cut_in_two, self._isolate, self._cut_one_way, self._mend),
            *(self._crash_store, self._crash_pd, self._crash_leader, self._stall, self._restart),
            *(self._isolate_leader, self._stall_leader, self._strand_leader, self._jump_clock, self._move_pd_leader),
        )
        drawn = tuple(kind for kind in kinds for _ in range(dice.pick((0, 0, 1, 3))))
        if dice.happens(200):
            drawn = (*drawn, self._cut_power)
        return (*drawn, self._mend, self._restart)

    def _delay_us(self) -> int:
        return (1 + self._world.dice.below(2 * self._world.weather.mishap_every_ms)) * MILLISECOND_US

    def _strike(self) -> None:
        if not self._world.is_stormy:
            return
        self._world.dice.pick(self._kinds)()
        self._world.after(self._delay_us(), self._strike)

    def _ambush(self, occasion: str, member: Member) -> None:
        world = self._world
        if not world.is_stormy or not world.dice.happens(world.weather.ambush):
            return
        delay_us = world.dice.below(world.dice.pick((1, 3_000, TICK_US)))
        world.after(delay_us, lambda: self._spring(occasion, member))

    def _spring(self, occasion: str, member: Member) -> None:
        if not self._world.is_stormy or not isinstance(member, PdMember | StoreMember):
            return
        self._world.tell(f"ambush at the {occasion}")
        kind = self._world.dice.below(4)
        if kind == 0:
            self._crash(member)
        elif kind == 1:
            self._stall_one(member)
        elif kind == 2:
            self._cut_around([member, *self._some(self._clients)])
        else:
            self._cut_around([member, *self._some(self._everybody())])

    # ---- links ----

    def _servers(self) -> list[Server]:
        return [*self._stage.pds.values(), *self._stage.stores]

    def _everybody(self) -> list[Member]:
        return [*self._servers(), *self._clients]

    def _some(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members if self._world.dice.happens(500)]

    def _cut_around(self, side: list[Member]) -> None:
        network = self._stage.network
        network.mend()
        others = [member for member in self._everybody() if member not in side]
        network.cut(side, others)
        self._world.tell(f"cut off together: {', '.join(map(str, side)) or 'nobody'}")
        if self._world.dice.happens(800):
            self._world.after((1 + self._world.dice.below(22)) * TICK_US, self._mend)

    def _cut_in_two(self) -> None:
        self._cut_around([member for member in self._everybody() if self._world.dice.happens(500)])

    def _isolate(self) -> None:
        self._cut_around([self._world.dice.pick(self._servers()), *self._some(self._clients)])

    def _isolate_leader(self) -> None:
        """With some clients, who then go on talking to it."""
        leader = self._some_leader()
        if leader is not None:
            self._cut_around([leader, *self._some(self._clients)])

    def _strand_leader(self) -> None:
        """A region gets another leader, and before the old one hears of it, it is cut off with some clients."""
        store = self._world.dice.pick(self._stage.stores)
        led = [each for each in store.store.replicas.values() if each.is_leader] if store.store is not None else []
        if not led:
            return
        replica = self._world.dice.pick(led)
        others = [peer for peer in replica.region.peers if peer.id != replica.me.id]
        if others:
            to = TransferLeader(self._world.dice.pick(others))
            store.obey(Step(replica.region.id, replica.region.epoch, replica.me.id, to))
            stranded = [store, *self._some(self._clients)]
            self._world.after(self._world.dice.below(3 * MILLISECOND_US), partial(self._cut_around, stranded))

    def _cut_one_way(self) -> None:
        one, other = self._world.dice.pick(self._servers()), self._world.dice.pick(self._servers())
        if one is not other:
            self._world.tell(f"{other} does not hear {one}")
            self._stage.network.cut([one], [other], both_ways=False)

    def _mend(self) -> None:
        self._stage.network.mend()

    # ---- members ----

    def _crash_store(self) -> None:
        self._crash(self._world.dice.pick(self._stage.stores))

    def _crash_pd(self) -> None:
        self._crash(self._world.dice.pick(list(self._stage.pds.values())))

    def _crash_leader(self) -> None:
        leader = self._some_leader()
        if leader is not None:
            self._crash(leader)

    def _stall_leader(self) -> None:
        """When it wakes it still believes that it leads."""
        leader = self._some_leader()
        if leader is not None:
            self._stall_one(leader)

    def _some_leader(self) -> Server | None:
        """A store that leads some region, or the PD that leads."""
        pds: list[Server] = [pd for pd in self._stage.pds.values() if pd.is_up and pd.lead is not None]
        stores: list[Server] = [store for store in self._stage.stores if store.leads_any]
        leaders = pds if not stores or self._world.dice.happens(300) else stores
        return self._world.dice.pick(leaders) if leaders else None

    def _crash(self, member: Server) -> None:
        if not member.is_up:
            return
        self.crashes += 1
        lost = member.crash()
        self.lost_batches += lost
        self._world.tell(f"{member} crashes, {lost} batches are lost")
        if self._world.dice.happens(850):
            self._world.after(self._world.dice.below(20) * TICK_US, lambda: self._start(member))

    def _start(self, member: Server) -> None:
        if not member.is_up:
            self._world.tell(f"{member} starts")
            member.start()

    def _cut_power(self) -> None:
        self._world.tell("power cut")
        for member in self._servers():
            if member.is_up:
                self.crashes += 1
                self.lost_batches += member.crash()
            member.start()

    def _restart(self) -> None:
        down = [member for member in self._servers() if not member.is_up]
        if down:
            self._start(self._world.dice.pick(down))

    def _stall(self) -> None:
        self._stall_one(self._world.dice.pick(self._servers()))

    def _stall_one(self, member: Server) -> None:
        if member.is_up:
            for_us = (2 + self._world.dice.below(22)) * TICK_US
            self._world.tell(f"{member} stalls for {for_us // MILLISECOND_US} ms")
            member.stall(for_us)

    def _jump_clock(self) -> None:
        pd = self._world.dice.pick(list(self._stage.pds.values()))
        pd.offset_us += self._world.dice.between(-8, 8) * SECOND_US // 2
        self._world.tell(f"{pd} has its clock {pd.offset_us / SECOND_US:+} s off")

    def _move_pd_leader(self) -> None:
        lead = self._stage.pd_lead()
        if lead is not None:
            lead.transfer_leader(self._world.dice.pick(sorted(self._stage.pds)))

    def heal(self) -> None:
        """From now on only the past can keep the cluster from working."""
        self._stage.network.mend()
        for member in self._servers():
            member.wakes_us = 0
            if not member.is_up:
                member.start()


class Operator:
    """Orders changes of regions as they were known, now or a while ago."""

    def __init__(self, stage: Stage, kinds: tuple[str, ...]) -> None:
        self._stage = stage
        self._kinds = kinds
        self._dice = stage.world.dice
        self._known: list[tuple[Region, Peer]] = []  # what PD said, the last of it at the end
        self._every_ms = stage.world.dice.pick((80, 250, 1_000))
        self.steps = 0

    def start(self) -> None:
        world = self._stage.world
        if world.is_stormy:
            self._act()
            world.after((1 + self._dice.below(2 * self._every_ms)) * MILLISECOND_US, self.start)

    def _act(self) -> None:
        self._look()
        if not self._known:
            return
        recent = self._known[-4:] if self._dice.happens(900) else self._known
        region, leader = self._dice.pick(recent)
        action = self._action(region, leader)
        store = self._stage.store(leader.store_id)
        lead = self._stage.pd_lead()
        if action is None or store is None or lead is None:
            return
        self.steps += 1
        step = Step(region.id, region.epoch, leader.id, action)
        for _ in range(self._dice.pick((1, 1, 1, 2))):
            self._stage.network.send(lead, store, partial(self._hand_over, store, step))

    @staticmethod
    def _hand_over(store: StoreMember, step: Step) -> None:
        store.obey(step)

    def _look(self) -> None:
        lead = self._stage.pd_lead()
        if lead is None or lead.lead is None:
            return
        reports = lead.lead.coordinator.reports
        for meta in lead.cluster.regions:
            leader = reports.leader_of(meta)
            if leader is not None:
                self._known.append((unpack_region(meta), unpack_peer(leader)))
        del self._known[:-40]

    def _action(self, region: Region, leader: Peer) -> ChangePeers | TransferLeader | Split | Merge | None:
        kind = self._dice.pick(self._kinds)
        if kind == "merge":
            near = [other for other, _ in self._known if other.id != region.id and _are_neighbours(region, other)]
            return Merge(near[-1]) if near else None
        if region.is_joint and kind not in ("split", "transfer"):
            return ChangePeers(())
        if kind == "split":
            inside = [key for key in KEYS if region.has_key(key) and key > region.start]
            if self._dice.happens(200):
                return Split(())  # in the middle
            return Split((self._dice.pick(inside),)) if inside else None
        if kind == "transfer":
            return TransferLeader(self._dice.pick(region.peers))
        return self._change(kind, region, leader)

    def _change(self, kind: str, region: Region, leader: Peer) -> ChangePeers | None:
        others = [peer for peer in region.peers if peer.id != leader.id]
        learners = [peer for peer in others if peer.role is PeerRole.LEARNER]
        if kind == "promote":
            if not learners:
                return None
            return ChangePeers((PeerChange(ChangeKind.ADD_VOTER, self._dice.pick(learners)),))
        if kind == "remove":
            # One voter of two is never removed at once, nor does PD: it is gone for good before the other one has made
            # sure of it, and that one, after a power cut, asks it for its vote for ever. PD makes it a learner first.
            leaving = learners if len(region.peers) - len(learners) == 2 else others
            return ChangePeers((PeerChange(ChangeKind.REMOVE, self._dice.pick(leaving)),)) if leaving else None
        if kind == "move" and learners and len(others) > len(learners):
            demoted = self._dice.pick([peer for peer in others if peer.role is PeerRole.VOTER] or others)
            joining = self._dice.pick(learners)
            return ChangePeers((PeerChange(ChangeKind.ADD_VOTER, joining), PeerChange(ChangeKind.ADD_LEARNER, demoted)))
        held = {peer.store_id for peer in region.peers}
        free = [store.store_id for store in self._stage.stores if store.store_id and store.store_id not in held]
        lead = self._stage.pd_lead()
        ids = lead.take_ids(1) if free and lead is not None else ()
        if not ids:
            return None
        peer = Peer(ids[0], self._dice.pick(free), PeerRole.LEARNER)
        return ChangePeers((PeerChange(ChangeKind.ADD_LEARNER, peer),))


def _are_neighbours(one: Region, other: Region) -> bool:
    return bool(one.end and one.end == other.start) or bool(other.end and other.end == one.start)
