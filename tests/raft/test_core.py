"""The core's contract with its shell, one promise at a time. Conversations between nodes are in tests/transcripts."""

from __future__ import annotations

import pytest

from drillyard.emulator.raft import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    NotLeader,
    Options,
    ProgressState,
    ProposalDropped,
    ProtocolBroken,
    Raft,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)

THREE = Configuration(frozenset({1, 2, 3}))


def make(restored: Restored | None = None, options: Options | None = None, node: int = 1) -> Raft:
    return Raft(node, restored or Restored(THREE), options or Options(), lambda n: 0)


def role_of(raft: Raft) -> Role:
    return raft.role


def carry_out(raft: Raft) -> list[Ready]:
    """What a shell with an immediate disk does."""
    done = []
    while raft.has_ready():
        ready = raft.ready()
        raft.persisted(ready.number)
        for entry in ready.committed:
            if entry.change is not None:
                raft.apply_change(entry.change)
            raft.applied_to(entry.index)
        done.append(ready)
    return done


def sent(readys: list[Ready]) -> list[Message]:
    return [message for ready in readys for message in ready.messages + ready.deferred]


def lead(raft: Raft) -> list[Message]:
    """Make node 1 of three the leader, with its mark committed; what it sent meanwhile."""
    raft.campaign()
    said = sent(carry_out(raft))
    raft.step(Message(MessageKind.PRE_VOTE_REPLY, 2, 1, raft.term + 1))
    said += sent(carry_out(raft))
    raft.step(Message(MessageKind.VOTE_REPLY, 2, 1, raft.term))
    said += sent(carry_out(raft))
    acknowledge(raft, 2, raft.last_index)
    assert role_of(raft) is Role.LEADER
    assert raft.commit == raft.last_index
    return said + sent(carry_out(raft))


def acknowledge(raft: Raft, node: int, index: int) -> None:
    raft.step(Message(MessageKind.APPEND_REPLY, node, 1, raft.term, index))


# ---- a group of one ----------------------------------------------------------------------------------------------


def test_a_single_voter_elects_itself_and_commits_as_soon_as_it_is_durable() -> None:
    raft = make(Restored(Configuration(frozenset({1}))))
    raft.campaign()
    ready = raft.ready()
    assert ready.hard_state == HardState(1, 1, 0)
    assert role_of(raft) is Role.CANDIDATE
    raft.persisted(ready.number)
    assert role_of(raft) is Role.LEADER
    assert raft.propose(b"apple") == (1, 2)
    ready = raft.ready()
    assert [entry.data for entry in ready.entries] == [b"", b"apple"]
    assert (ready.committed, raft.commit) == ((), 0)
    raft.persisted(ready.number)
    assert [entry.data for entry in raft.ready().committed] == [b"", b"apple"]


def test_a_single_voter_answers_reads_without_asking_anybody() -> None:
    raft = make(Restored(Configuration(frozenset({1}))))
    raft.campaign()
    raft.persisted(raft.ready().number)
    raft.read_index(b"early")
    mark = raft.ready()
    assert mark.reads == (), "no entry of the own term is committed yet"
    raft.persisted(mark.number)
    assert [read.context for read in raft.ready().reads] == [b"early"]
    raft.read_index(b"late")
    assert [(read.context, read.index) for read in raft.ready().reads] == [(b"late", 1)]


# ---- the disk ----------------------------------------------------------------------------------------------------


def test_promises_wait_for_every_ready_before_them() -> None:
    raft = make(node=2)
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 0, 0, 0, (Entry(1, 1, b"a"),)))
    first = raft.ready()
    assert [message.kind for message in first.deferred] == [MessageKind.APPEND_REPLY]
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 1, 1, 1))
    second = raft.ready()
    assert not second.must_persist
    assert [message.index for message in second.deferred] == [1], "it says the same, and must wait as well"
    assert not second.committed, "committed, but not on this disk"
    raft.persisted(second.number)
    assert [entry.index for entry in raft.ready().committed] == [1]
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 1, 1, 1))
    assert [message.index for message in raft.ready().messages] == [1], "nothing to wait for"


def test_a_commit_index_alone_is_not_written() -> None:
    raft = make(node=2)
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 0, 0, 0, (Entry(1, 1, b"a"),)))
    carry_out(raft)
    raft.step(Message(MessageKind.HEARTBEAT, 1, 2, 1, commit=1))
    readys = carry_out(raft)
    assert not any(ready.must_persist for ready in readys)
    assert raft.applied == 1
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 1, 1, 1, (Entry(1, 2, b"b"),)))
    assert raft.ready().hard_state == HardState(1, 0, 1)


