"""Bugs to plant in the store and in PD: each is one patch that breaks one rule, as somebody might break it by mistake.

`expected` names the invariants by which the simulation may notice it, `scale` the kind of trouble that it looks for
where a bug needs a rare coincidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from drillyard.emulator.pd.cluster import Cluster, RegionTree
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.timestamps import Oracle, Stamp
from drillyard.emulator.raft import Raft, Ready
from drillyard.emulator.raft.leadership import Leadership
from drillyard.emulator.raft.types import ReadState
from drillyard.emulator.simulation.clusters import Scale
from drillyard.emulator.simulation.pds import PdMember
from drillyard.emulator.simulation.stores import StoreMember
from drillyard.emulator.simulation.world import Weather
from drillyard.emulator.store import commands, merging
from drillyard.emulator.store.commands import Written
from drillyard.emulator.store.region import Epoch, Region
from drillyard.emulator.store.replica import Context, Readable, Replica
from drillyard.emulator.store.store import Step, Store
from drillyard.wire import drillpb, metapb

Patch = Callable[[pytest.MonkeyPatch], None]

STOPPED = frozenset({"the store stopped itself", "PD stopped itself", "a member stopped itself"})
DATA = frozenset({"equal replicas", "linearizable history", "one leader a term"}) | STOPPED
PEERS = (
    frozenset({"a destroyed peer stays dead", "no living peer is destroyed", "a peer id names one replica"}) | STOPPED
)
RANGES = frozenset({"one range a version", "ranges tile the key space", "no overlap on a store"}) | STOPPED
LIVENESS = frozenset({"liveness"})


@dataclass(frozen=True, slots=True)
class Planted:
    name: str
    patch: Patch
    seed: int  # that killed it last; it is tried first
    expected: frozenset[str]
    scale: Scale | None = None
    seeds: int = 150  # that are tried when that one does not any more: any change of the code gives it another course


# Where a bug needs a rare coincidence, the simulation looks for that kind of trouble; a sound cluster must survive it.
DEPOSED = Scale(
    clients=6,
    keys=2,
    storm_s=10,
    weather=Weather(delay_us=1_000, mishap_every_ms=500, ambush=50),
    mishaps=("stall_leader", "isolate_leader"),
)
POWER_CUTS = Scale(
    weather=Weather(delay_us=1_000, mishap_every_ms=400, sync_us=60_000),
    mishaps=("cut_power", "crash_leader", "crash_store", "restart", "restart"),
)
CLOCKS = Scale(
    storm_s=10,
    weather=Weather(delay_us=1_000, mishap_every_ms=300),
    mishaps=("jump_clock", "jump_clock", "move_pd_leader", "isolate_leader", "restart"),
)
# What was proposed before a split or a merge is applied after it: writers, and rounds of the log that last.
RACES = Scale(
    stores=3,
    clients=8,
    keys=4,
    storm_s=10,
    weather=Weather(delay_us=30_000, sync_us=60_000),
    mishaps=("mend",),
    steps=("split", "merge", "merge"),
)
# Another leader takes over, and the old one does not know it for a while, nor do some clients.
HANDOVERS = Scale(
    stores=3,
    clients=8,
    keys=2,
    storm_s=10,
    weather=Weather(delay_us=1_000, mishap_every_ms=800),
    mishaps=("strand_leader",),
    steps=("transfer",),
)
# A step comes late, or again, when others have changed the region.
LATE_STEPS = Scale(
    stores=5,
    weather=Weather(delay_us=30_000, doubling=200, straggling=200),
    mishaps=("mend",),
    steps=("add", "remove"),
)
SPLITS = Scale(
    stores=3, weather=Weather(delay_us=5_000, mishap_every_ms=500), mishaps=("mend", "isolate", "crash_store")
)


# ---- stores ----


def _tombstone_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Store._bury

    def bury(store: Store, *arguments: Any) -> Any:
        said = rightly(store, *arguments)
        store.tombstones.clear()
        return said

    monkeypatch.setattr(Store, "_bury", bury)


def _stale_peer_answers_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Store.read

    def read(store: Store, ticket: Any, context: Context) -> Any:
        replica = store.replicas.get(context.region_id)
        if replica is None or replica.is_destroyed or replica.is_installing or not replica.raft.leader:
            return rightly(store, ticket, context)
        assert callable(ticket)
        ticket(Readable(replica.region))
        return None

    monkeypatch.setattr(Store, "read", read)


def _acknowledged_when_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Replica.write

    def write(replica: Replica, ticket: Any, context: Context, command: Any) -> Any:
        error = rightly(replica, ticket, context, command)
        is_proposed = error is None and replica._pending and replica._pending[-1].ticket == ticket
        if is_proposed:
            ticket(Written())
        return error

    monkeypatch.setattr(Replica, "write", write)


def _acknowledged_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft.ready

    def ready(raft: Raft) -> Ready:
        due = rightly(raft)
        return replace(due, messages=due.messages + due.deferred, deferred=())

    monkeypatch.setattr(Raft, "ready", ready)


def _write_at_a_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = commands.apply_write

    def apply(record: drillpb.Command, region: Any, *arguments: Any) -> Any:
        record.version = region.epoch.version
        return rightly(record, region, *arguments)

    monkeypatch.setattr("drillyard.emulator.store.replica.apply_write", apply)


def _applied_before_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is in a batch of its own, before the pairs: a crash between the two loses them for ever."""
    rightly = StoreMember._write

    def write(member: StoreMember, work: Any) -> None:
        disk = member.disk
        if work.applied and not work.destroyed and not work.install and disk._open:
            pairs, disk._open = disk._open, []
            disk.write("applied", work.region.id, work.applied)
            disk.end_batch()
            disk._open = pairs
        rightly(member, work)

    monkeypatch.setattr(StoreMember, "_write", write)


