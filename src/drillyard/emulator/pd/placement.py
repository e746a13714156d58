"""PD's placement: where the peers and leaders of all regions should be, and how they get there.

This is the way in; the parts read in this order:

- `picture`: the cluster as one decision sees it: what was agreed on, and what heartbeats told.
- `checkers`, with `fit`: what one region needs. They look at a region whenever its leader reports it, and at all of
  them in a round, the patrol, because a region may need something since a *store* changed.
- `schedulers`, with `hot_balance`: what is better for the cluster as a whole: balance, and what people ask for.
- `builder`, `steps`, `operators`: a change of a region as steps that are safe in every order of events.
- `controller`: which operators run, when a step is sent, how they end.
- `scatter` and `requests`: what clients and people ask for.

Rules: nothing is decided before the leaders of most regions were heard, because a new leader of PD knows little, or
five minutes have passed. One operator a region. When the lead is lost, its operators are forgotten; the regions show
the next leader what is left to do, and a step that was on its way is carried out or dropped by its epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from drillyard.emulator.chance import Chance
from drillyard.emulator.pd.builder import Tools
from drillyard.emulator.pd.checkers import Check, MergeChecker, ReplicaChecker, joint_state
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.controller import Controller
from drillyard.emulator.pd.fit import Chooser
from drillyard.emulator.pd.hot_balance import Flows
from drillyard.emulator.pd.operators import CannotBuild, Kind, Operator
from drillyard.emulator.pd.picture import Picture, RegionView
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.scatter import Scatterer
from drillyard.emulator.pd.schedulers import Condition, Scene, Schedulers
from drillyard.emulator.pd.settings import Placing
from drillyard.emulator.pd.steps import SECOND_NS, Influence

PATROL_BATCH = 20  # regions that one round looks at
HEARD_PART = 0.8
COLLECT_NS = 300 * SECOND_NS
CHECKERS = ("learner", "replica", "rule", "split", "merge", "joint-state")


class Placement:
    """The placement of one lead."""

    def __init__(
        self, cluster: Cluster, reports: Reports, placing: Callable[[], Placing], take_id: Callable[[], int]
    ) -> None:
        self.controller = Controller()
        self.schedulers = Schedulers()
        self.scatterer = Scatterer()
        self._cluster = cluster
        self._reports = reports
        self._placing = placing
        self._take_id = take_id
        self._chance = Chance(cluster.lead.term)
        self.flows = Flows()
        self._replicas = ReplicaChecker()
        self._merges: MergeChecker | None = None
        self._began_ns = 0
        self._is_prepared = False
        self._duties: deque[str] = deque()  # what is left of a round: two of its own, then a turn of each scheduler
        self._cursor = b""
        self._patrolled_ns = 0
        self._paused: dict[str, int] = {}  # checker -> until when

    # ---- what happens ----

    def hear(self, region_id: int, now_ns: int) -> None:
        """A region's leader has reported it."""
        picture = self.picture(now_ns)
        region = picture.region(region_id)
        if region is not None:
            self.controller.dispatch(region, picture, "heartbeat")
            self._check(region, picture)

    def tick(self, now_ns: int) -> bool:
        """Time passes: one duty of a round is done. True means that the round has more of them, due at once."""
        if not self._duties:
            self.schedulers.follow(self._cluster.settings)
            self._duties.extend(("push", "patrol", *self.schedulers.all))
        duty = self._duties.popleft()
        picture = self.picture(now_ns)
        if duty == "push":
            self.controller.push(picture)
            if not self.is_prepared(now_ns):
                self._duties.clear()
        elif duty != "patrol":
            self.schedulers.run(duty, self._scene(picture))
        elif now_ns - self._patrolled_ns >= picture.placing.patrol_region_interval:
            self._patrolled_ns = now_ns
            self._patrol(picture)
        return bool(self._duties)

    def record_split(self, region_ids: list[int], now_ns: int) -> None:
        """Ids were given out for splitting the first of these into itself and the others."""
        self._merge_checker(now_ns).record_split(region_ids, now_ns, self._placing().split_merge_interval)

    def pause_checker(self, name: str, now_ns: int, delay_s: int) -> None:
        """For so many seconds; none ends a pause."""
        self._paused[name] = now_ns + delay_s * SECOND_NS

    def is_checker_paused(self, name: str, now_ns: int) -> bool:
        return now_ns < self._paused.get(name, 0)

    # ---- tools, for those who ask for something ----

    def condition_of(self, name: str, now_ns: int) -> Condition | None:
        """What a scheduler is at; None if it has not run yet."""
        scheduler = self.schedulers.all.get(name)
        if scheduler is None:
            return Condition.DISABLED
        if self.schedulers.pause_of(name, now_ns) is not None:
            return Condition.PAUSED
        if not scheduler.is_allowed(self.picture(now_ns).placing, self.controller):
            return Condition.PENDING
        if not scheduler.has_run:
            return None
        return Condition.SCHEDULING if scheduler.has_scheduled else Condition.NORMAL

    def picture(self, now_ns: int) -> Picture:
        picture = Picture(self._cluster, self._reports, self._placing(), now_ns)
        picture.hot_regions = lambda: self.flows.regions(picture.placing.hot_region_cache_hits_threshold)
        return picture

    def check_of(self, region: RegionView, picture: Picture) -> Check:
        chooser = self._chooser(picture)
        return Check(region, picture, chooser, Tools(picture, self._take_id, chooser.may_lead))

    def is_prepared(self, now_ns: int) -> bool:
        if not self._is_prepared:
            self._merge_checker(now_ns)
            heard, known = len(self._reports.regions), len(self._cluster.regions)
            is_heard = known > 0 and heard >= HEARD_PART * known
            self._is_prepared = is_heard or now_ns - self._began_ns > COLLECT_NS
        return self._is_prepared

    # ---- parts ----

    def _merge_checker(self, now_ns: int) -> MergeChecker:
        if self._merges is None:
            self._merges, self._began_ns = MergeChecker(now_ns), now_ns
        return self._merges

    def _chooser(self, picture: Picture) -> Chooser:
        made: list[Influence] = []

        def influence() -> Influence:
            if not made:
                made.append(self.controller.influence(picture))
            return made[0]

        chooser = Chooser(picture, self.controller.limits, influence)
        chooser.unled = self.schedulers.unled()
        return chooser

    def _scene(self, picture: Picture) -> Scene:
        chooser = self._chooser(picture)
        tools = Tools(picture, self._take_id, chooser.may_lead)
        return Scene(picture, self.controller, chooser, tools, self._chance.below, self.flows)

    def _patrol(self, picture: Picture) -> None:
        batch = self._cluster.regions.scan(self._cursor, b"", PATROL_BATCH)
        for meta in batch:
            if (region := picture.view_of(meta)) is not None:
                self._check(region, picture)
        self._cursor = batch[-1].end_key if len(batch) == PATROL_BATCH else b""

    def _check(self, region: RegionView, picture: Picture) -> None:
        """Gives a region the operator that it needs, if it has none and needs one."""
        if region.id in self.controller.running or not self.is_prepared(picture.now_ns):
            return
        operators = self._wanted(self.check_of(region, picture))
        if operators:
            self.controller.add(picture, *operators)

    def _wanted(self, check: Check) -> tuple[Operator, ...]:
        placing, now_ns = check.picture.placing, check.picture.now_ns
        if not self.is_checker_paused("joint-state", now_ns) and (operator := joint_state(check)) is not None:
            return (operator,)
        name = "rule" if placing.enable_placement_rules else "replica"
        if not self.is_checker_paused(name, now_ns) and (operator := self._replicas.check(check)) is not None:
            is_allowed = self.controller.count(Kind.REPLICA) < placing.replica_schedule_limit
            return (operator,) if is_allowed else ()
        if self.is_checker_paused("merge", now_ns) or self.controller.count(Kind.MERGE) >= placing.merge_schedule_limit:
            return ()
        try:
            return self._merge_checker(now_ns).check(check) or ()
        except CannotBuild:
            return ()
