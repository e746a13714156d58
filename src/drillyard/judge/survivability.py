"""Who may still fail? Of PD and of TiKV: how many, whichever they are, and which members must not.

Rules: PD needs more than half of its members; a region needs more than half of its voters, and while its replicas are
changed in a joint step, more than half of the old voters and of the new. What does not count: a member that does not
run, is paused or silent, a store that PD does not call Up, a replica that still catches up or that its leader calls
down, a learner. `may_fail` is the largest number such that the failure of any so many members of a role, whichever they
are, leaves every quorum; it is 0 when one is missing already.

What is not known is taken once for good and once for bad. Where both come to the same it does not matter; where they
differ, the number is not known. A quorum that is told as missing, or as lost with one member, is so even in the good
case: it is certain, but need not be all.

The regions that were read are bounded: where there are more, this speaks of the first ones, and says so.

Not here: asking, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from drillyard.judge.readiness import CLOCK_SKEW_S, DISCONNECTED_S
from drillyard.observation import (
    Observation,
    PdMembersSeen,
    PeerRole,
    Probe,
    ProcessSeen,
    Reading,
    RegionSeen,
    RegionsSeen,
    SelfSeen,
    StoreSeen,
    StoresSeen,
)
from drillyard.topology import Role

MOST_NAMED = 3  # regions in a sentence, and sentences about single members
OLD_HALF = {PeerRole.VOTER, PeerRole.DEMOTING_VOTER}
NEW_HALF = {PeerRole.VOTER, PeerRole.INCOMING_VOTER}
SERVING = {"Up", "Offline"}  # PD calls a store Offline that it is emptying; its replicas vote until they are moved
NO_PD_ANSWERS = "no PD answers"


@dataclass(frozen=True, slots=True)
class Quorums:
    """Quorums that are missing or would be: PD's own, or those of so many regions, of which the first are named.
    `because` says who does not count already, or that there is nothing to spare."""

    count: int = 0
    regions: tuple[int, ...] = ()
    because: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """A member that must not fail now, and the quorums that would be lost with it."""

    member: str
    breaks: Quorums


@dataclass(frozen=True, slots=True)
class Margin:
    """What may fail of one role. `may_fail` is None when it is not known; `unknown` says what is not. `lost` are the
    quorums that are missing, `short` those that are there only with replicas that still catch up. `others` are the
    members that are there and may fail, one of them."""

    role: Role
    may_fail: int | None
    critical: tuple[Loss, ...] = ()
    lost: Quorums = Quorums()
    short: Quorums = Quorums()
    unknown: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survivability:
    """What may fail of a cluster. `regions` is how many were looked at, `is_complete` whether those are all."""

    pd: Margin
    tikv: Margin
    regions: int = 0
    is_complete: bool = True

    @property
    def text(self) -> tuple[str, ...]:
        """All of it in sentences."""
        return tuple(_sentences(self))


def survivability_of(observation: Observation) -> Survivability:
    """Judge one observation, by its readings of PROCESS, PD_MEMBERS, PD_SELF, STORES and REGIONS."""
    seen = observation.answer_once(Probe.REGIONS, RegionsSeen) or RegionsSeen(())
    return Survivability(_margin_of_pd(observation), _margin_of_tikv(observation), len(seen.regions), seen.is_complete)


# --- quorums ---------------------------------------------------------------------------------------------------------


class _Lacking(Enum):
    """Why a voter does not count, as the rest of a sentence about one or about several."""

    DOWN = ("is down", "are down")
    PAUSED = ("is paused", "are paused")
    UNHEALTHY = ("is not healthy", "are not healthy")
    NOT_UP = ("is not Up", "are not Up")
    SILENT = ("is silent", "are silent")
    BEHIND = ("still catches up", "still catch up")
    PEER_DOWN = ("has a down replica", "have a down replica")
    UNLISTED = ("is not in PD's list", "are not in PD's list")


@dataclass(frozen=True, slots=True)
class _Group:
    """Quorums of the same voters in the same state: PD's, or those of the regions that are alike. `sure` are the voters
    that count, `hoped` those and the ones of which it is not known."""

    halves: tuple[frozenset[str], ...]
    sure: frozenset[str]
    hoped: frozenset[str]
    lacking: tuple[tuple[str, _Lacking], ...] = ()
    regions: tuple[int, ...] = ()

    def spare(self, counting: frozenset[str]) -> list[int]:
        """For each half, how many more of these voters it has than it needs; below 0 it has no quorum."""
        return [len(half & counting) - (len(half) // 2 + 1) for half in self.halves]

    @property
    def is_short(self) -> bool:
        """Whether there is a quorum once those have caught up that still do."""
        behind = {name for name, lacking in self.lacking if lacking is _Lacking.BEHIND}
        return min(self.spare(self.hoped | behind)) >= 0


def _margin_of(role: Role, groups: Sequence[_Group], there: Iterable[str], unknown: tuple[str, ...] = ()) -> Margin:
    """What may fail of the members that are `there`, when these quorums are to be kept."""
    best = _outcome_of([(group, group.hoped) for group in groups])
    worst = _outcome_of([(group, group.sure) for group in groups])
    return Margin(
        role=role,
        may_fail=best.may_fail if best.may_fail == worst.may_fail else None,
        critical=tuple(Loss(member, _quorums(broken)) for member, broken in sorted(best.critical.items())),
        lost=_quorums([group for group in best.lost if not group.is_short]),
        short=_quorums([group for group in best.lost if group.is_short]),
        unknown=() if best == worst else unknown,
        others=tuple(sorted(set(there) - best.critical.keys())) if best == worst else (),
    )


@dataclass(slots=True)
class _Outcome:
    may_fail: int = 0
    critical: dict[str, list[_Group]] = field(default_factory=dict)
    lost: list[_Group] = field(default_factory=list)


def _outcome_of(votes: Sequence[tuple[_Group, frozenset[str]]]) -> _Outcome:
    """What the groups come to when exactly these voters of each count."""
    outcome, least = _Outcome(), []
    for group, counting in votes:
        spare = group.spare(counting)
        least.append(min(spare))
        if min(spare) < 0:
            outcome.lost.append(group)
            continue
        tight = [half & counting for half, left in zip(group.halves, spare, strict=True) if not left]
        for member in frozenset[str]().union(*tight):
            outcome.critical.setdefault(member, []).append(group)
    outcome.may_fail = max(0, min(least, default=0))
    return outcome


def _quorums(groups: Sequence[_Group]) -> Quorums:
    regions = sorted(region for group in groups for region in group.regions)
    count = sum(max(1, len(group.regions)) for group in groups)
    return Quorums(count, tuple(regions[:MOST_NAMED]), _because(groups))


def _because(groups: Sequence[_Group]) -> str:
    """Who of these quorums does not count; where all do, that none can be spared."""
    by_reason: dict[_Lacking, set[str]] = {}
    for group in groups:
        for member, lacking in group.lacking:
            by_reason.setdefault(lacking, set()).add(member)
    if by_reason:
        return ", ".join(
            f"{_listed(sorted(members), 'and')} {lacking.value[len(members) > 1]}"
            for lacking, members in sorted(by_reason.items(), key=lambda one: list(_Lacking).index(one[0]))
        )
    if not groups:
        return ""
    if len(set(groups[0].halves)) > 1:
        return "its replicas are being changed"
    voters = len(groups[0].halves[0])
    return "there is only 1 voter" if voters == 1 else f"all {voters} voters are needed"


# --- PD --------------------------------------------------------------------------------------------------------------


def _margin_of_pd(observation: Observation) -> Margin:
    voters = _pd_voters(observation)
    if not voters:
        return Margin(Role.PD, None, unknown=("no PD was started",))
    processes = {name: _lacking_of_process(observation, name) for name in voters}
    lacking = {name: process for name, process in processes.items() if process is not None}
    own = {name: observation.answer(Probe.PD_SELF, name, SelfSeen) for name in voters if name not in lacking}
    has_quorum = any(said is not None and said.healthy for said in own.values())
    unknown: dict[str, str] = {}
    for name, said in own.items():
        if said is None:
            unknown[name] = _why_silent(observation.reading(Probe.PD_SELF, name)) or f"{name} was not asked"
        elif not said.healthy and has_quorum:  # it alone does not reach the others
            lacking[name] = _Lacking.UNHEALTHY
        elif not said.healthy:  # all say the same during an election and when the quorum is lost
            unknown[name] = f"{name} is not healthy"
    hoped = frozenset(voters) - lacking.keys()
    group = _Group((frozenset(voters),), hoped - unknown.keys(), hoped, tuple(lacking.items()))
    reasons = tuple(unknown.values())
    if reasons and all(said is None for said in own.values()):
        reasons = (f"{NO_PD_ANSWERS} ({reasons[0]})",)
    return _margin_of(Role.PD, [group], hoped, reasons)


def _pd_voters(observation: Observation) -> tuple[str, ...]:
    """Who is in PD: as its leader has it, or anyone who answers; else as it was started."""
    started = [member.name for member in observation.started.of_role(Role.PD)]
    views = [(name, observation.answer(Probe.PD_MEMBERS, name, PdMembersSeen)) for name in started]
    told = [(view.leader != name, view.members) for name, view in views if view is not None and view.members]
    if not told:
        return tuple(started)
    return tuple(member.name for member in min(told, key=lambda one: one[0])[1])


def _lacking_of_process(observation: Observation, name: str) -> _Lacking | None:
    """Why a member cannot count, by its process alone; None also when that is not known."""
    process = observation.answer(Probe.PROCESS, name, ProcessSeen)
    if process is not None and not process.running:
        return _Lacking.DOWN
    return _Lacking.PAUSED if process is not None and process.paused else None


def _why_silent(reading: Reading | None) -> str:
    """Who did not answer, and why; empty when nobody was asked."""
    if reading is None or reading.failure is None:
        return ""
    return f"{reading.member}: {reading.failure.text}" if reading.member else reading.failure.text


# --- TiKV ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Store:
    """A store as a member. `lacking` is why its replicas do not count; `is_known` is False when nobody can tell."""

    name: str
    lacking: _Lacking | None
    is_known: bool = True


def _margin_of_tikv(observation: Observation) -> Margin:
    listed = observation.once(Probe.STORES)
    regions = observation.answer_once(Probe.REGIONS, RegionsSeen)
    if listed is None or not isinstance(listed.answer, StoresSeen) or regions is None:
        return Margin(Role.TIKV, None, unknown=(_why_unknown(observation),))
    if not regions.regions:
        return Margin(Role.TIKV, None, unknown=("PD knows no region yet",))
    stores = {one.store_id: _store(observation, one, listed.answered_at) for one in listed.answer.stores}
    unknown = [f"it is not known whether {one.name} runs" for one in stores.values() if not one.is_known]
    unheard = [region.region_id for region in regions.regions if not region.leader_store]
    if unheard:
        unknown.append(f"PD has not heard of {_named(len(unheard), unheard)} since its leader leads")
    there = [one.name for one in stores.values() if one.lacking is None]
    return _margin_of(Role.TIKV, _groups_of(regions.regions, stores), there, tuple(unknown))


def _why_unknown(observation: Observation) -> str:
    views = (observation.reading(Probe.PD_MEMBERS, pd.name) for pd in observation.started.of_role(Role.PD))
    if all(view is None or view.answer is None for view in views):
        return NO_PD_ANSWERS
    readings = [observation.once(probe) for probe in (Probe.STORES, Probe.REGIONS)]
    return next(filter(None, map(_why_silent, readings)), "PD was not asked")


def _store(observation: Observation, store: StoreSeen, at: float) -> _Store:
    """Judged as the gate of the stores does it: by its process, by PD's word, and by a fresh heartbeat of this run."""
    started = observation.started
    name = next((member.name for member in started.members if member.address == store.address), None)
    process = observation.answer(Probe.PROCESS, name or "", ProcessSeen)
    lacking = _lacking_of_process(observation, name or "")
    if lacking is None and store.state not in SERVING:
        lacking = _Lacking.NOT_UP
    since = process.started_at if process is not None else 0.0
    if lacking is None and (store.last_heartbeat < since or at - store.last_heartbeat > started.heartbeat_fresh_s):
        lacking = _Lacking.SILENT
    # A store that PD calls Up by a heartbeat too old for that shows that PD's clock is not ours: then nothing is known
    # of its silence.
    is_skewed = store.state == "Up" and at - store.last_heartbeat > DISCONNECTED_S + CLOCK_SKEW_S
    if lacking is _Lacking.SILENT and is_skewed:
        return _Store(name or store.address, None, is_known=name is None)
    # Of a store that somebody else started, PD's word is all there is.
    is_known = lacking is not None or name is None or process is not None
    return _Store(name or store.address, lacking, is_known)


