"""What one store answers to requests, messages and PD's steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from drillyard.emulator.raft.types import ChangeKind, HardState, Message, MessageKind, Options, SnapshotMeta
from drillyard.emulator.store.commands import (
    CompareAndSwap,
    Delete,
    DeleteRange,
    Growth,
    Put,
    Swapped,
    Write,
    Written,
    apply_write,
    encode_change,
    encode_write,
)
from drillyard.emulator.store.errors import (
    EpochNotMatch,
    KeyNotInRegion,
    MismatchPeerId,
    NotLeader,
    RaftEntryTooLarge,
    RegionError,
    RegionNotFound,
    ServerIsBusy,
    StaleCommand,
    StoreNotMatch,
)
from drillyard.emulator.store.region import (
    Epoch,
    Part,
    Peer,
    PeerChange,
    PeerRole,
    Region,
    configuration_of,
    raft_change,
)
from drillyard.emulator.store.replica import FORGET_AT_ONCE, Context, Envelope, Outcome, Readable, RegionReady, Settings
from drillyard.emulator.store.state import Family, MemoryState
from drillyard.emulator.store.store import (
    ChangePeers,
    RestoredReplica,
    Split,
    Step,
    Store,
    TransferLeader,
    Unsupported,
    beginning,
    first_region,
)
from drillyard.wire import drillpb

REGION = 7
SETTINGS = Settings(raft=Options(election_ticks=10, heartbeat_ticks=2), max_entry_bytes=1000, max_pending_bytes=2000)
GOOD = Context(REGION, version=1, peer_id=3, store_id=1)


class Memory(MemoryState):
    """A state whose default family is compared with a plain dict."""

    def __eq__(self, other: object) -> bool:
        return self.pairs[Family.DEFAULT] == other

    __hash__ = None  # type: ignore[assignment]


class Bench:
    """One store with an instant disk; what it sends is kept."""

    def __init__(self, region: Region, peer_id: int = 3, store_id: int = 1) -> None:
        self.store = Store(store_id, SETTINGS, lambda n: 0)
        self.state = Memory()
        self.sent: list[Envelope] = []
        self.works: list[RegionReady] = []
        self.outcomes: list[tuple[object, Outcome]] = []
        self.notes: list[str] = []
        restored = replace(beginning(region), hard_state=HardState(5, 0, 5))
        self.store.restore(RestoredReplica(region, peer_id, restored))
        self.turn()

    def turn(self) -> None:
        while self.store.has_ready:
            for said in self.store.ready(self.state):
                work = said.work
                self.works.append(work)
                self.sent += [*work.messages, *work.snapshots, *work.deferred]
                self.outcomes += said.answers
                self.notes += said.notes
                if work.ready is not None and not work.install:
                    self.store.persisted(work.region.id, work.peer_id, work.ready.number)

    def step(self, envelope: Envelope) -> tuple[Envelope, ...]:
        answers = self.store.step(envelope)
        self.turn()
        return answers

    def write(self, command: Write | CompareAndSwap, context: Context = GOOD) -> RegionError | Outcome:
        error = self.store.write("ticket", context, command)
        self.turn()
        return error if error is not None else self.outcomes[-1][1]

    @property
    def region(self) -> Region:
        return self.store.replicas[REGION].region


def alone(start: bytes = b"", end: bytes = b"") -> Bench:
    return Bench(replace(first_region(REGION, Peer(3, 1)), start=start, end=end))


def of_three() -> Bench:
    peers = (Peer(3, 1), Peer(4, 2), Peer(5, 3))
    return Bench(Region(REGION, b"", b"", Epoch(1, 3), peers))


def lead(bench: Bench) -> None:
    """Elects the store's replica with the votes of peer 4."""
    replica = bench.store.replicas[REGION]
    replica.raft.campaign()
    bench.store._touched[REGION] = None
    bench.turn()
    term = replica.raft.term
    bench.step(from_peer(4, Message(MessageKind.PRE_VOTE_REPLY, 4, 3, term + 1)))
    bench.step(from_peer(4, Message(MessageKind.VOTE_REPLY, 4, 3, term + 1)))
    assert replica.is_leader


