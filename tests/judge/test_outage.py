"""The outage judge on histories in a few letters: what is an outage, what is lost, what PD noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drillyard.judge import outage
from drillyard.judge.outage import Outage, Strike, Watch
from drillyard.observation import Act, Attempt, PdChange, PdWord, Result
from drillyard.topology import Role

ASKED, DONE, STEP = 100.0, 100.05, 0.01
STRIKE = Strike("tikv1", Role.TIKV, ASKED, DONE)


class History:
    """Attempts one after the other, the next at `at`."""

    def __init__(self, at: float = 99.9, member: str = "tikv1") -> None:
        self.at = at
        self.member = member
        self.attempts: list[Attempt] = []
        self.number = 0

    def add(self, act: Act, result: Result, number: int, took_s: float = STEP / 2) -> History:
        self.attempts.append(Attempt(act, self.at, self.at + took_s, result, number, self.member))
        self.at += max(took_s, STEP)
        return self

    def writes(self, count: int = 1, result: Result = Result.OK, took_s: float = STEP / 2) -> History:
        for _ in range(count):
            self.number += 1
            self.add(Act.WRITE, result, self.number, took_s)
        return self

    def until(self, at: float) -> History:
        while self.at < at:
            self.writes()
        return self

    def knocks(self) -> History:
        return self.add(Act.KNOCK, Result.OK, 0)

    def reads(self, number: int) -> History:
        return self.add(Act.READ, Result.OK, number)

    def reads_back(self, by: int) -> History:
        """A read that shows the write so many before the last."""
        return self.reads(self.number - by)

    def rest(self, seconds: float) -> History:
        self.at += seconds
        return self

    def moves(self, member: str) -> History:
        self.member = member
        return self

    def judged(self, *changes: PdChange, strike: Strike = STRIKE) -> Outage:
        return outage.judge_region(2, self.attempts, Watch(strike, changes, self.at))


def before() -> History:
    """Good up to the operation: the last acknowledgement is of number 10, at 99.995 s."""
    return History().writes(10)


def lost_leader(seconds: float = 1.0) -> History:
    """The write in flight is cut off, and a new leader serves after so long; it shows what was acknowledged."""
    history = before().writes(1, Result.UNKNOWN).rest(seconds - STEP).moves("tikv0").knocks()
    return history.reads(10)


def test_a_leader_that_is_lost() -> None:
    one = lost_leader().until(102.5).judged()
    assert one.gap is not None
    assert one.gap.begins == pytest.approx(99.995)
    assert one.gap.ends == pytest.approx(101.005)
    assert one.gap.length_s == pytest.approx(1.01)
    assert one.gap.failures == 1
    assert (one.further, one.lost, one.is_served, one.is_good) == ((), 0, True, True)
    assert one.moved == outage.Move(one.gap.ends or 0.0, "tikv1", "tikv0"), "by who acknowledged, when PD says nothing"


QUIET: list[tuple[str, History, float]] = [
    ("nothing happens at all", before().until(102), STEP),
    ("slow, but every write is answered", before().writes(1, took_s=0.4).until(102), 0.405),
    ("a failure that was over before", History().writes(3).writes(1, Result.FAILED).writes(6).until(102), STEP),
]


@pytest.mark.parametrize(("history", "longest_s"), [case[1:] for case in QUIET], ids=[case[0] for case in QUIET])
def test_no_outage(history: History, longest_s: float) -> None:
    one = history.reads(history.number).judged()
    assert (one.gap, one.further, one.moved, one.is_good) == (None, (), None, True)
    assert one.longest_s == pytest.approx(longest_s)


INTERRUPTED: list[tuple[str, History, float, int]] = [
    ("refused for a moment", before().writes(2, Result.FAILED).until(102), 0.03, 0),
    ("a refusal that began before", History().writes(9).writes(1, Result.FAILED, took_s=0.2).until(102), 0.21, 0),
    (
        "the longest of three",
        lost_leader().writes(3).writes(9, Result.FAILED).writes(2).writes(2, Result.FAILED),
        1.01,
        2,
    ),
    ("the second is longer", before().writes(1, Result.FAILED).writes(1).rest(1).writes(1, Result.FAILED), 1.02, 1),
    ("later, in the watch", before().until(101).writes(5, Result.UNKNOWN).until(103), 0.06, 0),
]


@pytest.mark.parametrize(
    ("history", "length_s", "further"), [case[1:] for case in INTERRUPTED], ids=[case[0] for case in INTERRUPTED]
)
def test_interruptions(history: History, length_s: float, further: int) -> None:
    history.until(history.at + 1.5)
    one = history.judged()
    assert one.gap is not None
    assert one.gap.length_s == pytest.approx(length_s)
    assert len(one.further) == further
    assert one.is_served


def test_a_write_that_is_given_up_when_the_service_is_found_elsewhere_is_one_interruption() -> None:
    history = before()
    history.attempts.append(Attempt(Act.KNOCK, 101.0, 101.01, Result.OK, 0, "tikv0"))
    history.attempts.append(Attempt(Act.WRITE, history.at, 101.02, Result.UNKNOWN, 11, "tikv1"))
    history.at = 101.03
    one = history.moves("tikv0").reads(10).until(103).judged()
    assert one.gap is not None
    assert one.gap.length_s == pytest.approx(1.015)
    assert one.further == ()


def test_not_served_again() -> None:
    history = before()
    for _ in range(60):
        history.writes(1, Result.UNKNOWN, took_s=1.0)
    one = history.judged()
    assert one.gap is not None
    assert (one.gap.ends, one.gap.failures) == (None, 60)
    assert one.gap.length_s == pytest.approx(60.005)
    assert (one.is_served, one.is_good, one.lost, one.moved) == (False, False, None, None)


def test_the_watch_ends_between_two_writes() -> None:
    one = lost_leader().until(102.5).rest(30).judged()
    assert one.gap is not None
    assert one.gap.ends is not None
    assert one.is_served
    assert one.longest_s == pytest.approx(1.01), "nobody asked in the rest, so it is no gap"


def test_what_comes_after_the_watch_tells_of_losses_alone() -> None:
    history = lost_leader().until(102.5)
    until = history.at
    history.reads(7).add(Act.READ, Result.UNKNOWN, 0)
    one = outage.judge_region(2, history.attempts, Watch(STRIKE, (), until - STEP / 2))
    assert one.is_served
    assert one.lost == history.number - 7 - 1, "all after number 7 but the one that got no answer"


STEADY: list[tuple[str, History, bool]] = [
    ("long enough", lost_leader().until(102.2), True),
    ("not long enough", lost_leader().until(101.5), False),
    ("too few", lost_leader().rest(0.5).writes(1).rest(0.5).writes(1), False),
    ("the last one failed", lost_leader().until(103).writes(1, Result.FAILED), False),
    ("failed lately", lost_leader().until(103).writes(1, Result.FAILED).writes(50), False),
    ("all of it before the operation was done", History(at=90).until(100.04), False),
    ("reads count too", lost_leader().until(102.2).reads(1), True),
]


@pytest.mark.parametrize(("history", "is_steady"), [case[1:] for case in STEADY], ids=[case[0] for case in STEADY])
def test_steady(history: History, is_steady: bool) -> None:
    assert outage.is_steady(history.attempts, DONE) is is_steady


def test_served_for_a_moment_is_not_served_again() -> None:
    one = lost_leader().writes(4).judged()
    assert one.gap is not None
    assert one.gap.ends is not None
    assert (one.is_steady, one.is_served) == (False, False)


def after(number: int | None) -> History:
    """Ten good writes, one cut off, and a read that shows this number."""
    history = before().writes(1, Result.UNKNOWN).rest(1).moves("tikv0")
    return history if number is None else history.reads(number)


def late() -> History:
    """Number 6 got no answer, the four after it did."""
    return History().writes(5).writes(1, Result.UNKNOWN).writes(4)


def refused() -> History:
    """Number 6 was refused, the four after it were not."""
    return History().writes(5).writes(1, Result.FAILED).writes(4)


LOST: list[tuple[str, History, int | None]] = [
    ("all is there", after(10), 0),
    ("the write without an answer happened", after(11), 0),
    ("the last is gone", after(9), 1),
    ("three are gone", after(7), 3),
    ("the key is gone", after(0), 10),
    ("nothing was read", after(None), None),
    ("the first read shows it, the last one no more", after(9).until(103).reads_back(0), 1),
    ("the same loss is counted once", after(8).reads(8), 2),
    ("an older write without an answer took effect late", late().rest(1).reads(6), 0),
    ("one that certainly did not happen explains nothing", refused().rest(1).reads(6), 4),
    ("lost at the end", lost_leader().until(102).reads_back(3), 3),
    ("a read before the operation", History(at=99).writes(5).reads(3).until(ASKED).rest(1), None),
]


@pytest.mark.parametrize(("history", "lost"), [case[1:] for case in LOST], ids=[case[0] for case in LOST])
def test_acknowledged_writes_that_are_lost(history: History, lost: int | None) -> None:
    one = history.judged()
    assert one.lost == lost
    assert not (lost and one.is_good)


def test_a_write_that_is_acknowledged_during_the_read_may_be_missed_by_it() -> None:
    history = before()
    history.attempts.append(Attempt(Act.WRITE, history.at, history.at + 0.5, Result.OK, 11, "tikv1"))
    history.attempts.append(Attempt(Act.READ, history.at + 0.4, history.at + 0.6, Result.OK, 10, "tikv1"))
    assert history.judged().lost == 0


def word(word: PdWord, subject: str, was: str, became: str, at: float = 101.0) -> PdChange:
    return PdChange(at, word, subject, was, became)


LEADER = word(PdWord.REGION_LEADER, "2", "tikv1", "tikv0")
STORE = word(PdWord.STORE_STATE, "tikv1", "Up", "Disconnected", at=120.0)
PD = word(PdWord.PD_LEADER, "", "pd0", "pd2")
NOTICES: list[tuple[str, tuple[PdChange, ...], Strike, PdChange | None]] = [
    ("nothing was said", (), STRIKE, None),
    ("the region's leader", (LEADER, STORE), STRIKE, LEADER),
    ("the store, when it led nothing", (STORE,), STRIKE, STORE),
    ("before the operation", (replace(LEADER, at=99.0), STORE), STRIKE, STORE),
    ("another region's leader", (replace(LEADER, subject="3"),), STRIKE, None),
    ("a leader that went from another store", (replace(LEADER, before="tikv2"),), STRIKE, None),
    ("another store", (replace(STORE, subject="tikv2"),), STRIKE, None),
    ("a store that comes up", (replace(STORE, before="Disconnected", after="Up"),), STRIKE, None),
    ("PD's leader, by chance", (PD,), STRIKE, None),
    ("PD's leader", (PD,), replace(STRIKE, member="pd0", role=Role.PD), PD),
]


@pytest.mark.parametrize(
    ("changes", "strike", "noticed"), [case[1:] for case in NOTICES], ids=[case[0] for case in NOTICES]
)
def test_what_pd_noticed(changes: tuple[PdChange, ...], strike: Strike, noticed: PdChange | None) -> None:
    assert lost_leader().until(102.5).judged(*changes, strike=strike).noticed == noticed


def test_the_leader_moved_by_the_word_of_pd() -> None:
    back = word(PdWord.REGION_LEADER, "2", "tikv0", "tikv1", at=102.0)
    assert lost_leader().until(103).judged(LEADER, back).moved == outage.Move(101.0, "tikv1", "tikv0")
    assert before().until(103).judged(LEADER).moved == outage.Move(101.0, "tikv1", "tikv0"), "without an outage too"


def timestamps(*numbers: int) -> History:
    history = History(member="pd0")
    for number in numbers:
        history.add(Act.TIMESTAMP, Result.OK, number)
    return history


def judged(history: History) -> Outage:
    strike = Strike("pd0", Role.PD, ASKED, DONE)
    return outage.judge_timestamps(history.attempts, Watch(strike, (PD,), history.at))


def test_timestamps_that_stay_away_and_come_back_from_another_member() -> None:
    history = timestamps(*range(1, 11)).add(Act.TIMESTAMP, Result.UNKNOWN, 0).rest(1).moves("pd2")
    for number in range(20, 200):
        history.add(Act.TIMESTAMP, Result.OK, number)
    one = judged(history)
    assert one.gap is not None
    assert one.gap.length_s == pytest.approx(1.02)
    assert (one.region_id, one.noticed, one.lost, one.is_good) == (0, PD, 0, True)
    assert one.moved == outage.Move(one.gap.ends or 0.0, "pd0", "pd2")


@pytest.mark.parametrize(
    ("numbers", "fallen"), [((1, 2, 3), 0), ((1, 3, 2), 1), ((1, 2, 2), 1), ((5, 1, 2, 6), 2)], ids=str
)
def test_timestamps_that_went_back(numbers: tuple[int, ...], fallen: int) -> None:
    assert judged(timestamps(*numbers)).lost == fallen


def test_without_an_acknowledgement_before_there_is_nothing_to_judge() -> None:
    for history in (History(), History(at=101).writes(3), History().writes(3, Result.FAILED)):
        with pytest.raises(ValueError, match="nothing was acknowledged before"):
            history.judged()
