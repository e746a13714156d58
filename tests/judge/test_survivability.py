"""Who may still fail: tables of cases with their words, and every verdict against brute force on small clusters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readiness_scenes import NOW, PDS, failing, healthy, members_seen, saying, store

from drillyard.judge.survivability import MOST_NAMED, Margin, Quorums, Survivability, survivability_of
from drillyard.observation import (
    Failure,
    Observation,
    PdMemberSeen,
    PdMembersSeen,
    PeerRole,
    PeerSeen,
    Probe,
    ProcessSeen,
    Reading,
    RegionSeen,
    RegionsSeen,
    SelfSeen,
    Started,
    StartedMember,
    StoreSeen,
    StoresSeen,
)
from drillyard.topology import Role

Change = Callable[[Observation], Observation]
VOTER, LEARNER = PeerRole.VOTER, PeerRole.LEARNER
INCOMING, DEMOTING = PeerRole.INCOMING_VOTER, PeerRole.DEMOTING_VOTER
NO_ANSWER = Failure("timed-out", "no answer within 500 ms")
NO_LEADER = Failure("no-leader", "no PD member names a leader to ask")


# --- scenes ----------------------------------------------------------------------------------------------------------


def region(region_id: int, *stores: int, **changes: object) -> RegionSeen:
    """A region with a voter on each of these stores; a peer has its store's id behind its region's."""
    peers = tuple(PeerSeen(region_id * 100 + store_id, store_id, VOTER) for store_id in stores)
    return replace(RegionSeen(region_id, peers, stores[0]), **changes)  # type: ignore[arg-type]


def with_regions(*regions: RegionSeen, is_complete: bool = True) -> Change:
    answer = RegionsSeen(regions, is_complete)
    return lambda scene: scene.with_readings([Reading("pd0", Probe.REGIONS, NOW - 0.01, NOW, answer)])


def down(name: str) -> Change:
    return saying(Probe.PROCESS, ProcessSeen(False, signal=9), name)


def paused(name: str) -> Change:
    return saying(Probe.PROCESS, ProcessSeen(True, 100, NOW - 60, paused=True), name)


def silent(probe: Probe, *members: str) -> Change:
    """The question was not answered, by these members or at all."""

    def change(scene: Observation) -> Observation:
        for reading in scene.readings:
            if reading.probe is probe and (reading.member in members or not members):
                failure = NO_LEADER if probe in (Probe.STORES, Probe.REGIONS) else NO_ANSWER
                scene = failing(scene, reading, failure)
        return scene

    return change


def unwell(*members: str) -> Change:
    def change(scene: Observation) -> Observation:
        for member in members:
            scene = saying(Probe.PD_SELF, SelfSeen(False, "HTTP 503"), member)(scene)
        return scene

    return change


def judged(*changes: Change) -> Survivability:
    scene = healthy()
    for change in changes:
        scene = change(scene)
    return survivability_of(scene)


ONE = with_regions(region(2, 1, 2, 3))
NOBODY = (silent(Probe.PD_MEMBERS), silent(Probe.PD_SELF), silent(Probe.STORES), silent(Probe.REGIONS))
ANY_ONE = "any 1 PD and any 1 TiKV may fail"
ONLY_PD0 = replace(members_seen(), members=members_seen().members[:1])

CASES: dict[str, tuple[tuple[Change, ...], list[str]]] = {
    "healthy": ((ONE,), [ANY_ONE]),
    "a PD down": ((ONE, down("pd1")), ["no PD may fail: pd1 is down", "any 1 TiKV may fail"]),
    "a PD paused": ((ONE, paused("pd1")), ["no PD may fail: pd1 is paused", "any 1 TiKV may fail"]),
    "a PD that alone does not reach the others": (
        (ONE, unwell("pd2")),
        ["no PD may fail: pd2 is not healthy", "any 1 TiKV may fail"],
    ),
    "an election, or a lost quorum": (
        (ONE, unwell(*PDS)),
        [
            "not known how many PD may fail: pd0 is not healthy; pd1 is not healthy; pd2 is not healthy",
            "any 1 TiKV may fail",
        ],
    ),
    "two PD down": (
        (down("pd0"), down("pd1"), unwell("pd2"), ONE, silent(Probe.STORES), silent(Probe.REGIONS)),
        [
            "PD has lost its quorum already (pd0 and pd1 are down)",
            "not known how many TiKV may fail: pd0: no PD member names a leader to ask",
        ],
    ),
    "a PD that does not answer": (
        (ONE, silent(Probe.PD_SELF, "pd2")),
        ["not known how many PD may fail: pd2: no answer within 500 ms", "any 1 TiKV may fail"],
    ),
    "a PD that does not answer beside one that is down": (
        (ONE, down("pd1"), silent(Probe.PD_SELF, "pd2")),
        [
            "no PD may fail: pd1 is down",
            "not known of the other PD: pd2: no answer within 500 ms",
            "any 1 TiKV may fail",
        ],
    ),
    "nobody answers": ((ONE, *NOBODY), ["not known: no PD answers (pd0: no answer within 500 ms)"]),
    "nobody answers, and most of PD is down": (
        (ONE, *NOBODY, down("pd0"), down("pd2")),
        [
            "PD has lost its quorum already (pd0 and pd2 are down)",
            "not known how many TiKV may fail: no PD answers",
        ],
    ),
    "PD of one": (
        (ONE, saying(Probe.PD_MEMBERS, ONLY_PD0)),
        ["no PD may fail: there is only 1 voter", "any 1 TiKV may fail"],
    ),
    "a PD that nobody started": (
        (ONE, saying(Probe.PD_MEMBERS, replace(members_seen(), members=(*ONLY_PD0.members, PdMemberSeen("x", ()))))),
        [
            "no PD may fail: all 2 voters are needed",
            "not known of the other PD: x was not asked",
            "any 1 TiKV may fail",
        ],
    ),
    "a TiKV down": (
        (ONE, down("tikv1")),
        [
            "any 1 PD may fail",
            "no TiKV may fail: tikv1 is down, and losing tikv0 or tikv2 now would leave region 2 without a quorum",
        ],
    ),
    "two TiKV down": (
        (ONE, down("tikv0"), paused("tikv1")),
        ["any 1 PD may fail", "region 2 has lost its quorum already (tikv0 is down, tikv1 is paused)"],
    ),
    "a store that PD does not call Up": (
        (ONE, store("tikv2", state="Disconnected")),
        [
            "any 1 PD may fail",
            "no TiKV may fail: tikv2 is not Up, and losing tikv0 or tikv1 now would leave region 2 without a quorum",
        ],
    ),
    "a store that is emptied still votes": ((ONE, store("tikv2", state="Offline")), [ANY_ONE]),
    "an old heartbeat": (
        (ONE, store("tikv2", last_heartbeat=NOW - 6)),
        [
            "any 1 PD may fail",
            "no TiKV may fail: tikv2 is silent, and losing tikv0 or tikv1 now would leave region 2 without a quorum",
        ],
    ),
    "a heartbeat of the run before": (
        (ONE, saying(Probe.PROCESS, ProcessSeen(True, 7, NOW - 0.2), "tikv2")),
        [
            "any 1 PD may fail",
            "no TiKV may fail: tikv2 is silent, and losing tikv0 or tikv1 now would leave region 2 without a quorum",
        ],
    ),
    "a process that nobody knows of": (
        (ONE, silent(Probe.PROCESS, "tikv2")),
        ["any 1 PD may fail", "not known how many TiKV may fail: it is not known whether tikv2 runs"],
    ),
    "a store that PD does not list any more": (
        (ONE, store("tikv2", gone=True)),
        [
            "any 1 PD may fail",
            "no TiKV may fail: store 3 is not in PD's list, "
            "and losing tikv0 or tikv1 now would leave region 2 without a quorum",
        ],
    ),
    "a replica that catches up": (
        (with_regions(region(2, 1, 2, 3, pending=(203,))),),
        [
            "any 1 PD may fail",
            "losing tikv0 or tikv1 now would leave region 2 without a quorum (tikv2 still catches up)",
            "any 1 other TiKV may fail",
        ],
    ),
    "a replica that its leader does not hear": (
        (with_regions(region(2, 1, 2, 3), region(3, 1, 2, 3, down=(303,))),),
        [
            "any 1 PD may fail",
            "losing tikv0 or tikv1 now would leave region 3 without a quorum (tikv2 has a down replica)",
            "any 1 other TiKV may fail",
        ],
    ),
    "one region whose quorum is gone, and one that only lags": (
        (with_regions(region(2, 1, 2, 3), region(3, 1, 2, 3, pending=(303,), down=(302,))), down("tikv0")),
        [
            "any 1 PD may fail",
            "region 3 has lost its quorum already (tikv0 is down, tikv2 still catches up, tikv1 has a down replica)",
            "losing tikv1 or tikv2 now would leave region 2 without a quorum (tikv0 is down)",
        ],
    ),
    "too few that have caught up": (
        (with_regions(region(2, 1, 2, 3, pending=(203,))), down("tikv0")),
        [
            "any 1 PD may fail",
            "region 2 has too few up-to-date replicas (tikv0 is down, tikv2 still catches up)",
        ],
    ),
    "one replica": (
        (with_regions(region(2, 2)),),
        [
            "any 1 PD may fail",
            "losing tikv1 now would leave region 2 without a quorum (there is only 1 voter)",
            "any 1 other TiKV may fail",
        ],
    ),
    "many regions": (
        (with_regions(*(region(n, 1, 2) for n in range(2, 12))),),
        [
            "any 1 PD may fail",
            "losing tikv0 or tikv1 now would leave regions 2, 3, 4 and 7 more without a quorum "
            "(all 2 voters are needed)",
            "any 1 other TiKV may fail",
        ],
    ),
    "a region that PD's leader has not heard of": (
        (with_regions(region(2, 1, 2, 3), region(3, 1, 2, 3, leader_store=0)),),
        [
            "any 1 PD may fail",
            "not known how many TiKV may fail: PD has not heard of region 3 since its leader leads",
        ],
    ),
    "no region": ((with_regions(),), ["any 1 PD may fail", "not known how many TiKV may fail: PD knows no region yet"]),
    "more regions than were read": (
        (with_regions(region(2, 1, 2, 3), is_complete=False),),
        [ANY_ONE, "only the first 1 regions were looked at"],
    ),
    "regions not asked for": ((), ["any 1 PD may fail", "not known how many TiKV may fail: PD was not asked"]),
}


@pytest.mark.parametrize(("changes", "text"), CASES.values(), ids=CASES.keys())
def test_case(changes: tuple[Change, ...], text: list[str]) -> None:
    assert list(judged(*changes).text) == text


def test_nothing_read_at_all_is_not_known() -> None:
    seen = survivability_of(replace(healthy(), readings=()))
    assert seen.text == ("not known: no PD answers (pd0 was not asked)",)


def test_nothing_started_is_not_known() -> None:
    seen = survivability_of(Observation(1, NOW, Started(()), ()))
    assert (seen.pd.may_fail, seen.tikv.may_fail) == (None, None)


def joint(*stores: tuple[int, PeerRole]) -> RegionSeen:
    return RegionSeen(2, tuple(PeerSeen(200 + one, one, role) for one, role in stores), stores[0][0])


@pytest.mark.parametrize(
    ("peers", "may_fail", "critical"),
    [
        # Store 4 replaces store 3: the old half is 1, 2, 3, the new half 1, 2, 4.
        ([(1, VOTER), (2, VOTER), (3, DEMOTING), (4, INCOMING)], 1, []),
        # Store 1 is joined by 2 and 3 at once: alone it is the old half.
        ([(1, VOTER), (2, INCOMING), (3, INCOMING)], 0, ["tikv0"]),
        # Stores 2 and 3 leave at once: alone store 1 is the new half.
        ([(1, VOTER), (2, DEMOTING), (3, DEMOTING)], 0, ["tikv0"]),
        ([(1, VOTER), (2, VOTER), (3, LEARNER)], 0, ["tikv0", "tikv1"]),
    ],
)
def test_a_joint_configuration_needs_both_halves(
    peers: list[tuple[int, PeerRole]], may_fail: int, critical: list[str]
) -> None:
    fourth = StoreSeen(4, "10.0.0.4:20160", "Up", NOW - 0.5, 0, 1)
    stores = next(r.answer for r in healthy().readings if r.probe is Probe.STORES)
    assert isinstance(stores, StoresSeen)
    margin = judged(with_regions(joint(*peers)), saying(Probe.STORES, StoresSeen((*stores.stores, fourth)))).tikv
    assert margin.may_fail == may_fail
    assert [loss.member for loss in margin.critical] == critical


def test_thousands_of_regions_are_judged_by_their_groups() -> None:
    """And to the same end as one of each group would be."""
    sets = list(itertools.combinations((1, 2, 3), 2))
    many = judged(with_regions(*(region(n, *sets[n % 3]) for n in range(1, 100_001)))).tikv
    few = judged(with_regions(*(region(n, *sets[n % 3]) for n in range(1, 4)))).tikv
    assert [loss.member for loss in many.critical] == [loss.member for loss in few.critical]
    assert sum(loss.breaks.count for loss in many.critical) == 200_000


# --- against brute force ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    store: int
    role: PeerRole
    is_pending: bool
    is_down: bool


@dataclass(frozen=True)
class Small:
    """A small cluster as a test has it: who is there, and every region's peers."""

    pd: tuple[bool | None, ...]  # whether each PD is there; None: nobody knows
    stores: tuple[bool | None, ...]
    regions: tuple[tuple[Peer, ...], ...]
    unheard: frozenset[int] = frozenset()  # places of regions that PD's leader has not heard of

    def observation(self) -> Observation:
        names = [f"pd{n}" for n in range(len(self.pd))] + [f"tikv{n}" for n in range(len(self.stores))]
        started = tuple(StartedMember(n, Role.PD if n.startswith("pd") else Role.TIKV, f"{n}:1") for n in names)
        readings = []
        for name, is_there in zip(names, (*self.pd, *self.stores), strict=True):
            is_known = name.startswith("pd") or is_there is not None
            process = ProcessSeen(is_there is not False, 1, NOW - 60)
            failure = None if is_known else NO_ANSWER
            readings.append(Reading(name, Probe.PROCESS, NOW, NOW, process if is_known else None, failure))
        view = PdMembersSeen(1, "pd0", tuple(PdMemberSeen(f"pd{n}", ()) for n in range(len(self.pd))))
        for at, is_there in enumerate(self.pd):
            answer = SelfSeen(True) if is_there else None
            readings.append(Reading(f"pd{at}", Probe.PD_SELF, NOW, NOW, answer, None if is_there else NO_ANSWER))
            readings.append(Reading(f"pd{at}", Probe.PD_MEMBERS, NOW, NOW, view))
        stores = tuple(StoreSeen(n + 1, f"tikv{n}:1", "Up", NOW - 1, 0, 0) for n in range(len(self.stores)))
        readings.append(Reading("pd0", Probe.STORES, NOW, NOW, StoresSeen(stores)))
        readings.append(Reading("pd0", Probe.REGIONS, NOW, NOW, RegionsSeen(tuple(self._regions()))))
        return Observation(1, NOW, Started(started), tuple(readings))

    def _regions(self) -> Iterator[RegionSeen]:
        for at, peers in enumerate(self.regions):
            ids = {peer: 100 * at + peer.store for peer in peers}
            yield RegionSeen(
                at,
                tuple(PeerSeen(ids[peer], peer.store + 1, peer.role) for peer in peers),
                0 if at in self.unheard else peers[0].store + 1,
                tuple(ids[peer] for peer in peers if peer.is_pending),
                tuple(ids[peer] for peer in peers if peer.is_down),
            )