def test_a_disk_that_lost_something_stops_the_node() -> None:
    with pytest.raises(ProtocolBroken):
        make(Restored(THREE, HardState(3, 1, 5), entries=(Entry(3, 1),)))
    with pytest.raises(ProtocolBroken):
        make(Restored(THREE, applied=4))
    raft = make(node=2)
    with pytest.raises(ProtocolBroken, match="data was lost"):
        raft.step(Message(MessageKind.HEARTBEAT, 1, 2, 1, commit=9))


def test_answers_of_older_terms_do_not_count() -> None:
    raft = make(Restored(THREE, HardState(4, 0, 0)))
    lead(raft)
    raft.propose(b"x")
    raft.read_index(b"r")
    context = next(one.context for one in sent(carry_out(raft)) if one.kind is MessageKind.HEARTBEAT)
    raft.step(Message(MessageKind.APPEND_REPLY, 2, 1, 4, 2))
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 2, 1, 4, context=context))
    assert raft.commit == 1
    assert not [read for ready in carry_out(raft) for read in ready.reads]


def test_two_leaders_in_one_term_stop_the_node() -> None:
    raft = make(node=3)
    raft.step(Message(MessageKind.HEARTBEAT, 1, 3, 1))
    with pytest.raises(ProtocolBroken, match="two leaders"):
        raft.step(Message(MessageKind.HEARTBEAT, 2, 3, 1))


def test_the_state_is_given_out_in_portions() -> None:
    raft = make(options=Options(max_committed_bytes=100), node=2)
    entries = tuple(Entry(1, index, b"x" * 50) for index in range(1, 5))
    raft.step(Message(MessageKind.APPEND, 1, 2, 1, 0, 0, 4, entries))
    assert [len(ready.committed) for ready in carry_out(raft) if ready.committed] == [1, 1, 1, 1]


def test_a_shell_that_miscounts_is_told() -> None:
    raft = make()
    with pytest.raises(ValueError, match="not given out"):
        raft.applied_to(1)
    with pytest.raises(ValueError, match="not applied"):
        raft.compact(1)
    with pytest.raises(ValueError, match="filled in"):
        raft.step(Message(MessageKind.SNAPSHOT, 2, 1, 1))


# ---- elections ---------------------------------------------------------------------------------------------------


def test_a_candidate_is_ignored_while_the_leader_is_heard_unless_it_was_sent() -> None:
    raft = make(node=2)
    raft.step(Message(MessageKind.HEARTBEAT, 1, 2, 1))
    carry_out(raft)
    raft.step(Message(MessageKind.VOTE, 3, 2, 2))
    raft.step(Message(MessageKind.PRE_VOTE, 3, 2, 2))
    assert (raft.term, raft.has_ready()) == (1, False)
    raft.step(Message(MessageKind.VOTE, 3, 2, 2, forced=True))
    assert [message.kind for message in sent(carry_out(raft))] == [MessageKind.VOTE_REPLY]
    assert raft.term == 2


def test_after_the_minimum_timeout_a_candidate_is_heard() -> None:
    raft = Raft(2, Restored(THREE), Options(), lambda n: n - 1)
    raft.step(Message(MessageKind.HEARTBEAT, 1, 2, 1))
    for _ in range(10):
        raft.tick()
    raft.step(Message(MessageKind.VOTE, 3, 2, 2))
    assert raft.term == 2


def test_timeouts_are_spread_by_chance() -> None:
    def ticks_until_campaign(draw: int) -> int:
        raft = Raft(1, Restored(THREE), Options(), lambda n: draw)
        for tick in range(1, 100):
            raft.tick()
            if raft.role is not Role.FOLLOWER:
                return tick
        return 0

    assert [ticks_until_campaign(draw) for draw in (0, 4, 9)] == [10, 14, 19]


def crossed() -> list[Role]:
    """Two of three sound each other out at the same moment, and the third is dead; what becomes of them."""
    nodes = {node: make(node=node) for node in (1, 2)}
    for raft in nodes.values():
        raft.campaign()
    while said := [message for raft in nodes.values() for message in sent(carry_out(raft))]:
        for message in said:
            if message.to in nodes:
                nodes[message.to].step(message)
    return [raft.role for raft in nodes.values()]


def test_of_two_that_ask_at_the_same_moment_one_is_elected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crossed() == [Role.FOLLOWER, Role.LEADER]
    monkeypatch.setattr(Raft, "_goes_before", lambda raft, rival: False)
    assert crossed() == [Role.CANDIDATE, Role.CANDIDATE]


