"""Why is the cluster not healthy? The catalogue of causes, and the one that is named.

Rules: a cause is looked for when a gate is closed, over one scene: the observation and its verdicts, the members'
ends, their last log lines, and how the wait went. The catalogue is in order, a root before what follows from it, and
the first entry that fits is the cause: what a member itself says of its end (but no end is the root of a quorum that
others lost), then what happened to the whole machine, then lost quorums, then members that somebody ended or paused,
then facts about members that run (full, removed, low on space, not heard), then what a slow disk or a cut link does,
and last what nothing but time tells. Log lines support a cause and never make a gate pass. What fits nothing is
`unknown`, with the first thing that is lacking; nobody guesses.

Not here: reading logs, measuring the wait, and what to do automatically.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drillyard.judge import ends
from drillyard.judge.ends import DISK_FULL, KEPT, OPEN_FILES, STAMP, TOMBSTONE, Cause, logged_at
from drillyard.judge.readiness import CLOCK_SKEW_S, DISCONNECTED_S, PD_PROBES
from drillyard.judge.scene import Scene
from drillyard.judge.survivability import survivability_of
from drillyard.observation import (
    CountSeen,
    DataPathSeen,
    PdMembersSeen,
    Probe,
    SelfSeen,
    StoreSeen,
    TimestampsSeen,
)
from drillyard.topology import Role, quorum

UNKNOWN = "unknown"
SLEPT_S = 3.0  # nobody looks for so long by chance: our own longest answer takes less
CLOCK_SET_S = 2.0  # NTP slews, and never steps so far
AWAKE_S = 30.0  # what a sleep disturbed is over by then
QUIET_S = 5.0  # a member that was started, does not answer, and shows nothing new for so long is stuck
STALL_S = 30.0  # and so long a cluster whose members all answer: a store reports every 10 s
STARTING_S = 120.0  # a member that has run for longer is not starting any more
ELECTION_S = 10.0  # PD members that have run for less may still be electing


@dataclass(frozen=True, slots=True)
class Found:
    """What a signature found: the members it is about, what fills {found} in the entry's text, and how many of the
    members must come back (0: all)."""

    members: tuple[str, ...] = ()
    found: str = ""
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """One entry: its name, what it is recognised by (for people), its signature, and what is told when it fits.
    {who}, {found}, {first} (a member), {option}, {revive} (the commands that bring members back) and the words that go
    with one member or several are filled in."""

    name: str
    shows: str
    sign: Callable[[Scene], Found | None]
    text: str
    data: str
    mend: str


def cause_of(scene: Scene) -> Cause | None:
    """The cause of what is wrong; None when every gate holds, or nothing runs because somebody asked for that."""
    if scene.readiness.is_ready:
        return None
    told = _told_by_an_end(scene)
    if told is not None:
        return told
    for known in CATALOGUE:
        found = known.sign(scene) if known.sign in _OF_ENDS or not scene.is_down else None
        if found is not None:
            return _filled(known, found, scene)
    if scene.is_down:
        return None
    closed = scene.readiness.first_closed
    assert closed is not None
    lack = closed.lacks[0].text
    text = f"no known cause fits; gate {closed.gate} lacks this first: {lack}"
    mend = f"look at the evidence, and wait if something moves: `drillyard verify --wait{scene.option}`"
    return Cause(UNKNOWN, text, "not known", mend, closed.members)


def is_telling(line: str) -> bool:
    """Whether a log line matters to somebody who looks for a cause: the server complains, or the catalogue knows it."""
    return _LEVEL.search(line) is not None or any(
        re.search(pattern, line, re.IGNORECASE) for pattern in (*_WORDS, *(kind.pattern for kind in ends.KINDS))
    )


def _filled(known: Known, found: Found, scene: Scene) -> Cause:
    words = ONE if len(found.members) == 1 else SEVERAL
    words = words | {"who": join(found.members), "found": found.found, "option": scene.option}
    words |= {"first": found.members[0] if found.members else "", "revive": _revival(scene, found)}
    text, data, mend = (part.format(**words) for part in (known.text, known.data, known.mend))
    return Cause(known.name, text, data, mend, found.members)


ONE = {"is": "is", "was": "was", "does": "does", "runs": "runs", "its": "its", "answers": "answers"}
SEVERAL = {"is": "are", "was": "were", "does": "do", "runs": "run", "its": "their", "answers": "answer"}


def _revival(scene: Scene, found: Found) -> str:
    """The commands that bring so many of the members back, each by what is the matter with it."""
    if scene.is_down:
        return f"`drillyard up{scene.option}`"

    def command(name: str) -> str:
        seen = scene.process(name)
        verb = "start" if not seen.running else "resume" if seen.paused else "restart"
        return f"`drillyard {verb} {name}{scene.option}`"

    return join(command(name) for name in found.members[: found.missing or None])


def _told_by_an_end(scene: Scene) -> Cause | None:
    """What a member that ended unasked says of it, or the kernel: the first row of the table that fits any, and of the
    members that it fits the one that ended first. Where a quorum is lost, only those speak that it is lost by."""
    order = {name: at for at, name in enumerate(("out-of-memory", *(kind.name for kind in ends.KINDS)))}
    lost = _pd_quorum_lost(scene) or _region_quorum_lost(scene)
    speaking = [one for one in scene.unasked if lost is None or one.member in lost.members]
    told = [cause for one in speaking if (cause := ends.told_by_kernel(one) or ends.told_by_words(one))]
    return min(told, key=lambda cause: order[cause.name]) if told else None


# --- signatures: the machine -----------------------------------------------------------------------------------------


def _slept(scene: Scene) -> Found | None:
    pace = scene.pace
    if _someone_is_away(scene) or pace.slept_s < SLEPT_S or pace.woke_ago_s > AWAKE_S:
        return None
    return Found(found=f"{pace.slept_s:.0f} s")


def _someone_is_away(scene: Scene) -> bool:
    """Neither a sleep nor a clock ends or pauses a member."""
    return bool(scene.ends) or any(scene.is_gone(one.name) for one in scene.observation.started.members)


def _clock(scene: Scene) -> Found | None:
    """A clock was set here, PD's timestamps are not of this time, or PD calls Up a store whose heartbeat is, by our
    clock, older than what PD calls Disconnected, or still to come."""
    if _someone_is_away(scene):
        return None
    set_s = scene.pace.clock_set_s
    if abs(set_s) >= CLOCK_SET_S:
        return Found(found=f"this machine's clock was set {_away(set_s, 'forwards', 'back')}")
    reading = scene.observation.once(Probe.TIMESTAMPS)
    seen = scene.observation.answer_once(Probe.TIMESTAMPS, TimestampsSeen)
    if reading is not None and seen is not None:
        ahead_s = seen.second[0] / 1000 - reading.answered_at
        if abs(ahead_s) > CLOCK_SKEW_S:
            who = (reading.member,) if reading.member else ()
            return Found(who, f"PD's timestamps are {_away(ahead_s, 'ahead of', 'behind')} this machine's clock")
    listed = scene.observation.once(Probe.STORES)
    for member in scene.tikvs:
        store = scene.store(member)
        if listed is None or store is None or store.state != "Up" or not store.last_heartbeat:
            continue
        ahead_s = store.last_heartbeat - listed.answered_at
        if ahead_s > CLOCK_SKEW_S or ahead_s < -(DISCONNECTED_S + CLOCK_SKEW_S):
            said = f"PD calls {member.name} Up by a heartbeat that is {_away(ahead_s, 'ahead of', 'behind')}"
            return Found((listed.member,), f"{said} this machine's clock")
    return None


# --- signatures: PD as a whole ---------------------------------------------------------------------------------------


def _foreign(scene: Scene) -> Found | None:
    """A PD answers for another cluster id; or, where ours is not known yet, lists none of the PD that we started."""
    ours, names = scene.observation.started.cluster_id, {pd.name for pd in scene.pds}
    for name in (pd.name for pd in scene.pds):
        view = scene.observation.answer(Probe.PD_MEMBERS, name, PdMembersSeen)
        if view is None or not view.cluster_id:
            continue
        if ours is not None and view.cluster_id != ours:
            return Found((name,), f"{name} answers for cluster {view.cluster_id}, ours is {ours}")
        if ours is None and view.members and not names & {member.name for member in view.members}:
            return Found((name,), f"{name} lists {join(member.name for member in view.members)}")
    return None


def _pd_quorum_lost(scene: Scene) -> Found | None:
    """Too few PD run; or too few answer at all while one that does says that it cannot serve."""
    names = [pd.name for pd in scene.pds]
    if not names:
        return None
    away = [name for name in names if scene.is_gone(name)]
    if not _lacking(names, away) and min(scene.age_s(name) for name in names) >= ELECTION_S:
        # Who was started just now may be silent, and whoever is alone then says so.
        silent = [name for name in names if not scene.runs(name) or not scene.answers(name, PD_PROBES)]
        if any(_own_word(scene, name) is False for name in names if name not in silent):
            away = silent
    lacking = _lacking(names, away)
    return Found(tuple(away), _states(scene, away), lacking) if lacking else None


def _lacking(names: list[str], away: list[str]) -> int:
    """How many of those that are away must come back for a quorum."""
    return max(0, quorum(len(names)) - (len(names) - len(away)))


def _region_quorum_lost(scene: Scene) -> Found | None:
    """Regions without a quorum, because members with their replicas are gone: by the regions' own peers where PD was
    asked for them, otherwise by counting, where that is certain."""
    away = [one.name for one in scene.tikvs if scene.is_gone(one.name)]
    if scene.observation.once(Probe.REGIONS) is not None:
        lost = survivability_of(scene.observation).tikv.lost
        return Found(tuple(away), _states(scene, away), 1) if away and lost.count else None
    replicas = scene.observation.answer_once(Probe.MAX_REPLICAS, CountSeen)
    if replicas is None and len(scene.tikvs) > 3:
        return None
    count = min(replicas.count if replicas is not None else 3, len(scene.tikvs))
    stores = {member.name: scene.store(member) for member in scene.tikvs}
    holding = [name for name in away if (store := stores[name]) is None or store.region_count]
    lacking = len(holding) - (count - quorum(count))
    return Found(tuple(away), _states(scene, away), lacking) if count and lacking > 0 else None


def _no_leader(scene: Scene) -> Found | None:
    """A quorum of PD answers, long enough after its start; and none is leader by its own word too, or all say that
    they are not healthy, as etcd does without a leader."""
    answering = [pd.name for pd in scene.pds if scene.runs(pd.name) and scene.answers(pd.name, PD_PROBES)]
    if not answering or len(answering) < quorum(len(scene.pds)):
        return None
    if min(scene.age_s(name) for name in answering) < ELECTION_S:
        return None
    is_led = _leader(scene) and any(_own_word(scene, name) is not False for name in answering)
    return None if is_led else Found(tuple(answering))


def _leader_unreachable(scene: Scene) -> Found | None:
    """The leader answers us; others run and answer for themselves, but not what they must ask the leader for. The
    leader's own health list may fail too: it asks every member, and they ask back."""
    leader = _leader(scene)
    if any(scene.runs(pd.name) and scene.failures(pd.name, (Probe.PD_SELF,)) for pd in scene.pds):
        return None  # a health list waits for each member: one that hangs fails the lists of all
    if not leader or not scene.answers(leader, (Probe.PD_MEMBERS,)):
        return None
    cut = [
        pd.name
        for pd in scene.pds
        if pd.name != leader
        and scene.runs(pd.name)
        and _own_word(scene, pd.name) is not None
        and scene.failures(pd.name, (Probe.PD_HEALTH,))
    ]
    return Found(tuple(cut), leader) if cut else None