def from_peer(peer_id: int, message: Message | None, epoch: Epoch | None = None, to: Peer | None = None) -> Envelope:
    return Envelope(REGION, epoch or Epoch(1, 3), Peer(peer_id, peer_id - 2), to or Peer(3, 1), message)


def acknowledge_all(bench: Bench, peer_id: int = 4) -> None:
    raft = bench.store.replicas[REGION].raft
    bench.step(from_peer(peer_id, Message(MessageKind.APPEND_REPLY, peer_id, 3, raft.term, raft.last_index)))


# ---- requests ----


def test_the_only_voter_leads_and_serves_at_once() -> None:
    bench = alone()
    assert bench.write(Write((Put(b"a", b"1"),))) == Written()
    assert bench.store.read("read", GOOD) is None
    bench.turn()
    assert bench.outcomes[-1] == ("read", Readable(bench.region))
    assert bench.state == {b"a": b"1"}


@pytest.mark.parametrize(
    ("context", "error"),
    [
        (replace(GOOD, store_id=9), StoreNotMatch(9, 1)),
        (replace(GOOD, region_id=8), RegionNotFound(8)),
        (replace(GOOD, peer_id=4), MismatchPeerId(4, 3)),
        (replace(GOOD, store_id=9, region_id=8, peer_id=4), StoreNotMatch(9, 1)),
    ],
)
def test_requests_for_somebody_else(context: Context, error: RegionError) -> None:
    bench = alone()
    assert bench.write(Write((Put(b"a", b"1"),)), context) == error
    assert bench.store.read("read", context) == error
    assert bench.state == {}


def test_another_range_than_the_client_believes() -> None:
    bench = alone()
    stale = replace(GOOD, version=0)
    assert bench.write(Write((Put(b"a", b"1"),)), stale) == EpochNotMatch((bench.region,))
    assert bench.store.read("read", stale) == EpochNotMatch((bench.region,))


def test_another_membership_does_not_matter_to_requests() -> None:
    bench = Bench(replace(first_region(REGION, Peer(3, 1)), epoch=Epoch(1, 99)))
    assert bench.write(Write((Put(b"a", b"1"),))) == Written()


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (Write((Put(b"z", b""),)), b"z"),
        (Write((Put(b"h", b""), Delete(b"a"))), b"a"),
        (Write((DeleteRange(b"a", b"z"),)), b"a"),
        (CompareAndSwap(b"p", None, b""), b"p"),
    ],
)
def test_keys_outside_are_refused(command: Write | CompareAndSwap, key: bytes) -> None:
    bench = alone(b"g", b"p")
    assert bench.write(command) == KeyNotInRegion(key, bench.region)


def test_a_range_is_deleted_only_inside() -> None:
    bench = alone(b"g", b"p")
    for key in (b"a", b"h", b"k", b"q"):
        bench.state.put(key, b"")
    assert bench.write(Write((DeleteRange(b"h", b""),))) == Written()
    assert bench.state == {b"a": b"", b"q": b""}


def test_a_command_larger_than_an_entry_may_be() -> None:
    outcome = alone().write(Write((Put(b"a", b"x" * 2000),)))
    assert isinstance(outcome, RaftEntryTooLarge)
    assert outcome.size > 2000


def test_writes_that_pile_up_make_the_store_busy() -> None:
    bench = of_three()
    lead(bench)
    answers = [bench.store.write(number, GOOD, Write((Put(b"a", b"x" * 900),))) for number in range(3)]
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], ServerIsBusy)


def test_a_follower_names_the_leader() -> None:
    bench = of_three()
    assert bench.store.read("read", GOOD) == NotLeader(REGION, None)
    bench.step(from_peer(4, Message(MessageKind.HEARTBEAT, 4, 3, 6)))
    assert bench.write(Write((Put(b"a", b""),))) == NotLeader(REGION, Peer(4, 2))