def has_majority(voters: Iterable[int], counting: set[int]) -> bool:
    voters = set(voters)
    return 2 * len(voters & counting) > len(voters)


def broken(small: Small, failed: set[int]) -> set[int]:
    """The regions without a quorum when these stores fail."""
    there = {at for at, is_there in enumerate(small.stores) if is_there} - failed
    found = set()
    for at, peers in enumerate(small.regions):
        counting = {peer.store for peer in peers if peer.store in there and not peer.is_pending and not peer.is_down}
        old = [peer.store for peer in peers if peer.role in (VOTER, DEMOTING)]
        new = [peer.store for peer in peers if peer.role in (VOTER, INCOMING)]
        if not (has_majority(old, counting) and has_majority(new, counting)):
            found.add(at)
    return found


def broken_pd(small: Small, failed: set[int]) -> set[int]:
    there = {at for at, is_there in enumerate(small.pd) if is_there}
    return set() if has_majority(range(len(small.pd)), there - failed) else {0}


def by_trying_all(breaks: Callable[[set[int]], set[int]], there: list[int]) -> tuple[int, dict[int, set[int]]]:
    """The largest number such that any so many may fail, and what the failure of each breaks that is not broken yet."""
    before = breaks(set())
    may_fail = 0
    while not before and all(not breaks(set(some)) for some in itertools.combinations(there, may_fail + 1)):
        may_fail += 1
        assert may_fail <= len(there), "a quorum of nobody"
    losses = {one: breaks({one}) - before for one in there}
    return may_fail, {one: lost for one, lost in losses.items() if lost}


