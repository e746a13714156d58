"""docs/fidelity.md: what the emulated PD answers as a real one does, what differently and why, and what is absent.

Made from the committed table, which the tests against a real PD hold to be true; so the page needs no real PD.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tools import fidelity_table
from tools.fidelity_table import Difference, Kind, State, Table, plain

INTRODUCTION = """\
# How true the emulated PD is

An emulated PD and a real PD 8.1 are told the same story by the same stores, and asked the same questions in every state
of it: over HTTP and gRPC, of the leader and of a follower, good requests and bad ones. Status, content type, layout,
fields and their order, and values are compared, after what differs from cluster to cluster (ids, ports, times, build
hashes) was replaced by names. The tests fail on a difference that is not on this page, and on one that is and no longer
shows. What is **absent** is refused as the real one refuses a path or method that it does not have.

`~` stands for `/pd/api/v1`, `rpc` for a method of gRPC `pdpb.PD`; `follower` asks a member that does not lead,
`stranger` gives another cluster's id.
"""


def text() -> str:
    table = fidelity_table.read()
    asked = questions(table)
    absent = [one for one in table.differences if one.kind is Kind.ABSENT]
    different = [one for one in table.differences if one.kind is Kind.DIFFERENT]
    named = {one.question for one in table.differences}
    same = [question for question in asked if question not in named]
    answers = sum(len(state.questions) for state in table.states)
    counts = f"{answers} answers to {len(asked)} questions are compared; {len(same)} are answered the same everywhere."
    parts = [INTRODUCTION, f"{counts}\n", "## The states\n", _states(table.states)]
    parts += ["## Different\n", "What is asked, in which states, what differs, and why.\n", _table(different)]
    parts += ["## Absent\n", _table(absent)]
    parts += ["## The same\n", _listed(same)]
    return "\n".join(parts)


def questions(table: Table) -> list[str]:
    """Every question once, in the order in which it is asked first."""
    return list(dict.fromkeys(plain(one.text) for state in table.states for one in state.questions))


def _states(states: Iterable[State]) -> str:
    rows = [f"| {state.name} | {state.driven} | {len(state.questions)} |" for state in states]
    return "\n".join(["| state | what was done to both | questions |", "| --- | --- | ---: |", *rows, ""])


def _table(differences: Iterable[Difference]) -> str:
    """A row for each reason, with all that it is the reason for."""
    reasons: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for one in differences:
        reasons.setdefault((one.why, one.states, one.parts), []).append(one.question)
    rows = [
        f"| {_codes(asked)} | {', '.join(states) or 'all'} | {_codes(parts)} | {_cell(why)} |"
        for (why, states, parts), asked in reasons.items()
    ]
    return "\n".join(["| asked | states | what | why |", "| --- | --- | --- | --- |", *rows, ""])


def _listed(asked: Iterable[str]) -> str:
    by_kind: dict[str, list[str]] = {}
    for question in asked:
        by_kind.setdefault(kind_of(question), []).append(question)
    parts = []
    for kind, found in sorted(by_kind.items()):
        parts += [f"{KINDS[kind]}:\n", *(f"- {_code(question)}" for question in found), ""]
    return "\n".join(parts)


KINDS: Mapping[str, str] = {"GET": "Read over HTTP", "change": "Changed over HTTP, or refused", "rpc": "Over gRPC"}


def kind_of(question: str) -> str:
    words = question.split()
    verb = words[1] if words[0] in fidelity_table.SOMEBODY else words[0]
    return verb if verb in ("GET", "rpc") else "change"


def _codes(several: Iterable[str]) -> str:
    return ", ".join(map(_code, several))


def _code(words: str) -> str:
    """As code in a cell of a table."""
    fence = "``" if "`" in words else "`"
    return f"{fence}{_cell(words)}{fence}"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")
