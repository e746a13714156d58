"""Which operators run: who gets in, when a step is sent, and how each of them ends.

Rules: one operator a region. A newcomer takes the place of a running one only with a higher level. It must have been
made for the region as it is now, and its stores' limits must allow it: each store takes only so many peers a minute in
and out, counted in tokens that grow back (an empty region costs none, and what a human asks for is never held up). A
step is sent with every heartbeat of its region and otherwise every few seconds until the region shows that it was
taken. An operator ends when all its steps are done, when it is out of time, when its region changed in a way that its
steps do not account for, or when a step can no longer be carried out. The last hundred that ended are remembered, and
all of the last ten minutes.

It decides nothing about where peers should be.
"""

from __future__ import annotations

from collections import Counter, deque

from msgspec import Struct, field

from drillyard.emulator.pd.operators import Kind, Level, Operator, Reason, Status
from drillyard.emulator.pd.picture import Picture, RegionView, StoreView
from drillyard.emulator.pd.steps import ADD_PEER, COST, SECOND_NS, Change, Influence, Step
from drillyard.wire import pdpb

BRISK_PUSH_NS = 2 * SECOND_NS
SLOW_PUSH_NS = 5 * SECOND_NS
RECORDS_KEPT = 100
RECORDS_NS = 600 * SECOND_NS
UNLIMITED = 1e8
JUST_DONE_NS = 10 * SECOND_NS  # what was done so fast counts as influence for a while: reports lag behind


class Tokens(Struct):
    """What a store's limit allows of one kind now. Full at first; it holds a second's worth, at least one move."""

    level: float = 0.0
    at_ns: int = -1

    def fill(self, limit: float, now_ns: int) -> float:
        rate = limit / 60 * COST
        most = max(float(COST), rate)
        if self.at_ns < 0:
            self.level = most
        else:
            self.level = min(most, self.level + rate * max(0, now_ns - self.at_ns) / SECOND_NS)
        self.at_ns = now_ns
        return UNLIMITED * COST if limit >= UNLIMITED else self.level


class StoreLimits:
    """The tokens of all stores."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, str], Tokens] = {}

    def allows(self, store: StoreView, kind: str, cost: int, now_ns: int) -> bool:
        limit = store.add_limit if kind == ADD_PEER else store.remove_limit
        return self._of(store.id, kind).fill(limit, now_ns) >= cost

    def take(self, store: StoreView, kind: str, cost: int, now_ns: int) -> None:
        """What an urgent operator takes beyond what is there is not owed."""
        if self.allows(store, kind, cost, now_ns):
            tokens = self._of(store.id, kind)
            tokens.level = max(0.0, tokens.level - cost)

    def _of(self, store_id: int, kind: str) -> Tokens:
        return self._tokens.setdefault((store_id, kind), Tokens())


class Dispatch(Struct, frozen=True):
    """A step for a region's leader, on its way."""

    region: RegionView
    step: Step
    order: pdpb.RegionHeartbeatResponse | None
    source: str


class Doings(Struct):
    """What the controller did since somebody last looked: steps to send, and operators for the log."""

    dispatches: list[Dispatch] = field(default_factory=list)
    added: list[Operator] = field(default_factory=list)
    ended: list[Operator] = field(default_factory=list)