@pytest.mark.parametrize(
    ("rival", "ticks", "is_refused"),
    [
        pytest.param(Message(MessageKind.PRE_VOTE, 1, 2, 1), 0, True, id="its equal"),
        pytest.param(Message(MessageKind.PRE_VOTE, 3, 2, 1), 0, False, id="who goes before it"),
        pytest.param(Message(MessageKind.PRE_VOTE, 1, 2, 1), 4, True, id="still a moment ago"),
        pytest.param(Message(MessageKind.PRE_VOTE, 1, 2, 1), 5, False, id="it may not be heard by the others"),
        pytest.param(Message(MessageKind.PRE_VOTE, 1, 2, 1, 1, 1), 0, False, id="who has more"),
        pytest.param(Message(MessageKind.VOTE, 1, 2, 1), 0, False, id="who is a candidate already"),
    ],
)
def test_who_has_just_asked_holds_a_rival_back(rival: Message, ticks: int, is_refused: bool) -> None:
    raft = make(node=2)
    raft.campaign()
    carry_out(raft)
    for _ in range(ticks):
        raft.tick()
    raft.step(rival)
    assert [message.reject for message in sent(carry_out(raft))] == [is_refused]


@pytest.mark.parametrize("configuration", [Configuration(), Configuration(frozenset({2}), frozenset({1}))])
def test_nobody_campaigns_without_a_vote(configuration: Configuration) -> None:
    raft = make(Restored(configuration))
    raft.campaign()
    for _ in range(100):
        raft.tick()
    assert (raft.role, raft.term) == (Role.FOLLOWER, 0)


def test_nobody_campaigns_before_applying_the_changes_that_are_committed() -> None:
    change = ConfigurationChange((Change(ChangeKind.REMOVE, 3),))
    raft = make(Restored(THREE, HardState(1, 0, 2), entries=(Entry(1, 1), Entry(1, 2, b"", change)), applied=1))
    raft.campaign()
    raft.step(Message(MessageKind.TIMEOUT_NOW, 2, 1, 1))
    assert role_of(raft) is Role.FOLLOWER
    carry_out(raft)
    raft.campaign()
    assert role_of(raft) is Role.PRE_CANDIDATE
    assert {message.to for message in sent(carry_out(raft))} == {2}


def test_answers_to_an_earlier_question_do_not_count() -> None:
    raft = make(Restored(THREE, HardState(5, 0, 0)))
    raft.campaign()
    raft.step(Message(MessageKind.PRE_VOTE_REPLY, 2, 1, 9))
    assert role_of(raft) is Role.PRE_CANDIDATE
    raft.step(Message(MessageKind.PRE_VOTE_REPLY, 2, 1, 6))
    carry_out(raft)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 6)
    raft.step(Message(MessageKind.VOTE_REPLY, 2, 1, 5))
    assert role_of(raft) is Role.CANDIDATE


# ---- proposals and replication -----------------------------------------------------------------------------------


def test_only_a_leader_takes_wishes_and_others_say_who_leads() -> None:
    raft = make(node=2)
    raft.step(Message(MessageKind.HEARTBEAT, 1, 2, 1))
    for wish in (
        lambda: raft.propose(b"x"),
        lambda: raft.read_index(b"r"),
        lambda: raft.transfer_leader(2),
        lambda: raft.propose_change(ConfigurationChange()),
    ):
        with pytest.raises(NotLeader) as refusal:
            wish()
        assert refusal.value.leader == 1
    assert raft.progress() == {}


def test_proposals_between_two_readys_share_one_append_a_follower() -> None:
    raft = make()
    lead(raft)
    raft.step(Message(MessageKind.APPEND_REPLY, 3, 1, 1, 1))
    carry_out(raft)
    for text in (b"a", b"b", b"c"):
        raft.propose(text)
    appends = [message for message in raft.ready().messages if message.kind is MessageKind.APPEND]
    assert [(message.to, len(message.entries)) for message in appends] == [(2, 3), (3, 3)]


def test_that_an_entry_is_committed_is_told_at_once_only_where_it_is_urgent() -> None:
    raft = make(options=Options(heartbeat_ticks=1))
    lead(raft)
    raft.propose(b"x", is_urgent=False)
    carry_out(raft)
    acknowledge(raft, 2, 2)
    assert (raft.commit, sent(carry_out(raft))) == (2, [])
    raft.tick()
    assert [(one.kind, one.commit) for one in sent(carry_out(raft)) if one.to == 2] == [(MessageKind.HEARTBEAT, 2)]
    raft.propose(b"y")
    raft.propose(b"z", is_urgent=False)
    carry_out(raft)
    acknowledge(raft, 2, 4)
    assert [(one.kind, one.commit) for one in sent(carry_out(raft)) if one.to == 2] == [(MessageKind.APPEND, 4)]


