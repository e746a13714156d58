"""docs/causes.md: every cause that can be named, from the catalogue itself.

What the catalogue cannot say is here: by which symptom somebody looks for a cause, and an example of what it finds. A
cause without them fails a test.
"""

from __future__ import annotations

import re

from drillyard.judge import causes, ends
from drillyard.judge.ends import Cause, Ended
from drillyard.topology import Role

INTRODUCTION = """\
# Causes

When a gate is closed or a member ends, Drillyard names the cause where it is known: `error.cause` of the
[JSON document](json.md), the line `cause:` on a terminal. The name is stable; the sentence behind it tells the details.

**Root before symptom.** One trouble closes many gates: two stores that were killed are also two stores that PD does not
hear, regions without a leader and writes that hang. So the catalogue is in order, and the first entry that fits is the
cause:

1. what a member that ended unasked says of its end itself, in its last lines, or the kernel says of it;
2. what happened to the whole machine: it slept, its clock jumped, somebody else answers in this cluster's place;
3. quorums that are lost, of PD or of regions, whoever took them away;
4. members that somebody ended or paused;
5. what ails members that run: full disks, slow disks, too few files, a PD without a leader;
6. what PD says of stores;
7. and last what only time tells: stuck, or still on its way.

Log lines support a cause and never make a gate pass. What fits nothing is `unknown`, with the first thing that is
lacking: nobody guesses. In the order of precedence:
"""

# A symptom, as somebody would tell it, and the causes to look at. Every cause is led to by one.
SYMPTOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "a member ends as soon as it is started",
        (
            "wrong-architecture",
            "port-taken",
            "cannot-run",
            "bad-flag",
            "bad-config",
            "cluster-id-mismatch",
            "pd-data-lost",
            "duplicate-store-address",
            "store-tombstone",
            "open-files",
            "data-in-use",
            "not-its-data",
            "newer-format",
            "data-corrupted",
            "timestamp-race",
        ),
    ),
    (
        "a member that ran is gone",
        (
            "out-of-memory",
            "removed",
            "crashed",
            "killed",
            "stopped",
            "disk-full",
            "data-corrupted",
            "keeper-lost",
            "unknown",
        ),
    ),
    ("`up` does not come to an end", ("slow-start", "hang", "foreign-cluster", "port-taken", "timestamp-race")),
    (
        "clients hang or get errors",
        ("paused", "region-quorum-lost", "pd-quorum-lost", "pd-no-leader", "pd-leader-unreachable", "not-serving"),
    ),
    ("writes are refused, reads work", ("disk-full", "low-space")),
    ("everything is slow", ("slow-disk", "open-files", "paused")),
    (
        "PD calls a store `Disconnected`, `Down`, `Offline` or `Tombstone`",
        ("store-disconnected", "store-down", "store-offline", "store-tombstone", "paused"),
    ),
    ("all stores are `Up`, but replicas are missing", ("low-space", "store-offline", "disk-full")),
    ("it worked before the laptop was closed", ("machine-slept", "clock-jump")),
    (
        "it worked before data directories or volumes were moved",
        ("cluster-id-mismatch", "pd-data-lost", "not-its-data"),
    ),
    ("none of these", ("unknown",)),
)

# What fills {found} in a cause's sentence, such as it could be.
EXAMPLES = {
    "bad-config": "unknown configuration options: lease",
    "bad-flag": "unknown argument --no-such=1",
    "cannot-run": "no such file or directory",
    "clock-jump": "this machine's clock was set 3600 s forwards",
    "cluster-id-mismatch": "cluster ID mismatch, local 7712 != remote 7713",
    "disk-full": "no space left on device",
    "duplicate-store-address": "duplicated store address: 127.0.0.1:20161",
    "foreign-cluster": "pd0 answers for a foreign cluster",
    "hang": "9 s",
    "low-space": "tikv1 has 12% left",
    "machine-slept": "42 s",
    "newer-format": "has on-disk format 3; this version reads up to 2",
    "data-corrupted": "storage failed (corrupted)",
    "not-its-data": "is no data directory of an emulated member",
    "not-serving": "a write at tikv1 got no answer",
    "open-files": "too many open files",
    "pd-data-lost": "member count is unequal",
    "pd-leader-unreachable": "pd0",
    "pd-quorum-lost": "pd0 was killed on request, pd1 is paused",
    "port-taken": "address already in use",
    "region-quorum-lost": "tikv0 was killed on request, tikv1 was stopped on request",
    "slow-disk": "sync duration of 3.1s",
    "slow-start": "2.5 s",
    "store-disconnected": "PD heard of it last 31 s ago",
    "store-down": "PD heard of it last 1900 s ago",
    "store-tombstone": "store is tombstone",
    "stopped": "tikv1 was killed on request",
    "unknown": "tikv1 ended with exit code 7",
}
MEMBER = "tikv1"
OF_PD = {"pd-no-leader": "pd0, pd1 and pd2", "pd-leader-unreachable": "pd1", "pd-data-lost": "pd1", "bad-config": "pd1"}


