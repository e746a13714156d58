"""Is the cluster ready? A pure fold of one `Observation` into six gates that open in order.

Rules: a gate's verdict is `holds`, `violated` or `unknown`. A probe that was not answered, or not asked, makes its gate
`unknown`: never healthy, never broken. Something that was answered and is wrong makes it `violated`, whatever else is
unknown. Every gate that does not hold says what it lacks in plain words and names the members concerned. All members
count, by name; "any one" proves nothing.

The region gate uses PD's counts and its check endpoints, so that it costs the same on a cluster of a million regions:
the leaders of all stores add up to the number of regions, the peers add up to regions × replicas, and no region is
listed as short of a peer, with a pending, a down or a not yet promoted one.

Not here: asking, waiting, causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from drillyard.observation import (
    LOW_SPACE,
    REGION_CHECKS,
    CountSeen,
    DataPathSeen,
    Observation,
    PdHealthSeen,
    PdMembersSeen,
    Probe,
    ProcessSeen,
    Reading,
    SelfSeen,
    StartedMember,
    StoreSeen,
    StoresSeen,
    TimestampsSeen,
)
from drillyard.topology import Role


class Gate(StrEnum):
    """The six gates, in the order in which they open."""

    PROCESSES = "processes"
    PD_QUORUM = "pd-quorum"
    TIMESTAMPS = "timestamps"
    STORES_UP = "stores-up"
    REPLICATED = "replicated"
    DATA_PATH = "data-path"


class Status(StrEnum):
    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing a gate lacks: a sentence, the members it is about, whether it is broken or merely not known, and the
    reading that says so, if there is one."""

    text: str
    members: tuple[str, ...] = ()
    is_broken: bool = True
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one gate: what was found when it holds, else what it lacks, the broken before the unknown."""

    gate: Gate
    status: Status
    lacks: tuple[Lack, ...] = ()
    found: str = ""

    @property
    def text(self) -> str:
        """What the gate lacks, as one line; empty when it holds."""
        return "; ".join(lack.text for lack in self.lacks)

    @property
    def members(self) -> tuple[str, ...]:
        """The members that keep the gate closed, each once."""
        return tuple(dict.fromkeys(name for lack in self.lacks for name in lack.members))


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict of every gate over one observation."""

    verdicts: tuple[Verdict, ...]

    @property
    def is_ready(self) -> bool:
        return all(verdict.status is Status.HOLDS for verdict in self.verdicts)

    @property
    def first_closed(self) -> Verdict | None:
        return next((verdict for verdict in self.verdicts if verdict.status is not Status.HOLDS), None)

    def of(self, gate: Gate) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.gate is gate)


def judge(observation: Observation) -> Readiness:
    """Fold the readings of one observation into the six verdicts."""
    return Readiness(tuple(judge_gate(gate, observation) for gate in Gate))


def judge_gate(gate: Gate, observation: Observation) -> Verdict:
    lacks = tuple(sorted(_RULES[gate](observation), key=lambda lack: not lack.is_broken))
    if not lacks:
        return Verdict(gate, Status.HOLDS, found=_FOUND[gate](observation))
    status = Status.VIOLATED if any(lack.is_broken for lack in lacks) else Status.UNKNOWN
    return Verdict(gate, status, lacks)


NOT_ASKED = "not asked yet"
DISCONNECTED_S = 20.0  # after so long without a heartbeat PD calls a store Disconnected
CLOCK_SKEW_S = 5.0  # clocks that are further apart are not kept right
PD_PROBES = (Probe.PD_MEMBERS, Probe.PD_SELF, Probe.PD_HEALTH)
PROBES_OF: dict[Gate, tuple[Probe, ...]] = {
    Gate.PROCESSES: (Probe.PROCESS,),
    Gate.PD_QUORUM: PD_PROBES,
    Gate.TIMESTAMPS: (Probe.TIMESTAMPS,),
    Gate.STORES_UP: (Probe.STORES, Probe.STORE_SELF),
    Gate.REPLICATED: (Probe.REGION_COUNT, Probe.STORES, Probe.MAX_REPLICAS, *REGION_CHECKS),
    Gate.DATA_PATH: (Probe.DATA_PATH,),
}