def check(margin: Margin, breaks: Callable[[set[int]], set[int]], there: list[int], *, is_pd: bool) -> None:
    may_fail, losses = by_trying_all(breaks, there)
    assert margin.may_fail == may_fail
    stem = "pd" if is_pd else "tikv"
    assert {loss.member: told(loss.breaks) for loss in margin.critical} == {
        f"{stem}{one}": (len(lost), [] if is_pd else sorted(lost)[:MOST_NAMED]) for one, lost in losses.items()
    }
    assert margin.lost.count + margin.short.count == len(breaks(set()))
    assert margin.unknown == ()
    assert margin.others == tuple(f"{stem}{one}" for one in there if one not in losses)


def told(quorums: Quorums) -> tuple[int, list[int]]:
    return quorums.count, list(quorums.regions)


@st.composite
def smalls(draw: st.DrawFn, there: st.SearchStrategy[bool | None]) -> Small:
    pd = draw(st.lists(there, min_size=3, max_size=5))
    stores = draw(st.lists(there, min_size=3, max_size=6))
    regions = [draw(regions_on(len(stores))) for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        regions.append(regions[0])  # alike, but for whether it was heard of
    return Small(tuple(pd), tuple(stores), tuple(regions))


@st.composite
def regions_on(draw: st.DrawFn, stores: int) -> tuple[Peer, ...]:
    """A region as it mostly is, or one with everything that may be."""
    size = min(stores, draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 5])))
    on = draw(st.permutations(range(stores)))[:size]
    if draw(st.booleans()):
        return tuple(Peer(one, VOTER, False, False) for one in on)
    roles = [draw(st.sampled_from([VOTER] * 4 + [LEARNER, INCOMING, DEMOTING])) for _ in on]
    if not {VOTER, INCOMING} & set(roles) or not {VOTER, DEMOTING} & set(roles):
        roles[0] = VOTER  # both halves of a configuration have voters
    flags = st.sampled_from([False] * 5 + [True])
    return tuple(Peer(one, role, draw(flags), draw(flags)) for one, role in zip(on, roles, strict=True))