def _leader(scene: Scene) -> str:
    """The PD leader that is named and does not itself say otherwise: followers remember one that has stepped down."""
    views = {pd.name: scene.observation.answer(Probe.PD_MEMBERS, pd.name, PdMembersSeen) for pd in scene.pds}
    named = dict.fromkeys(view.leader for view in views.values() if view is not None and view.leader)
    agreed = (name for name in named if (own := views.get(name)) is None or own.leader == name)
    return next(agreed, "")


def _own_word(scene: Scene, pd: str) -> bool | None:
    own = scene.observation.answer(Probe.PD_SELF, pd, SelfSeen)
    return own.healthy if own is not None else None


# --- signatures: members ---------------------------------------------------------------------------------------------


def _paused(scene: Scene) -> Found | None:
    paused = [one.name for one in scene.observation.started.members if scene.process(one.name).paused]
    return Found(tuple(paused)) if paused else None


def _killed(scene: Scene) -> Found | None:
    return _signalled(scene, "killed")


def _crashed(scene: Scene) -> Found | None:
    return _signalled(scene, "crashed")


def _signalled(scene: Scene, name: str) -> Found | None:
    told = [cause for one in scene.unasked if (cause := ends.told_by_signal(one)) and cause.name == name]
    if not told:
        return None
    return Found(tuple(who for cause in told for who in cause.members), "; ".join(cause.text for cause in told))


