"""Why did a member end? A catalogue of named causes, each found by what the runtime saw and what the log says.

Rules: an end is looked at with its facts first (out of memory, a signal from outside) and with its last log lines
after that; the catalogue is in order, a root before what follows from it, and the first that fits is named. Log lines
support a cause and never make a gate pass. What fits nothing has no cause: nobody guesses. The words that are looked
for are the servers' own (TiKV and PD 6.0 to 8.5, the etcd inside PD, the emulated members).

Not here: reading logs, and what to do automatically.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from drillyard.topology import Role

CRASHES = {4, 5, 6, 7, 8, 11, 31}  # SIGILL, TRAP, ABRT, BUS, FPE, SEGV, SYS: what a program brings upon itself
TIMESTAMP_RACE = "timestamp-race"
LINES = 200  # how much of a log is worth looking at
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


@dataclass(frozen=True, slots=True)
class Cause:
    """A known reason: its stable name, one plain sentence, and what to do."""

    name: str
    text: str
    mend: str


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    pattern: str
    text: str
    mend: str


# {member} and {found} (the words that matched) are filled in. Read from the top: the first that fits is the cause.
_KNOWN: tuple[_Known, ...] = (
    _Known(
        "removed",
        r"its container was removed",
        "{member} has no container any more: somebody removed it",
        "`drillyard down`, then `drillyard up`: its data is in a volume and stays",
    ),
    _Known(
        "wrong-architecture",
        r"exec format error",
        "{member} cannot run: its program is made for another architecture than this machine's",
        "name a multi-architecture image, such as pingcap/pd and pingcap/tikv",
    ),
    _Known(
        "port-taken",
        r"port is already allocated.*|address already in use.*|maybe another instance is binding with this address.*",
        "{member} cannot listen: {found}",
        "stop what listens there, or choose another port",
    ),
    _Known(
        "cannot-run",
        r"could not be started: (?P<found>.*)|cannot run \S+: .*|executable file not found.*|exec: .*no such file.*",
        "{member} could not be started: {found}",
        "see that the image or the executable holds the server",
    ),
    _Known(
        "bad-flag",
        r"unknown (?:shorthand )?flag:? .*|Found argument .* which wasn't expected.*|flag provided but not defined: .*"
        r"|parse cmd flags error.*|unknown argument .*",
        "{member} refuses a flag: {found}",
        "take the flag out, or write it as the server knows it",
    ),
    _Known(
        "bad-config",
        r"unknown key .*|invalid configuration: .*|invalid auto generated configuration file.*"
        r"|unknown configuration options: .*",
        "{member} refuses its configuration: {found}",
        "mend the setting that it names",
    ),
    _Known(
        "cluster-id-mismatch",
        r"cluster ID mismatch.*|no longer belongs to cluster .*",
        "{member} holds the data of another cluster: {found}",
        "give it the PD that its data belongs to, or start all members empty (`drillyard down --delete-data`)",
    ),
    _Known(
        "pd-data-lost",
        r"has already been bootstrapped|member count is unequal|error validating peerURLs.*"
        r"|has been permanently removed from the cluster",
        "{member} does not fit the PD cluster that is there: {found}",
        "start all PD with the data of one cluster, or all of them empty",
    ),
    _Known(
        "duplicate-store-address",
        r"duplicated store address.*",
        "{member} has the address of another store: {found}",
        "give it an address of its own, or delete the old store in PD (`pd-ctl store delete`)",
    ),
    _Known(
        "store-tombstone",
        r"store is tombstone.*",
        "{member} was removed from the cluster for good: {found}",
        "start it with an empty data directory: it comes back as a new store",
    ),
    _Known(
        "open-files",
        r"maximum number of open file descriptors is too small.*",
        "{member} may open too few files: {found}",
        "raise the limit (ulimits.nofile in the Compose file, `ulimit -n` elsewhere) to 82920 or more",
    ),
    _Known(
        "data-in-use",
        r"maybe another instance is using this directory.*|file already locked.*",
        "{member} finds its data directory in use by another process",
        "end the other process; one directory serves one member",
    ),
    _Known(
        "not-its-data",
        r"is no data directory of an emulated member.*",
        "{member} does not take what is in its data directory for its own: {found}",
        "give it an empty directory",
    ),
    _Known(
        "disk-full",
        r"no space left on device.*|storage failed \(disk-full\).*|mvcc: database space exceeded",
        "{member} has no disk space left",
        "free some, then start it again",
    ),
    _Known(
        TIMESTAMP_RACE,
        r"failed to get timestamp from PD.*",
        "{member} asked for a timestamp before PD could grant one, and gave up",
        "start it again: PD grants timestamps by now",
    ),
)


def cause_of(ended: Ended) -> Cause | None:
    """The cause of an end that nobody asked for; None when there is none to name."""
    if ended.is_asked:
        return None
    if ended.is_oom:
        mend = "give it more (PD_MEMORY, TIKV_MEMORY)" if ended.in_container else "give it more memory"
        return Cause("out-of-memory", f"{ended.member} was ended by the kernel: it used all the memory it may", mend)
    lines = (ended.note, *reversed(_of_last_run(ended.lines)))
    for known in _KNOWN:
        for line in lines:
            found = re.search(known.pattern, line, re.IGNORECASE)
            if found is not None:
                words = (found.groupdict().get("found") or found[0]).strip(' "[]\\')
                return Cause(known.name, known.text.format(member=ended.member, found=words), known.mend)
    return _signalled(ended)


def _of_last_run(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines since the server last introduced itself: what an earlier run died of is not the cause of this end."""
    starts = [at for at, line in enumerate(lines) if _WELCOME.search(line)]
    return lines[starts[-1] :] if starts else lines


def _signalled(ended: Ended) -> Cause | None:
    if ended.signal is None and "through Docker" not in ended.note:
        return None
    if ended.signal in CRASHES:
        text = f"{ended.member} crashed with signal {ended.signal}"
        return Cause("crashed", text, f"see its last lines (`drillyard logs {ended.member}`)")
    by = "`docker kill` or `docker stop`" if "through Docker" in ended.note else "somebody outside of drillyard"
    return Cause("killed", f"{ended.member} was ended by {by}", f"`drillyard start {ended.member}`")