def test_a_silent_follower_is_not_buried() -> None:
    raft = make(options=Options(max_inflight=2))
    lead(raft)
    for _ in range(5):
        raft.propose(b"x")
        carry_out(raft)
    assert raft.progress()[2].next == 4, "two appends are under way"
    acknowledge(raft, 2, 3)
    appends = [one for one in sent(carry_out(raft)) if one.to == 2 and one.entries]
    assert [(one.entries[0].index, one.entries[-1].index) for one in appends] == [(4, 6)]


def test_a_long_tail_is_cut_into_appends_of_limited_size() -> None:
    raft = make(options=Options(max_append_bytes=300))
    lead(raft)
    for _ in range(6):
        raft.propose(b"x" * 100)
    sizes = [len(one.entries) for one in sent(carry_out(raft)) if one.to == 2 and one.entries]
    assert sizes == [1, 1, 1, 1, 1, 1] or sum(sizes) == 6
    assert max(sizes) <= 2


def test_what_is_reported_as_unreachable_is_probed() -> None:
    raft = make()
    lead(raft)
    raft.propose(b"x")
    carry_out(raft)
    raft.report_unreachable(2)
    assert (raft.progress()[2].state, raft.progress()[2].next) == (ProgressState.PROBE, 2)
    raft.report_unreachable(9)


def test_the_leaders_own_copy_counts_when_it_is_durable() -> None:
    raft = make()
    lead(raft)
    raft.propose(b"x")
    ready = raft.ready()
    acknowledge(raft, 2, 2)
    assert raft.commit == 1
    raft.persisted(ready.number)
    assert raft.commit == 2


def test_proposals_are_refused_while_leadership_is_transferred() -> None:
    raft = make()
    lead(raft)
    raft.transfer_leader(3)
    assert raft.transferee == 3
    with pytest.raises(ProposalDropped, match="transferred to 3"):
        raft.propose(b"x")
    with pytest.raises(ProposalDropped, match="transferred to 3"):
        raft.propose_change(ConfigurationChange())
    raft.transfer_leader(1)
    assert raft.transferee == 0
    raft.propose(b"x")


# ---- reads -------------------------------------------------------------------------------------------------------


def test_reads_between_two_readys_share_one_round() -> None:
    raft = make()
    lead(raft)
    for name in (b"a", b"b", b"c"):
        raft.read_index(name)
    rounds = [one for one in sent(carry_out(raft)) if one.kind is MessageKind.HEARTBEAT]
    assert sorted(one.to for one in rounds) == [2, 3]
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 2, 1, 1, context=rounds[0].context))
    reads = [(read.context, read.index) for ready in carry_out(raft) for read in ready.reads]
    assert reads == [(b"a", 1), (b"b", 1), (b"c", 1)]


def test_a_lost_round_is_repeated_by_the_next_heartbeat_and_later_reads_have_to_wait_for_another() -> None:
    raft = make()
    lead(raft)
    raft.read_index(b"a")
    carry_out(raft)
    assert raft.is_reading
    raft.read_index(b"b")
    assert sent(carry_out(raft)) == []
    raft.tick()
    raft.tick()
    again = [one for one in sent(carry_out(raft)) if one.kind is MessageKind.HEARTBEAT]
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 3, 1, 1, context=again[0].context))
    readys = carry_out(raft)
    assert [read.context for ready in readys for read in ready.reads] == [b"a"]
    second = [one for one in sent(readys) if one.kind is MessageKind.HEARTBEAT]
    assert second[0].context != again[0].context
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 3, 1, 1, context=again[0].context))  # late, and doubled
    assert not [read for ready in carry_out(raft) for read in ready.reads]
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 3, 1, 1, context=second[0].context))
    assert [read.context for ready in carry_out(raft) for read in ready.reads] == [b"b"]
    assert not raft.is_reading


def test_reads_are_given_up_with_the_leadership() -> None:
    raft = make()
    lead(raft)
    raft.read_index(b"a")
    carry_out(raft)
    raft.read_index(b"b")
    raft.step(Message(MessageKind.HEARTBEAT, 3, 1, 2))
    assert [context for ready in carry_out(raft) for context in ready.aborted_reads] == [b"a", b"b"]


# ---- snapshots and membership ------------------------------------------------------------------------------------