def _unexplained(scene: Scene) -> Found | None:
    unasked = [one for one in scene.ends if not one.is_asked and ends.cause_of(one) is None]
    how = [f"{one.member} ended{f' with exit code {one.code}' if one.code is not None else ''}" for one in unasked]
    return Found(tuple(one.member for one in unasked), "; ".join(how)) if unasked else None


def _stopped(scene: Scene) -> Found | None:
    asked = [one for one in scene.ends if one.is_asked and not scene.process(one.member).running]
    how = [f"{one.member} was {_ended_words(one.signal, one.note)} on request" for one in asked]
    return Found(tuple(one.member for one in asked), "; ".join(how)) if asked else None


def _by_words(pattern: str, *, everywhere: bool = False) -> Callable[[Scene], Found | None]:
    """A signature: a member that runs and keeps a gate closed said this in the last minute (`everywhere`: any that
    runs, because one member's trouble closes the gates of others)."""

    def sign(scene: Scene) -> Found | None:
        named = scene.named()
        members = [one.name for one in scene.observation.started.members]
        for name in (*named, *(members if everywhere else ())):
            for line in scene.recent(name) if name in members and scene.runs(name) else ():
                found = re.search(pattern, line, re.IGNORECASE)
                if found is not None:
                    return Found((name,), ends.quoted(found[0]))
        return None

    return sign