def text() -> str:
    names = causes.names()
    order = ",\n".join(f"[`{name}`](#{name})" for name in names)
    rows = [f"| {told} | {', '.join(f'[`{name}`](#{name})' for name in led)} |" for told, led in SYMPTOMS]
    symptoms = "\n".join(["## By symptom", "", "| what is seen | may be |", "| --- | --- |", *rows, ""])
    return "\n".join([INTRODUCTION, f"{order}.\n", symptoms, *(_section(name) for name in names)])


def _section(name: str) -> str:
    lines = [f"## `{name}`", ""]
    told = _made_in_code(name)
    if name == "out-of-memory":
        lines += ["Recognised by the kernel's word: a member that ended is marked as out of memory."]
    for kind in ends.KINDS:
        if kind.name == name:
            lines += ["Recognised by a member that ended, though nobody asked for it, with this in its last words:", ""]
            lines += [f"- `{pattern}`" for pattern in alternatives(kind.pattern)]
            lines += ["", *_told(_filled(name, kind.text, kind.data, kind.mend))]
    for known in causes.CATALOGUE:
        if known.name == name:
            lines += [f"{'Also recognised' if len(lines) > 2 else 'Recognised'} by this: {_lower(known.shows)}"]
            lines += ["", *_told(told or _filled(name, known.text, known.data, known.mend))]
            told = None
    if told is not None:
        lines += ["", *_told(told)]
    return "\n".join(lines)


def _told(cause: Cause) -> list[str]:
    return [f"- **You are told:** {cause.text}", f"- **The data:** {cause.data}", f"- **Next:** {cause.mend}", ""]


def _made_in_code(name: str) -> Cause | None:
    """The causes whose words are made in code and not in a table, from such an end."""
    examples = {
        "out-of-memory": Ended(MEMBER, Role.TIKV, None, 9, is_asked=False, is_oom=True, in_container=True),
        "crashed": Ended(MEMBER, Role.TIKV, None, 11, is_asked=False),
        "killed": Ended(MEMBER, Role.TIKV, None, 9, is_asked=False),
    }
    return ends.cause_of(examples[name]) if name in examples else None


def _filled(name: str, text: str, data: str, mend: str) -> Cause:
    who = OF_PD.get(name, "pd0" if name.startswith("pd-") else MEMBER)
    first = who.replace(" and ", ",").partition(",")[0]
    words = causes.ONE if first == who else causes.SEVERAL
    words = words | {"member": who, "who": who, "first": first, "option": "", "found": EXAMPLES.get(name, "")}
    words["revive"] = f"`drillyard {'resume' if name == 'paused' else 'start'} {first}`"
    return Cause(name, text.format(**words), data.format(**words), mend.format(**words))


def needs_example(name: str) -> bool:
    """Whether a sentence of this cause has a place for what was found."""
    texts = [(kind.name, kind.text) for kind in ends.KINDS] + [(known.name, known.text) for known in causes.CATALOGUE]
    return any(one == name and "{found}" in text for one, text in texts) and _made_in_code(name) is None


def alternatives(pattern: str) -> list[str]:
    """A pattern's alternatives, as readable as an expression can be: without the tail that only says "and the rest"."""
    depth, parts = 0, [""]
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [re.sub(r"\(\?P<found>\.\*\)$|\.\*$", "…", part).strip() for part in parts]


def _lower(words: str) -> str:
    """A sentence in the middle of another: names that are written large stay."""
    first = words.partition(" ")[0].rstrip("',s")
    return words if first.isupper() and len(first) > 1 else words[0].lower() + words[1:]