# --- the gates -------------------------------------------------------------------------------------------------------


def _processes(observation: Observation) -> Iterable[Lack]:
    for member in observation.started.members:
        reading = observation.reading(Probe.PROCESS, member.name)
        seen = observation.answer(Probe.PROCESS, member.name, ProcessSeen)
        yield from _unanswered(observation, member.name, (Probe.PROCESS,))
        if seen is None:
            continue
        since = observation.started.since
        if seen.held_back:
            text = f"{member.name} is held back until PD grants timestamps"
            yield Lack(text, (member.name,), is_broken=False, reading=reading)
        elif not seen.running:
            yield Lack(f"{member.name} {exit_words(seen)}", (member.name,), reading=reading)
        elif seen.paused:
            yield Lack(f"{member.name} is paused", (member.name,), reading=reading)
        elif since is not None and seen.ended_at >= since and not seen.asked:
            yield Lack(f"{member.name} {exit_words(seen)}, and runs again", (member.name,), reading=reading)
    if not observation.started.members:
        yield Lack("no member was started")


def _pd_quorum(observation: Observation) -> Iterable[Lack]:
    members = observation.started.of_role(Role.PD)
    views: dict[str, PdMembersSeen] = {}
    for member in members:
        yield from _unanswered(observation, member.name, PD_PROBES)
        view = observation.answer(Probe.PD_MEMBERS, member.name, PdMembersSeen)
        if view is not None:
            views[member.name] = view
            reading = observation.reading(Probe.PD_MEMBERS, member.name)
            yield from _said_by(reading, _lacks_of_view(observation, member, view))
    first = observation.reading(Probe.PD_MEMBERS, next(iter(views), ""))
    yield from _said_by(first, _lacks_of_agreement(views))
    for member in members:
        yield from _lacks_of_own_health(observation, member.name)
        yield from _lacks_of_health_lists(observation, member.name)
    if not members:
        yield Lack("no PD was started")


def _lacks_of_view(observation: Observation, member: StartedMember, view: PdMembersSeen) -> Iterable[Lack]:
    """What one PD's own member list lacks against what was started."""
    name, started = member.name, observation.started
    if view.cluster_id == 0:
        yield Lack(f"{name} has no cluster id yet", (name,))
    elif started.cluster_id is not None and view.cluster_id != started.cluster_id:
        text = f"{name} answers for cluster {view.cluster_id}, ours is {started.cluster_id}: this is a foreign cluster"
        yield Lack(text, (name,))
    ours = {pd.name: pd for pd in started.of_role(Role.PD)}
    theirs = {pd.name for pd in view.members}
    if foreign := sorted(theirs - ours.keys()):
        is_ours = started.cluster_id is not None and view.cluster_id == started.cluster_id
        told = f"{name} lists {_join(foreign)}, which we did not start"
        yield Lack(told if is_ours else f"{told}: this is a foreign cluster", (name,))
    if missing := sorted(ours.keys() - theirs):
        yield Lack(f"{name} does not list {_join(missing)}", (name, *missing))
    for listed in view.members:
        if listed.name in ours and listed.client_urls and not _is_at(ours[listed.name].address, listed.client_urls):
            where = _join(listed.client_urls)
            yield Lack(
                f"{name} knows {listed.name} at {where}, we started it at {ours[listed.name].address}", (listed.name,)
            )
    if not view.leader:
        yield Lack(f"{name} knows no PD leader", (name,))
    elif view.leader not in ours:
        yield Lack(f"{name} names {view.leader} as PD leader, which we did not start", (name,))


