"""How long was a service not there, as one client saw it? From that client's own history, and what PD said meanwhile.

A canary asks for one service (writes to one key of a region, or timestamps) in a closed loop. Definitions:

- A *gap* is the time from one acknowledgement (of a write or a knock, or a timestamp) to the next. It is an
  *interruption* when an attempt that began in it failed or brought no answer; a gap without one was slow, and nothing
  more.
- The *outage* of an operation is the longest interruption that was not over when the operation was asked for: from the
  last good write before it to the first good write after it, both by the moment of their acknowledgement. The others
  are told beside it. So it holds what a client lost: at most one interval of the canary's more than the service was
  away, at each end.
- PD *noticed* when it first contradicted what it said before: the region has another leader than the member, the
  member's store is no longer Up, or PD itself has another leader than the member.
- An acknowledged write is *lost* when a later read shows an older one that was acknowledged too, or nothing: the canary
  writes increasing numbers to a key of its own, one after the other. A read that shows an older write without an answer
  proves nothing, for such a write may take effect late. Canaries read that key before they write it again after an
  interruption: the next write would hide a loss. A timestamp is lost in this sense when it is not above all that were
  granted before it.
- The service is *steady* when the last attempts were all acknowledged: so many, over so long, all begun after the
  operation was done. Not to have become steady in the time given is a result.

Rules: times are of one clock; attempts are in the order of their ends. It asks nobody and waits for nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from drillyard.observation import Act, Attempt, PdChange, PdWord, Result
from drillyard.topology import Role

STEADY_ATTEMPTS = 10
STEADY_S = 1.0
UP = "Up"


@dataclass(frozen=True, slots=True)
class Strike:
    """The operation: on which member, and from when until when."""

    member: str
    role: Role
    asked_at: float
    done_at: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What was done, what changed in PD's words, and until when both was watched."""

    strike: Strike
    changes: tuple[PdChange, ...]
    until: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two acknowledgements. `ends` is None when the watch ended first."""

    begins: float
    ends: float | None
    length_s: float
    failures: int  # attempts that began in it and failed or brought no answer
    left: str  # the member that gave the acknowledgement before it, and the one that gave the one after it
    came: str


@dataclass(frozen=True, slots=True)
class Move:
    at: float
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Outage:
    """What one canary saw of one operation. `region_id` is 0 for timestamps."""

    region_id: int
    gap: Gap | None  # the outage; None: none was seen
    further: tuple[Gap, ...]  # the other interruptions
    longest_s: float  # of all gaps, interruptions or not
    noticed: PdChange | None  # None: not while it was watched
    moved: Move | None
    lost: int | None  # acknowledgements that proved wrong; None: nothing was read since
    is_steady: bool

    @property
    def is_served(self) -> bool:
        return self.is_steady and (self.gap is None or self.gap.ends is not None)

    @property
    def is_good(self) -> bool:
        """Served again, and nothing is known to be lost."""
        return self.is_served and not self.lost


def judge_region(region_id: int, history: Sequence[Attempt], watch: Watch) -> Outage:
    """What the operation did to the writes of a region. At least one must have been acknowledged before it."""
    one = _judge(region_id, history, watch, _lost_writes(history, watch.strike.asked_at))
    return replace(one, moved=_move(region_id, watch) or one.moved)


def judge_timestamps(history: Sequence[Attempt], watch: Watch) -> Outage:
    return _judge(0, history, watch, _fallen_timestamps(history))


def _judge(region_id: int, history: Sequence[Attempt], watch: Watch, lost: int | None) -> Outage:
    """All but what was lost, which the reads after the watch tell too, and PD's word on where the leader went."""
    watched = [attempt for attempt in history if attempt.began <= watch.until]
    gaps = _gaps(watched, watch)
    outage, further = _outage(gaps)
    return Outage(
        region_id=region_id,
        gap=outage,
        further=further,
        longest_s=max(gap.length_s for gap in gaps),
        noticed=noticed(region_id, watch.strike, watch.changes),
        moved=_between(outage),
        lost=lost,
        is_steady=is_steady(watched, watch.strike.done_at),
    )


def is_steady(history: Sequence[Attempt], since: float) -> bool:
    """Whether all attempts since are good, up to the last one and for long enough."""
    good: list[Attempt] = []
    for attempt in reversed(history):
        if attempt.result is not Result.OK or attempt.began < since:
            break
        good.append(attempt)
        if len(good) >= STEADY_ATTEMPTS and good[0].ended - attempt.began >= STEADY_S:
            return True
    return False