def _no_snapshot_for_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "_snapshots", lambda replica, ready: ())


def _snapshot_of_a_later_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view is taken when the transfer has begun, not with the batch."""
    rightly = StoreMember._send_snapshot

    def send(member: StoreMember, envelope: Any) -> None:
        member.later(20_000, lambda: rightly(member, envelope))

    monkeypatch.setattr(StoreMember, "_send_snapshot", send)


def _merge_without_catching_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target takes over what the source holds on this store, whether or not that is all."""

    def has_source(replica: Replica, record: drillpb.Command, here: Mapping[int, Replica]) -> bool:
        source = here.get(record.commit_merge.source.id)
        return source is None or not (source.is_installing or source.is_destroyed)

    monkeypatch.setattr(Replica, "_has_source", has_source)


def _source_takes_late_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A region that is being merged keeps its version, so what was proposed before has an effect."""

    def ended(source: Region) -> Region:
        return replace(source, epoch=Epoch(source.epoch.version, source.epoch.conf_ver + 1))

    monkeypatch.setattr(merging, "ended", ended)


def _read_index_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader takes its own word for it that it still leads."""

    def confirm(leadership: Leadership) -> None:
        if leadership._batch is not None:
            (index, contexts), leadership._batch = leadership._batch, None
            leadership.confirmed += [ReadState(context, index) for context in contexts]

    monkeypatch.setattr(Leadership, "_confirm_reads", confirm)


def _step_at_a_wrong_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Store.obey

    def obey(store: Store, step: Step) -> str:
        replica = store.replicas.get(step.region_id)
        return rightly(store, step if replica is None else replace(step, epoch=replica.region.epoch))

    monkeypatch.setattr(Store, "obey", obey)


# ---- PD ----


def _ids_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of a new leader is not agreed on."""
    rightly = Cluster._lead

    def lead(cluster: Cluster, command: drillpb.PdLead) -> Outcome:
        before = cluster.ids_end
        outcome = rightly(cluster, command)
        cluster.ids_end = max(before, command.ids + 1)
        return outcome

    monkeypatch.setattr(Cluster, "_lead", lead)


def _bound_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "_raise_bound_ms", lambda cluster, bound_ms: Outcome(bound_ms))


def _leader_starts_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Cluster._lead

    def lead(cluster: Cluster, command: drillpb.PdLead) -> Outcome:
        cluster.bound_ms = 0
        return rightly(cluster, command)

    monkeypatch.setattr(Cluster, "_lead", lead)


def _stamps_follow_the_clock_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Oracle.grant

    def grant(oracle: Oracle, count: int, now_ms: int) -> Stamp | None:
        if now_ms < oracle._physical:
            oracle._physical, oracle._logical = now_ms, 0
        return rightly(oracle, count, now_ms)

    monkeypatch.setattr(Oracle, "grant", grant)


def _stamps_without_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PdMember, "_confirm", lambda pd, call: call())


def _older_heartbeat_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_staleness(tree: RegionTree, region: metapb.Region) -> str:
        return ""

    monkeypatch.setattr(RegionTree, "staleness", no_staleness)


STAMPS = frozenset({"timestamps rise"})

PLANTED = (
    Planted("tombstone forgotten", _tombstone_forgotten, 3, PEERS),
    Planted("stale peer answers reads", _stale_peer_answers_reads, 8, DATA),
    Planted("acknowledged when proposed", _acknowledged_when_proposed, 0, DATA),
    Planted("acknowledged before sync", _acknowledged_before_sync, 11, DATA, POWER_CUTS),
    Planted("write applied at a wrong version", _write_at_a_wrong_version, 1, DATA | RANGES, RACES),
    Planted("applied index before the data", _applied_before_data, 0, DATA, POWER_CUTS),
    Planted("no snapshot for who needs it", _no_snapshot_for_who_needs_it, 0, LIVENESS),
    Planted("snapshot of a later state", _snapshot_of_a_later_state, 2, DATA),
    Planted("merge without catching up", _merge_without_catching_up, 2, RANGES | DATA | PEERS, SPLITS),
    Planted("source of a merge takes late writes", _source_takes_late_writes, 1, RANGES | DATA | LIVENESS, RACES),
    Planted("read index skipped", _read_index_skipped, 43, DATA, HANDOVERS),
    Planted(
        "step at a wrong epoch", _step_at_a_wrong_epoch, 2, PEERS | {"who left a region does not come back"}, LATE_STEPS
    ),
    Planted("ids given again", _ids_given_again, 7, PEERS | LIVENESS | {"no id is given twice"}),
    Planted("timestamp bound not kept", _bound_not_kept, 3, STAMPS, CLOCKS),
    Planted("PD leader starts by its clock", _leader_starts_by_its_clock, 1, STAMPS, CLOCKS),
    Planted("timestamps follow the clock back", _stamps_follow_the_clock_back, 10, STAMPS),
    Planted("timestamps without a round", _stamps_without_a_round, 12, STAMPS, DEPOSED),
    Planted("older heartbeat taken", _older_heartbeat_taken, 2, frozenset({"PD never goes back"})),
)
