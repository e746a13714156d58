"""What was seen: one `Reading` per probe, and the immutable `Observation` of one cycle; every `Attempt` of a canary,
and what changed in PD's words meanwhile.

Rules: pure data, no opinions. A probe that was not answered leaves a reading with a `Failure` and no answer; that is a
fact too, and never the same as "broken". Everything that judges the cluster reads one `Observation`, so that all checks
see the same picture. Times are seconds since the epoch on this machine's clock and come in from outside.

Not here: asking (probes), deciding (judge).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TypeVar

from drillyard.topology import Role


class Probe(StrEnum):
    """The questions that are asked. From `TIMESTAMPS` on they are asked once per cluster."""

    PROCESS = "process"
    PD_MEMBERS = "pd-members"
    PD_SELF = "pd-self"
    PD_HEALTH = "pd-health"
    STORE_SELF = "store-self"
    TIMESTAMPS = "timestamps"
    STORES = "stores"
    REGION_COUNT = "region-count"
    MAX_REPLICAS = "max-replicas"
    MISS_PEER = "miss-peer"
    DOWN_PEER = "down-peer"
    PENDING_PEER = "pending-peer"
    LEARNER_PEER = "learner-peer"
    DATA_PATH = "data-path"
    REGIONS = "regions"  # feeds no gate


LOW_SPACE = 0.2  # of a store's capacity
FEW_REGIONS, FEW_REGIONS_SPACE = 100, 8 << 30  # a store with fewer regions and more bytes left is never low
REGION_CHECKS = (Probe.MISS_PEER, Probe.DOWN_PEER, Probe.PENDING_PEER, Probe.LEARNER_PEER)


@dataclass(frozen=True, slots=True)
class StartedMember:
    """One member as it was started: the name and the address at which the world must find it."""

    name: str
    role: Role
    address: str
    status_address: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """What was started, and so what must be found. `cluster_id` is None until a first proof recorded it; an unasked end
    from `since` on counts against its member even if it runs again (None: only whether it runs counts)."""

    members: tuple[StartedMember, ...]
    cluster_id: int | None = None
    heartbeat_fresh_s: float = 20.0
    since: float | None = None

    def of_role(self, role: Role) -> tuple[StartedMember, ...]:
        return tuple(member for member in self.members if member.role is role)


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A member's process or container, as its runtime knows it."""

    running: bool
    pid: int | None = None
    started_at: float = 0.0
    code: int | None = None
    signal: int | None = None
    asked: bool = False
    paused: bool = False
    held_back: bool = False  # not started yet, on purpose
    ended_at: float = 0.0  # its latest end, also when it runs again
    restarts: int = 0  # how often its restart policy started it again


@dataclass(frozen=True, slots=True)
class PdMemberSeen:
    """One entry of a PD's member list."""

    name: str
    client_urls: tuple[str, ...]
    version: str = ""
    git_hash: str = ""


@dataclass(frozen=True, slots=True)
class PdMembersSeen:
    """One PD's own answer to "who is in the cluster, and who leads". `leader` is empty when it knows none."""

    cluster_id: int
    leader: str
    members: tuple[PdMemberSeen, ...]


@dataclass(frozen=True, slots=True)
class SelfSeen:
    """A member's own word about itself: a PD's etcd-style /health, a TiKV's /status."""

    healthy: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class PdHealthSeen:
    """The body of /pd/api/v1/health: PD's opinion of each of its members."""

    healthy: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class TimestampsSeen:
    """Two timestamps granted one after the other, each (physical ms, logical)."""

    first: tuple[int, int]
    second: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """One store in PD's list. `last_heartbeat` is 0 when PD has had none."""

    store_id: int
    address: str
    state: str
    last_heartbeat: float
    leader_count: int
    region_count: int
    version: str = ""
    git_hash: str = ""
    capacity: int = 0  # bytes, 0 when PD does not know
    available: int = 0

    @property
    def is_low_on_space(self) -> bool:
        """Whether PD places no replica there, as its default low-space-ratio has it (its store.go, IsLowSpace)."""
        if not self.capacity or (self.region_count < FEW_REGIONS and self.available > FEW_REGIONS_SPACE):
            return False
        return self.available < self.capacity * LOW_SPACE


@dataclass(frozen=True, slots=True)
class StoresSeen:
    stores: tuple[StoreSeen, ...]


@dataclass(frozen=True, slots=True)
class CountSeen:
    """A number PD gave: its regions, its replica setting, or how many regions a check endpoint lists."""

    count: int
    regions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DataPathSeen:
    """A key written, read back and deleted. `step` and `reason` say where it was refused, empty when all went well."""

    region_id: int
    store: str
    step: str = ""
    reason: str = ""


