"""What the Raft core takes and gives: entries, messages, and the `Ready` record.

All of these are plain values. The core keeps no file, socket, clock or source of chance; a shell carries out what a
`Ready` asks for, in the order that `Ready` states, and reports back.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from msgspec import Struct


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class ChangeKind(IntEnum):
    """What a membership change does to one node; the numbers are those of eraftpb.ConfChangeType."""

    ADD_VOTER = 0  # a new voter, or the promotion of a learner
    REMOVE = 1
    ADD_LEARNER = 2  # a new learner, or the demotion of a voter


class Change(Struct, frozen=True):
    kind: ChangeKind
    node: int


class ConfigurationChange(Struct, frozen=True):
    """One membership change: none leaves the joint configuration, one is simple, two or more enter a joint one."""

    changes: tuple[Change, ...] = ()


class Configuration(Struct, frozen=True):
    """Who votes. `outgoing` is not empty exactly while the group is in a joint configuration."""

    voters: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()  # outgoing voters that become learners when the joint state is left


class Entry(Struct, frozen=True):
    """One place of the log. `change` is set for a membership change; `data` is the shell's own, in both cases."""

    term: int
    index: int
    data: bytes = b""
    change: ConfigurationChange | None = None


class HardState(Struct, frozen=True):
    term: int = 0
    vote: int = 0  # 0: nobody
    commit: int = 0


class SnapshotMeta(Struct, frozen=True):
    """Where a snapshot of the state stands: the last entry that it holds, and the configuration then."""

    index: int
    term: int
    configuration: Configuration


class MessageKind(IntEnum):
    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    SNAPSHOT = 9
    TIMEOUT_NOW = 10


class Message(Struct, frozen=True):
    """One message between two nodes of a group.

    A SNAPSHOT leaves the core with `snapshot=None`: the shell takes its view of the state at that moment, fills in
    `Raft.snapshot_meta()`, carries the data by its own means, and reports with `Raft.report_snapshot`. The receiving
    shell hands the message to `step` only once all the data has arrived.
    """

    kind: MessageKind
    sender: int
    to: int
    term: int
    index: int = 0  # APPEND: the entry before `entries`; APPEND_REPLY: the last matching or refused; votes: the last
    log_term: int = 0  # the term of the entry at `index`
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    hint_index: int = 0  # APPEND_REPLY that rejects: where the follower's log may still agree
    hint_term: int = 0
    context: bytes = b""  # HEARTBEAT and its reply: which batch of reads it confirms
    forced: bool = False  # VOTE: leadership is being transferred, so the lease of the old leader does not count
    snapshot: SnapshotMeta | None = None


class ReadState(Struct, frozen=True):
    """A read asked for with `context` is linearizable once the shell has applied entry `index`."""

    context: bytes
    index: int


class Ready(Struct, frozen=True):
    """Work for the shell, in this order.

    1. Persist `hard_state`, install `snapshot` (it replaces log and state), append `entries` (entries from
       `entries[0].index` on are replaced). All of one Ready in one atomic batch, Readys in order.
    2. Send `messages` at once; they do not wait for the disk.
    3. When all of 1, of this Ready and of every one before, is durable: call `Raft.persisted(number)` and send
       `deferred`. This holds for a Ready that has nothing to persist itself, too, unless it defers nothing either.
    4. Apply `committed` in order (for a membership change call `Raft.apply_change`, unless the state machine rejects
       it), and call `Raft.applied_to(index)`. They are durable here already. An entry without data and change is the
       mark that a new leader puts in its log: it only counts as applied.
    5. Serve `reads` when their index has been applied; fail `aborted_reads`.

    A commit index that moved is no reason to write: `hard_state` carries it when something else has to be written.
    After a restart the core takes the larger of it and `Restored.applied`.
    """

    number: int
    hard_state: HardState | None = None
    snapshot: SnapshotMeta | None = None
    entries: tuple[Entry, ...] = ()
    messages: tuple[Message, ...] = ()
    deferred: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()
    reads: tuple[ReadState, ...] = ()
    aborted_reads: tuple[bytes, ...] = ()
    leader: int = 0  # as known now; 0: nobody
    role: Role = Role.FOLLOWER

    @property
    def must_persist(self) -> bool:
        return self.hard_state is not None or self.snapshot is not None or bool(self.entries)

    @property
    def waits_for_disk(self) -> bool:
        """Whether anything of step 3 is to be done: `persisted` would change nothing otherwise."""
        return self.must_persist or bool(self.deferred)


class Restored(Struct, frozen=True):
    """What a node finds on its disk when it starts. A new group starts with a configuration and nothing else."""

    configuration: Configuration
    hard_state: HardState = HardState()
    snapshot_index: int = 0  # the entry just before the first of `entries`
    snapshot_term: int = 0
    entries: tuple[Entry, ...] = ()
    applied: int = 0
    number: int = (
        0  # the last Ready of a node that this one replaces: what became durable of that one is not this one's
    )


class Options(Struct, frozen=True):
    """How one node behaves; all times are in ticks."""

    election_ticks: int = 10
    heartbeat_ticks: int = 2
    max_append_bytes: int = 1 << 20  # of one APPEND
    max_inflight: int = 256  # APPENDs that a follower may have outstanding
    max_committed_bytes: int = 4 << 20  # of one Ready's `committed`


class ProtocolBroken(Exception):
    """What this node holds contradicts what the group has decided: data was lost or mixed up. The member must stop."""


class ProposalDropped(Exception):
    """The proposal or read was not accepted, and nothing of it was kept."""


class NotLeader(ProposalDropped):
    """This node does not lead; `leader` is who does, as far as it knows (0: nobody)."""

    def __init__(self, leader: int) -> None:
        super().__init__(f"not leader; leader is {leader or 'unknown'}")
        self.leader = leader