def _lacks_of_agreement(views: dict[str, PdMembersSeen]) -> Iterable[Lack]:
    """PD members that answered, but not with one voice."""
    clusters = {name: view.cluster_id for name, view in views.items() if view.cluster_id}
    if len(set(clusters.values())) > 1:
        said = _join([f"{name} for {cluster}" for name, cluster in clusters.items()])
        yield Lack(f"the PD members answer for different clusters: {said}", tuple(clusters))
    leaders = {name: view.leader for name, view in views.items() if view.leader}
    if len(set(leaders.values())) > 1:
        said = _join([f"{name} says {leader}" for name, leader in leaders.items()])
        yield Lack(f"the PD members name different leaders: {said}", tuple(leaders))


def _lacks_of_own_health(observation: Observation, name: str) -> Iterable[Lack]:
    own = observation.answer(Probe.PD_SELF, name, SelfSeen)
    if own is not None and not own.healthy:
        reading = observation.reading(Probe.PD_SELF, name)
        yield Lack(f"{name} says that it is not healthy{_because(own.text)}", (name,), reading=reading)


def _lacks_of_health_lists(observation: Observation, name: str) -> Iterable[Lack]:
    """What the health lists, each from another PD, say against one PD."""
    against: dict[str, list[str]] = {}
    for other in observation.started.of_role(Role.PD):
        seen = observation.answer(Probe.PD_HEALTH, other.name, PdHealthSeen)
        healthy = dict(seen.healthy) if seen is not None else {name: True}
        if not healthy.get(name, False):
            how = "counts as not healthy" if name in healthy else "is missing"
            against.setdefault(how, []).append(other.name)
    for how, told_by in against.items():
        reading = observation.reading(Probe.PD_HEALTH, told_by[0])
        yield Lack(f"{name} {how} in the health list from {_join(told_by)}", (name,), reading=reading)


def _timestamps(observation: Observation) -> Iterable[Lack]:
    seen = observation.answer_once(Probe.TIMESTAMPS, TimestampsSeen)
    yield from _unanswered_once(observation, (Probe.TIMESTAMPS,))
    if seen is not None and seen.second <= seen.first:
        text = f"timestamps do not increase: {seen.first} was followed by {seen.second}"
        yield Lack(text, reading=observation.once(Probe.TIMESTAMPS))


def _stores_up(observation: Observation) -> Iterable[Lack]:
    members = observation.started.of_role(Role.TIKV)
    reading = observation.once(Probe.STORES)
    seen = observation.answer_once(Probe.STORES, StoresSeen)
    yield from _unanswered_once(observation, (Probe.STORES,))
    for member in members:
        if reading is not None and seen is not None:
            yield from _said_by(reading, _lacks_of_store(observation, member, (reading, seen)))
        yield from _unanswered(observation, member.name, (Probe.STORE_SELF,))
        own = observation.answer(Probe.STORE_SELF, member.name, SelfSeen)
        if own is not None and not own.healthy:
            text = f"{member.name} says that it is not healthy{_because(own.text)}"
            yield Lack(text, (member.name,), reading=observation.reading(Probe.STORE_SELF, member.name))
    if not members:
        yield Lack("no TiKV was started")


def _lacks_of_store(
    observation: Observation, member: StartedMember, listed: tuple[Reading, StoresSeen]
) -> Iterable[Lack]:
    """What PD's entry for one started store lacks."""
    reading, seen = listed
    name = member.name
    store = next((store for store in seen.stores if store.address == member.address), None)
    if store is None:
        yield Lack(f"{name} is not registered with PD under {member.address}", (name,))
        return
    age_s = reading.answered_at - store.last_heartbeat
    if store.state != "Up":
        yield Lack(f"{name} is {store.state}, not Up ({_heartbeat_words(store, age_s)})", (name,))
        return
    process = observation.answer(Probe.PROCESS, name, ProcessSeen)
    if process is None:
        yield Lack(f"{name}: not known when its process started, so not whether its heartbeat is fresh", (name,), False)
    elif store.last_heartbeat < process.started_at:
        yield Lack(f"{name} is Up in PD's list, but has sent no heartbeat since it was started", (name,))
    if age_s < -CLOCK_SKEW_S:
        text = f"{name} is Up in PD's list by a heartbeat {-age_s:.0f} s ahead of this machine's clock"
        yield Lack(f"{text}: not known whether it is fresh", (name,), False)
    if age_s > observation.started.heartbeat_fresh_s:
        yield Lack(f"{name} is Up in PD's list, but its {_heartbeat_words(store, age_s)}", (name,))


