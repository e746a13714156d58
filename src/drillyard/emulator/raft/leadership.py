"""What a node does while it leads: copy its log to the others, decide what is committed, confirm reads, hand over.

A `Leadership` lives exactly as long as one node leads in one term; stepping down throws it away, so nothing of an old
leadership can leak into the next.

**Committing.** An entry of the leader's own term is committed once a quorum has it on disk. An entry of an earlier
term is never committed by counting copies: even on a majority it may still be replaced by a leader that has not seen
it (figure 8 of the Raft paper). It becomes committed together with the first entry of the own term after it, which is
why a new leader at once appends an empty entry. The leader's own copy counts like any other, when its disk has it.

**Reading.** A node may believe that it leads while the others have long elected another, so the state that it has
applied may be old. A read is answered only after a quorum has confirmed, after the read arrived, that it still
follows this leader; then the commit index of that moment is recent enough. One round of heartbeats is under way at a
time: reads that arrive meanwhile share the next one, so that there are fewer rounds the more there is to do. A new
leader does not know the commit index until an entry of its own term is committed, and holds reads back until then.

**Being quiet.** Proposals only mark that something is due; `flush` sends one append to each follower, with everything
that has gathered, when the shell asks for the next Ready. That an entry is committed is told by an append of its own
only where the entry is *urgent*: a membership change, the first of a term, whatever the shell says. For the others
the next append or heartbeat will do. A write then costs a follower one message instead of two.

It does not know about elections, terms of others, or the disk; the core tells it.
"""

from __future__ import annotations

from collections.abc import Callable

from drillyard.emulator.raft.configuration import agreed, changed, electors, has_quorum, members
from drillyard.emulator.raft.log import Log
from drillyard.emulator.raft.progress import Progress, ProgressState
from drillyard.emulator.raft.types import (
    Configuration,
    ConfigurationChange,
    Entry,
    Message,
    MessageKind,
    Options,
    ProposalDropped,
    ReadState,
)


