"""Whole clusters on virtual time, from one seed: three PDs, three to five stores, clients, and everything against them.

`simulate(seed)` runs a cluster through its life. It is *founded* in calm weather, as fresh members found it. Then comes
the *storm*: messages are lost, late and doubled, links are cut, members crash and lose what was not synced, stall, and
have their clocks set, while clients work and an operator orders splits and moves. Nothing that the witness watches may
break. Then the world is *healed*, and within a bounded time the cluster must converge: every region has its full number
of voters and a leader, the regions cover all keys, PD and the stores agree on them, equal replicas hold equal pairs,
nothing is left over on any store, and every client is served.

The outcome has what clients saw; whether that is linearizable is judged by somebody else.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator.pd.config import Options as PdOptions
from drillyard.emulator.raft.types import Options, ProtocolBroken
from drillyard.emulator.simulation.clients import KEYS, Call, Client
from drillyard.emulator.simulation.invariants import Witness
from drillyard.emulator.simulation.mishaps import KINDS, Mishaps
from drillyard.emulator.simulation.network import Network
from drillyard.emulator.simulation.parts import Violation
from drillyard.emulator.simulation.pds import PdMember
from drillyard.emulator.simulation.stage import TICK_US, Stage
from drillyard.emulator.simulation.stores import StoreMember
from drillyard.emulator.simulation.world import CALM, MILLISECOND_US, SECOND_US, Weather, World
from drillyard.emulator.store.region import PeerRole, Region
from drillyard.emulator.store.replica import Settings
from drillyard.emulator.store.split_keys import SplitLimits
from drillyard.emulator.tikv.records import unpack_region

__all__ = ["Call", "Outcome", "Scale", "Simulation", "Violation", "simulate"]

PDS = 3
MEMBERS_SERVED = frozenset({"get", "put", "stamp"})


class Scale(Struct, frozen=True):
    """How large a simulation is; what is None is drawn by the seed."""

    stores: int | None = None
    clients: int = 3
    keys: int | None = None
    founding_s: int = 30  # at most
    storm_s: int = 5
    healing_s: int = 60  # at most; it ends as soon as the cluster has converged
    weather: Weather | None = None
    mishaps: tuple[str, ...] | None = None  # names of `Mishaps`' methods for misfortunes, without the underscore
    steps: tuple[str, ...] = KINDS  # that the operator orders


class Outcome(Struct, frozen=True):
    """What a simulation that broke no promise amounts to."""

    seed: int
    trace: str  # a hash over everything that happened: equal seeds give equal traces
    history: tuple[Call, ...]
    virtual_us: int
    events: int
    messages: int
    stores: int
    regions: int
    elections: int
    splits: int
    merges: int
    moves: int
    steps: int
    crashes: int
    lost_batches: int


def simulate(seed: int, scale: Scale | None = None) -> Outcome:
    """Run one seed; every exception says which."""
    return Simulation(seed, scale).run()


class Simulation:
    def __init__(self, seed: int, scale: Scale | None = None) -> None:
        self.scale = scale if scale is not None else Scale()
        self.world = World(seed)
        self.stage = self._create_stage()
        self._weather = self.scale.weather or self._draw_weather()
        for number in range(1, PDS + 1):
            self.stage.pds[number] = PdMember(number, self.stage)
        stores = self.scale.stores or self.world.dice.pick((3, 3, 4, 5))
        self.stage.stores += [StoreMember(slot, self.stage) for slot in range(1, stores + 1)]
        self.clients = [Client(number, self.stage) for number in range(1, self.scale.clients + 1)]
        self.mishaps = Mishaps(self.stage, self.clients, self.scale.mishaps, self.scale.steps)

    def run(self) -> Outcome:
        try:
            try:
                self._live()
            except ProtocolBroken as broken:
                raise Violation("a member stopped itself", str(broken)) from broken
        except Exception as failure:
            seed, now_us = self.world.seed, self.world.now_us
            failure.add_note(f"seed {seed}, at {now_us / SECOND_US:.3f} s of virtual time")
            raise
        return self._outcome()

    def _live(self) -> None:
        world, scale = self.world, self.scale
        for pd in self.stage.pds.values():
            pd.start()
        for store in self.stage.stores:
            world.after(world.dice.below(300 * MILLISECOND_US), store.start)
        if not world.run(scale.founding_s * SECOND_US, self._is_founded, TICK_US):
            raise Violation("liveness", "the cluster is not founded in calm weather")
        for client in self.clients:
            client.start()
        world.is_busy = True
        world.run(world.now_us + world.dice.pick((0, 1_000, 2_500)) * MILLISECOND_US)
        world.tell("the storm begins")
        world.weather, world.is_stormy = self._weather, True
        self.mishaps.start()
        world.run(world.now_us + scale.storm_s * SECOND_US)
        world.tell("the world is healed")
        world.weather, world.is_stormy, world.is_busy = CALM, False, False
        self.mishaps.heal()
        for client in self.clients:
            client.served.kinds.clear()
        if not world.run(world.now_us + scale.healing_s * SECOND_US, self._has_converged, 5 * TICK_US):
            raise Violation("liveness", f"after {scale.healing_s} s without mishaps {self._lacks()}")
        world.tell("the cluster has converged")

    def _outcome(self) -> Outcome:
        witness = self.stage.witness
        calls = sorted((call for client in self.clients for call in client.calls), key=lambda call: call.called_us)
        return Outcome(
            self.world.seed,
            self.world.trace,
            tuple(calls),
            self.world.now_us,
            self.world.events,
            self.stage.network.messages,
            len(self.stage.stores),
            len(witness.tiles),
            witness.elections,
            witness.splits,
            witness.merges,
            witness.moves,
            self.mishaps.steps,
            self.mishaps.crashes,
            self.mishaps.lost_batches,
        )

    # ---- what the seed draws ----

    def _create_stage(self) -> Stage:
        dice = self.world.dice
        settings = Settings(
            raft=Options(
                election_ticks=dice.pick((4, 6, 10)),
                heartbeat_ticks=dice.pick((1, 2)),
                max_append_bytes=dice.pick((1, 500, 1 << 20)),
                max_inflight=dice.pick((1, 3, 256)),
                max_committed_bytes=dice.pick((1, 1, 1 << 20)),
            ),
            tick_ms=TICK_US // MILLISECOND_US,
            max_peer_down_s=dice.pick((3, 600)),
            log_gc_ticks=dice.pick((3, 10)),
            log_gc_threshold=dice.pick((2, 10, 50)),
            log_gc_count_limit=dice.pick((10, 100)),
            merge_check_ticks=dice.pick((2, 10)),
            leader_missing_ticks=50,
            hibernate=dice.happens(500),
            split=dice.pick((SplitLimits(), SplitLimits(), SplitLimits(split_keys=2, max_keys=5))),
        )
        pd_settings = replace(_PD_OPTIONS, max_store_down_ns=dice.pick((4, 30, 1800)) * 10**9)
        pd_raft = Options(dice.pick((4, 6, 10)), 2)
        keys = self.scale.keys or dice.pick((2, len(KEYS), len(KEYS)))
        return Stage(self.world, Network(self.world), Witness(), settings, pd_settings, pd_raft, keys)

    def _draw_weather(self) -> Weather:
        dice = self.world.dice
        if dice.happens(150):
            return replace(CALM, mishap_every_ms=dice.between(100, 800))
        return Weather(
            loss=dice.pick((0, 5, 30, 150)),
            doubling=dice.pick((0, 20, 200)),
            delay_us=dice.pick((1_000, 5_000, 30_000)),
            straggling=dice.pick((0, 20, 100)),
            mishap_every_ms=dice.pick((100, 250, 700)),
            ambush=dice.pick((0, 100, 400)),
            turn_us=dice.pick((200, 3_000)),
            sync_us=dice.pick((500, 8_000, 60_000)),
        )

    # ---- founded, converged ----

    def _is_founded(self) -> bool:
        lead = self.stage.pd_lead()
        return (
            lead is not None
            and lead.cluster.bootstrapped
            and all(store.store is not None for store in self.stage.stores)
            and any(
                replica.is_leader
                for store in self.stage.stores
                if store.store
                for replica in store.store.replicas.values()
            )
        )

    def _has_converged(self) -> bool:
        return not self._lacks()

    def _lacks(self) -> str:
        """What is not yet as it should be."""
        waiting = [str(client) for client in self.clients if not client.served.kinds >= MEMBERS_SERVED]
        if waiting:
            return f"{', '.join(waiting)} are not served"
        lead = self.stage.pd_lead()
        if lead is None:
            return "no PD leads"
        if any(pd.raft.applied != lead.raft.applied for pd in self.stage.pds.values()):
            return "the PDs have not all applied the same commands"
        regions = [unpack_region(meta) for meta in lead.cluster.regions]
        return self._lacks_cover(regions) or self._lacks_replicas(regions) or self._has_leftovers(regions)

    @staticmethod
    def _lacks_cover(regions: list[Region]) -> str:
        reached = b""
        for place, region in enumerate(regions):
            if region.start != reached or (not region.end and place + 1 < len(regions)):
                return f"PD knows no region at {reached!r}"
            reached = region.end
        return "" if regions and not reached else f"PD knows no region at {reached!r}"

    def _lacks_replicas(self, regions: list[Region]) -> str:
        full = min(self.stage.pd_settings.max_replicas, len(self.stage.stores))
        for region in regions:
            if len(region.peers) != full or any(peer.role is not PeerRole.VOTER for peer in region.peers):
                return f"{region} is not full"
            states = set()
            leaders = 0
            for peer in region.peers:
                member = self.stage.store(peer.store_id)
                replica = member.store.replicas.get(region.id) if member is not None and member.store else None
                if member is None or replica is None or replica.me.id != peer.id:
                    return f"peer {peer.id} of {region} is not on its store"
                if replace(replica.region, absorbed=()) != region:
                    return f"{member} has {replica.region}, PD has {region}"
                leaders += replica.is_leader
                states.add((replica.raft.applied, member.pairs_of(region)))
            if leaders != 1 or len(states) != 1:
                return f"{region} has {leaders} leaders and {len(states)} states"
        return ""

    def _has_leftovers(self, regions: list[Region]) -> str:
        known = {(peer.store_id, region.id) for region in regions for peer in region.peers}
        for member in self.stage.stores:
            if member.store is None:
                return f"{member} is not up"
            for region_id, replica in member.store.replicas.items():
                if (member.store_id, region_id) not in known:
                    return f"{member} still has peer {replica.me.id} of region {region_id}"
        return ""


_PD_OPTIONS = PdOptions(
    name="pd",
    data_dir="",
    client_urls="",
    advertise_client_urls="",
    peer_urls="",
    advertise_peer_urls="",
    initial_cluster="",
)