def test_a_term_long_past_is_stale() -> None:
    bench = alone()
    term = bench.store.replicas[REGION].raft.term
    assert bench.store.read("read", replace(GOOD, term=term - 2)) == StaleCommand()
    assert bench.store.read("read", replace(GOOD, term=term - 1)) is None


def test_after_proposing_the_loss_of_leadership_is_a_stale_command_and_a_read_may_go_elsewhere() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    assert bench.store.write("write", GOOD, Write((Put(b"a", b"1"),))) is None
    assert bench.store.read("read", GOOD) is None
    bench.turn()
    assert bench.outcomes == []
    bench.step(from_peer(5, Message(MessageKind.HEARTBEAT, 5, 3, 20)))
    assert dict(bench.outcomes) == {"write": StaleCommand(), "read": NotLeader(REGION, Peer(5, 3))}
    assert bench.state == {}


def test_a_read_is_answered_even_if_a_snapshot_comes_with_the_loss_of_leadership() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    assert bench.store.read("read", GOOD) is None
    bench.turn()
    meta = SnapshotMeta(50, 20, configuration_of(bench.region))
    message = Message(MessageKind.SNAPSHOT, 5, 3, 20, snapshot=meta)
    bench.step(replace(from_peer(5, message), region=bench.region))
    assert bench.works[-1].install
    assert bench.outcomes == [("read", NotLeader(REGION, Peer(5, 3)))]


def test_a_deposed_leader_reads_nothing_before_others_confirm_it() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    bench.store.read("read", GOOD)
    bench.turn()
    assert bench.outcomes == []
    asked = next(e.message for e in reversed(bench.sent) if e.message and e.message.kind is MessageKind.HEARTBEAT)
    bench.step(from_peer(4, Message(MessageKind.HEARTBEAT_REPLY, 4, 3, asked.term, context=asked.context)))
    assert bench.outcomes == [("read", Readable(bench.region))]


def test_during_a_transfer_writes_are_sent_away_without_a_hint() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    step = Step(REGION, bench.region.epoch, 3, TransferLeader(Peer(4, 2)))
    assert bench.store.obey(step) == ""
    assert bench.write(Write((Put(b"a", b""),))) == NotLeader(REGION, None)


# ---- compare and swap ----


@pytest.mark.parametrize(
    ("before", "expected", "outcome", "after"),
    [
        (None, None, Swapped(True, None), b"new"),
        (None, b"", Swapped(False, None), None),
        (b"", None, Swapped(False, b""), b""),
        (b"", b"", Swapped(True, b""), b"new"),
        (b"old", b"old", Swapped(True, b"old"), b"new"),
        (b"old", b"other", Swapped(False, b"old"), b"old"),
        (b"old", None, Swapped(False, b"old"), b"old"),
    ],
)
def test_compare_and_swap(before: bytes | None, expected: bytes | None, outcome: Swapped, after: bytes | None) -> None:
    bench = alone()
    if before is not None:
        bench.state.put(b"k", before)
    assert bench.write(CompareAndSwap(b"k", expected, b"new")) == outcome
    assert bench.state.get(b"k") == after


def test_a_swap_sees_what_the_entry_before_it_wrote() -> None:
    bench = alone()
    bench.store.write("put", GOOD, Write((Put(b"k", b"1"),)))
    bench.store.write("swap", GOOD, CompareAndSwap(b"k", b"1", b"2"))
    bench.store.write("again", GOOD, CompareAndSwap(b"k", b"1", b"3"))
    bench.turn()
    assert bench.outcomes == [("put", Written()), ("swap", Swapped(True, b"1")), ("again", Swapped(False, b"2"))]
    assert bench.state == {b"k": b"2"}


