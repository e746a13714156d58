"""Why did a member end? The part of the catalogue of causes that looks at one end: its facts and its last words.

Rules: an end is looked at with its facts first (out of memory, a signal from outside) and with its last log lines
after that; the table is in order, a root before what follows from it, and the first that fits is named. What fits
nothing has no cause: nobody guesses. The words that are looked for are the servers' own (TiKV and PD 6.0 to 8.5, the
etcd inside PD, the emulated members).

Not here: what is wrong with members that run (causes), reading logs, and what to do automatically.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from drillyard.topology import Role

CRASHES = {4, 5, 6, 7, 8, 11, 31}  # SIGILL, TRAP, ABRT, BUS, FPE, SEGV, SYS: what a program brings upon itself
TIMESTAMP_RACE = "timestamp-race"
LAST_WORDS_S = 60.0  # what was said longer before an end is about something else
LINES = 200  # how much of a log is worth looking at
MOST_QUOTED = 240  # characters of a line
STAMP = re.compile(r"\[(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d\d:\d\d)\]")
# PD's words, TiKV's and the emulated members'.
_SIGNALLED = re.compile(
    r"got signal to exit|receive signal \S+, stopping server|received signal to exit", re.IGNORECASE
)
_WELCOME = re.compile(r"Welcome to (?:TiKV|Placement Driver)")


@dataclass(frozen=True, slots=True)
class Ended:
    """One member's end as the runtime saw it, and its last log lines."""

    member: str
    role: Role
    code: int | None
    signal: int | None
    is_asked: bool
    is_oom: bool = False
    note: str = ""
    in_container: bool = False
    lines: tuple[str, ...] = ()
    at: float = 0.0  # seconds since the epoch
    option: str = ""  # what a command needs to mean this deployment, such as " --name other"


@dataclass(frozen=True, slots=True)
class Cause:
    """A known reason: its stable name, one plain sentence, what it means for the data, and what to do."""

    name: str
    text: str
    data: str
    mend: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndKind:
    """One row: an end whose note or last words match `pattern`. {member}, {found} (what matched) and {option} are
    filled in."""

    name: str
    pattern: str
    text: str
    data: str
    mend: str


KEPT = "what it acknowledged is on its disk and on the other replicas"
UNTOUCHED = "its data was not touched: it ended before it served"


# What members say while they run, too.
DISK_FULL = r"no space left on device.*|storage failed \(disk.full\).*|mvcc: database space exceeded"
OPEN_FILES = r"too many open files.*"
TOMBSTONE = r"store is tombstone.*"

# Read from the top: the first that fits is the cause.
KINDS: tuple[EndKind, ...] = (
    EndKind(
        "keeper-lost",
        r"keeper lost",
        "{member} ended because the keeper of the deployment's processes was lost",
        KEPT,
        "`drillyard up{option}`",
    ),
    EndKind(
        "removed",
        r"its container was removed",
        "{member} has no container any more: somebody removed it",
        "its data is in a named volume, which a removed container leaves alone",
        "`drillyard down{option}`, then `drillyard up{option}`: its data is in a volume and stays",
    ),
    EndKind(
        "wrong-architecture",
        r"exec format error",
        "{member} cannot run: its program is made for another architecture than this machine's",
        UNTOUCHED,
        "name a multi-architecture image, such as pingcap/pd and pingcap/tikv",
    ),
    EndKind(
        "port-taken",
        r"port is already allocated.*|address already in use.*|maybe another instance is binding with this address.*",
        "{member} cannot listen: {found}",
        UNTOUCHED,
        "stop what listens there, or choose another port",
    ),
    EndKind(
        "cannot-run",
        r"could not be started: (?P<found>.*)|cannot run \S+: .*|executable file not found.*|exec: .*no such file.*",
        "{member} could not be started: {found}",
        UNTOUCHED,
        "see that the image or the executable holds the server",
    ),
    EndKind(
        "bad-flag",
        r"unknown (?:shorthand )?flag:? .*|Found argument .* which wasn't expected.*|flag provided but not defined: .*"
        r"|parse cmd flags error.*|unknown argument .*",
        "{member} refuses a flag: {found}",
        UNTOUCHED,
        "take the flag out, or write it as the server knows it",
    ),
    EndKind(
        "bad-config",
        r"unknown key .*|invalid configuration: .*|invalid auto generated configuration file.*"
        r"|unknown configuration options: .*|critical config check failed: .*|-server: \S+\.toml: (?P<found>.*)",
        "{member} refuses its configuration: {found}",
        UNTOUCHED,
        "mend the setting that it names",
    ),
    EndKind(
        "cluster-id-mismatch",
        r"cluster ID mismatch.*|no longer belongs to cluster .*",
        "{member} holds the data of another cluster: {found}",
        "nothing was written: a member never serves the data of one cluster to another",
        "give it the PD that its data belongs to, or start all members empty (`drillyard down --delete-data{option}`)",
    ),
    EndKind(
        "pd-data-lost",
        r"has already been bootstrapped|member count is unequal|error validating peerURLs.*"
        r"|has been permanently removed from the cluster|has already been part of this cluster with another data.*",
        "{member} does not fit the PD cluster that is there: {found}",
        "what PD knows is safe while a quorum of the other PD has it; this member takes no part",
        "start all PD with the data of one cluster, or all of them empty",
    ),
    EndKind(
        "duplicate-store-address",
        r"duplicated store address.*",
        "{member} has the address of another store: {found}",
        "nothing was written; the old store's replicas count as lost until it is back or removed",
        "give it an address of its own, or delete the old store in PD (`pd-ctl store delete`)",
    ),
    EndKind(
        "store-tombstone",
        TOMBSTONE,
        "{member} was removed from the cluster for good: {found}",
        "its replicas were moved to other stores before it was removed; what is on its disk is out of date",
        "start it with an empty data directory: it comes back as a new store",
    ),
    EndKind(
        "open-files",
        r"maximum number of open file descriptors is too small.*|" + OPEN_FILES,
        "{member} may open too few files: {found}",
        KEPT,
        "raise the limit (ulimits.nofile in the Compose file, `ulimit -n` elsewhere) to 82920 or more",
    ),
    EndKind(
        "data-in-use",
        r"maybe another instance is using this directory.*|file already locked.*|is in use by pid \d+",
        "{member} finds its data directory in use by another process",
        "nothing was written: the lock on the directory keeps two processes from mixing",
        "end the other process; one directory serves one member",
    ),
    EndKind(
        "not-its-data",
        r"is no data directory of an emulated member.*",
        "{member} does not take what is in its data directory for its own: {found}",
        "nothing was written",
        "give it an empty directory",
    ),
    EndKind(
        "newer-format",
        r"has on-disk format \d+; this version reads up to \d+",
        "{member} does not know the format of its data: {found}",
        UNTOUCHED,
        "start it with the version that wrote the data, or give it an empty directory",
    ),
    EndKind(
        "data-corrupted",
        r"storage failed \(corrupted\).*|cannot be opened \(corrupted\).*|has lost acknowledged writes.*"
        r"|the identity record \S+ cannot be read|Corruption: .*",
        "{member} finds its data damaged, and serves none of it: {found}",
        "what it acknowledged is on the other replicas; its own copy is not to be trusted",
        "move its data away and let it come back empty: a store is deleted in PD first, a PD member removed and joined "
        "again",
    ),
    EndKind(
        "disk-full",
        DISK_FULL,
        "{member} has no disk space left",
        KEPT,
        "free some, then start it again",
    ),
    EndKind(
        TIMESTAMP_RACE,
        r"failed to get timestamp from PD.*",
        "{member} asked for a timestamp before PD could grant one, and gave up",
        UNTOUCHED,
        "start it again: PD grants timestamps by now",
    ),
)