def _groups_of(regions: Iterable[RegionSeen], stores: Mapping[int, _Store]) -> list[_Group]:
    """The regions by what they have in common: a few groups also for thousands of regions."""
    alike: dict[tuple[object, ...], list[RegionSeen]] = {}
    for region in regions:
        peers = frozenset(
            (p.store_id, p.role, p.peer_id in region.pending, p.peer_id in region.down) for p in region.peers
        )
        alike.setdefault((peers, bool(region.leader_store)), []).append(region)
    return [_group(found[0], tuple(one.region_id for one in found), stores) for found in alike.values()]


def _group(region: RegionSeen, region_ids: tuple[int, ...], stores: Mapping[int, _Store]) -> _Group:
    halves: tuple[set[str], set[str]] = set(), set()
    lacking: dict[str, _Lacking] = {}
    unknown: set[str] = set()
    for peer in region.peers:
        store = stores.get(peer.store_id, _Store(f"store {peer.store_id}", _Lacking.UNLISTED))
        if peer.role is PeerRole.LEARNER:
            continue
        for half, roles in zip(halves, (OLD_HALF, NEW_HALF), strict=True):
            if peer.role in roles:
                half.add(store.name)
        if store.lacking is not None:
            lacking[store.name] = store.lacking
        elif peer.peer_id in region.down:
            lacking[store.name] = _Lacking.PEER_DOWN
        elif peer.peer_id in region.pending:
            lacking[store.name] = _Lacking.BEHIND
        elif not store.is_known or not region.leader_store:
            unknown.add(store.name)
    hoped = frozenset(halves[0] | halves[1]) - lacking.keys()
    both = frozenset(halves[0]), frozenset(halves[1])
    return _Group(both, hoped - unknown, hoped, tuple(lacking.items()), region_ids)