def _replicated(observation: Observation) -> Iterable[Lack]:
    regions = observation.answer_once(Probe.REGION_COUNT, CountSeen)
    replicas = observation.answer_once(Probe.MAX_REPLICAS, CountSeen)
    stores = observation.answer_once(Probe.STORES, StoresSeen)
    yield from _unanswered_once(observation, PROBES_OF[Gate.REPLICATED])
    if regions is not None and regions.count == 0:
        yield Lack("PD knows no region yet", reading=observation.once(Probe.REGION_COUNT))
    if regions is not None and stores is not None:
        reading = observation.once(Probe.STORES)
        leaders = sum(store.leader_count for store in stores.stores)
        if leaders < regions.count:
            yield Lack(f"{regions.count - leaders} of {_regions(regions.count)} without a leader", reading=reading)
        wanted = regions.count * (replicas.count if replicas is not None else 0)
        peers = sum(store.region_count for store in stores.stores)
        if peers < wanted:
            yield Lack(f"{_regions(regions.count)} with {peers} of {wanted} replicas", reading=reading)
            yield from _said_by(reading, _lacks_of_space(observation, stores))
    for check in REGION_CHECKS:
        listed = observation.answer_once(check, CountSeen)
        if listed is not None and listed.count:
            which = f" ({_join([str(region) for region in listed.regions])})" if listed.regions else ""
            text = f"{_regions(listed.count)}{which} with {_CHECK_WORDS[check]}"
            yield Lack(text, reading=observation.once(check))


def _lacks_of_space(observation: Observation, stores: StoresSeen) -> Iterable[Lack]:
    """Why PD may be placing no replica: it passes over a store that is low on space."""
    names = {member.address: member.name for member in observation.started.of_role(Role.TIKV)}
    for store in stores.stores:
        if store.is_low_on_space:
            name = names.get(store.address, store.address)
            left = f"{store.available / store.capacity:.0%}"
            yield Lack(
                f"{name} is low on space ({left} left): PD places no replica there below {LOW_SPACE:.0%}", (name,)
            )


def _data_path(observation: Observation) -> Iterable[Lack]:
    seen = observation.answer_once(Probe.DATA_PATH, DataPathSeen)
    yield from _unanswered_once(observation, (Probe.DATA_PATH,))
    if seen is not None and seen.reason:
        at = f" at {seen.store}" if seen.store else ""
        text = f"{seen.step} of a key in region {seen.region_id}{at}: {seen.reason}"
        yield Lack(text, (seen.store,) if seen.store else (), reading=observation.once(Probe.DATA_PATH))


_RULES: dict[Gate, Callable[[Observation], Iterable[Lack]]] = {
    Gate.PROCESSES: _processes,
    Gate.PD_QUORUM: _pd_quorum,
    Gate.TIMESTAMPS: _timestamps,
    Gate.STORES_UP: _stores_up,
    Gate.REPLICATED: _replicated,
    Gate.DATA_PATH: _data_path,
}

_FOUND: dict[Gate, Callable[[Observation], str]] = {
    Gate.PROCESSES: lambda seen: f"{_all(seen.started.members)} members run{_restarts(seen)}",
    Gate.PD_QUORUM: lambda seen: f"{_all(seen.started.of_role(Role.PD))} PD healthy, leader {_leader(seen)}",
    Gate.TIMESTAMPS: lambda seen: "PD grants increasing timestamps",
    Gate.STORES_UP: lambda seen: f"{_all(seen.started.of_role(Role.TIKV))} stores Up",
    Gate.REPLICATED: lambda seen: f"every region has {_replicas(seen)} and a leader",
    Gate.DATA_PATH: lambda seen: "a key was written, read back and deleted",
}

