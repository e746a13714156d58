"""PD's operators: what is being done to one region, step by step, and what became of it.

Rules: an operator is made for a region at one epoch, runs while it is the region's only one, and ends exactly once:
finished, cancelled with a reason, replaced by one of a higher level, or out of time. Names, kinds and order are PD's,
because people and tools read them. Whether it may run, and when a step is sent, is decided by `controller`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag, StrEnum

from msgspec import Struct, field

from drillyard.emulator.pd.picture import RegionView
from drillyard.emulator.pd.steps import Influence, MergeRegion, SplitRegion, Step
from drillyard.wire import pdpb

SECOND_NS = 10**9


class Kind(IntFlag):
    """Who made an operator and what it includes. The lowest flag says by whose limit it is counted."""

    NONE = 0
    ADMIN = 1
    MERGE = 2
    RANGE = 4
    REPLICA = 8
    SPLIT = 16
    HOT_REGION = 32
    REGION = 64
    LEADER = 128

    @property
    def text(self) -> str:
        return ",".join((each.name or "").lower().replace("_", "-") for each in Kind if each and each in self) or (
            "unknown"
        )

    @property
    def counted_as(self) -> Kind:
        return Kind(int(self) & -int(self))


class Level(IntEnum):
    """Of two operators for one region the higher one stays."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2
    URGENT = 3


class Status(IntEnum):
    CREATED = 0
    STARTED = 1
    SUCCESS = 2
    CANCELED = 3
    REPLACED = 4
    EXPIRED = 5
    TIMEOUT = 6

    @property
    def on_the_wire(self) -> pdpb.OperatorStatus:
        return _ON_THE_WIRE[self]


_ON_THE_WIRE = {
    Status.STARTED: pdpb.RUNNING,
    Status.SUCCESS: pdpb.SUCCESS,
    Status.CANCELED: pdpb.CANCEL,
    Status.REPLACED: pdpb.REPLACE,
    Status.EXPIRED: pdpb.TIMEOUT,
    Status.TIMEOUT: pdpb.TIMEOUT,
}


class Reason(StrEnum):
    """Why an operator was cancelled."""

    REGION_NOT_FOUND = "region not found"
    EPOCH_NOT_MATCH = "epoch not match"
    ALREADY_EXIST = "already exist"
    ADMIN_STOP = "admin stop"
    TIMEOUT = "timeout"
    STALE_STATUS = "stale status"
    EXCEED_STORE_LIMIT = "exceed store limit"
    RELATED_MERGE_REGION = "related merge region"


class Operator(Struct, eq=False):
    desc: str
    brief: str
    region_id: int
    epoch: tuple[int, int]  # version and conf_ver when it was made
    kind: Kind
    size: int
    steps: tuple[Step, ...]
    level: Level = Level.MEDIUM
    created_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    current: int = 0
    status: Status = Status.CREATED
    reason: str = ""
    related: int = 0  # the other region of a merge
    timeout_ns: int = 0
    counted_as: Kind = Kind.NONE
    next_push_ns: int = 0
    finished_ns: list[int] = field(default_factory=list)  # of each step done

    def __post_init__(self) -> None:
        if Kind.ADMIN in self.kind:
            self.level = Level.URGENT
        self.counted_as = self.kind.counted_as
        self.timeout_ns = self.timeout_ns or sum(step.timeout_ns(self.size) for step in self.steps)

    @property
    def step(self) -> Step | None:
        return self.steps[self.current] if self.current < len(self.steps) else None

    @property
    def is_merge(self) -> bool:
        return isinstance(self.steps[-1], MergeRegion)

    @property
    def age_ns(self) -> int:
        """How long it ran; for one that did not succeed, since its last step was done."""
        since = self.started_ns or self.created_ns
        if self.status is not Status.SUCCESS and self.finished_ns:
            since = self.finished_ns[-1]
        return self.ended_ns - since

    def advance(self, region: RegionView, now_ns: int) -> Step | None:
        """Counts off the steps that are done; the one to take next, if there is one."""
        while (step := self.step) is not None and step.is_finished(region):
            self.finished_ns.append(now_ns)
            self.current += 1
        return self.step

    def conf_changes(self, region: RegionView) -> int:
        """How far its steps have moved the region's conf_ver; the current one may just have been taken."""
        return sum(step.conf_changes(region) for step in self.steps[: self.current + 1])

    def is_late(self, now_ns: int) -> bool:
        return now_ns - self.started_ns > self.timeout_ns

    def remaining(self, influence: Influence, region: RegionView) -> None:
        for step in self.steps[self.current :]:
            if not step.is_finished(region):
                step.influence(influence, region)

    def total(self, influence: Influence, region: RegionView) -> None:
        for step in self.steps:
            step.influence(influence, region)


class CannotBuild(Exception):
    """There is no operator for what was asked; why, in PD's words."""


def split_operator(
    desc: str, region: RegionView, kind: Kind, policy: pdpb.CheckPolicy, keys: Sequence[bytes]
) -> Operator:
    if region.is_joint:
        raise CannotBuild("cannot split region which is in joint state")
    brief = f"split: region {region.id} use policy {pdpb.CheckPolicy.Name(policy)}"
    if keys:
        brief += f" and keys [{' '.join(key.hex().upper() for key in keys)}]"
    step = SplitRegion(region.meta.start_key, region.meta.end_key, policy, tuple(keys))
    return Operator(desc, brief, region.id, region.epoch, kind | Kind.SPLIT, region.size, (step,))


def merge_operators(
    desc: str, source: RegionView, target: RegionView, kind: Kind, align: Sequence[Step]
) -> tuple[Operator, Operator]:
    """Both operators of a merge: `align` brings the source's peers to the target's stores first."""
    if source.is_joint or target.is_joint:
        raise CannotBuild("cannot merge regions which are in joint state")
    brief = f"merge: region {source.id} to {target.id}"
    active = MergeRegion(source.meta, target.meta, is_passive=False)
    passive = MergeRegion(source.meta, target.meta, is_passive=True)
    steps = (*align, active)
    kinds = kind | Kind.MERGE
    first = Operator(desc, brief, source.id, source.epoch, kinds, source.size, steps, related=target.id)
    second = Operator(desc, brief, target.id, target.epoch, kinds, target.size, (passive,), related=source.id)
    second.timeout_ns = first.timeout_ns
    return first, second