class PeerRole(StrEnum):
    """A peer's part in its region's quorum, in PD's words. An incoming voter votes in the new half of a joint
    configuration only, a demoting one in the old half."""

    VOTER = "Voter"
    LEARNER = "Learner"
    INCOMING_VOTER = "IncomingVoter"
    DEMOTING_VOTER = "DemotingVoter"


@dataclass(frozen=True, slots=True)
class PeerSeen:
    peer_id: int
    store_id: int
    role: PeerRole


@dataclass(frozen=True, slots=True)
class RegionSeen:
    """One region as PD has it. `pending` and `down` are peer ids. `leader_store` is 0 when PD's leader has not heard of
    the region since it leads: then nobody knows which peers are pending or down."""

    region_id: int
    peers: tuple[PeerSeen, ...]
    leader_store: int
    pending: tuple[int, ...] = ()
    down: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RegionsSeen:
    """The first regions in the order of their keys; `is_complete` when there are no more."""

    regions: tuple[RegionSeen, ...]
    is_complete: bool = True


Answer = (
    ProcessSeen
    | PdMembersSeen
    | SelfSeen
    | PdHealthSeen
    | TimestampsSeen
    | StoresSeen
    | CountSeen
    | DataPathSeen
    | RegionsSeen
)
AnswerT = TypeVar(
    "AnswerT",
    ProcessSeen,
    PdMembersSeen,
    SelfSeen,
    PdHealthSeen,
    TimestampsSeen,
    StoresSeen,
    CountSeen,
    DataPathSeen,
    RegionsSeen,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a probe has no answer: `kind` for programs (refused, timed-out, status, malformed, …), `text` for people."""

    kind: str
    text: str


_KINDS: dict[Probe, type] = {
    Probe.PROCESS: ProcessSeen,
    Probe.PD_MEMBERS: PdMembersSeen,
    Probe.PD_SELF: SelfSeen,
    Probe.PD_HEALTH: PdHealthSeen,
    Probe.STORE_SELF: SelfSeen,
    Probe.TIMESTAMPS: TimestampsSeen,
    Probe.STORES: StoresSeen,
    Probe.DATA_PATH: DataPathSeen,
    Probe.REGIONS: RegionsSeen,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One question to one member, with either its answer or the failure to get one."""

    member: str
    probe: Probe
    asked_at: float
    answered_at: float
    answer: Answer | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.failure is None):
            raise ValueError(f"a reading of {self.probe} needs an answer or a failure, and not both")
        if self.answer is not None and not isinstance(self.answer, _KINDS.get(self.probe, CountSeen)):
            raise TypeError(f"{type(self.answer).__name__} is no answer to {self.probe}")


@dataclass(frozen=True, slots=True)
class Observation:
    """The cluster at one instant: what was started and everything that was read in one cycle."""

    number: int
    at: float
    started: Started
    readings: tuple[Reading, ...]
    _index: dict[tuple[Probe, str], Reading] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        index = {(reading.probe, reading.member): reading for reading in self.readings}
        object.__setattr__(self, "_index", index)

    def reading(self, probe: Probe, member: str) -> Reading | None:
        """The reading of this probe at this member, or None when it was not asked."""
        return self._index.get((probe, member))

    def once(self, probe: Probe) -> Reading | None:
        """The reading of a probe that is asked once per cluster, whoever answered it."""
        return next((reading for reading in self.readings if reading.probe is probe), None)

    def answer(self, probe: Probe, member: str, kind: type[AnswerT]) -> AnswerT | None:
        reading = self.reading(probe, member)
        return reading.answer if reading is not None and isinstance(reading.answer, kind) else None

    def answer_once(self, probe: Probe, kind: type[AnswerT]) -> AnswerT | None:
        reading = self.once(probe)
        return reading.answer if reading is not None and isinstance(reading.answer, kind) else None

    def with_readings(self, more: Iterable[Reading]) -> Observation:
        """The same instant with the readings of a later stage added."""
        return Observation(self.number, self.at, self.started, (*self.readings, *more))


# --- what canaries see: one attempt after the other, while something is done to a member ------------------------------


class Act(Enum):
    WRITE = "write"
    KNOCK = "knock"  # a write too, to a second key of which nothing is read: it finds out who serves
    READ = "read"
    TIMESTAMP = "timestamp"


class Result(Enum):
    """What an attempt came to: it happened, it certainly did not, or nobody told."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a canary at one member. `number` is what it wrote, what it read (0: the key was not there), or the
    timestamp that it was granted."""

    act: Act
    began: float
    ended: float
    result: Result
    number: int = 0
    member: str = ""


class PdWord(Enum):
    """What of PD's words is watched."""

    REGION_LEADER = "region leader"
    STORE_STATE = "store state"
    PD_LEADER = "PD leader"


@dataclass(frozen=True, slots=True)
class PdChange:
    """PD said `before`, and from `at` on `after`. `subject` is a region's id in digits, a store's member, or empty."""

    at: float
    word: PdWord
    subject: str
    before: str
    after: str