def test_a_write_proposed_under_another_range_has_no_effect() -> None:
    region = Region(REGION, b"", b"m", Epoch(2, 1), (Peer(3, 1),))
    older = replace(region, end=b"", epoch=Epoch(1, 1))
    state, growth = Memory(), Growth()
    for command in (Write((Put(b"a", b"1"),)), CompareAndSwap(b"a", None, b"1")):
        record = drillpb.Command.FromString(encode_write(command, older))
        assert apply_write(record, region, state, growth) == EpochNotMatch((region,))
    assert state == {}
    assert growth == Growth()


# ---- PD's steps ----


def add_learner(peer_id: int, store_id: int) -> ChangePeers:
    return ChangePeers((PeerChange(ChangeKind.ADD_LEARNER, Peer(peer_id, store_id, PeerRole.LEARNER)),))


def test_a_step_is_taken_once() -> None:
    bench = alone()
    step = Step(REGION, bench.region.epoch, 3, add_learner(4, 2))
    assert bench.store.obey(step) == ""
    assert bench.store.obey(step) != ""
    bench.turn()
    assert bench.region.epoch == Epoch(1, 2)
    assert [peer.id for peer in bench.region.peers] == [3, 4]
    assert "epoch" in bench.store.obey(step)
    bench.turn()
    assert bench.region.epoch == Epoch(1, 2)


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (Step(8, Epoch(1, 1), 3, add_learner(4, 2)), "not here"),
        (Step(REGION, Epoch(1, 1), 9, add_learner(4, 2)), "does not lead"),
        (Step(REGION, Epoch(1, 0), 3, add_learner(4, 2)), "epoch"),
        (Step(REGION, Epoch(1, 2), 3, add_learner(4, 2)), "epoch"),
        (Step(REGION, Epoch(2, 1), 3, add_learner(4, 2)), "epoch"),
        (Step(REGION, Epoch(1, 1), 3, ChangePeers((PeerChange(ChangeKind.REMOVE, Peer(3, 1)),))), "no voter"),
        (Step(REGION, Epoch(1, 1), 3, ChangePeers((PeerChange(ChangeKind.ADD_VOTER, Peer(4, 2)),))), "quorum"),
        (Step(REGION, Epoch(1, 1), 3, TransferLeader(Peer(4, 2))), "not in the region"),
        (Step(REGION, Epoch(1, 1), 3, TransferLeader(Peer(3, 1))), "already"),
        (Step(REGION, Epoch(1, 1), 3, Unsupported("switch witnesses")), "witnesses is not supported"),
        (Step(REGION, Epoch(1, 1), 3, Split((b"m", b"f"))), "not in order"),
        (Step(REGION, Epoch(1, 1), 3, Split((b"",))), "not inside"),
    ],
)
def test_steps_that_are_declined_change_nothing(step: Step, word: str) -> None:
    bench = alone()
    before, last = bench.region, bench.store.replicas[REGION].raft.last_index
    assert word in bench.store.obey(step)
    bench.turn()
    assert bench.region == before
    assert bench.store.replicas[REGION].raft.last_index == last


def test_the_leader_does_not_remove_or_demote_itself() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    for kind in (ChangeKind.REMOVE, ChangeKind.ADD_LEARNER):
        step = Step(REGION, bench.region.epoch, 3, ChangePeers((PeerChange(kind, Peer(3, 1)),)))
        assert "leader" in bench.store.obey(step)