def _full(scene: Scene) -> Found | None:
    """A store refuses a write for lack of space, or a member that runs says so."""
    seen = scene.observation.answer_once(Probe.DATA_PATH, DataPathSeen)
    if seen is not None and seen.store and re.search(_DISK_FULL, seen.reason, re.IGNORECASE):
        return Found((seen.store,), seen.reason)
    return _by_words(_DISK_FULL)(scene)


def _store_is(state: str) -> Callable[[Scene], Found | None]:
    """A signature: PD says so of a store whose process runs."""

    def sign(scene: Scene) -> Found | None:
        stores = [(member, scene.store(member)) for member in scene.tikvs if scene.runs(member.name)]
        found = [(member.name, store) for member, store in stores if store is not None and store.state == state]
        if not found:
            return None
        since = (f"{name}: {_heard(scene, store)}" for name, store in found)
        return Found(tuple(name for name, _ in found), ", ".join(since))

    return sign


def _buried(scene: Scene) -> Found | None:
    """PD lists no tombstones unless it is asked for them; the store itself is told with each heartbeat."""
    return _store_is("Tombstone")(scene) or _by_words(TOMBSTONE)(scene)


def _low_space(scene: Scene) -> Found | None:
    stores = [(member.name, scene.store(member)) for member in scene.tikvs]
    low = [(name, store) for name, store in stores if store is not None and store.is_low_on_space]
    is_short = any("replicas" in lack.text for verdict in scene.readiness.verdicts for lack in verdict.lacks)
    if not low or not is_short:
        return None
    left = ", ".join(f"{name} has {store.available / store.capacity:.0%} left" for name, store in low)
    return Found(tuple(name for name, _ in low), left)


def _not_serving(scene: Scene) -> Found | None:
    """Alive, and by its own word well, or long past its start; but it does not do its work."""
    seen = scene.observation.once(Probe.DATA_PATH)
    if seen is not None and seen.failure is not None:
        at = next((tikv.name for tikv in scene.tikvs if f" at {tikv.name}:" in seen.failure.text), "")
        own = scene.observation.answer(Probe.STORE_SELF, at, SelfSeen) if at else None
        if at and scene.runs(at) and own is not None and own.healthy:
            return Found((at,), seen.failure.text)
    for name in scene.named():
        failed = _own_failures(scene, name)
        if failed and scene.runs(name) and scene.age_s(name) > STARTING_S:
            return Found((name,), failed[0])
    return None