# --- words -----------------------------------------------------------------------------------------------------------


def _sentences(seen: Survivability) -> Iterable[str]:
    pd, tikv = seen.pd, seen.tikv
    if pd.may_fail and tikv.may_fail:
        yield f"any {pd.may_fail} PD and any {tikv.may_fail} TiKV may fail"
    elif pd.may_fail is None and tikv.unknown == (NO_PD_ANSWERS,):
        yield f"not known: {'; '.join(pd.unknown)}"
    else:
        yield from _sentences_of(pd)
        yield from _sentences_of(tikv)
    if not seen.is_complete:
        yield f"only the first {seen.regions} regions were looked at"


def _sentences_of(margin: Margin) -> Iterable[str]:
    title, lost, short = margin.role.title, margin.lost, margin.short
    if margin.may_fail:
        yield f"any {margin.may_fail} {title} may fail"
    if margin.may_fail is None:
        yield f"not known how many {title} may fail: {'; '.join(margin.unknown)}"
    if lost.count:
        lost_words = "has lost its quorum" if lost.count == 1 else "have lost their quorums"
        yield f"{_whose(margin.role, lost)} {lost_words} already ({lost.because})"
    if short.count:
        has = "has" if short.count == 1 else "have"
        yield f"{_whose(margin.role, short)} {has} too few up-to-date replicas ({short.because})"
    yield from _sentences_of_losses(margin)
    if margin.unknown and margin.may_fail == 0:
        yield f"not known of the other {title}: {'; '.join(margin.unknown)}"