class Controller:
    def __init__(self) -> None:
        self.running: dict[int, Operator] = {}
        self.records: deque[Operator] = deque()
        self.limits = StoreLimits()
        self._counts: Counter[Kind] = Counter()
        self._doings = Doings()
        self._just_done: deque[tuple[int, Influence]] = deque()

    def take_doings(self) -> Doings:
        taken, self._doings = self._doings, Doings()
        return taken

    def count(self, kind: Kind) -> int:
        """How many run on account of a kind."""
        return self._counts[kind]

    def status_of(self, region_id: int, now_ns: int) -> Operator | None:
        """The region's operator, or the last one that it had lately."""
        if (running := self.running.get(region_id)) is not None:
            return running
        self._forget_old(now_ns)
        return next((each for each in reversed(self.records) if each.region_id == region_id), None)

    # ---- who gets in ----

    def add(self, picture: Picture, *operators: Operator) -> bool:
        """Starts operators, all or none; those that may not start are remembered as cancelled."""
        now_ns = picture.now_ns
        for each in operators:
            each.created_ns = each.created_ns or now_ns
        reason = self._objection(picture, operators)
        if reason:
            for each in operators:
                self._bury(each, Status.CANCELED, reason, now_ns)
            return False
        for each in operators:
            self._start(each, picture)
        return True

    def _objection(self, picture: Picture, operators: tuple[Operator, ...]) -> str:
        if not self._fits_limits(picture, operators):
            return Reason.EXCEED_STORE_LIMIT
        for each in operators:
            region = picture.region(each.region_id)
            if region is None:
                return Reason.REGION_NOT_FOUND
            if region.epoch != each.epoch:
                return Reason.EPOCH_NOT_MATCH
            running = self.running.get(each.region_id)
            if running is not None and each.level <= running.level:
                return Reason.ALREADY_EXIST
        return ""

    def _fits_limits(self, picture: Picture, operators: tuple[Operator, ...]) -> bool:
        if operators[0].level is Level.URGENT:
            return True
        for store_id, change in self._costs(picture, operators).items():
            store = picture.store(store_id)
            for kind, cost in change.costs.items() if store is not None else ():
                assert store is not None
                if not self.limits.allows(store, kind, cost, picture.now_ns):
                    return False
        return True

    def _costs(self, picture: Picture, operators: tuple[Operator, ...]) -> dict[int, Change]:
        influence = Influence()
        for each in operators:
            if (region := picture.region(each.region_id)) is not None:
                each.total(influence, region)
        return influence.stores

    def _start(self, operator: Operator, picture: Picture) -> None:
        now_ns = picture.now_ns
        if (former := self.running.get(operator.region_id)) is not None:
            self._remove(former, Status.REPLACED, "", now_ns)
        operator.status, operator.started_ns = Status.STARTED, now_ns
        self.running[operator.region_id] = operator
        self._counts[operator.counted_as] += 1
        self._doings.added.append(operator)
        for store_id, change in self._costs(picture, (operator,)).items():
            store = picture.store(store_id)
            for kind, cost in change.costs.items() if store is not None else ():
                assert store is not None
                self.limits.take(store, kind, cost, now_ns)
        if (region := picture.region(operator.region_id)) is not None:
            self.dispatch(region, picture, "create")

    # ---- steps ----

    def dispatch(self, region: RegionView, picture: Picture, source: str) -> None:
        """Looks how far a region's operator has come, and sends its step."""
        operator = self.running.get(region.id)
        if operator is None:
            return
        now_ns = picture.now_ns
        step = operator.advance(region, now_ns)
        if step is None:
            self._finish(operator, region, now_ns)
        elif operator.is_late(now_ns):
            self._remove(operator, Status.TIMEOUT, Reason.TIMEOUT, now_ns)
        elif reason := self._staleness(operator, step, region, picture):
            self._remove(operator, Status.CANCELED, reason, now_ns)
        else:
            operator.next_push_ns = now_ns + (BRISK_PUSH_NS if step.is_brisk else SLOW_PUSH_NS)
            self._doings.dispatches.append(Dispatch(region, step, step.order(region), source))

    def _staleness(self, operator: Operator, step: Step, region: RegionView, picture: Picture) -> str:
        if step.hindrance(region, picture.stores):
            return Reason.STALE_STATUS
        if operator.is_merge and region.epoch[0] > operator.epoch[0]:
            return Reason.EPOCH_NOT_MATCH  # its range is not what was to be merged
        if region.epoch[1] - operator.epoch[1] > operator.conf_changes(region):
            return Reason.EPOCH_NOT_MATCH
        return ""

    def push(self, picture: Picture) -> None:
        """Sends steps again whose time has come, and ends operators whose region is gone."""
        for operator in list(self.running.values()):
            if self.running.get(operator.region_id) is not operator:
                continue  # it went with the other half of its merge
            region = picture.region(operator.region_id)
            if region is None:
                if picture.is_gone(operator.region_id):
                    self._disappear(operator, picture.now_ns)
                elif operator.is_late(picture.now_ns):
                    self._remove(operator, Status.TIMEOUT, Reason.TIMEOUT, picture.now_ns)
            elif picture.now_ns >= operator.next_push_ns:
                self.dispatch(region, picture, "active push")

    def _disappear(self, operator: Operator, now_ns: int) -> None:
        """A merge that succeeds takes its source region away; the target's operator tells whether it did."""
        self._remove(operator, Status.CANCELED, Reason.REGION_NOT_FOUND, now_ns, spares_related=operator.is_merge)

    # ---- ends ----

    def cancel(self, region_id: int, reason: str, now_ns: int) -> bool:
        operator = self.running.get(region_id)
        if operator is None:
            return False
        self._remove(operator, Status.CANCELED, reason, now_ns)
        return True

    def cancel_all(self, reason: str, now_ns: int) -> None:
        for region_id in list(self.running):
            self.cancel(region_id, reason, now_ns)

    def _finish(self, operator: Operator, region: RegionView, now_ns: int) -> None:
        if now_ns - operator.started_ns < JUST_DONE_NS:
            influence = Influence()
            operator.total(influence, region)
            self._just_done.append((now_ns, influence))
        self._forget_done(now_ns)
        self._remove(operator, Status.SUCCESS, "", now_ns)

    def _remove(
        self, operator: Operator, status: Status, reason: str, now_ns: int, *, spares_related: bool = False
    ) -> None:
        self._drop(operator)
        self._bury(operator, status, reason, now_ns)
        related = self.running.get(operator.related) if operator.is_merge and not spares_related else None
        if related is not None and related.related == operator.region_id:
            self._drop(related)
            self._bury(related, Status.CANCELED, Reason.RELATED_MERGE_REGION, now_ns)

    def _drop(self, operator: Operator) -> None:
        del self.running[operator.region_id]
        self._counts[operator.counted_as] -= 1

    def _bury(self, operator: Operator, status: Status, reason: str, now_ns: int) -> None:
        operator.status, operator.reason, operator.ended_ns = status, reason, now_ns
        self.records.append(operator)
        self._doings.ended.append(operator)
        self._forget_old(now_ns)

    def _forget_old(self, now_ns: int) -> None:
        while len(self.records) > RECORDS_KEPT and now_ns - self.records[0].ended_ns > RECORDS_NS:
            self.records.popleft()
        while len(self.records) > 100 * RECORDS_KEPT:
            self.records.popleft()

    # ---- influence ----

    def influence(self, picture: Picture, *, with_done: bool = False) -> Influence:
        """What the running operators will still change; with what was done so lately that scores may not show it."""
        influence = Influence()
        for operator in self.running.values():
            if (region := picture.region(operator.region_id)) is not None:
                operator.remaining(influence, region)
        self._forget_done(picture.now_ns)
        for _, done in self._just_done if with_done else ():
            for store_id, change in done.stores.items():
                total = influence.on(store_id)
                total.regions += change.regions
                total.region_size += change.region_size
        return influence

    def _forget_done(self, now_ns: int) -> None:
        while self._just_done and now_ns - self._just_done[0][0] > JUST_DONE_NS:
            self._just_done.popleft()