def test_a_region_with_one_peer_is_split() -> None:
    bench = alone(b"b", b"y")
    bench.write(Write((Put(b"c", b"1"), Put(b"k", b"2"), Put(b"x", b"3"))))
    keys, parts = (b"f", b"p"), (Part(20, (21,)), Part(30, (31,)))
    assert bench.store.obey(Step(REGION, bench.region.epoch, 3, Split(keys))) == ""
    assert bench.region.epoch == Epoch(1, 1), "without ids nothing happens yet"
    assert bench.store.obey(Step(REGION, bench.region.epoch, 3, Split(keys, parts))) == ""
    bench.turn()
    regions = {region_id: replica.region for region_id, replica in bench.store.replicas.items()}
    assert regions == {
        20: Region(20, b"b", b"f", Epoch(3, 1), (Peer(21, 1),)),
        30: Region(30, b"f", b"p", Epoch(3, 1), (Peer(31, 1),)),
        REGION: Region(REGION, b"p", b"y", Epoch(3, 1), (Peer(3, 1),)),
    }
    (work,) = [work for work in bench.works if work.made]
    assert [made.region for made in work.made] == [regions[20], regions[30]]
    assert bench.store.reports_due() == {REGION, 20, 30}
    stale = bench.write(Write((Put(b"k", b""),)), GOOD)
    assert isinstance(stale, EpochNotMatch)
    assert set(stale.regions) == {regions[REGION], regions[30]}
    there = Context(30, version=3, peer_id=31, store_id=1)
    assert bench.write(CompareAndSwap(b"k", b"2", b"4"), there) == Swapped(True, b"2")
    assert bench.write(Write((Put(b"x", b""),)), there) == KeyNotInRegion(b"x", regions[30])


def test_a_write_proposed_before_a_split_has_no_effect_after_it() -> None:
    bench = alone()
    split = Split((b"m",), (Part(20, (21,)),))
    assert bench.store.obey(Step(REGION, bench.region.epoch, 3, split)) == ""
    assert bench.store.write("late", GOOD, Write((Put(b"a", b"1"),))) is None
    bench.turn()
    assert bench.outcomes == [("late", EpochNotMatch((bench.region, bench.store.replicas[20].region)))]
    assert bench.state == {}


def test_pd_hears_at_once_of_leadership_and_of_every_change() -> None:
    bench = alone()
    assert bench.store.reports_due() == {REGION}
    assert bench.store.reports_due() == set()
    bench.store.obey(Step(REGION, bench.region.epoch, 3, add_learner(4, 2)))
    bench.turn()
    assert bench.store.reports_due() == {REGION}
    report = bench.store.report(REGION)
    assert report is not None
    assert report.leader == Peer(3, 1)
    assert [peer.id for peer in report.pending] == [4]


def test_pd_hears_at_once_that_a_peer_waits_no_more() -> None:
    """Its answer may leave nothing else to do: it had heard of all there is with what it answers to."""
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    raft = bench.store.replicas[REGION].raft
    bench.step(from_peer(5, Message(MessageKind.HEARTBEAT_REPLY, 5, 3, raft.term)))  # so the lost append is sent again
    bench.store.reports_due()
    report = bench.store.report(REGION)
    assert report is not None
    assert [peer.id for peer in report.pending] == [5]
    acknowledge_all(bench, 5)
    assert bench.store.reports_due() == {REGION}
    report = bench.store.report(REGION)
    assert report is not None
    assert report.pending == ()


def test_a_silent_peer_is_reported_down_with_its_seconds() -> None:
    bench = of_three()
    bench.store.settings = replace(SETTINGS, max_peer_down_s=3)
    bench.store.replicas[REGION].settings = bench.store.settings
    lead(bench)
    acknowledge_all(bench)
    for _ in range(4):
        bench.store.tick()
        acknowledge_all(bench)
    report = bench.store.report(REGION)
    assert report is not None
    assert report.down == ((Peer(5, 3), 4),)


def test_written_bytes_are_reported_once() -> None:
    bench = alone()
    bench.write(Write((Put(b"ab", b"cde"), Delete(b"x"))))
    report, again = bench.store.report(REGION), bench.store.report(REGION)
    assert report is not None
    assert again is not None
    assert (report.written_bytes, report.written_keys) == (6, 2)
    assert (again.written_bytes, again.written_keys) == (0, 0)


# ---- replicas that come and go ----


def newcomer() -> Store:
    return Store(2, SETTINGS, lambda n: 0)