def _slow_start(scene: Scene) -> Found | None:
    """Members that were started lately, and nothing says that they will not get there."""
    starting = _starting(scene)
    if not starting or min(_quiet_s(scene, name) for name in starting) >= STALL_S:
        return None
    return Found(tuple(starting), f"{max(0.0, min(scene.age_s(name) for name in starting)):.1f} s")


def _hang(scene: Scene) -> Found | None:
    """Members that were started lately, answer nothing, and show nothing new."""
    stuck = [n for n in _starting(scene) if _own_failures(scene, n) and _quiet_s(scene, n) >= QUIET_S]
    return Found(tuple(stuck), f"{min(_quiet_s(scene, name) for name in stuck):.0f} s") if stuck else None


def _starting(scene: Scene) -> list[str]:
    """Members that run, were started lately, and keep a gate closed: those that do not answer, if there are any."""
    named = scene.named() or tuple(one.name for one in scene.observation.started.members)
    named = tuple(name for name in named if _own_failures(scene, name)) or named
    return [
        name
        for name in named
        if scene.runs(name) and scene.process(name).started_at > 0 and scene.age_s(name) <= STARTING_S
    ]


def _quiet_s(scene: Scene, name: str) -> float:
    """For how long the member has shown nothing new: no change in the picture while it was waited for, no log line of a
    kind that it had not written before in this run (a loop that tries again says the same again)."""
    now = scene.observation.at
    newest, kinds = scene.process(name).started_at, set[str]()
    for line in ends.of_last_run(scene.words.get(name, ())):
        kind = re.sub(r"[\d.:/+-]+", "", STAMP.sub("", line))
        if kind not in kinds:
            kinds.add(kind)
            newest = max(newest, logged_at(line, newest))
    quiet_s = now - newest
    return min(quiet_s, scene.pace.quiet_s) if scene.pace.waited_s else quiet_s


def _own_failures(scene: Scene, name: str) -> list[str]:
    role = next((one.role for one in scene.observation.started.members if one.name == name), None)
    return scene.failures(name, (Probe.PD_MEMBERS, Probe.PD_SELF) if role is Role.PD else (Probe.STORE_SELF,))


# --- words -----------------------------------------------------------------------------------------------------------

_LEVEL = re.compile(r"\[(?:WARN|ERROR|FATAL|CRITICAL|PANIC)\]|\bpanic(?:ked)?\b", re.IGNORECASE)
_DISK_FULL = DISK_FULL + r"|disk ?(?:is )?full.*|nospace"
# etcd's words of a sync that took over a second, and the emulated members'.
_SLOW_DISK = r"slow fdatasync.*|sync duration of .*"
_WORDS = (_DISK_FULL, OPEN_FILES, _SLOW_DISK)