def _sentences_of_losses(margin: Margin) -> Iterable[str]:
    title = margin.role.title
    alike: dict[Quorums, list[str]] = {}
    for loss in margin.critical:
        alike.setdefault(loss.breaks, []).append(loss.member)
    told = [
        (breaks, f"losing {_listed(members, 'or')} now would leave {_whose(margin.role, breaks)} without a quorum")
        for breaks, members in alike.items()
    ]
    is_whole = not (margin.lost.count or margin.short.count)
    if len(told) == 1 and not margin.others and is_whole:
        breaks, sentence = told[0]
        yield f"no {title} may fail: {breaks.because}" + (f", and {sentence}" if breaks.regions else "")
        return
    for breaks, sentence in told[:MOST_NAMED]:
        yield f"{sentence} ({breaks.because})"
    if more := sum(len(members) for members in list(alike.values())[MOST_NAMED:]):
        yield f"losing any of {more} more {title} now would leave other regions without a quorum"
    if told and margin.others and is_whole:
        yield f"any 1 other {title} may fail"


def _whose(role: Role, quorums: Quorums) -> str:
    return role.title if role is Role.PD else _named(quorums.count, quorums.regions)


def _named(count: int, regions: Sequence[int]) -> str:
    """So many regions, the first of them by their ids."""
    named = [str(region) for region in regions[:MOST_NAMED]]
    if count > len(named):
        named.append(f"{count - len(named)} more")
    return f"region{'s' if count > 1 else ''} {_listed(named, 'and')}"


def _listed(words: Sequence[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)
