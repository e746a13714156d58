"""Who may sleep, what wakes, and that no store's trouble leaves a region asleep without a leader."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from sleepers import ELECTION, HEARTBEAT, SETTINGS, Night

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import ChangeKind, Entry, Message, MessageKind, ProtocolBroken
from drillyard.emulator.store import campaigns as campaigns_module
from drillyard.emulator.store import neighbours as neighbours_module
from drillyard.emulator.store import sleep as sleep_module
from drillyard.emulator.store.campaigns import CAMPAIGNS_A_TICK
from drillyard.emulator.store.commands import Written
from drillyard.emulator.store.neighbours import Alarm, Neighbours, Pulse, Trouble, mark_of
from drillyard.emulator.store.region import PeerChange
from drillyard.emulator.store.replica import Envelope
from drillyard.emulator.store.sleep import GREETED_AT_ONCE, Sleep
from drillyard.emulator.store.store import ChangePeers, Step, TransferLeader


@pytest.fixture
def night() -> Night:
    night = Night()
    night.fall_asleep()
    return night


def leader_of(night: Night) -> int:
    leader = night.leader()
    assert leader is not None
    return leader.id


def other_than(*stores: int) -> int:
    return next(store_id for store_id in (1, 2, 3) if store_id not in stores)


# ---- falling asleep ----


def test_an_idle_region_sleeps_on_all_its_stores_and_is_quiet(night: Night) -> None:
    terms, sent = night.terms(), night.sent
    night.tick(600)
    assert night.all_asleep()
    assert (night.terms(), night.sent) == (terms, sent)


def test_nobody_sleeps_unless_it_is_wanted() -> None:
    night = Night(settings=replace(SETTINGS, hibernate=False))
    night.tick(100)
    assert not night.asleep()
    assert night.pulses == 0


def test_one_pulse_a_heartbeat_interval_and_pair_however_many_regions_sleep() -> None:
    night = Night(regions=40)
    night.fall_asleep()
    before = night.pulses
    night.tick(10 * HEARTBEAT)
    assert night.pulses - before == 10 * 6


def test_the_region_with_work_stays_awake_and_the_others_sleep() -> None:
    night = Night(regions=5)
    night.fall_asleep()
    for _ in range(5 * ELECTION):
        assert isinstance(night.write()[0], Written)
        night.tick()
        assert not night.asleep(100)
        assert all(night.asleep(region_id) == {1, 2, 3} for region_id in (101, 102, 103, 104))
    night.fall_asleep()


def test_a_leader_does_not_sleep_over_a_lagging_peer(night: Night) -> None:
    leader, follower = leader_of(night), other_than(leader_of(night))
    night.cut = {(leader, follower)}
    assert isinstance(night.write()[0], Written)  # by the other one
    night.tick(3 * ELECTION)
    assert leader not in night.asleep()


def test_a_follower_with_an_open_entry_does_not_sleep(night: Night) -> None:
    """It has an entry of which it does not know whether it is committed, and is asked by a leader that lacks it."""
    leader, follower = leader_of(night), other_than(leader_of(night))
    replicas = night.replicas()
    raft, asked = replicas[leader].raft, replicas[follower]
    entry = Entry(raft.term, raft.last_index + 1, b"")
    append = Message(
        MessageKind.APPEND, raft.node, asked.me.id, raft.term, raft.last_index, raft.term, raft.commit, (entry,)
    )
    ask = Message(MessageKind.HEARTBEAT, raft.node, asked.me.id, raft.term, commit=raft.commit)
    for message in (append, ask):
        envelope = Envelope(100, asked.region.epoch, replicas[leader].me, asked.me, message, rest=message is ask)
        night.there[follower].step(envelope)
        night.down.add(leader)  # nobody answers
        night.settle()
    assert follower not in night.asleep()


def test_one_lost_answer_keeps_the_leader_awake_until_it_is_given_again(night: Night) -> None:
    leader, follower = leader_of(night), other_than(leader_of(night))
    night.write()
    night.tick(ELECTION - 2)
    night.cut = {(follower, leader)}
    night.tick(4)
    assert leader not in night.asleep()
    assert follower in night.asleep()
    night.cut = set()
    night.fall_asleep()


# ---- waking ----


def test_a_write_and_a_read_are_served_without_a_tick(night: Night) -> None:
    assert isinstance(night.write()[0], Written)
    assert not night.asleep()
    night.fall_asleep()
    assert night.is_served()
    assert not night.asleep()


def test_a_step_of_pd_wakes(night: Night) -> None:
    leader = leader_of(night)
    replica = night.there[leader].replicas[100]
    target = replica.region.peer_on(other_than(leader))
    assert target is not None
    assert night.there[leader].obey(Step(100, replica.region.epoch, replica.me.id, TransferLeader(target))) == ""
    night.settle()
    assert leader_of(night) == target.store_id
    night.fall_asleep()


def test_a_step_that_is_declined_wakes_nobody(night: Night) -> None:
    replica = night.there[leader_of(night)].replicas[100]
    step = Step(100, replica.region.epoch, replica.me.id, TransferLeader(replica.me))
    assert night.there[leader_of(night)].obey(step) == "it leads already"
    assert night.all_asleep()


@pytest.mark.parametrize("kind", [MessageKind.PRE_VOTE, MessageKind.HEARTBEAT_REPLY, MessageKind.APPEND_REPLY])
def test_any_message_that_does_not_speak_of_sleep_wakes(night: Night, kind: MessageKind) -> None:
    leader, sender = leader_of(night), other_than(leader_of(night))
    replicas = night.replicas()
    term = replicas[leader].raft.term
    message = Message(kind, replicas[sender].me.id, replicas[leader].me.id, term)
    envelope = Envelope(100, replicas[leader].region.epoch, replicas[sender].me, replicas[leader].me, message)
    night.there[leader].step(envelope)
    assert leader not in night.asleep()
    night.fall_asleep()
    assert night.terms() == {100: term}


# ---- stores in trouble ----


def kill_and_restart_at_once(night: Night, leader: int) -> None:
    night.kill(leader)
    night.restart(leader)


def pause_and_go_on(night: Night, leader: int) -> None:
    night.down.add(leader)
    night.tick(4 * ELECTION)
    night.down.discard(leader)


def cut_off_and_heal(night: Night, leader: int) -> None:
    night.part(leader)
    night.tick(6 * ELECTION)
    assert leader_of(night) != leader
    night.cut.clear()


def cut_one_link_and_heal(night: Night, leader: int) -> None:
    other = other_than(leader)
    night.cut = {(leader, other), (other, leader)}
    night.tick(6 * ELECTION)
    night.cut.clear()


def cut_the_way_out_and_heal(night: Night, leader: int) -> None:
    night.cut = {(leader, other_than(leader)), (leader, other_than(leader, other_than(leader)))}
    night.tick(6 * ELECTION)
    night.cut.clear()


def cut_the_way_in_and_heal(night: Night, leader: int) -> None:
    night.cut = {(other_than(leader), leader), (other_than(leader, other_than(leader)), leader)}
    night.tick(6 * ELECTION)
    night.cut.clear()


def restart_a_follower(night: Night, leader: int) -> None:
    night.kill(other_than(leader))
    night.tick(3 * ELECTION)
    night.restart(other_than(leader))


def restart_all(night: Night, leader: int) -> None:
    for store_id in (1, 2, 3):
        night.kill(store_id)
    for store_id in (1, 2, 3):
        night.restart(store_id)


def break_all_connections(night: Night, leader: int) -> None:
    terms = night.terms()
    for store in night.there.values():
        for other in night.there:
            if other != store.id:
                store.report_unreachable(other)
    night.tick(3 * ELECTION)
    assert night.terms() == terms, "a pulse ends the doubt"


TROUBLES = (
    kill_and_restart_at_once,
    pause_and_go_on,
    cut_off_and_heal,
    cut_one_link_and_heal,
    cut_the_way_out_and_heal,
    cut_the_way_in_and_heal,
    restart_a_follower,
    restart_all,
    break_all_connections,
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("trouble", TROUBLES)
def test_after_any_trouble_a_region_is_served_and_sleeps_again(
    trouble: Callable[[Night, int], None], seed: int
) -> None:
    night = Night(seed=seed)
    night.fall_asleep()
    trouble(night, leader_of(night))
    night.until(night.is_served, 4 * ELECTION)
    night.until(night.all_asleep, 8 * ELECTION)
    leaders = {store_id for store_id, replica in night.replicas().items() if replica.is_leader}
    assert len(leaders) == 1, "a deposed leader sleeps on"


@pytest.mark.parametrize("seed", range(20))
def test_a_killed_leader_is_missed_sooner_than_by_its_heartbeats(seed: int) -> None:
    night = Night(seed=seed)
    night.fall_asleep()
    night.kill(leader_of(night))
    # Two heartbeat intervals of doubt, an election timeout shared by two voters, and one tick each to act.
    assert night.until(night.is_served) <= 2 * HEARTBEAT + ELECTION + 2


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_that_was_killed_and_is_back_at_once_is_missed_as_well(seed: int) -> None:
    night = Night(seed=seed)
    night.fall_asleep()
    leader = leader_of(night)
    night.kill(leader)
    night.restart(leader)
    assert night.until(night.is_served) <= 2 * HEARTBEAT + ELECTION + 2


@pytest.mark.parametrize("seed", range(20))
def test_a_stopped_leader_is_missed_as_without_sleep(seed: int) -> None:
    night = Night(seed=seed)
    night.fall_asleep()
    night.down.add(leader_of(night))
    assert night.until(night.is_served) <= 2 * ELECTION + 3


def test_a_lost_store_costs_each_of_its_regions_one_election_and_the_rest_none() -> None:
    night = Night(regions=60)
    night.until(night.all_asleep, 8 * ELECTION)
    lost = {region_id for region_id in night.ids if (store := night.leader(region_id)) is not None and store.id == 1}
    assert lost
    before = night.terms()
    night.kill(1)
    for _ in range(4 * ELECTION):
        night.tick()
        assert {region_id for region_id in night.ids if night.asleep(region_id) != {2, 3}} <= lost, (
            "none of the rest wakes"
        )
    assert night.all_asleep(), "a dead store must not keep the others awake"
    after = night.terms()
    assert {region_id for region_id in night.ids if after[region_id] != before[region_id]} == lost
    assert all(after[region_id] == before[region_id] + 1 for region_id in lost)
    sent = night.sent
    night.tick(10 * ELECTION)
    assert night.sent == sent
    night.restart(1)
    night.until(night.all_asleep, 8 * ELECTION)
    assert night.terms() == after


def test_leaders_greet_a_store_that_is_back_in_turn() -> None:
    night = Night(regions=4 * GREETED_AT_ONCE)
    night.until(night.all_asleep, 8 * ELECTION)
    night.kill(1)
    night.tick(4 * ELECTION)
    night.restart(1)
    for _ in range(ELECTION):
        night.tick()
        leaders = [(night.leader(region_id), region_id) for region_id in night.ids]
        awake = sum(store is None or not store.replicas[region_id].rest.is_asleep for store, region_id in leaders)
        assert awake <= 2 * GREETED_AT_ONCE, "two stores lead"
    assert all(1 in night.asleep(region_id) for region_id in night.ids), "nobody waited until it missed its leader"


def test_campaigns_take_their_turns_and_none_waits_for_those_that_cannot_be_won() -> None:
    night = Night(regions=3 * CAMPAIGNS_A_TICK)
    campaigns = 0
    for _ in range(3 * ELECTION):
        before = night.elections
        night.tick()
        campaigns = max(campaigns, night.elections - before)
    assert campaigns <= 3 * 2 * CAMPAIGNS_A_TICK  # three stores, two votes asked for by each
    assert all(night.leader(region_id) is not None for region_id in night.ids)
    night.part(1)  # nothing there can be won any more
    night.tick(6 * ELECTION)
    night.cut.clear()
    night.until(night.all_asleep, 20 * ELECTION)


def test_a_machine_that_cannot_carry_all_campaigns_at_once_elects_all_leaders_in_time() -> None:
    night = Night(regions=300, messages_a_tick=100)
    night.until(lambda: all(night.leader(region_id) is not None for region_id in night.ids), 40 * ELECTION)


def test_without_a_quorum_nobody_sleeps(night: Night) -> None:
    leader = leader_of(night)
    for store_id in {1, 2, 3} - {leader}:
        night.kill(store_id)
    night.tick(6 * ELECTION)
    assert not night.asleep()
    assert night.leader() is None


# ---- what PD is told ----


def test_a_sleeping_leader_tells_the_seconds_for_which_a_peer_is_down(night: Night) -> None:
    leader, follower = leader_of(night), other_than(leader_of(night))
    store = night.there[leader]
    store.reports_due()
    night.kill(follower)
    night.tick(40)
    assert night.asleep() == {1, 2, 3} - {follower}
    assert not store.reports_due(), "it is not down yet"
    night.tick(20)
    assert store.reports_due() == {100}
    night.tick(30)
    report = store.report(100)
    assert report is not None
    assert [(peer.store_id, seconds) for peer, seconds in report.down] == [(follower, 9)]
    assert leader in night.asleep(), "a report does not wake"
    night.restart(follower)
    night.tick(3)
    assert store.reports_due() == {100}
    report = store.report(100)
    assert report is not None
    assert report.down == ()


# ---- planted bugs ----


def _follower_sleeps_with_an_open_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Sleep._follow_asleep
    monkeypatch.setattr(
        Sleep, "_follow_asleep", lambda sleep, replica, _: rightly(sleep, replica, replica.raft.last_index)
    )
    monkeypatch.setattr(Raft, "is_settled", property(lambda raft: raft.leader != 0))


def _pulse_hides_a_dead_store(monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = Neighbours.tick

    def tick(neighbours: Neighbours) -> list[Alarm]:
        for neighbour in neighbours._known.values():
            neighbour.heard, neighbour.doubted = neighbours.ticks + 1, None
        return rightly(neighbours)

    monkeypatch.setattr(Neighbours, "tick", tick)


def _leader_sleeps_over_a_lagging_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "_is_settled", lambda sleep, replica: replica.raft.is_settled)
    monkeypatch.setattr(Sleep, "_may_sleep", lambda sleep, replica: True)


def _leader_sleeps_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep_module, "has_quorum", lambda configuration, nodes: True)


def _digest_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "mark_of", lambda region_id, term: 0)


def _silence_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "_take", lambda sleep, alarm, box: None)


def _returned_store_is_not_greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "_greet_in_turn", lambda sleep: None)


def _everybody_wakes_for_one_dead_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "hears_quorum", lambda sleep, replica: False)


def _all_greet_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep_module, "GREETED_AT_ONCE", 1000)


def _campaigns_without_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns_module, "FEWEST", CAMPAIGNS_A_TICK)


def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "pass_time", lambda sleep, replica: None)


def _sleeper_ignores_its_deposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sleep, "before_step", lambda sleep, replica, envelope: None)
    monkeypatch.setattr(Sleep, "after_step", lambda sleep, replica, envelope: None)


PLANTED = (
    _follower_sleeps_with_an_open_entry,
    _pulse_hides_a_dead_store,
    _leader_sleeps_over_a_lagging_peer,
    _leader_sleeps_without_a_quorum,
    _digest_says_nothing,
    _silence_wakes_nobody,
    _returned_store_is_not_greeted,
    _everybody_wakes_for_one_dead_store,
    _all_greet_at_once,
    _campaigns_without_a_window,
    _time_stands_still,
    _sleeper_ignores_its_deposition,
)


def whole_nights() -> None:
    """What holds of nights, on a few seeds; a planted bug breaks some of it."""
    for seed in range(3):
        for trouble in TROUBLES:
            test_after_any_trouble_a_region_is_served_and_sleeps_again(trouble, seed)
        test_a_killed_leader_is_missed_sooner_than_by_its_heartbeats(seed)
        test_a_stopped_leader_is_missed_as_without_sleep(seed)
        test_a_leader_that_was_killed_and_is_back_at_once_is_missed_as_well(seed)
    for check in (
        test_a_leader_does_not_sleep_over_a_lagging_peer,
        test_a_follower_with_an_open_entry_does_not_sleep,
        test_without_a_quorum_nobody_sleeps,
        test_a_sleeping_leader_tells_the_seconds_for_which_a_peer_is_down,
        test_one_lost_answer_keeps_the_leader_awake_until_it_is_given_again,
    ):
        night = Night()
        night.fall_asleep()
        check(night)
    test_a_lost_store_costs_each_of_its_regions_one_election_and_the_rest_none()
    test_leaders_greet_a_store_that_is_back_in_turn()
    test_a_machine_that_cannot_carry_all_campaigns_at_once_elects_all_leaders_in_time()
    test_only_an_answer_ends_a_doubt()
    test_whoever_is_heard_and_does_not_agree_is_asked_and_nobody_woken()


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_shows(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, ProtocolBroken)):
        whole_nights()


# ---- neighbours ----


def asker() -> Neighbours:
    watch = Neighbours(1, SETTINGS.raft, 50)
    watch.trust(7, 5, 2)
    watch.trust(8, 6, 2)
    return watch


def question_of(watch: Neighbours) -> Pulse:
    watch.tick()
    (pulse,) = watch.pulses()
    return pulse


def test_only_an_answer_ends_a_doubt() -> None:
    for says_more in (False, True):
        watch, other = asker(), Neighbours(2, SETTINGS.raft, 50)
        watch.doubt(2)
        question = question_of(watch)
        answer = other.answer(question, [(7, 5), (9, 9)])
        watch.take(answer if says_more else Pulse(2, 1, 0))
        assert watch.denied_by(answer) == (8,)
        alarms = [alarm.trouble for _ in range(2 * HEARTBEAT) for alarm in watch.tick()]
        assert alarms == ([] if says_more else [Trouble.SILENT])


def test_whoever_is_heard_and_does_not_agree_is_asked_and_nobody_woken() -> None:
    watch = asker()
    alarms, asked = [], []
    for _ in range(ELECTION + 2):
        watch.take(Pulse(2, 1, 12345))
        alarms += watch.tick()
        asked += [pulse for pulse in watch.pulses() if pulse.trusted]
    assert alarms == []
    assert len(asked) == 1
    assert set(asked[0].trusted) == {mark_of(7, 5), mark_of(8, 6)}


def test_a_sleeping_peer_that_was_removed_unheard_does_not_sleep_on_in_its_leader_s_trust() -> None:
    """Its store asks after the leader, which leads indeed, but nothing of that peer (simulated seed 710487)."""
    night = Night(regions=8)  # some are led by the same store, or it would not be heard at all
    night.fall_asleep()
    leader = leader_of(night)
    gone = other_than(leader)
    replica = night.there[leader].replicas[100]
    removed = PeerChange(ChangeKind.REMOVE, night.there[gone].replicas[100].me)
    night.part(gone)
    assert night.there[leader].obey(Step(100, replica.region.epoch, replica.me.id, ChangePeers((removed,)))) == ""
    night.settle()
    assert replica.region.peer_on(gone) is None
    night.cut.clear()
    for _ in range(5 * ELECTION):
        for store in night.there.values():
            store.tick()
        night.settle()
    assert 100 not in night.there[gone].replicas


def test_a_store_that_holds_nothing_answers_who_believes_that_it_sleeps() -> None:
    """Else it stays silent to the leader, which sleeps without it, and is never given its replica."""
    leader, empty = Neighbours(1, SETTINGS.raft, 50), Neighbours(2, SETTINGS.raft, 50)
    leader.greet((2,))
    for _ in range(ELECTION + 1):
        leader.tick()
        empty.tick()
    assert leader.is_silent(2)
    leader.lead(7, 5, (1, 2))
    woken: list[int] = []
    for _ in range(2 * HEARTBEAT):
        for pulse in leader.pulses():
            empty.take(pulse)
        for pulse in empty.pulses():
            woken += leader.take(pulse)
        leader.tick()
        empty.tick()
    assert woken == [7]


def test_stores_that_no_sleeper_connects_are_quiet() -> None:
    one = Neighbours(1, SETTINGS.raft, 50)
    for _ in range(2 * ELECTION):
        one.tick()
        one.take(Pulse(2, 1, 0))
        assert one.ticks <= ELECTION or one.pulses() == []


def test_a_follower_asleep_under_nobody_is_found_out(night: Night) -> None:
    """However it came to be: its leader took no part, and nobody asks for votes."""
    leader, other = leader_of(night), other_than(leader_of(night))
    night.replicas()[leader].raft._follow(night.replicas()[leader].raft.term, 0)
    night.there[leader]._sleep.wake(night.replicas()[leader])
    for store_id in {1, 2, 3} - {other}:
        night.there[store_id]._sleep._lie_down(night.replicas()[store_id])  # they stand still
    night.until(lambda: other not in night.asleep(), 3 * ELECTION)


def test_digests_tell_regions_and_terms_apart() -> None:
    seen = set()
    for region_id in range(1, 200):
        for term in range(5, 10):
            watch = Neighbours(1, SETTINGS.raft, 50)
            watch.lead(region_id, term, (1, 2))
            for _ in range(HEARTBEAT):
                watch.tick()
            seen.add(watch.pulses()[0].digest)
    assert len(seen) == 199 * 5