def noticed(region_id: int, strike: Strike, changes: Iterable[PdChange]) -> PdChange | None:
    """The first word of PD by which the operation shows. `region_id` 0: of what concerns no region."""
    for change in changes:
        if change.at > strike.asked_at and _shows(change, region_id, strike):
            return change
    return None


def _shows(change: PdChange, region_id: int, strike: Strike) -> bool:
    match change.word:
        case PdWord.REGION_LEADER:
            return change.subject == str(region_id) and change.before == strike.member
        case PdWord.STORE_STATE:
            return change.subject == strike.member and change.before == UP
        case PdWord.PD_LEADER:
            return change.before == strike.member


# --- gaps ------------------------------------------------------------------------------------------------------------


def _gaps(history: Sequence[Attempt], watch: Watch) -> list[Gap]:
    """Every gap that was not over when the operation was asked for; the last one ends with the watch."""
    good = [attempt for attempt in history if attempt.act is not Act.READ and attempt.result is Result.OK]
    if not good or good[0].ended > watch.strike.asked_at:
        raise ValueError("nothing was acknowledged before the operation: there is no service to miss")
    asked_at = watch.strike.asked_at
    bad = [attempt for attempt in history if attempt.result is not Result.OK and attempt.ended > asked_at]
    begins = sorted(attempt.began for attempt in bad)
    gaps = []
    for before, after in pairwise([*good, None]):
        assert before is not None
        until = after.ended if after is not None else max(watch.until, before.ended, asked_at)
        if until < asked_at:
            continue
        failures = bisect_left(begins, until) - bisect_left(begins, before.ended)
        came = after.member if after is not None else ""
        closed_at = after.ended if after is not None else None
        gaps.append(Gap(before.ended, closed_at, until - before.ended, failures, before.member, came))
    if gaps[-1].ends is None and not gaps[-1].failures and len(gaps) > 1:
        gaps.pop()  # the watch ended between two acknowledgements
    return gaps


def _outage(gaps: Iterable[Gap]) -> tuple[Gap | None, tuple[Gap, ...]]:
    """The longest interruption, and the others."""
    interruptions = [gap for gap in gaps if gap.failures]
    if not interruptions:
        return None, ()
    longest = max(interruptions, key=lambda gap: gap.length_s)
    return longest, tuple(gap for gap in interruptions if gap is not longest)


def _move(region_id: int, watch: Watch) -> Move | None:
    """Where the leader went, by PD's word."""
    for change in watch.changes:
        is_of_region = change.word is PdWord.REGION_LEADER and change.subject == str(region_id)
        if is_of_region and change.at > watch.strike.asked_at:
            return Move(change.at, change.before, change.after)
    return None


def _between(outage: Gap | None) -> Move | None:
    """And by who acknowledged before and after."""
    if outage is None or outage.ends is None or outage.left == outage.came:
        return None
    return Move(outage.ends, outage.left, outage.came)


# --- what was acknowledged and is not there --------------------------------------------------------------------------


def _lost_writes(history: Sequence[Attempt], asked_at: float) -> int | None:
    """How many acknowledged writes a read since the operation proves lost; None when there was no read since."""
    writes = [attempt for attempt in history if attempt.act is Act.WRITE]
    good = [write for write in writes if write.result is Result.OK]
    numbers, ends = [write.number for write in good], [write.ended for write in good]
    unanswered = {write.number for write in writes if write.result is Result.UNKNOWN}
    reads = [read for read in history if read.act is Act.READ and read.result is Result.OK and read.began > asked_at]
    lost: set[int] = set()
    for read in reads:
        if read.number not in unanswered:
            acknowledged = bisect_right(ends, read.began)
            lost.update(numbers[bisect_right(numbers, read.number) : acknowledged])
    return len(lost) if reads else None


def _fallen_timestamps(history: Iterable[Attempt]) -> int:
    """How many timestamps were not above all that had been granted before they were asked for."""
    granted = [attempt for attempt in history if attempt.act is Act.TIMESTAMP and attempt.result is Result.OK]
    ends = [attempt.ended for attempt in granted]
    highest, so_far = [0], 0
    for attempt in granted:
        so_far = max(so_far, attempt.number)
        highest.append(so_far)
    return sum(1 for attempt in granted if attempt.number <= highest[bisect_right(ends, attempt.began)])