class Leadership:
    """One node's leadership of one term."""

    __slots__ = (
        "_batch",
        "_change_index",
        "_configuration",
        "_due",
        "_heartbeat_elapsed",
        "_log",
        "_node",
        "_options",
        "_quorum_elapsed",
        "_read_batch",
        "_send",
        "_term",
        "_transfer_elapsed",
        "_urgent",
        "_waiting",
        "confirmed",
        "progress",
        "transferee",
    )

    def __init__(self, identity: tuple[int, int], log: Log, options: Options, send: Callable[[Message], None]) -> None:
        self._node, self._term = identity
        self._log = log
        self._options = options
        self._send = send
        self._configuration = Configuration()
        self.progress: dict[int, Progress] = {}
        self.transferee = 0
        self.confirmed: list[ReadState] = []  # reads that may be served; the core takes them
        self._waiting: list[bytes] = []  # reads that no batch holds yet
        self._batch: tuple[int, list[bytes]] | None = None  # the one under way: commit index at its start, reads
        self._read_batch = 0  # the number of the latest batch
        self._change_index = log.last_index  # the log may hold a change: no other before everything here is applied
        self._urgent = log.last_index  # the followers hear at once that the entries up to here are committed
        self._heartbeat_elapsed = self._quorum_elapsed = self._transfer_elapsed = 0
        self._due = True

    def reconfigure(self, options: Options) -> None:
        self._options = options

    def take_over(self, configuration: Configuration) -> None:
        """Begin: an entry of the own term, by which everything before it can be committed."""
        self._adopt(configuration)
        self._append(b"", None)

    # ---- proposals ---------------------------------------------------------------------------------------------

    def propose(self, data: bytes, *, is_urgent: bool) -> Entry:
        if self.transferee:
            raise ProposalDropped(f"leadership is being transferred to {self.transferee}")
        return self._append(data, None, is_urgent=is_urgent)

    def propose_change(self, change: ConfigurationChange, data: bytes, applied: int) -> Entry:
        """Propose a membership change; one at a time, because each is safe only next to the one before it."""
        if self.transferee:
            raise ProposalDropped(f"leadership is being transferred to {self.transferee}")
        if self._change_index > applied:
            raise ProposalDropped(f"entry {self._change_index} may change the membership and is not applied yet")
        try:
            changed(self._configuration, change)
        except ValueError as reason:
            raise ProposalDropped(str(reason)) from None
        entry = self._append(data, change)
        self._change_index = entry.index
        return entry

    def _append(self, data: bytes, change: ConfigurationChange | None, *, is_urgent: bool = True) -> Entry:
        entry = Entry(self._term, self._log.last_index + 1, data, change)
        self._log.append(entry)
        if is_urgent:
            self._urgent = entry.index
        self._due = True
        return entry

    # ---- replication -------------------------------------------------------------------------------------------

    def has_due(self) -> bool:
        return self._due or bool(self.confirmed) or self._may_open_batch()

    def flush(self) -> None:
        """Send what has become due since the last time."""
        if self._due:
            self._due = False
            for progress in self.progress.values():
                if progress.node != self._node:
                    self._bring_up_to_date(progress)
        self._open_batch()

    def _bring_up_to_date(self, progress: Progress) -> None:
        """One append at most, so that a long tail does not take hold of the member; the rest stays due."""
        last = self._log.last_index
        if progress.may_send() and (progress.next <= last or self._must_tell(progress)):
            self._send_append(progress)
            if progress.next <= last and progress.may_send():
                self._due = True

    def _must_tell(self, progress: Progress) -> bool:
        """Whether the follower has to hear of the commit index although there may be nothing else to send to it."""
        return progress.sent_commit < min(self._urgent, self._log.commit)

    def _send_append(self, progress: Progress) -> None:
        """Send what follows the point where the logs agree; it may be nothing, the answer is news all the same."""
        log = self._log
        before = progress.next - 1
        before_term = log.term_at(before)
        if before_term is None:
            self._send_snapshot(progress)
            return
        entries: tuple[Entry, ...] = ()
        if progress.may_send():
            entries = log.slice(progress.next, log.last_index, self._options.max_append_bytes)
        self._send(
            Message(MessageKind.APPEND, self._node, progress.node, self._term, before, before_term, log.commit, entries)
        )
        progress.sent(before + len(entries), log.commit)

    def _send_snapshot(self, progress: Progress) -> None:
        if progress.recent_active:  # else it would be taken and carried for nobody
            progress.begin_snapshot(self._log.first_index - 1)
            self._send(Message(MessageKind.SNAPSHOT, self._node, progress.node, self._term))

    def on_append_reply(self, message: Message) -> None:
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        if message.reject:
            hint = message.hint_index
            if message.hint_term:
                hint, _ = self._log.last_not_after(hint, message.hint_term)
            if progress.refuse(message.index, hint):
                self._send_append(progress)
            return
        if not progress.acknowledge(message.index, self._log.first_index):
            return
        self._advance_commit()
        if progress.next <= self._log.last_index or self._must_tell(progress):
            self._due = True
        if progress.node == self.transferee:
            self._hand_over(progress)

    def on_persisted(self) -> None:
        """The leader's own disk is a copy like the others'."""
        own = self.progress.get(self._node)
        if own is not None and own.match < self._log.stable:
            own.match = self._log.stable
            own.next = own.match + 1
            self._advance_commit()

    def _advance_commit(self) -> bool:
        """Commit what a quorum holds, if that ends in an entry of the own term; whether that moved anything."""
        progress = self.progress
        reached = agreed(self._configuration, lambda node: progress[node].match)
        if reached <= self._log.commit or self._log.term_at(reached) != self._term:
            return False
        self._due = self._due or self._log.commit < self._urgent
        self._log.commit_to(reached)
        return True

    def report_unreachable(self, node: int) -> None:
        if node in self.progress:
            self.progress[node].lose()

    def report_snapshot(self, node: int, ok: bool) -> None:
        if node in self.progress:
            self.progress[node].end_snapshot(ok)

    # ---- time --------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """One tick; False when no quorum was heard for an election timeout.

        Such a leader must step down: the others may have elected another, and clients should stop waiting for this
        one. It also allows voters to refuse candidates while they hear a leader without ever getting stuck.
        """
        self._heartbeat_elapsed += 1
        self._quorum_elapsed += 1
        self._transfer_elapsed += 1
        if self.transferee and self._transfer_elapsed >= self._options.election_ticks:
            self.transferee = 0
        if self._quorum_elapsed >= self._options.election_ticks:
            self._quorum_elapsed = 0
            if not self._hears_quorum():
                return False
        if self._heartbeat_elapsed >= self._options.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            for node, progress in self.progress.items():
                progress.answered = False
                self._send_heartbeat(node)
        return True

    @property
    def is_settled(self) -> bool:
        """Whether no read, handover or message to a follower is under way, and the commit index is known."""
        nothing = not (self.transferee or self._waiting or self._batch or self.confirmed or self._due)
        return nothing and self._knows_commit()

    def resume(self) -> None:
        """After time stood still: every follower hears of this leader, and has a full timeout to answer."""
        self._heartbeat_elapsed = self._quorum_elapsed = 0
        for node, progress in self.progress.items():
            progress.recent_active = True
            self._send_heartbeat(node)

    def _hears_quorum(self) -> bool:
        active = {self._node}
        for node, progress in self.progress.items():
            if progress.recent_active:
                active.add(node)
            progress.recent_active = False
        return has_quorum(self._configuration, active)

    def _send_heartbeat(self, node: int) -> None:
        """A heartbeat names the latest batch of reads, so every later one repeats a lost one."""
        if node == self._node:
            return
        context = self._read_batch.to_bytes(8, "big") if self._batch else b""
        commit = min(self.progress[node].match, self._log.commit)  # nothing that it may not hold
        self._send(Message(MessageKind.HEARTBEAT, self._node, node, self._term, commit=commit, context=context))

    def on_heartbeat_reply(self, message: Message) -> None:
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        if message.context:
            batch = int.from_bytes(message.context, "big")
            progress.acknowledged_reads = max(progress.acknowledged_reads, batch)
            self._confirm_reads()
        if progress.state is ProgressState.PROBE:
            progress.probe_sent = False
            if progress.match < self._log.last_index or progress.sent_commit < self._log.commit:
                self._send_append(progress)
        elif progress.state is ProgressState.REPLICATE and progress.has_unanswered() and not progress.answered:
            progress.answered = True  # once for each heartbeat
            self._send_append(progress)  # alive but silent about appends: its answer tells whether any was lost

    # ---- reads -------------------------------------------------------------------------------------------------

    def read(self, context: bytes) -> None:
        self._waiting.append(context)

    @property
    def is_reading(self) -> bool:
        return self._batch is not None

    def abandon_reads(self) -> list[bytes]:
        """The reads that this leadership leaves unanswered."""
        return (self._batch[1] if self._batch else []) + self._waiting

    def _knows_commit(self) -> bool:
        return self._log.term_at(self._log.commit) == self._term

    def _may_open_batch(self) -> bool:
        return bool(self._waiting) and self._batch is None and self._knows_commit()

    def _open_batch(self) -> None:
        if not self._may_open_batch():
            return
        self._read_batch += 1
        self._batch = self._log.commit, self._waiting
        self._waiting = []
        if self._node in self.progress:  # it is not, once its own removal is applied
            self.progress[self._node].acknowledged_reads = self._read_batch
        for node in electors(self._configuration):
            self._send_heartbeat(node)
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        progress = self.progress
        if self._batch is None:
            return
        if agreed(self._configuration, lambda node: progress[node].acknowledged_reads) >= self._read_batch:
            (index, contexts), self._batch = self._batch, None
            self.confirmed.extend(ReadState(context, index) for context in contexts)

    # ---- leadership transfer -----------------------------------------------------------------------------------

    def transfer(self, to: int) -> None:
        """Hand leadership to `to`: bring its log up to date, then tell it to campaign without waiting."""
        if to not in electors(self._configuration):
            raise ProposalDropped(f"{to} has no vote: leadership cannot be transferred to it")
        if to == self._node:
            self.transferee = 0
            return
        if to != self.transferee:
            self.transferee = to
            self._transfer_elapsed = 0
            self._hand_over(self.progress[to])

    def _hand_over(self, progress: Progress) -> None:
        if progress.match == self._log.last_index:
            self._send(Message(MessageKind.TIMEOUT_NOW, self._node, progress.node, self._term))
        elif progress.may_send():
            self._due = True

    # ---- membership --------------------------------------------------------------------------------------------

    def adopt(self, configuration: Configuration) -> None:
        """A change was applied. Less may be needed for a majority now, so ask again what is agreed."""
        self._adopt(configuration)
        if self.transferee not in electors(configuration):
            self.transferee = 0
        self._due = True
        self._advance_commit()
        self._confirm_reads()

    def _adopt(self, configuration: Configuration) -> None:
        self._configuration = configuration
        staying = members(configuration)
        for node in [node for node in self.progress if node not in staying]:
            if self.progress[node].may_send() and node != self._node:
                self._send_append(self.progress[node])  # tells a removed node that its removal is committed
            del self.progress[node]
        for node in staying:
            if node not in self.progress:
                progress = Progress(node, self._log.last_index + 1, self._options.max_inflight)
                if node == self._node:
                    progress.match = self._log.stable
                self.progress[node] = progress