HEARTBEAT = Envelope(
    REGION, Epoch(1, 4), Peer(3, 1), Peer(6, 2, PeerRole.LEARNER), Message(MessageKind.HEARTBEAT, 3, 6, 6)
)


def test_a_message_makes_a_replica_and_a_snapshot_fills_it() -> None:
    store, state = newcomer(), Memory()
    store.step(HEARTBEAT)
    said = list(store.ready(state))
    assert said[0].work.has_record
    assert not store.replicas[REGION].region.is_initialized
    region = Region(REGION, b"", b"", Epoch(1, 4), (Peer(3, 1), Peer(6, 2, PeerRole.LEARNER)))
    meta = SnapshotMeta(9, 6, configuration_of(region))
    store.step(replace(HEARTBEAT, message=Message(MessageKind.SNAPSHOT, 3, 6, 6, snapshot=meta), region=region))
    (work,) = [said.work for said in store.ready(state)]
    assert work.install
    assert work.region == region
    assert work.applied == 9
    assert work.ready is not None
    assert not store.replicas[REGION].has_ready, "nothing goes on while a snapshot is being installed"
    store.installed(REGION, 6, work.ready.number)
    assert store.replicas[REGION].raft.applied == 9


@pytest.mark.parametrize("kind", [MessageKind.APPEND_REPLY, MessageKind.HEARTBEAT_REPLY, MessageKind.TIMEOUT_NOW])
def test_only_what_a_leader_or_candidate_says_makes_a_replica(kind: MessageKind) -> None:
    store = newcomer()
    store.step(replace(HEARTBEAT, message=Message(kind, 3, 6, 6)))
    assert store.replicas == {}


def test_a_snapshot_over_another_region_is_refused() -> None:
    bench = alone(b"", b"m")
    wide = Region(8, b"", b"", Epoch(1, 2), (Peer(20, 3), Peer(21, 1)))
    meta = SnapshotMeta(9, 6, configuration_of(wide))
    message = Message(MessageKind.SNAPSHOT, 20, 21, 6, snapshot=meta)
    bench.step(Envelope(8, wide.epoch, Peer(20, 3), Peer(21, 1), message, wide))
    assert not bench.store.replicas[8].region.is_initialized
    assert any("overlaps" in note for note in bench.notes)


def test_the_dead_stay_dead() -> None:
    bench = of_three()
    bench.step(from_peer(4, None, Epoch(1, 4)))
    assert bench.works[-1].destroyed
    assert bench.store.replicas == {}
    for peer_id in (2, 3):
        bench.step(from_peer(4, Message(MessageKind.HEARTBEAT, 4, peer_id, 9), to=Peer(peer_id, 1)))
        assert bench.store.replicas == {}
    bench.step(from_peer(4, Message(MessageKind.HEARTBEAT, 4, 9, 9), Epoch(1, 5), Peer(9, 1)))
    assert bench.store.replicas[REGION].me.id == 9


def test_a_removal_older_than_what_is_known_is_not_believed() -> None:
    bench = of_three()
    bench.step(from_peer(4, None, Epoch(1, 2)))
    assert REGION in bench.store.replicas


def test_a_newer_peer_of_the_region_replaces_an_old_one() -> None:
    bench = of_three()
    envelope = from_peer(4, Message(MessageKind.HEARTBEAT, 4, 9, 9), Epoch(1, 7), Peer(9, 1))
    bench.step(envelope)
    assert bench.works[-1].destroyed
    bench.step(envelope)
    assert bench.store.replicas[REGION].me.id == 9
    assert not bench.store.replicas[REGION].region.is_initialized


def test_a_removed_peer_that_asks_is_told_so() -> None:
    bench = of_three()
    removed = Envelope(REGION, Epoch(1, 2), Peer(99, 4), Peer(3, 1), Message(MessageKind.PRE_VOTE, 99, 3, 9, 20, 9))
    (told,) = bench.step(removed)
    assert told.message is None
    assert told.to == Peer(99, 4)
    assert told.epoch == Epoch(1, 3)
    ahead = replace(removed, epoch=Epoch(1, 4))
    assert bench.step(ahead) == ()


