"""Settled regions sleep: their replicas neither tick nor talk until something happens (TiKV: hibernated regions).

A region is settled when everything proposed is committed and applied by every peer, and nothing is asked, moved or
changed. After an election timeout of that, or at once if nobody used it since its leader was elected, its leader says
so with each heartbeat. A follower that has the same log, all of it applied, falls asleep and answers so; a leader that
has such an answer from all its peers falls asleep too.

Rules:
- Sleep is never part of a decision. A sleeping replica keeps every promise; a leader that sleeps still needs a round
  of heartbeats for a read and a quorum for a write, so one that was deposed in its sleep can do no harm.
- Whatever else comes wakes: a request, a step of PD, and every message that does not itself speak of sleep. A leader
  that wakes sends heartbeats at once, which wake its peers, unless there is no work: then it asks them to sleep on.
- Nobody sleeps in trust of a store that is not heard (`neighbours`). What it led wakes here and elects: not all
  regions at once, and the peers of one region not against each other.
- A leader does not wait for peers on a silent store, as long as a quorum sleeps on stores that are heard: else one
  dead store would keep all regions awake. It wakes when that store is heard again; then too, not all at once. While it
  sleeps, what PD is told of the silence goes on.
- Time stood still for a sleeper; `pass_time` makes up for it before anybody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from drillyard.emulator.raft.configuration import electors, has_quorum
from drillyard.emulator.raft.progress import ProgressState
from drillyard.emulator.raft.types import MessageKind, Role
from drillyard.emulator.store.neighbours import Alarm, Neighbours, Pulse, Trouble
from drillyard.emulator.store.region import scattered
from drillyard.emulator.store.replica import Envelope, Outbox, Replica, Settings

GREETED_AT_ONCE = 50
_ASKS_FOR_VOTES = (MessageKind.PRE_VOTE, MessageKind.VOTE)


def down_ticks_of(settings: Settings) -> int:
    return settings.max_peer_down_s * 1000 // settings.tick_ms


class Sleep:
    """The sleep of one store's replicas. `touch` is told whose replica has something to do."""

    def __init__(
        self,
        store: tuple[int, Settings],
        replicas: Mapping[int, Replica],
        touch: Callable[[int], None],
    ) -> None:
        store_id, settings = store
        self._settings = settings
        self._replicas = replicas
        self._touch = touch
        self._neighbours = Neighbours(store_id, settings.raft, down_ticks_of(settings))
        self._pulses: list[Pulse] = []
        self._to_greet: dict[int, None] = {}  # leaders of which a peer is heard again, in turn
        self._greeting: dict[int, int] = {}  # those whose turn it is -> since when
        self.awake: set[int] = set()  # the regions whose replicas tick: a tick costs nothing for those that sleep

    def reconfigure(self, settings: Settings) -> None:
        self._settings = settings
        self._neighbours.reconfigure(settings.raft, down_ticks_of(settings))
        if not settings.hibernate:
            for replica in self._replicas.values():
                self.wake(replica)

    # ---- time ----

    def tick(self, box: Outbox) -> None:
        """Before the replicas tick."""
        if self._greeting or self._to_greet:
            self._greet_in_turn()
        for alarm in self._neighbours.tick():
            self._take(alarm, box)
        self._pulses += self._neighbours.pulses()

    @property
    def has_pulses(self) -> bool:
        return bool(self._pulses)

    def take_pulses(self) -> list[Pulse]:
        pulses, self._pulses = self._pulses, []
        return pulses

    def _take(self, alarm: Alarm, box: Outbox) -> None:
        if alarm.trouble is Trouble.DOWN:
            for region_id in alarm.led_here:
                self.pass_time(self._replicas[region_id])
                self._replicas[region_id].notice_report(box)
            return
        for region_id in alarm.led_there:
            replica = self._replicas[region_id]
            self._leave_leader(replica)
        for region_id in alarm.led_here:
            if not self.hears_quorum(self._replicas[region_id]):
                self.wake(self._replicas[region_id])

    def hears_quorum(self, replica: Replica) -> bool:
        """Whether the stores of enough of its peers are heard."""
        others = (peer for peer in replica.region.peers if peer.id != replica.me.id)
        heard = {peer.id for peer in others if not self._neighbours.is_silent(peer.store_id)}
        return has_quorum(replica.raft.configuration, heard | {replica.me.id})

    def _leave_leader(self, replica: Replica) -> None:
        """The leader in whose trust it sleeps is gone."""
        self.wake(replica)
        replica.raft.suspect_leader(self._patience(replica))

    def _patience(self, replica: Replica) -> int:
        """When to campaign, now that the leader's store is silent: each voter has a part of the timeout to itself.

        The order among them differs from region to region, so that the regions of a lost store spread. Who is first
        has nothing to wait for: many at once are held back by the store (`CAMPAIGNS_A_TICK`).
        """
        raft = replica.raft
        others = sorted(electors(raft.configuration) - {raft.leader})
        if raft.node not in others:
            return self._settings.raft.election_ticks
        part = max(1, self._settings.raft.election_ticks // len(others))
        place = (others.index(raft.node) + scattered(replica.region.id)) % len(others)
        return 1 + place * part

    # ---- what wakes ----

    def wake(self, replica: Replica, *, has_work: bool = False) -> None:
        rest = replica.rest
        if has_work:
            rest.settled_ticks, rest.is_asking, rest.is_used = 0, False, True
        if not rest.is_asleep:
            return
        self.pass_time(replica)
        rest.is_asleep = False
        self.awake.add(replica.region.id)
        rest.agreed.clear()
        self._neighbours.leave(replica.region.id)
        leader = replica.leader
        silence = 0 if leader is None or replica.is_leader else self._neighbours.silence(leader.store_id)
        replica.raft.resume(silence)
        self._touch(replica.region.id)

    def forget(self, replica: Replica) -> None:
        """The replica is destroyed."""
        replica.rest.is_asleep = False
        self.awake.discard(replica.region.id)
        self._to_greet.pop(replica.region.id, None)
        self._greeting.pop(replica.region.id, None)
        self._neighbours.leave(replica.region.id)

    def greet(self, replica: Replica) -> None:
        """A replica was found on disk, or has begun."""
        self.awake.add(replica.region.id)
        if self._settings.hibernate:
            self._neighbours.greet(peer.store_id for peer in replica.region.peers)

    def hear(self, envelope: Envelope) -> None:
        self._to_greet |= dict.fromkeys(self._neighbours.hear(envelope.sender.store_id))

    def take_pulse(self, pulse: Pulse) -> None:
        self._to_greet |= dict.fromkeys(self._neighbours.take(pulse))
        for region_id in self._neighbours.denied_by(pulse):
            self._leave_leader(self._replicas[region_id])
        if pulse.trusted:
            led = (
                (replica.region.id, replica.raft.term)
                for replica in self._replicas.values()
                if replica.is_leader and replica.region.peer_on(pulse.sender) is not None
            )
            self._pulses.append(self._neighbours.answer(pulse, led))

    def doubt(self, store_id: int) -> None:
        self._neighbours.doubt(store_id)

    def _greet_in_turn(self) -> None:
        """Wakes leaders of which a peer is heard again, so that it catches up, as others of them sleep again.

        A few hundred awake at once have more to say than the stores can hear within an election timeout. Who does not
        get to sleep in that time is not waited for.
        """
        for region_id, since in tuple(self._greeting.items()):
            is_late = self._neighbours.ticks - since > self._settings.raft.election_ticks
            if is_late or self._replicas[region_id].rest.is_asleep:
                del self._greeting[region_id]
        for region_id in tuple(islice(self._to_greet, GREETED_AT_ONCE - len(self._greeting))):
            del self._to_greet[region_id]
            self._greeting[region_id] = self._neighbours.ticks
            self.wake(self._replicas[region_id])

    def pass_time(self, replica: Replica) -> None:
        """Lets a sleeping replica know how much time went by, and when each peer's store was heard."""
        if not replica.rest.is_asleep:
            return
        neighbours = self._neighbours
        slept, replica.rest.since = neighbours.ticks - replica.rest.since, neighbours.ticks
        others = (peer for peer in replica.region.peers if peer.id != replica.me.id)
        replica.watch.pass_time(slept, {peer.id: neighbours.silence(peer.store_id) for peer in others})

    # ---- messages ----

    def before_step(self, replica: Replica, envelope: Envelope) -> None:
        if envelope.rest or not replica.rest.is_asleep:
            return
        self.wake(replica)
        assert envelope.message is not None
        leader = replica.leader
        if envelope.message.kind not in _ASKS_FOR_VOTES or leader is None or replica.is_leader:
            return
        if self._neighbours.is_doubtful(leader.store_id):  # two of us miss the leader
            replica.raft.suspect_leader(2 * self._settings.raft.election_ticks)

    def after_step(self, replica: Replica, envelope: Envelope) -> None:
        """Takes a question to sleep, or an answer to it."""
        message, raft, rest = envelope.message, replica.raft, replica.rest
        if rest.is_asleep and not raft.is_settled:  # it lost its leader, or its leadership, to a newer term
            self.wake(replica)
        if not envelope.rest or message is None or message.term != raft.term:
            return
        if message.kind is MessageKind.HEARTBEAT_REPLY:
            if replica.is_leader:
                rest.agreed.add(message.sender)
        elif message.kind is MessageKind.HEARTBEAT and message.sender == raft.leader:
            self._follow_asleep(replica, message.commit)

    def _follow_asleep(self, replica: Replica, last_index: int) -> None:
        """The leader is settled with a log that ends there. A heartbeat says as committed only what the peer has."""
        raft, rest = replica.raft, replica.rest
        leader = replica.leader
        may_sleep = leader is not None and raft.last_index == last_index and raft.is_settled and replica.is_idle
        if not self._settings.hibernate or not may_sleep:
            self.wake(replica)
            return
        assert leader is not None
        self._neighbours.leave(replica.region.id)  # it may have slept under another leader
        self._lie_down(replica)
        self._neighbours.trust(replica.region.id, raft.term, leader.store_id)
        rest.settled_ticks = 0

    # ---- who may sleep ----

    def consider(self, replica: Replica) -> None:
        """After a tick of a replica that is awake: may it ask its peers to sleep, or sleep itself?"""
        rest = replica.rest
        leads = replica.raft.role is Role.LEADER
        rest.is_used = rest.is_used and leads
        if not self._settings.hibernate or not leads or not self._is_settled(replica):
            rest.settled_ticks, rest.is_asking = 0, False
            rest.agreed.clear()
            return
        rest.settled_ticks += 1
        if rest.is_used and rest.settled_ticks < self._settings.raft.election_ticks:
            return
        if not rest.is_asking:
            replica.forget_log()
            rest.is_asking = replica.raft.is_settled
            rest.agreed.clear()
        elif self._may_sleep(replica):
            self._lie_down(replica)
            stores = (peer.store_id for peer in replica.region.peers)
            self._neighbours.lead(replica.region.id, replica.raft.term, stores)

    def _lie_down(self, replica: Replica) -> None:
        replica.rest.is_used = False
        replica.rest.is_asleep = True
        self.awake.discard(replica.region.id)
        replica.rest.since = self._neighbours.ticks

    def _is_settled(self, replica: Replica) -> bool:
        raft = replica.raft
        if not raft.is_settled or not replica.is_idle:
            return False
        progress, last = raft.progress(), raft.last_index
        for peer in replica.region.peers:
            known = progress.get(peer.id)
            if known is None or known.state is ProgressState.SNAPSHOT:
                return False
            if known.match != last and not self._neighbours.is_silent(peer.store_id):
                return False
        return True

    def _may_sleep(self, replica: Replica) -> bool:
        agreed = replica.rest.agreed | {replica.me.id}
        awake = (peer for peer in replica.region.peers if peer.id not in agreed)
        return has_quorum(replica.raft.configuration, agreed) and all(
            self._neighbours.is_silent(peer.store_id) for peer in awake
        )
