"""The rules of splits and merges, one by one; whole groups are in `test_simulated_regions`."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from test_store import GOOD, REGION, SETTINGS, Bench, acknowledge_all, alone, from_peer, lead, of_three

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import Entry, HardState, Message, MessageKind, Restored
from drillyard.emulator.store.commands import Put, Write, Written, encode_split
from drillyard.emulator.store.errors import EpochNotMatch, ProposalInMergingMode, ReadIndexNotReady
from drillyard.emulator.store.merging import Fate, ended, fate_of, joined, resumed, why_not
from drillyard.emulator.store.questions import KEPT_REGIONS, KEPT_TIMEOUTS, Questions
from drillyard.emulator.store.region import Epoch, Part, Peer, PeerRole, Region, configuration_of
from drillyard.emulator.store.replica import FIRST_STATE, Context, Envelope, Merging, Replica, begins_with
from drillyard.emulator.store.store import Merge, Split, Step, Store, Verdict

THREE = (Peer(3, 1), Peer(4, 2), Peer(5, 3))
PART = Part(20, (21, 22, 23))


# ---- splits ----


def test_the_leader_of_a_split_region_asks_for_votes_in_the_new_one_at_once() -> None:
    bench = of_three()
    lead(bench)
    acknowledge_all(bench)
    assert bench.store.obey(Step(REGION, bench.region.epoch, 3, Split((b"m",), (PART,)))) == ""
    bench.turn()
    acknowledge_all(bench)
    made = bench.store.replicas[20].region
    assert made == Region(20, b"", b"m", Epoch(2, 3), (Peer(21, 1), Peer(22, 2), Peer(23, 3)))
    asked = [sent for sent in bench.sent if sent.region_id == 20 and sent.message is not None]
    assert {(sent.to, sent.message.kind) for sent in asked if sent.message} == {
        (Peer(22, 2), MessageKind.PRE_VOTE),
        (Peer(23, 3), MessageKind.PRE_VOTE),
    }
    assert {sent.range for sent in asked} == {(b"", b"m")}


def question(span: tuple[bytes, bytes] | None) -> Envelope:
    asks = Message(MessageKind.PRE_VOTE, 22, 21, 6, 5, 5)
    return Envelope(20, Epoch(2, 3), Peer(22, 2), Peer(21, 1), asks, range=span)


def test_a_question_that_overtakes_the_split_is_answered_after_it() -> None:
    bench = of_three()
    bench.step(question((b"", b"m")))
    assert 20 not in bench.store.replicas, "the range is still region 7's"
    split = Entry(6, 6, encode_split((b"m",), (PART,), bench.region))
    bench.step(from_peer(4, Message(MessageKind.APPEND, 4, 3, 6, 5, 5, commit=6, entries=(split,))))
    assert bench.store.replicas[20].me == Peer(21, 1)
    answered = [sent.message for sent in bench.sent if sent.region_id == 20 and sent.message is not None]
    assert [(message.kind, message.reject) for message in answered] == [(MessageKind.PRE_VOTE_REPLY, False)]


def test_a_question_about_a_region_that_never_comes_is_dropped() -> None:
    """The sender may have been wrong about the split, or long gone by the time it is applied."""
    questions = Questions()
    first, second = question((b"", b"m")), replace(question((b"", b"m")), region_id=30)
    questions.keep(first)
    for _ in range(KEPT_TIMEOUTS * 10):
        questions.tick(10)
    questions.keep(second)
    questions.tick(10)
    assert list(questions.take(20)) == []
    assert list(questions.take(30)) == [second]
    assert len(questions) == 0


def test_questions_are_kept_for_so_many_regions() -> None:
    questions = Questions()
    for region_id in range(2 * KEPT_REGIONS):
        questions.keep(replace(question((b"", b"m")), region_id=region_id))
    assert len(questions) == KEPT_REGIONS
    again = replace(question((b"", b"n")), region_id=0)
    questions.keep(again)
    assert list(questions.take(0)) == [again]


def replica_of(peer_id: int, state: HardState, peers: tuple[Peer, ...] = ()) -> Replica:
    region = Region(20, b"", b"m", Epoch(2, 3), peers)
    raft = Raft(peer_id, Restored(configuration_of(region), state), SETTINGS.raft, lambda n: 0)
    return Replica(region, Peer(peer_id, 1), raft, SETTINGS)


@pytest.mark.parametrize(
    ("known", "begins"),
    [
        (None, FIRST_STATE),
        (replica_of(21, HardState()), FIRST_STATE),
        (replica_of(21, HardState(9, 22, 0)), HardState(9, 22, 5)),
        (replica_of(21, HardState(5, 22, 0)), HardState(5, 22, 5)),
        (replica_of(30, HardState()), None),
        (replica_of(21, HardState(6, 0, 0), (Peer(21, 1),)), None),
    ],
)
def test_what_a_new_peer_begins_with(known: Replica | None, begins: HardState | None) -> None:
    assert begins_with(known, 21) == begins


def test_what_became_durable_of_the_replica_before_is_not_the_new_ones() -> None:
    bench = of_three()
    bench.step(question(None))
    before = bench.store.replicas[20].raft
    split = Entry(6, 6, encode_split((b"m",), (PART,), bench.region))
    bench.step(from_peer(4, Message(MessageKind.APPEND, 4, 3, 6, 5, 5, commit=6, entries=(split,))))
    after = bench.store.replicas[20].raft
    assert after is not before
    assert after.number >= before.number > 0


def test_a_split_does_not_raise_the_dead() -> None:
    bench = alone()
    bench.store.tombstones[20] = 21
    assert bench.write(Write((Put(b"a", b"1"), Put(b"x", b"2")))) == Written()
    assert bench.store.obey(Step(REGION, bench.region.epoch, 3, Split((b"m",), (Part(20, (21,)),)))) == ""
    bench.turn()
    assert set(bench.store.replicas) == {REGION}
    assert bench.region.start == b"m"
    assert bench.state == {b"x": b"2"}, "nobody else would look after what was cut off"


# ---- merges ----


def of_two() -> Bench:
    """Regions 20 and 7, cut at m, with one peer each."""
    bench = alone()
    bench.write(Write((Put(b"a", b"1"), Put(b"x", b"2"))))
    bench.store.obey(Step(REGION, bench.region.epoch, 3, Split((b"m",), (Part(20, (21,)),))))
    bench.turn()
    return bench


def source_of(bench: Bench) -> Region:
    return bench.store.replicas[20].region


def test_a_region_becomes_a_part_of_its_neighbour() -> None:
    bench = of_two()
    step = Step(20, source_of(bench).epoch, 21, Merge(bench.region))
    assert bench.store.obey(step) == ""
    late = Context(20, 2, 21, 1)
    assert bench.store.write("late", late, Write((Put(b"b", b""),))) is None, "it is behind the end of the region"
    bench.turn()
    assert bench.region == Region(REGION, b"", b"", Epoch(4, 1), (Peer(3, 1),), (20,))
    assert bench.store.tombstones == {20: 21}
    assert bench.state == {b"a": b"1", b"x": b"2"}
    (work,) = [work for work in bench.works if work.merged]
    assert [(region.id, peer_id) for region, peer_id in work.merged] == [(20, 21)]
    assert isinstance(dict(bench.outcomes)["late"], EpochNotMatch)
    assert "not here" in bench.store.obey(step)
    assert bench.write(Write((Put(b"b", b""),)), replace(GOOD, version=4)) == Written()


def test_an_ended_region_serves_nothing_and_is_not_changed() -> None:
    bench = of_two()
    source = bench.store.replicas[20]
    source.merging = Merging(replace(bench.region, epoch=Epoch(9, 9)), 6, 7)
    context = Context(20, 2, 21, 1)
    assert bench.store.write("write", context, Write((Put(b"b", b""),))) == ProposalInMergingMode(20)
    assert isinstance(bench.store.read("read", context), ReadIndexNotReady)
    assert bench.store.check(context, 1) == ProposalInMergingMode(20)
    for action in (Split((b"b",)), Merge(bench.region)):
        assert "merged" in bench.store.obey(Step(20, source.region.epoch, 21, action))


LEFT = Region(20, b"", b"m", Epoch(2, 3), THREE)
RIGHT = Region(7, b"m", b"", Epoch(3, 5), tuple(replace(peer, id=peer.id + 10) for peer in reversed(THREE)))


@pytest.mark.parametrize(
    ("source", "target", "wanted", "word"),
    [
        (LEFT, RIGHT, RIGHT, ""),
        (RIGHT, LEFT, LEFT, ""),
        (LEFT, RIGHT, replace(RIGHT, epoch=Epoch(2, 5)), "epoch"),
        (LEFT, replace(RIGHT, start=b"n"), replace(RIGHT, start=b"n"), "neighbours"),
        (LEFT, LEFT, LEFT, "neighbours"),
        (LEFT, replace(RIGHT, peers=RIGHT.peers[1:]), RIGHT, "stores"),
        (LEFT, replace(RIGHT, peers=(*RIGHT.peers[1:], Peer(99, 4))), RIGHT, "stores"),
        (LEFT, replace(RIGHT, peers=(*RIGHT.peers[1:], Peer(13, 1, PeerRole.LEARNER))), RIGHT, "stores"),
        (LEFT, replace(RIGHT, peers=(*RIGHT.peers[1:], Peer(13, 1, PeerRole.INCOMING_VOTER))), RIGHT, "joint"),
    ],
)
def test_which_regions_may_be_merged(source: Region, target: Region, wanted: Region, word: str) -> None:
    reason = why_not(source, target, wanted)
    assert word in reason
    assert bool(word) is bool(reason)


def test_the_epochs_of_a_merge() -> None:
    assert ended(LEFT).epoch == Epoch(3, 4)
    assert resumed(ended(LEFT)).epoch == Epoch(4, 4)
    whole = joined(RIGHT, replace(ended(LEFT), absorbed=(9,)))
    assert (whole.start, whole.end, whole.epoch, whole.absorbed) == (b"", b"", Epoch(4, 5), (9, 20))
    assert joined(LEFT, ended(RIGHT)) == Region(20, b"", b"", Epoch(5, 3), THREE, (7,))


@pytest.mark.parametrize(
    ("here", "fate"),
    [
        ([], Fate.UNDECIDED),
        ([Region(7)], Fate.UNDECIDED),
        ([RIGHT], Fate.OPEN),
        ([replace(RIGHT, epoch=Epoch(2, 5))], Fate.UNDECIDED),
        ([replace(RIGHT, epoch=Epoch(3, 4))], Fate.UNDECIDED),
        ([replace(RIGHT, epoch=Epoch(4, 5))], Fate.VOID),
        ([replace(RIGHT, epoch=Epoch(3, 6))], Fate.VOID),
        ([replace(RIGHT, epoch=Epoch(4, 5), absorbed=(20,))], Fate.MERGED),
        ([replace(RIGHT, id=30, absorbed=(7,))], Fate.VOID),
        ([replace(RIGHT, id=30, absorbed=(7, 20))], Fate.MERGED),
        ([replace(RIGHT, id=30)], Fate.UNDECIDED),
    ],
)
def test_how_a_merge_ended(here: list[Region], fate: Fate) -> None:
    assert fate_of(20, Merging(RIGHT, 6, 7), here) is fate


def test_a_merge_whose_target_has_moved_is_rolled_back() -> None:
    bench = of_two()
    source = bench.store.replicas[20]
    last = source.raft.last_index
    source.region = ended(source.region)
    source.merging = Merging(replace(bench.region, epoch=Epoch(1, 1)), last, last)
    for _ in range(SETTINGS.merge_check_ticks):
        bench.store.tick()
    bench.turn()
    assert source.merging is None
    assert source_of(bench).epoch == Epoch(4, 2)
    assert bench.write(Write((Put(b"b", b""),)), Context(20, 4, 21, 1)) == Written()


# ---- peers without a leader ----


@pytest.mark.parametrize(
    ("known", "covering", "verdict"),
    [
        (Region(REGION, epoch=Epoch(1, 4), peers=THREE[1:]), None, Verdict.STALE),
        (Region(REGION, epoch=Epoch(1, 3), peers=THREE), None, Verdict.VALID),
        (Region(REGION, epoch=Epoch(1, 2), peers=THREE[1:]), None, Verdict.EPOCH_ERROR),
        (Region(REGION, epoch=Epoch(0, 9), peers=THREE[1:]), None, Verdict.EPOCH_ERROR),
        (None, None, Verdict.UNKNOWN),
        (None, Region(8, epoch=Epoch(1, 9), peers=THREE), Verdict.UNKNOWN),
        (None, Region(8, epoch=Epoch(2, 1), peers=THREE), Verdict.STALE),
    ],
)
def test_what_pd_says_of_a_peer_that_hears_no_leader(
    known: Region | None, covering: Region | None, verdict: Verdict
) -> None:
    bench = of_three()
    store: Store = bench.store
    store.settings = replace(SETTINGS, leader_missing_ticks=25)
    for _ in range(25):
        assert store.leaderless() == []
        store.tick()
    ((region, peer_id),) = store.leaderless()
    assert store.validate(region.id, peer_id, {REGION: known} if known else {}, covering) is verdict
    bench.turn()
    assert (REGION in store.replicas) is (verdict is not Verdict.STALE)
    assert store.leaderless() == [], "it is not asked about again at once"


@pytest.mark.parametrize(
    ("covering", "verdict"),
    [
        (Region(8, b"", b"m", Epoch(3, 4), THREE), Verdict.UNKNOWN),
        (Region(8, b"a", b"z", Epoch(4, 4), THREE), Verdict.STALE),
    ],
    ids=["PD may not have heard of it yet", "it was merged into another"],
)
def test_a_peer_that_holds_nothing_goes_with_its_region(covering: Region, verdict: Verdict) -> None:
    """It was removed before its first snapshot came; then its region was merged away, and PD knows neither."""
    store = Store(4, replace(SETTINGS, leader_missing_ticks=1), lambda n: 0)
    leader, learner = Peer(3, 1), Peer(9, 4, PeerRole.LEARNER)
    first_word = Message(MessageKind.APPEND, leader.id, learner.id, 6)
    store.step(Envelope(REGION, Epoch(3, 4), leader, learner, first_word, range=(b"c", b"m")))
    store.replicas[REGION].leaderless_ticks = 1
    ((region, peer_id),) = store.leaderless()
    assert covering.has_key(region.start)
    assert store.validate(region.id, peer_id, {}, covering) is verdict
    assert store.replicas[REGION].is_destroyed is (verdict is Verdict.STALE)


def test_a_source_is_kept_while_its_target_here_is_behind() -> None:
    bench = of_two()
    store = bench.store
    source = store.replicas[20]
    source.leaderless_ticks = 1
    whole = joined(bench.region, ended(source.region))
    assert store.validate(20, 21, {REGION: whole}, whole) is Verdict.UNKNOWN
    source.leaderless_ticks = 1
    elsewhere = replace(whole, peers=(Peer(99, 9),))
    assert store.validate(20, 21, {REGION: elsewhere}, elsewhere) is Verdict.STALE


@pytest.mark.parametrize(
    ("began_at", "verdict"),
    [(None, Verdict.UNKNOWN), (Epoch(9, 9), Verdict.UNKNOWN), (Epoch(1, 1), Verdict.STALE)],
    ids=["the target may yet take it", "the target has not come there", "the target has gone on"],
)
def test_a_source_is_kept_for_its_target_here_whatever_pd_knows(began_at: Epoch | None, verdict: Verdict) -> None:
    """PD has heard of a child of the target only, and shows the target as it was before the merge."""
    bench = of_two()
    store = bench.store
    source, target = store.replicas[20], store.replicas[REGION].region
    source.merging = Merging(replace(target, epoch=began_at or target.epoch), 6, 6)
    source.leaderless_ticks = 1
    child = Region(99, epoch=Epoch(9, 3), peers=THREE)
    assert store.validate(20, 21, {REGION: target}, child) is verdict