def test_a_leader_tells_a_peer_that_it_removed() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    step = Step(REGION, bench.region.epoch, 3, ChangePeers((PeerChange(ChangeKind.REMOVE, Peer(5, 3)),)))
    assert bench.store.obey(step) == ""
    bench.turn()
    acknowledge_all(bench)
    assert bench.region.epoch == Epoch(1, 4)
    assert any(envelope.message is None and envelope.to.id == 5 for envelope in bench.sent)


def test_a_write_on_a_destroyed_replica_may_yet_be_applied_elsewhere() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    bench.store.write("write", GOOD, Write((Put(b"a", b""),)))
    bench.store.read("read", GOOD)
    bench.step(from_peer(4, None, Epoch(1, 4)))
    assert dict(bench.outcomes) == {"write": RegionNotFound(REGION), "read": RegionNotFound(REGION)}


def test_a_leader_that_applies_its_own_removal_says_so_before_it_is_gone() -> None:
    """Its store answers for it no more: whoever has not heard that the change is committed could wait for its vote."""
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    replica = bench.store.replicas[REGION]
    changes = (PeerChange(ChangeKind.REMOVE, Peer(3, 1)),)
    _, index = replica.raft.propose_change(raft_change(changes), encode_change(changes, bench.region))
    bench.store._touched[REGION] = None
    bench.turn()
    acknowledge_all(bench)
    assert REGION not in bench.store.replicas
    told = [e.to.id for e in bench.sent if e.message and e.message.commit >= index]
    assert 4 in told


def test_messages_for_another_store_are_ignored() -> None:
    bench = of_three()
    bench.step(from_peer(4, Message(MessageKind.HEARTBEAT, 4, 3, 9), to=Peer(3, 8)))
    assert bench.store.replicas[REGION].raft.term < 9


# ---- the log ----


def test_the_log_is_forgotten_when_everybody_has_it() -> None:
    bench = alone()
    for number in range(120):
        bench.write(Write((Put(b"%d" % number, b""),)))
    raft = bench.store.replicas[REGION].raft
    first = raft.first_index
    for _ in range(SETTINGS.log_gc_ticks):
        bench.store.tick()
    bench.turn()
    assert raft.first_index > first + 100
    assert any(work.compact_to for work in bench.works)


def test_a_long_log_is_forgotten_in_portions_one_after_the_other() -> None:
    bench = alone()
    writes = 3 * FORGET_AT_ONCE
    for _ in range(writes):
        bench.write(Write((Put(b"k", b""),)))
    raft = bench.store.replicas[REGION].raft
    before = raft.first_index
    for _ in range(SETTINGS.log_gc_ticks):
        bench.store.tick()
    bench.turn()
    assert raft.first_index >= before + writes - SETTINGS.log_gc_threshold
    marks = [before - 1, *(work.compact_to for work in bench.works if work.compact_to)]
    assert max(after - one for one, after in pairwise(marks)) <= FORGET_AT_ONCE + 1


def test_a_long_log_does_not_wait_for_the_silent() -> None:
    bench = of_three()
    small = replace(SETTINGS, log_gc_count_limit=60)
    bench.store.replicas[REGION].settings = small
    lead(bench)
    raft = bench.store.replicas[REGION].raft

    def write_and_tick(count: int) -> None:
        for _ in range(count):
            assert bench.store.write("write", GOOD, Write((Put(b"k", b""),))) is None
            bench.turn()
            acknowledge_all(bench)
        for _ in range(2 * small.raft.election_ticks):
            bench.store.tick()
            acknowledge_all(bench)

    write_and_tick(30)
    first = raft.first_index
    write_and_tick(10)
    assert raft.first_index == first, "peer 5 lacks the log, which is short: it waits"
    write_and_tick(60)
    assert raft.first_index > first + 30, "peer 5 is silent and the log is long: it waits no more"
