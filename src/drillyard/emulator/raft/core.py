"""The Raft core of one node: who leads, what the log holds, and what the shell has to do next.

Raft keeps a log identical on several nodes. Time is cut into *terms*; each has at most one leader, because a node
votes once a term and a leader needs a majority. The leader alone adds entries and copies them to the others; what a
majority has on disk is *committed* and is applied by every node in the same order. A later leader has every committed
entry, because a voter refuses candidates whose log is behind its own, and one of any majority of voters has the entry.

This class is a machine that is driven from outside: `tick` for time, `step` for a message, `propose` and its like for
wishes. It never blocks, sends or writes; `ready` says what the shell has to do, in which order (see `Ready`).

**What waits for the disk.** A node must not forget what it promised. Two kinds of message are promises: a granted vote
("nobody else gets mine in this term") and an acknowledged append ("this survives a power cut"). They are *deferred*
until the Ready that they belong to is durable. Everything else goes at once, even the leader's own appends, since
its copy counts only when its disk has it. A candidate asks at once too, but does not win before its vote for itself
is on its disk; otherwise it could lead a term twice, with different entries, after a power cut in between.

**Elections.** A follower that hears no leader for a randomised timeout first asks whether it *would* be elected
(pre-vote), which changes nobody's term; so a node that was cut off does not disturb the group when it returns. A node
that heard its leader within the minimum timeout ignores candidates, unless the leader itself wanted the change
(`forced`). In return a leader that hears no quorum steps down.

**Membership** takes effect when the shell applies the entry (`apply_change`). This is safe under three rules: a change
is proposed only when the one before is applied, and a node does not campaign while it knows of a committed change that
it has not applied, and every append tells the follower the commit index (so who holds a change knows that the one
before is committed).

It does not: keep a lease, serve reads on followers, create or carry snapshots, or limit what is proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drillyard.emulator.raft.configuration import Tally, changed, electors, is_joint, tally
from drillyard.emulator.raft.leadership import Leadership
from drillyard.emulator.raft.log import Log
from drillyard.emulator.raft.progress import Progress
from drillyard.emulator.raft.types import (
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    NotLeader,
    Options,
    ProtocolBroken,
    ReadState,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)

_FROM_LEADER = frozenset({MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT})


class Raft:
    """One node of one group. `chance(n)` gives a number in 0..n-1; it spreads the election timeouts."""

    __slots__ = (
        "_aborted",
        "_chance",
        "_deferred",
        "_elapsed",
        "_given",
        "_handlers",
        "_installing",
        "_leadership",
        "_log",
        "_messages",
        "_number",
        "_options",
        "_own_vote_in",
        "_reads",
        "_snapshot",
        "_timeout",
        "_told_leader",
        "_told_role",
        "_vote",
        "_votes",
        "_written",
        "applied",
        "configuration",
        "leader",
        "node",
        "role",
        "term",
    )

    def __init__(self, node: int, restored: Restored, options: Options, chance: Callable[[int], int]) -> None:
        state = restored.hard_state
        self.node = node
        self.term = state.term
        self.role = Role.FOLLOWER
        self.leader = 0
        self.configuration = restored.configuration
        self.applied = max(restored.applied, restored.snapshot_index)
        commit = max(state.commit, self.applied)
        self._log = Log(restored.snapshot_index, restored.snapshot_term, restored.entries, commit)
        self._options = options
        self._chance = chance
        self._vote = state.vote
        self._votes: dict[int, bool] = {}
        self._own_vote_in = 0  # the Ready that carried a candidate's vote for itself
        self._leadership: Leadership | None = None
        self._elapsed = 0  # ticks since the leader was heard, or since the last election began
        self._timeout = 0
        self._draw_timeout()
        self._messages: list[Message] = []
        self._deferred: list[Message] = []
        self._reads: list[ReadState] = []
        self._aborted: list[bytes] = []
        self._snapshot: SnapshotMeta | None = None  # to be handed to the shell
        self._installing: tuple[int, int] | None = None  # (Ready, index) of a snapshot that is not yet durable
        self._given = self.applied  # the last entry handed out as committed
        self._number = restored.number
        self._written = state
        self._told_role = self.role
        self._told_leader = self.leader
        self._handlers: dict[MessageKind, Callable[[Message], None]] = {
            MessageKind.PRE_VOTE: self._on_vote_request,
            MessageKind.PRE_VOTE_REPLY: self._on_vote_reply,
            MessageKind.VOTE: self._on_vote_request,
            MessageKind.VOTE_REPLY: self._on_vote_reply,
            MessageKind.APPEND: self._on_append,
            MessageKind.APPEND_REPLY: self._on_append_reply,
            MessageKind.HEARTBEAT: self._on_heartbeat,
            MessageKind.HEARTBEAT_REPLY: self._on_heartbeat_reply,
            MessageKind.SNAPSHOT: self._on_snapshot,
            MessageKind.TIMEOUT_NOW: self._on_timeout_now,
        }

    # ---- what the shell may look at ----------------------------------------------------------------------------

    @property
    def commit(self) -> int:
        return self._log.commit

    @property
    def first_index(self) -> int:
        return self._log.first_index

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def durable_index(self) -> int:
        """The last entry that is on this node's disk."""
        return self._log.stable

    @property
    def vote(self) -> int:
        """For whom this node voted in its term; 0 for nobody."""
        return self._vote

    @property
    def log_bytes(self) -> int:
        return self._log.bytes

    @property
    def transferee(self) -> int:
        return self._leadership.transferee if self._leadership is not None else 0

    @property
    def hard_state(self) -> HardState:
        """As it is now; it may not be durable yet."""
        return HardState(self.term, self._vote, self._log.commit)

    @property
    def number(self) -> int:
        """Of the last Ready."""
        return self._number

    def term_at(self, index: int) -> int | None:
        return self._log.term_at(index)

    def entries(self, start: int, end: int) -> tuple[Entry, ...]:
        """The entries `start`..`end`, both included, as far as the log has them."""
        if start < self._log.first_index:
            return ()
        return self._log.slice(start, min(end, self._log.last_index), 1 << 62)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do here until somebody wants something new.

        All that the log holds is committed, on this node's disk and applied; who leads is known. A leader moreover has
        no read and no handover under way. How far the others are is not asked (see `progress`).
        """
        log = self._log
        return (
            self.leader != 0
            and log.last_index == log.commit == log.stable == self.applied
            and not is_joint(self.configuration)
            and self._snapshot is None
            and self._installing is None
            and (self._leadership is None or self._leadership.is_settled)
        )

    def progress(self) -> Mapping[int, Progress]:
        """What the leader knows of every member, itself included; empty on other nodes."""
        return self._leadership.progress if self._leadership is not None else {}

    def snapshot_meta(self) -> SnapshotMeta:
        """Where the state as applied so far stands; not to be asked between `apply_change` and `applied_to`."""
        term = self._log.term_at(self.applied)
        if term is None:
            raise ProtocolBroken(f"entry {self.applied} is applied, but a newer snapshot is being installed")
        return SnapshotMeta(self.applied, term, self.configuration)

    def reconfigure(self, options: Options) -> None:
        """Other timings and sizes from now on. A timeout that is running ends as it was drawn."""
        self._options = options
        if self._leadership is not None:
            self._leadership.reconfigure(options)

    # ---- wishes of the shell -----------------------------------------------------------------------------------

    def campaign(self) -> None:
        """Stand for election now instead of after the timeout."""
        if self.role is not Role.LEADER and self._may_campaign():
            self._seek_pre_votes()

    def propose(self, data: bytes, *, is_urgent: bool = True) -> tuple[int, int]:
        """Add an entry; it is committed when an entry with this (term, index) is given out, and lost if another is.

        What is not urgent is applied on the other nodes after the next append or heartbeat, not at once.
        """
        entry = self._lead().propose(data, is_urgent=is_urgent)
        return entry.term, entry.index

    def propose_change(self, change: ConfigurationChange, data: bytes = b"") -> tuple[int, int]:
        entry = self._lead().propose_change(change, data, self.applied)
        return entry.term, entry.index

    def apply_change(self, change: ConfigurationChange) -> Configuration:
        """Let a committed change take effect. Not calling this for a committed change rejects it, on every node."""
        try:
            self.configuration = changed(self.configuration, change)
        except ValueError as reason:  # it was checked before it was proposed, against this very configuration
            raise ProtocolBroken(f"a committed membership change does not fit: {reason}") from None
        has_vote = self.node in electors(self.configuration)
        if self._leadership is not None:
            self._leadership.adopt(self.configuration)
            if not has_vote:
                self._leadership.flush()  # the others learn that the change is committed, and elect one of them
                self._follow(self.term, 0)
        elif not has_vote and self.role is not Role.FOLLOWER:
            self._follow(self.term, 0)
        return self.configuration

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read; `context` comes back in `Ready.reads` or in `Ready.aborted_reads`."""
        self._lead().read(context)

    @property
    def is_reading(self) -> bool:
        """Whether a round is under way; what is asked now has to wait for its end."""
        return self._leadership is not None and self._leadership.is_reading

    def transfer_leader(self, to: int) -> None:
        """Hand leadership to `to`. Proposals are refused until it leads, or until an election timeout has passed."""
        self._lead().transfer(to)

    def report_unreachable(self, node: int) -> None:
        """Something that was sent to `node` is known to be lost."""
        if self._leadership is not None:
            self._leadership.report_unreachable(node)

    def report_snapshot(self, node: int, ok: bool) -> None:
        """What a SNAPSHOT message announced has arrived at `node`, or will not; every one must be reported."""
        if self._leadership is not None:
            self._leadership.report_snapshot(node, ok)

    def catch_up(self, entries: tuple[Entry, ...]) -> None:
        """Take entries that the group has decided, from who knows them, instead of from this group's leader.

        The log has to agree with them up to the first.
        """
        log = self._log
        fresh = tuple(entry for entry in entries if entry.index > log.commit)
        if not fresh:
            return
        before = fresh[0].index - 1
        if not log.accept(before, log.term_at(before) or 0, fresh):
            raise ProtocolBroken(f"decided entries begin at {before + 1}, but this log ends at {log.last_index}")
        log.commit_to(fresh[-1].index)

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`. Whoever needs them still will get a snapshot."""
        if index > self.applied:
            raise ValueError(f"entry {index} is not applied yet: only {self.applied} are")
        self._log.compact(index)

    def _lead(self) -> Leadership:
        if self._leadership is None:
            raise NotLeader(self.leader)
        return self._leadership

    # ---- time --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        if self._leadership is not None:
            if not self._leadership.tick():
                self._follow(self.term, 0)
            return
        self._elapsed += 1
        if self._elapsed >= self._timeout:
            if self._may_campaign():
                self._seek_pre_votes()
            else:
                self._elapsed = 0
                self.leader = 0

    @property
    def is_impatient(self) -> bool:
        """Whether the next tick ends this node's wait for a leader."""
        return self._leadership is None and self._elapsed + 1 >= self._timeout

    def resume(self, silence: int) -> None:
        """Time stood still here, and the leader was heard `silence` ticks ago.

        A leader sends heartbeats at once, and has a full election timeout to hear a quorum.
        """
        if self._leadership is not None:
            self._leadership.resume()
        else:
            self._elapsed = max(self._elapsed, silence)

    def suspect_leader(self, patience: int) -> None:
        """Somebody knows that the leader is gone: vote for others from now on, and campaign in `patience` ticks."""
        if self.role is Role.FOLLOWER:
            self._elapsed = max(self._elapsed, self._options.election_ticks)
            self._timeout = self._elapsed + max(1, patience)

    def _draw_timeout(self) -> None:
        """Different timeouts on different nodes: so one asks first, instead of all splitting the vote."""
        self._timeout = self._options.election_ticks + self._chance(self._options.election_ticks)

    # ---- roles -------------------------------------------------------------------------------------------------

    def _follow(self, term: int, leader: int) -> None:
        if term != self.term:
            self.term, self._vote = term, 0
        if self._leadership is not None:
            self._reads += self._leadership.confirmed
            self._aborted += self._leadership.abandon_reads()
            self._leadership = None
        self.role = Role.FOLLOWER
        self.leader = leader
        self._elapsed = 0
        self._draw_timeout()

    def _may_campaign(self) -> bool:
        """Only a voter may, and only one that has applied every change of which it knows that it is committed."""
        return (
            self.node in electors(self.configuration)
            and self._snapshot is None
            and self._installing is None
            and not self._log.has_change(self.applied + 1, self._log.commit)
        )

    def _seek_pre_votes(self) -> None:
        """Ask who would vote for this node in the next term, without beginning it."""
        self._stand(Role.PRE_CANDIDATE)
        self._ask_for_votes(MessageKind.PRE_VOTE, self.term + 1, forced=False)
        self._count_vote(self.node, granted=True)

    def _seek_votes(self, *, forced: bool) -> None:
        """Begin a new term and ask for votes in it. The own vote counts when it is on disk (`persisted`)."""
        self.term += 1
        self._vote = self.node
        self._own_vote_in = 0
        self._stand(Role.CANDIDATE)
        self._ask_for_votes(MessageKind.VOTE, self.term, forced=forced)

    def _stand(self, role: Role) -> None:
        self.role = role
        self.leader = 0
        self._votes = {}
        self._elapsed = 0
        self._draw_timeout()

    def _ask_for_votes(self, kind: MessageKind, term: int, *, forced: bool) -> None:
        index, log_term = self._log.last_index, self._log.last_term
        for node in electors(self.configuration):
            if node != self.node:
                self._messages.append(Message(kind, self.node, node, term, index, log_term, forced=forced))

    def _count_vote(self, voter: int, *, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        outcome = tally(self.configuration, self._votes)
        if outcome is Tally.LOST:
            self._follow(self.term, 0)
        elif outcome is Tally.WON and self.node in self._votes:
            if self.role is Role.PRE_CANDIDATE:
                self._seek_votes(forced=False)
            else:
                self._become_leader()

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader = self.node
        self._elapsed = 0
        self._leadership = Leadership((self.node, self.term), self._log, self._options, self._messages_out)
        self._leadership.take_over(self.configuration)

    def _messages_out(self, message: Message) -> None:
        self._messages.append(message)

    # ---- messages ----------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message from another node. Lost, doubled, late and reordered ones are all fine."""
        if message.term > self.term:
            if not self._meet_newer_term(message):
                return
        elif message.term < self.term:
            self._answer_older_term(message)
            return
        self._handlers[message.kind](message)

    def _meet_newer_term(self, message: Message) -> bool:
        """Move on to the newer term of a message, except where it only asks; False if the message is ignored."""
        kind = message.kind
        if kind in (MessageKind.VOTE, MessageKind.PRE_VOTE):
            if not message.forced and self._hears_leader():
                return False
            if kind is MessageKind.PRE_VOTE:
                return True
        elif kind is MessageKind.PRE_VOTE_REPLY and not message.reject:
            return True  # carries the term that was asked about
        self._follow(message.term, message.sender if kind in _FROM_LEADER else 0)
        return True

    def _hears_leader(self) -> bool:
        return self.leader != 0 and self._elapsed < self._options.election_ticks

    def _answer_older_term(self, message: Message) -> None:
        """Tell a leader or candidate of an older term about this one; else it could never catch up with us."""
        if message.kind in _FROM_LEADER:
            self._messages.append(Message(MessageKind.APPEND_REPLY, self.node, message.sender, self.term, reject=True))
        elif message.kind is MessageKind.PRE_VOTE:
            self._refuse_vote(MessageKind.PRE_VOTE_REPLY, message.sender)

    def _on_vote_request(self, message: Message) -> None:
        is_real = message.kind is MessageKind.VOTE
        is_free = self._vote == message.sender or (self._vote == 0 and self.leader == 0)
        if not is_real:
            is_free = (is_free or message.term > self.term) and not self._goes_before(message)
        is_granted = is_free and self._log.is_up_to_date(message.index, message.log_term)
        kind = MessageKind.VOTE_REPLY if is_real else MessageKind.PRE_VOTE_REPLY
        if not is_granted:
            self._refuse_vote(kind, message.sender)
        elif not is_real:
            self._messages.append(Message(kind, self.node, message.sender, message.term))
        else:
            self._vote = message.sender
            self._elapsed = 0
            self._deferred.append(Message(kind, self.node, message.sender, self.term))

    def _goes_before(self, rival: Message) -> bool:
        """Of two that sound each other out at the same moment, one goes on; else each votes for itself, and the term is
        lost. Not for long: the other need not hear this node.
        """
        is_fresh = self.role is Role.PRE_CANDIDATE and 2 * self._elapsed < self._options.election_ticks
        is_equal = (rival.index, rival.log_term) == (self._log.last_index, self._log.last_term)
        return is_fresh and is_equal and self.node > rival.sender

    def _refuse_vote(self, kind: MessageKind, candidate: int) -> None:
        """A refusal says what is committed here (see `_learn_commit`)."""
        commit = self._log.commit
        log_term = self._log.term_at(commit) or 0
        self._messages.append(
            Message(kind, self.node, candidate, self.term, log_term=log_term, commit=commit, reject=True)
        )

    def _learn_commit(self, message: Message) -> None:
        """Take the commit index from a refusal: an entry that another node knows as committed, and that is here, is.

        Without this a group can get stuck after a membership change. Say that the leader removed itself, and crashed
        before the only voter that is left heard that the change is committed. That voter still needs the vote of the
        old leader, which refuses, for its log is longer, and has no vote itself any more.
        """
        log = self._log
        if message.commit > log.commit and message.log_term and log.term_at(message.commit) == message.log_term:
            log.commit_to(message.commit)
            if self.role is not Role.FOLLOWER and not self._may_campaign():
                self._follow(self.term, 0)

    def _on_vote_reply(self, message: Message) -> None:
        if message.reject and self._leadership is None:
            self._learn_commit(message)
        if message.kind is MessageKind.VOTE_REPLY:
            if self.role is Role.CANDIDATE:
                self._count_vote(message.sender, granted=not message.reject)
        elif self.role is Role.PRE_CANDIDATE and (message.reject or message.term == self.term + 1):
            self._count_vote(message.sender, granted=not message.reject)

    def _hear(self, leader: int) -> None:
        if self.role is Role.LEADER or self.leader not in (0, leader):
            raise ProtocolBroken(f"term {self.term} has two leaders: {self.leader} and {leader}")
        if self.leader != leader or self.role is not Role.FOLLOWER:
            self._follow(self.term, leader)
        self._elapsed = 0

    def _on_append(self, message: Message) -> None:
        self._hear(message.sender)
        log = self._log
        if message.index < log.commit:  # all up to `commit` agrees anyway, and may be compacted
            self._acknowledge(message.sender, log.commit)
        elif log.accept(message.index, message.log_term, message.entries):
            last = message.index + len(message.entries)
            log.commit_to(min(message.commit, last))
            self._acknowledge(message.sender, last)
        else:
            hint_index, hint_term = log.last_not_after(message.index, message.log_term)
            self._messages.append(
                Message(
                    MessageKind.APPEND_REPLY,
                    self.node,
                    message.sender,
                    self.term,
                    message.index,
                    reject=True,
                    hint_index=hint_index,
                    hint_term=hint_term,
                )
            )

    def _acknowledge(self, leader: int, index: int) -> None:
        self._deferred.append(Message(MessageKind.APPEND_REPLY, self.node, leader, self.term, index))

    def _on_heartbeat(self, message: Message) -> None:
        self._hear(message.sender)
        self._log.commit_to(message.commit)
        self._messages.append(
            Message(MessageKind.HEARTBEAT_REPLY, self.node, message.sender, self.term, context=message.context)
        )

    def _on_snapshot(self, message: Message) -> None:
        self._hear(message.sender)
        meta = message.snapshot
        if meta is None:
            raise ValueError("a SNAPSHOT is to be stepped with its snapshot filled in")
        log = self._log
        if meta.index <= log.commit:
            self._acknowledge(message.sender, log.commit)
            return
        if log.term_at(meta.index) == meta.term:
            log.commit_to(meta.index)  # the log has it all: nothing to install
        else:
            log.restore(meta.index, meta.term)
            self.configuration = meta.configuration
            self._snapshot = meta
            self._given = meta.index
        self._acknowledge(message.sender, meta.index)

    def _on_timeout_now(self, message: Message) -> None:
        if self.role is Role.FOLLOWER and self._may_campaign():
            self._seek_votes(forced=True)

    def _on_append_reply(self, message: Message) -> None:
        if self._leadership is not None:
            self._leadership.on_append_reply(message)

    def _on_heartbeat_reply(self, message: Message) -> None:
        if self._leadership is not None:
            self._leadership.on_heartbeat_reply(message)

    # ---- what the shell has to do ------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Asked several times for each Ready, so without detours."""
        log = self._log
        return bool(
            self._messages
            or self._deferred
            or (self._given < log.commit and self._given < log.stable)
            or log.unsaved <= log.last_index
            or self._snapshot is not None
            or (self._leadership is not None and self._leadership.has_due())
            or self._reads
            or self._aborted
            or self._told_leader != self.leader
            or self._told_role is not self.role
            or self._written.term != self.term
            or self._written.vote != self._vote
        )

    def ready(self) -> Ready:
        """Everything that has become due. The next one may be asked for before this one is durable or applied."""
        self._number += 1
        if self._leadership is not None:
            self._leadership.flush()
            self._reads += self._leadership.confirmed
            self._leadership.confirmed = []
        snapshot, self._snapshot = self._snapshot, None
        entries = self._log.take_unsaved()
        hard_state = self._hard_state_to_write(writes_anyway=bool(entries) or snapshot is not None)
        if hard_state is not None or entries or snapshot is not None:
            self._log.mark(self._number)
        if snapshot is not None:
            self._installing = (self._number, snapshot.index)
        if self.role is Role.CANDIDATE and not self._own_vote_in:
            self._own_vote_in = self._number
        if not self._log.awaits_disk:  # nothing that the promises could wait for
            self._messages += self._deferred
            self._deferred = []
        self._told_role, self._told_leader = self.role, self.leader
        return self._take(hard_state, snapshot, entries)

    def _may_give(self) -> int:
        """The last entry that may be applied: decided by the group, and on the own disk, so that a node never has a
        state that its own log cannot explain after a restart."""
        return min(self._log.commit, self._log.stable)

    def _take(self, hard_state: HardState | None, snapshot: SnapshotMeta | None, entries: tuple[Entry, ...]) -> Ready:
        log = self._log
        end = self._may_give()
        committed = log.slice(self._given + 1, end, self._options.max_committed_bytes) if self._given < end else ()
        self._given += len(committed)
        ready = Ready(
            self._number,
            hard_state,
            snapshot,
            entries,
            tuple(self._messages),
            tuple(self._deferred),
            committed,
            tuple(self._reads),
            tuple(self._aborted),
            self.leader,
            self.role,
        )
        self._messages, self._deferred, self._reads, self._aborted = [], [], [], []
        return ready

    def _hard_state_to_write(self, *, writes_anyway: bool) -> HardState | None:
        written, commit = self._written, self._log.commit
        if (
            written.term == self.term
            and written.vote == self._vote
            and not (writes_anyway and written.commit != commit)
        ):
            return None
        self._written = HardState(self.term, self._vote, commit)
        return self._written

    def persisted(self, number: int) -> None:
        """Everything that the Readys up to `number` asked to persist is durable."""
        self._log.persisted(number)
        if self._installing is not None and self._installing[0] <= number:
            self.applied = max(self.applied, self._installing[1])
            self._installing = None
        if self._leadership is not None:
            self._leadership.on_persisted()
        elif self.role is Role.CANDIDATE and 0 < self._own_vote_in <= number:
            self._count_vote(self.node, granted=True)

    def applied_to(self, index: int) -> None:
        """The shell has applied every committed entry up to `index`."""
        if index > self._given:
            raise ValueError(f"entry {index} was not given out yet: only {self._given} were")
        self.applied = max(self.applied, index)