@settings(max_examples=300)
@given(smalls(st.sampled_from([True] * 7 + [False])))
def test_every_verdict_is_what_trying_all_subsets_finds(small: Small) -> None:
    seen = survivability_of(small.observation())
    there = [at for at, is_there in enumerate(small.stores) if is_there]
    check(seen.tikv, lambda failed: broken(small, failed), there, is_pd=False)
    pds = [at for at, is_there in enumerate(small.pd) if is_there]
    check(seen.pd, lambda failed: broken_pd(small, failed), pds, is_pd=True)
    assert all(sentence for sentence in seen.text)


def completions(small: Small) -> Iterator[Small]:
    """Everything that it may be like, as far as it is known."""
    options = [[one] if one is not None else [True, False] for one in (*small.pd, *small.stores)]
    hidden = [(at, peer) for at in sorted(small.unheard) for peer in small.regions[at] if not peer.is_pending]
    for choice in itertools.product(*options):
        for laggards in itertools.product([False, True], repeat=len(hidden)):
            behind = {one for one, is_behind in zip(hidden, laggards, strict=True) if is_behind}
            regions = tuple(
                tuple(replace(peer, is_pending=peer.is_pending or (at, peer) in behind) for peer in peers)
                for at, peers in enumerate(small.regions)
            )
            yield Small(choice[: len(small.pd)], choice[len(small.pd) :], regions)