_CHECK_WORDS = {
    Probe.MISS_PEER: "too few replicas",
    Probe.DOWN_PEER: "a down replica",
    Probe.PENDING_PEER: "a replica that still catches up",
    Probe.LEARNER_PEER: "a replica that is not a voter yet",
}


# --- words -----------------------------------------------------------------------------------------------------------


def exit_words(seen: ProcessSeen) -> str:
    """How a process that does not run came to its end, as the rest of a sentence about it."""
    if seen.signal is not None:
        how = f"was ended by signal {seen.signal}"
    elif seen.code is not None:
        how = f"exited with code {seen.code}"
    else:
        how = "does not run"
    return f"{how} (asked for)" if seen.asked else how


def _unanswered(observation: Observation, member: str, probes: Iterable[Probe]) -> Iterable[Lack]:
    """What one member was not asked or did not answer; probes that failed in the same way make one sentence."""
    for why, failed in _reasons([(probe, observation.reading(probe, member)) for probe in probes]).items():
        if why == NOT_ASKED:
            yield Lack(f"{member} was not asked yet ({_join(failed)})", (member,), is_broken=False)
        else:
            reading = observation.reading(failed[0], member)
            yield Lack(f"{member} gave no answer ({_join(failed)}): {why}", (member,), is_broken=False, reading=reading)


def _unanswered_once(observation: Observation, probes: Iterable[Probe]) -> Iterable[Lack]:
    """The same for the probes that are asked once per cluster."""
    for why, failed in _reasons([(probe, observation.once(probe)) for probe in probes]).items():
        reading = observation.once(failed[0])
        members = (reading.member,) if reading is not None and reading.member else ()
        yield Lack(f"not known ({_join(failed)}): {why}", members, is_broken=False, reading=reading)


def _said_by(reading: Reading | None, lacks: Iterable[Lack]) -> Iterable[Lack]:
    """The same lacks, with the reading that they were found in."""
    return (replace(lack, reading=reading) for lack in lacks)


def _reasons(asked: Iterable[tuple[Probe, Reading | None]]) -> dict[str, list[Probe]]:
    """The probes without an answer, by why there is none."""
    reasons: dict[str, list[Probe]] = {}
    for probe, reading in asked:
        if reading is None:
            reasons.setdefault(NOT_ASKED, []).append(probe)
        elif reading.failure is not None:
            reasons.setdefault(reading.failure.text, []).append(probe)
    return reasons


def _all(members: Sequence[object]) -> str:
    return f"{len(members)} of {len(members)}"


def _restarts(observation: Observation) -> str:
    """Who runs only because a restart policy made an end good."""
    told = []
    for member in observation.started.members:
        seen = observation.answer(Probe.PROCESS, member.name, ProcessSeen)
        if seen is not None and seen.restarts:
            told.append(f"{member.name} was restarted {seen.restarts} times by its policy".replace(" 1 times", " once"))
    return "".join(f"; {one}" for one in told)


def _leader(observation: Observation) -> str:
    """The leader that the PD members name; asked only when they name one."""
    views = (
        observation.answer(Probe.PD_MEMBERS, pd.name, PdMembersSeen) for pd in observation.started.of_role(Role.PD)
    )
    return next((view.leader for view in views if view is not None), "")


def _replicas(observation: Observation) -> str:
    replicas = observation.answer_once(Probe.MAX_REPLICAS, CountSeen)
    count = replicas.count if replicas is not None else 0
    return "1 voter" if count == 1 else f"{count} voters"


def _heartbeat_words(store: StoreSeen, age_s: float) -> str:
    return f"last heartbeat was {age_s:.1f} s ago" if store.last_heartbeat > 0 else "no heartbeat yet"


def _is_at(address: str, urls: Iterable[str]) -> bool:
    return any(url.rstrip("/").removeprefix("http://").removeprefix("https://") == address for url in urls)


def _because(text: str) -> str:
    return f": {text}" if text else ""


def _regions(count: int) -> str:
    return "1 region" if count == 1 else f"{count} regions"


def _join(words: Iterable[str]) -> str:
    return ", ".join(words)