def join(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *others, last = [*names] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _states(scene: Scene, names: Iterable[str]) -> str:
    return ", ".join(f"{name} {_state(scene, name)}" for name in names)


def _state(scene: Scene, name: str) -> str:
    seen = scene.process(name)
    if seen.running:
        return "is paused" if seen.paused else "does not answer"
    end = next((one for one in scene.ends if one.member == name), None)
    if seen.asked:
        return f"was {_ended_words(seen.signal, end.note if end is not None else '')} on request"
    cause = ends.told_by_signal(end) if end is not None else None
    if cause is None:
        return "ended"
    return "was ended by somebody else" if cause.name == "killed" else f"crashed with signal {seen.signal}"


def _ended_words(signal: int | None, note: str) -> str:
    """A stop that took longer than its grace ends in a kill and was asked for as a stop."""
    return "killed" if signal == 9 and "grace" not in note else "stopped"


def _heard(scene: Scene, store: StoreSeen) -> str:
    listed = scene.observation.once(Probe.STORES)
    if not store.last_heartbeat or listed is None:
        return "PD never heard of it"
    return f"PD heard of it last {max(0.0, listed.answered_at - store.last_heartbeat):.0f} s ago"


def _away(seconds: float, forwards: str, backwards: str) -> str:
    return f"{abs(seconds):.0f} s {forwards if seconds > 0 else backwards}"


# --- the catalogue, in order -----------------------------------------------------------------------------------------

WAIT = "`drillyard verify --wait{option}`"
NOTHING_LOST = "nothing acknowledged is lost"

CATALOGUE: tuple[Known, ...] = (
    Known(
        "machine-slept",
        "Nothing was heard or done here for seconds in the middle of a wait.",
        _slept,
        "this machine, or drillyard on it, stood still for {found} (asleep, suspended or frozen)",
        f"{NOTHING_LOST}; members that slept hold elections when they wake, and leases and timeouts have run out",
        f"{WAIT}: a cluster that only slept comes back by itself",
    ),
    Known(
        "clock-jump",
        "A clock was set during the wait, PD's timestamps are not of this machine's time, or PD calls a store Up by a "
        "heartbeat that cannot be of now.",
        _clock,
        "a clock has jumped: {found}",
        "timestamps never go back, so no order is broken; time to live and GC act too early or too late, and PD judges "
        "stores by a wrong clock",
        "set the clocks right (NTP), on this machine and where PD runs; then restart PD, its leader last",
    ),
    Known(
        "foreign-cluster",
        "Who answers at our addresses has another cluster id, or none of the members that we started.",
        _foreign,
        "another cluster answers in this one's place: {found}",
        "nothing of this cluster is read or written there; do not write through these addresses",
        "see who listens there (`drillyard status{option}`), and that each data directory is this cluster's own",
    ),
    Known(
        "pd-quorum-lost",
        "So many PD do not run or do not answer that the rest is no majority.",
        _pd_quorum_lost,
        "PD has lost its quorum: {found}",
        f"{NOTHING_LOST}; reads and writes go on for a while with what clients know, but no timestamp is granted, "
        "nothing is moved and no new client gets in",
        "bring back a majority: {revive}",
    ),
    Known(
        "region-quorum-lost",
        "More stores are gone than a region can lose replicas.",
        _region_quorum_lost,
        "regions have lost their quorum: {found}",
        "what was acknowledged is on the disks of the stores that are gone; regions with most replicas there neither "
        "read nor write until one is back",
        "bring back enough of them: {revive}",
    ),
    Known(
        "crashed",
        "A member was ended by a signal that a program brings upon itself (SIGSEGV, SIGABRT, …).",
        _crashed,
        "{found}",
        KEPT,
        "see its last lines (`drillyard logs {first}{option}`), then {revive}",
    ),
    Known(
        "killed",
        "A member was ended by a signal, and not through drillyard.",
        _killed,
        "{found}",
        KEPT,
        "{revive}",
    ),
    Known(
        "paused",
        "A member's process is stopped (SIGSTOP) or its container paused.",
        _paused,
        "{who} {is} paused: {its} process is there and does nothing",
        f"{KEPT}; what it led, another leads meanwhile, where there is a quorum without it",
        "{revive}",
    ),
    Known(
        "stopped",
        "A member was stopped or killed through drillyard.",
        _stopped,
        "{found}",
        KEPT,
        "{revive}",
    ),
    Known(
        "disk-full",
        "A store refuses writes, or a member says that its disk is full.",
        _full,
        "there is no disk space left for {who}: {found}",
        f"{KEPT}; nothing is acknowledged that is not written",
        "free some space on its disk; a TiKV that ended is started again after that",
    ),
    Known(
        "open-files",
        "A member that runs fails for want of file descriptors.",
        _by_words(OPEN_FILES, everywhere=True),
        "{who} may open too few files: {found}",
        KEPT,
        "raise the limit (ulimits.nofile in the Compose file, `ulimit -n` elsewhere) to 82920 or more and restart it",
    ),
    Known(
        "store-tombstone",
        "PD has buried a store whose process runs, as PD or the store itself says.",
        _buried,
        "{who} {was} removed from the cluster for good, and still {runs}",
        "its replicas were moved to other stores before; what is on its disk is out of date",
        "stop it; with an empty data directory it comes back as a new store",
    ),
    Known(
        "store-offline",
        "PD is moving everything away from a store, because somebody asked to remove it.",
        _store_is("Offline"),
        "{who} {is} being removed: PD moves {its} replicas to other stores",
        f"{NOTHING_LOST}: a replica goes when another has taken its place; with too few other stores that never ends",
        "let PD finish and stop it then, or take the removal back in PD (`store cancel-delete`)",
    ),
    Known(
        "low-space",
        "Replicas are missing, and a store has so little space left that PD places nothing there.",
        _low_space,
        "PD places no replicas where there is little space left: {found}",
        f"{NOTHING_LOST}, but regions have fewer replicas than they should: fewer failures are survived",
        "free some space there, or add a store",
    ),
    Known(
        UNKNOWN,
        "A member ended, nobody asked for it, and nothing that is known fits its end.",
        _unexplained,
        "{found}, and nothing known fits",
        KEPT,
        "see its last lines (`drillyard logs {first}{option}`), then {revive}",
    ),
    Known(
        "store-down",
        "PD has not heard of a store for longer than max-store-down-time, though its process runs.",
        _store_is("Down"),
        "PD has given {who} up, though {its} process runs: {found}",
        f"{KEPT}; PD makes new replicas elsewhere, if there is a store to hold them",
        "see the way from there to PD (`drillyard logs {first}{option}`): it comes back with its first heartbeat",
    ),
    Known(
        "store-disconnected",
        "PD has not heard of a store for 20 s, though its process runs.",
        _store_is("Disconnected"),
        "PD does not hear {who}, though {its} process runs: {found}",
        f"{KEPT}; nothing is moved yet",
        "see the way from there to PD (`drillyard logs {first}{option}`): it comes back with its first heartbeat",
    ),
    Known(
        "slow-disk",
        "A member reports syncs that take far too long, while a gate is closed.",
        _by_words(_SLOW_DISK, everywhere=True),
        "the disk of {who} is slow: {found}",
        f"{NOTHING_LOST}: a write is acknowledged when it is synced, however long that takes",
        "see what else writes to that disk (`iostat -x 1`), or put the data directory on a faster one",
    ),
    Known(
        "pd-no-leader",
        "A quorum of PD answers, long enough after its start, and none names a leader.",
        _no_leader,
        "PD has no leader now, though {who} {answers}",
        f"{NOTHING_LOST}; no timestamp is granted and nothing is moved until one leads",
        "see that the PD members reach each other's peer addresses (`drillyard logs {first}{option}`)",
    ),
    Known(
        "pd-leader-unreachable",
        "PD's leader answers us, and other PD run, but fail in what they must ask the leader for.",
        _leader_unreachable,
        "{who} cannot reach the PD leader {found}, which answers from here",
        f"{NOTHING_LOST}; clients that ask {{who}} get errors or old answers",
        "see the way from there to the leader's client address (network, firewall, name resolution)",
    ),
    Known(
        "not-serving",
        "A member runs, and by its own word well or long past its start, but does not answer its clients.",
        _not_serving,
        "{who} {is} alive but {does} not serve: {found}",
        KEPT,
        "see its last lines (`drillyard logs {first}{option}`), then `drillyard restart {first}{option}`",
    ),
    Known(
        "hang",
        "A member was started, does not serve yet, and nothing new is seen of it: no change, no new kind of log line.",
        _hang,
        "{who} {was} started and {is} stuck: nothing new for {found}",
        "its data was not touched while it does not serve",
        "see its last lines (`drillyard logs {first}{option}`), then `drillyard restart {first}{option}`",
    ),
    Known(
        "slow-start",
        "Members were started lately, and something moves.",
        _slow_start,
        "{who} {was} started {found} ago and {is} still on the way",
        NOTHING_LOST,
        f"keep waiting: {WAIT}",
    ),
)


_OF_ENDS = (_crashed, _killed, _unexplained)


def names() -> tuple[str, ...]:
    """Every name that a cause may have, in the order of precedence."""
    told = (*(kind.name for kind in ends.KINDS), *(known.name for known in CATALOGUE))
    return tuple(dict.fromkeys(("out-of-memory", *told, UNKNOWN)))