@settings(max_examples=200)
@given(
    smalls(st.sampled_from([True] * 7 + [False, None])).filter(
        lambda small: (*small.pd, *small.stores).count(None) <= 3
    ),
    st.sampled_from([None, 0, -1]),
)
def test_what_is_not_known_is_known_all_the_same_when_it_does_not_matter(small: Small, unheard: int | None) -> None:
    if unheard is not None:
        small = replace(small, unheard=frozenset({range(len(small.regions))[unheard]}))
    seen = survivability_of(small.observation())
    found: dict[str, set[int]] = {"pd": set(), "tikv": set()}
    for possible in completions(small):
        for stem, breaks, members, margin in (
            ("pd", broken_pd, possible.pd, seen.pd),
            ("tikv", broken, possible.stores, seen.tikv),
        ):
            there = [at for at, is_there in enumerate(members) if is_there]
            found[stem].add(by_trying_all(lambda failed: breaks(possible, failed), there)[0])  # noqa: B023
            assert margin.lost.count + margin.short.count <= len(breaks(possible, set())), "what is lost is certain"
            for loss in margin.critical:
                assert breaks(possible, {int(loss.member.removeprefix(stem))}), "and so is what must not fail"
    for stem, margin in (("pd", seen.pd), ("tikv", seen.tikv)):
        assert margin.may_fail == (next(iter(found[stem])) if len(found[stem]) == 1 else None)
        assert margin.may_fail is not None or margin.unknown
