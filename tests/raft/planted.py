"""Bugs to plant in the core: each is one patch that breaks one rule of Raft, as somebody might break it by mistake.

`expected` names the invariants by which the simulation may notice it, `seeds` how many it may need. Three more rules
are so seldom decisive that no affordable number of seeds shows it; they are tested directly: a node with an unapplied
membership change does not campaign, answers of older terms do not count (test_core), and a batch that was overwritten
on its way to the disk makes nothing durable (test_log).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from drillyard.emulator.raft import (
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    Options,
    ProgressState,
    Raft,
    Ready,
    Restored,
    Role,
    core,
    leadership,
)
from drillyard.emulator.raft import configuration as arithmetic
from drillyard.emulator.raft.leadership import Leadership
from drillyard.emulator.raft.log import Log
from drillyard.emulator.simulation.parts import Speed
from drillyard.emulator.simulation.raft_groups import Scale, Weather

Patch = Callable[[pytest.MonkeyPatch], None]

SAFETY = frozenset(
    {
        "election safety",
        "leader completeness",
        "log matching",
        "state machine safety",
        "one vote a term",
        "linearizable history",
        "the core stopped itself",
    }
)


@dataclass(frozen=True, slots=True)
class Planted:
    name: str
    patch: Patch
    seeds: int
    expected: frozenset[str] = SAFETY
    scale: Scale | None = None


def _double_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft._on_vote_request

    def vote_for_everyone(raft: Raft, message: Message) -> None:
        if message.kind is MessageKind.VOTE:
            raft._vote = 0
        rightly(raft, message)

    monkeypatch.setattr(Raft, "_on_vote_request", vote_for_everyone)


def _vote_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft.__init__

    def begin(raft: Raft, node: int, restored: Restored, options: Options, chance: Callable[[int], int]) -> None:
        state = HardState(restored.hard_state.term, 0, restored.hard_state.commit)
        rightly(raft, node, replace(restored, hard_state=state), options, chance)

    monkeypatch.setattr(Raft, "__init__", begin)


def _term_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft.__init__

    def begin(raft: Raft, node: int, restored: Restored, options: Options, chance: Callable[[int], int]) -> None:
        term = restored.entries[-1].term if restored.entries else restored.snapshot_term
        rightly(
            raft, node, replace(restored, hard_state=replace(restored.hard_state, term=term, vote=0)), options, chance
        )

    monkeypatch.setattr(Raft, "__init__", begin)


def _older_term_by_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(leader: Leadership) -> bool:
        reached = arithmetic.agreed(leader._configuration, lambda node: leader.progress[node].match)
        leader._due = leader._due or reached > leader._log.commit
        return leader._log.commit_to(reached)

    monkeypatch.setattr(Leadership, "_advance_commit", advance)


def _read_without_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership._open_batch

    def confirm_at_once(leader: Leadership) -> None:
        rightly(leader)
        for progress in leader.progress.values():
            progress.acknowledged_reads = leader._read_batch
        leader._confirm_reads()

    monkeypatch.setattr(Leadership, "_open_batch", confirm_at_once)


def _read_before_own_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leadership, "_knows_commit", lambda leader: True)


def _acknowledge_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft.ready

    def send_at_once(raft: Raft) -> Ready:
        ready = rightly(raft)
        return replace(ready, messages=ready.messages + ready.deferred, deferred=())

    monkeypatch.setattr(Raft, "ready", send_at_once)


def _own_copy_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership._append

    def count_at_once(
        leader: Leadership, data: bytes, change: ConfigurationChange | None, *, is_urgent: bool = True
    ) -> Entry:
        entry = rightly(leader, data, change, is_urgent=is_urgent)
        leader.progress[leader._node].match = entry.index
        return entry

    monkeypatch.setattr(Leadership, "_append", count_at_once)


def _one_majority_of_joint(monkeypatch: pytest.MonkeyPatch) -> None:
    def agreed(configuration: Configuration, value_of: Callable[[int], int]) -> int:
        return arithmetic.agreed(replace(configuration, outgoing=frozenset()), value_of)

    monkeypatch.setattr(leadership, "agreed", agreed)


def _elected_by_one_half_of_joint(monkeypatch: pytest.MonkeyPatch) -> None:
    def tally(configuration: Configuration, votes: dict[int, bool]) -> arithmetic.Tally:
        return arithmetic.tally(replace(configuration, outgoing=frozenset()), votes)

    monkeypatch.setattr(core, "tally", tally)


def _two_changes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership.propose_change

    def propose(leader: Leadership, change: ConfigurationChange, data: bytes, applied: int) -> Entry:
        leader._change_index = 0
        return rightly(leader, change, data, applied)

    monkeypatch.setattr(Leadership, "propose_change", propose)


def _no_log_check_on_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "is_up_to_date", lambda log, index, term: True)


def _longer_log_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "is_up_to_date", lambda log, index, term: index >= log.last_index)


def _no_consistency_check(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Log.accept

    def accept(log: Log, index: int, term: int, entries: tuple[Entry, ...]) -> bool:
        known = log.term_at(index)
        return rightly(log, index, term if known is None else known, entries)

    monkeypatch.setattr(Log, "accept", accept)


def _every_append_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Log.accept

    def accept(log: Log, index: int, term: int, entries: tuple[Entry, ...]) -> bool:
        if log.term_at(index) == term and index + len(entries) < log.last_index:
            log._cut_from(index + len(entries) + 1)
        return rightly(log, index, term, entries)

    monkeypatch.setattr(Log, "accept", accept)


def _apply_before_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raft, "_may_give", lambda raft: raft._log.stable)


def _old_snapshot_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(raft: Raft, message: Message) -> None:
        assert message.snapshot is not None
        raft._hear(message.sender)
        raft._log.restore(message.snapshot.index, message.snapshot.term)
        raft.configuration = message.snapshot.configuration
        raft._snapshot = message.snapshot
        raft._given = message.snapshot.index
        raft._acknowledge(message.sender, message.snapshot.index)

    monkeypatch.setattr(Raft, "_on_snapshot", install)


def _own_vote_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Raft._seek_votes

    def seek(raft: Raft, *, forced: bool) -> None:
        rightly(raft, forced=forced)
        if raft.role is Role.CANDIDATE:
            raft._count_vote(raft.node, granted=True)

    monkeypatch.setattr(Raft, "_seek_votes", seek)


def _lost_probe_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership.on_heartbeat_reply

    def hear(leader: Leadership, message: Message) -> None:
        progress = leader.progress.get(message.sender)
        if progress is None or progress.state is not ProgressState.PROBE:
            rightly(leader, message)
        else:
            progress.recent_active = True

    monkeypatch.setattr(Leadership, "on_heartbeat_reply", hear)


def _heartbeats_tell_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership._send_heartbeat

    def send(leader: Leadership, node: int) -> None:
        tell = leader._send
        leader._send = lambda message: tell(replace(message, commit=0))
        rightly(leader, node)
        leader._send = tell

    monkeypatch.setattr(Leadership, "_send_heartbeat", send)


def _joint_learner_never_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Leadership._adopt

    def adopt(leader: Leadership, configuration: Configuration) -> None:
        known = {node: progress for node, progress in leader.progress.items() if node != leader._node}
        rightly(leader, configuration)
        if known:
            for node in set(leader.progress) - set(known) - {leader._node}:
                leader.progress[node].probe_sent = True
                leader.progress[node].state = ProgressState.SNAPSHOT

    monkeypatch.setattr(Leadership, "_adopt", adopt)


LIVENESS = frozenset({"liveness"})

# Where a bug needs a rare coincidence, the simulation looks for that kind of trouble; the sound core must survive it.
SLOW_DISKS = Scale(
    voters=3,
    spares=0,
    weather=Weather(
        delay_ms=1, mishap_every_ms=60, ambush=700, ambushes=("crash",), speed=Speed(turn_us=100, sync_us=40_000)
    ),
    options=Options(election_ticks=4, heartbeat_ticks=1),
    mishaps=("crash_leader", "cut_power", "cut_leader_off", "mend"),
)
DUELS = Scale(
    voters=3,
    spares=0,
    weather=Weather(delay_ms=20, straggling=50, doubling=100, mishap_every_ms=60, ambush=500),
    options=Options(election_ticks=3, heartbeat_ticks=1),
    mishaps=("crash_one", "cut_power", "cut_leader_off", "mend"),
)
SMALL_STEPS = Scale(
    voters=3,
    spares=0,
    clients=1,
    safety_ms=3_000,
    weather=Weather(delay_ms=5, mishap_every_ms=200, ambush=950, ambushes=("isolate",)),
    options=Options(election_ticks=3, heartbeat_ticks=1, max_append_bytes=1, max_inflight=1),
    mishaps=("crash_leader", "mend"),
)
DEPOSED = Scale(
    voters=3,
    spares=0,
    weather=Weather(delay_ms=1, mishap_every_ms=250, ambush=500, ambushes=("stop", "isolate")),
    mishaps=("stop_leader", "stop_leader", "cut_leader_off"),
)
CHANGES = Scale(
    voters=3,
    spares=2,
    weather=Weather(delay_ms=3, mishap_every_ms=40, ambush=900, ambushes=("halve",)),
    options=Options(election_ticks=4, heartbeat_ticks=1),
    mishaps=(*("change_membership",) * 6, "cut_in_two", "mend"),
)
REPLACEMENTS = Scale(
    voters=3,
    spares=2,
    weather=Weather(delay_ms=3, mishap_every_ms=40, ambush=900, ambushes=("separate",)),
    options=Options(election_ticks=4, heartbeat_ticks=1),
    mishaps=("replace_voters", "replace_voters", "mend"),
)
SLOW_REPLACEMENTS = replace(
    REPLACEMENTS,
    weather=Weather(delay_ms=3, mishap_every_ms=40, ambush=900, ambushes=("separate",), speed=Speed(apply_us=400_000)),
)
STRAGGLING_SNAPSHOTS = Scale(
    weather=Weather(
        delay_ms=20, loss=100, straggling=100, doubling=300, mishap_every_ms=50, speed=Speed(keeps_entries=2)
    ),
    mishaps=("cut_in_two", "crash_one", "mend", "mend", "compact"),
)

PLANTED = (
    Planted("two votes in a term", _double_vote, 20),
    Planted("vote forgotten on restart", _vote_forgotten, 20, scale=DUELS),
    Planted("term forgotten on restart", _term_forgotten, 40),
    Planted("older term committed by counting", _older_term_by_counting, 60, scale=SMALL_STEPS),
    Planted("read on a deposed leader", _read_without_round, 60, scale=DEPOSED),
    Planted("read before a commit in the own term", _read_before_own_commit, 60, scale=SLOW_DISKS),
    Planted("acknowledge before sync", _acknowledge_before_sync, 20, scale=SLOW_DISKS),
    Planted("leader counts its own copy before sync", _own_copy_before_sync, 60, scale=SLOW_DISKS),
    Planted("candidate wins before its own vote is on disk", _own_vote_before_sync, 60, scale=SLOW_DISKS),
    Planted("commit by one half of a joint configuration", _one_majority_of_joint, 60, scale=REPLACEMENTS),
    Planted("elected by one half of a joint configuration", _elected_by_one_half_of_joint, 60, scale=REPLACEMENTS),
    Planted("two membership changes at once", _two_changes_at_once, 60, scale=CHANGES),
    Planted("no log check on vote", _no_log_check_on_vote, 20),
    Planted("longer log wins over later term", _longer_log_wins, 60),
    Planted("append without consistency check", _no_consistency_check, 20),
    Planted("every append cuts the log", _every_append_cuts, 10),
    Planted("apply before commit", _apply_before_commit, 10),
    Planted("old snapshot installed", _old_snapshot_installed, 60, scale=STRAGGLING_SNAPSHOTS),
    Planted("lost probe is not repeated", _lost_probe_not_repeated, 20, LIVENESS),
    Planted("what is not urgent is told to nobody", _heartbeats_tell_no_commit, 20, LIVENESS),
    Planted("a newcomer gets no log", _joint_learner_never_joins, 60, LIVENESS, scale=CHANGES),
)