def test_a_snapshot_replaces_log_state_and_membership() -> None:
    raft = make(Restored(Configuration()), node=4)
    four = Configuration(frozenset({1, 2, 3, 4}))
    raft.step(Message(MessageKind.SNAPSHOT, 1, 4, 3, snapshot=SnapshotMeta(7, 2, four)))
    raft.step(Message(MessageKind.APPEND, 1, 4, 3, 7, 2, 8, (Entry(3, 8, b"x"),)))
    raft.campaign()
    assert role_of(raft) is Role.FOLLOWER, "not before the snapshot is durable"
    ready = raft.ready()
    assert ready.snapshot is not None
    assert (ready.snapshot.index, ready.hard_state, ready.committed) == (7, HardState(3, 0, 8), ())
    assert [message.index for message in ready.deferred] == [7, 8]
    raft.persisted(ready.number)
    assert raft.applied == 7
    assert [entry.index for entry in raft.ready().committed] == [8]
    assert (raft.configuration, raft.snapshot_meta()) == (four, SnapshotMeta(7, 2, four))


def test_a_snapshot_that_says_nothing_new_is_only_acknowledged() -> None:
    restored = Restored(THREE, HardState(2, 0, 2), entries=tuple(Entry(2, at) for at in (1, 2, 3)), applied=2)
    raft = make(restored, node=2)
    for index in (1, 3):
        raft.step(Message(MessageKind.SNAPSHOT, 1, 2, 2, snapshot=SnapshotMeta(index, 2, THREE)))
    readys = carry_out(raft)
    assert not any(ready.snapshot for ready in readys)
    assert [message.index for message in sent(readys)] == [2, 3]
    assert (raft.commit, raft.first_index) == (3, 1)


def test_one_change_at_a_time_and_none_before_the_old_entries_are_applied() -> None:
    add = ConfigurationChange((Change(ChangeKind.ADD_LEARNER, 4),))
    raft = make(Restored(THREE, HardState(1, 0, 0), entries=(Entry(1, 1, b"", add),)))
    raft.campaign()
    carry_out(raft)
    raft.step(Message(MessageKind.PRE_VOTE_REPLY, 2, 1, 2))
    carry_out(raft)
    raft.step(Message(MessageKind.VOTE_REPLY, 2, 1, 2))
    with pytest.raises(ProposalDropped, match="not applied"):
        raft.propose_change(add)
    carry_out(raft)
    acknowledge(raft, 2, 2)
    carry_out(raft)
    assert raft.configuration.learners == {4}
    assert raft.propose_change(ConfigurationChange((Change(ChangeKind.ADD_VOTER, 4),)), b"why") == (2, 3)
    with pytest.raises(ProposalDropped, match="not applied"):
        raft.propose_change(add)


def test_a_change_that_the_shell_rejects_changes_nothing() -> None:
    raft = make()
    lead(raft)
    raft.propose_change(ConfigurationChange((Change(ChangeKind.REMOVE, 3),)))
    ready = raft.ready()
    raft.persisted(ready.number)
    acknowledge(raft, 2, 2)
    raft.applied_to(raft.ready().committed[-1].index)
    assert raft.configuration == THREE
    raft.propose_change(ConfigurationChange((Change(ChangeKind.REMOVE, 2),)))


def test_a_leader_without_a_vote_steps_down_after_telling_the_others() -> None:
    raft = make()
    lead(raft)
    raft.propose_change(ConfigurationChange((Change(ChangeKind.ADD_LEARNER, 1),)))
    carry_out(raft)
    assert role_of(raft) is Role.LEADER
    raft.read_index(b"a")
    acknowledge(raft, 2, 2)
    readys = carry_out(raft)
    assert role_of(raft) is Role.FOLLOWER
    assert any(one.kind is MessageKind.APPEND and one.commit == 2 and one.to == 2 for one in sent(readys))
    assert [context for ready in readys for context in ready.aborted_reads] == [b"a"]


def test_compaction_keeps_what_the_next_append_is_checked_against() -> None:
    raft = make()
    lead(raft)
    for _ in range(3):
        raft.propose(b"x" * 10)
    carry_out(raft)
    acknowledge(raft, 2, 4)
    carry_out(raft)
    before = raft.log_bytes
    raft.compact(3)
    assert (raft.first_index, raft.last_index, raft.term_at(3), raft.term_at(2)) == (4, 4, 1, None)
    assert raft.log_bytes < before
    raft.step(Message(MessageKind.HEARTBEAT_REPLY, 3, 1, 1))
    raft.step(Message(MessageKind.APPEND_REPLY, 3, 1, 1, 0, reject=True))
    assert [one.kind for one in sent(carry_out(raft)) if one.to == 3] == [MessageKind.SNAPSHOT]
    raft.report_snapshot(3, ok=False)
    assert raft.progress()[3].state is ProgressState.PROBE