def cause_of(ended: Ended) -> Cause | None:
    """The cause of an end that nobody asked for; None when there is none to name."""
    return None if ended.is_asked else told_by_kernel(ended) or told_by_words(ended) or told_by_signal(ended)


def told_by_kernel(ended: Ended) -> Cause | None:
    if not ended.is_oom:
        return None
    mend = "give it more (PD_MEMORY, TIKV_MEMORY)" if ended.in_container else "give it more memory"
    text = f"{ended.member} was ended by the kernel: it used all the memory it may"
    return Cause("out-of-memory", text, KEPT, mend, (ended.member,))


def told_by_words(ended: Ended) -> Cause | None:
    """What the runtime noted of the end, or the server's last words say."""
    is_from_outside = ended.signal is not None and ended.signal not in CRASHES  # whatever it had said before
    lines = (ended.note, *(() if is_from_outside else _last_words(ended)))
    for kind in KINDS:
        for line in lines:
            found = re.search(kind.pattern, line, re.IGNORECASE)
            if found is not None:
                words = quoted(found.groupdict().get("found") or found[0])
                text = kind.text.format(member=ended.member, found=words)
                return Cause(kind.name, text, kind.data, kind.mend.format(option=ended.option), (ended.member,))
    return None


def quoted(words: str) -> str:
    """What a log line says, without the line's own quotes and brackets, and without the stack behind it."""
    first = words.partition("\\n")[0].strip(' "[]\\')
    return first if len(first) <= MOST_QUOTED else first[: MOST_QUOTED - 1] + "…"


def told_by_signal(ended: Ended) -> Cause | None:
    """A crash, or an end that somebody else brought about: servers end well when a signal asks them to."""
    member = (ended.member,)
    if ended.signal in CRASHES:
        text = f"{ended.member} crashed with signal {ended.signal}"
        return Cause(
            "crashed", text, KEPT, f"see its last lines (`drillyard logs {ended.member}{ended.option}`)", member
        )
    is_by_docker = "through Docker" in ended.note
    if not (is_by_docker or ended.signal is not None or any(_SIGNALLED.search(line) for line in _last_words(ended))):
        return None
    by = "`docker kill` or `docker stop`" if is_by_docker else "somebody outside of drillyard"
    text = f"{ended.member} was ended by {by}"
    return Cause("killed", text, KEPT, f"`drillyard start {ended.member}{ended.option}`", member)


def _last_words(ended: Ended) -> tuple[str, ...]:
    """The lines of the run that ended, the last first, without those that tell a time long before the end."""
    lines = reversed(of_last_run(ended.lines))
    return tuple(line for line in lines if ended.at - logged_at(line, ended.at) <= LAST_WORDS_S)


def logged_at(line: str, otherwise: float) -> float:
    """When a line was written, in seconds since the epoch: PD and TiKV write [2026/09/20 08:15:30.123 +00:00]."""
    found = STAMP.match(line)
    if found is None:
        return otherwise
    try:
        return datetime.strptime(found[1], "%Y/%m/%d %H:%M:%S.%f %z").timestamp()
    except ValueError:
        return otherwise


def of_last_run(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines since the server last introduced itself: what an earlier run died of is not the cause of this end."""
    starts = [at for at, line in enumerate(lines) if _WELCOME.search(line)]
    return lines[starts[-1] :] if starts else lines
