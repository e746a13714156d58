"""What the emulated PD and a real one are asked, and how their answers are known to differ: tests/real/fidelity.toml.

A question is one line, explained at the head of that file. A difference names a question, the states in which it shows,
whether the answer is `different` or what was asked for is `absent`, why, and the parts of the answer that differ (a `*`
stands for anything; all parts if it names none). What is read from a follower differs as what is read from the leader.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "tests" / "real" / "fidelity.toml"
V1 = "/pd/api/v1"
SOMEBODY = ("follower", "stranger")


class Kind(StrEnum):
    DIFFERENT = "different"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Question:
    """One line, taken apart. Over gRPC `path` is the method's name."""

    text: str
    whom: str  # "", "follower" or "stranger"
    method: str  # GET, POST, …, or rpc
    path: str
    body: str

    @classmethod
    def of(cls, text: str) -> Question:
        first, _, rest = text.partition(" ")
        whom, rest = (first, rest) if first in SOMEBODY else ("", text)
        method, _, rest = rest.partition(" ")
        path, _, body = rest.partition(" ")
        return cls(text, whom, method, path.replace("~", V1, 1), body)


@dataclass(frozen=True, slots=True)
class State:
    name: str
    driven: str  # what was done to both before
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    question: str
    states: tuple[str, ...]  # none: all in which it is asked
    kind: Kind
    why: str
    parts: tuple[str, ...]  # such as "status" or "body.schedule.schedulers-v2"; none: all

    def is_about(self, question: str, state: str) -> bool:
        return plain(question) == self.question and (not self.states or state in self.states)

    def covers(self, part: str) -> bool:
        return not self.parts or any(
            fnmatch.fnmatchcase(part, _pattern(one)) or fnmatch.fnmatchcase(part, _pattern(one) + ".*")
            for one in self.parts
        )


@dataclass(frozen=True, slots=True)
class Table:
    states: tuple[State, ...]
    differences: tuple[Difference, ...]

    def of(self, question: str, state: str) -> tuple[Difference, ...]:
        return tuple(one for one in self.differences if one.is_about(question, state))


def plain(question: str) -> str:
    """The question without the follower that is asked to read."""
    return question.removeprefix("follower ") if question.startswith("follower GET ") else question


def _pattern(text: str) -> str:
    """Only the star is special."""
    return "".join(f"[{letter}]" if letter in "[?" else letter for letter in text)


def read(path: Path = TABLE) -> Table:
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    states = []
    for state in told["state"]:
        reads = told["reads"] if state.get("reads") else []
        from_followers = [f"follower {line}" for line in told["reads"]] if state.get("followers") else []
        lines = [*reads, *from_followers, *state["asks"]]
        states.append(State(state["name"], state["driven"], tuple(map(Question.of, lines))))
    return Table(tuple(states), tuple(_differences(told.get("difference", []))))


def _differences(told: list[dict[str, object]]) -> Iterator[Difference]:
    for one in told:
        asked = one["asks"]
        assert isinstance(asked, list)
        for question in asked:
            states, parts = one.get("states", []), one.get("parts", [])
            assert isinstance(states, list)
            assert isinstance(parts, list)
            yield Difference(question, tuple(states), Kind(str(one["is"])), str(one["why"]), tuple(parts))
