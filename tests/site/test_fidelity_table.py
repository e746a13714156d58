"""The table of fidelity: everything that is emulated is asked for, and what it tells can be told on a page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from drillyard.emulator.metrics import Registry
from drillyard.emulator.pd.http import PdHttp
from drillyard.wire import services
from drillyard.wire.method import Method
from tools import fidelity_page, fidelity_table
from tools.fidelity_table import V1, Difference, Kind, Question

TABLE = fidelity_table.read()
ASKED = [question for state in TABLE.states for question in state.questions]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("GET ~/stores?state=0", ("", "GET", f"{V1}/stores?state=0", "")),
        ('POST ~/config {"a": 1}', ("", "POST", f"{V1}/config", '{"a": 1}')),
        ("follower GET /health", ("follower", "GET", "/health", "")),
        ("stranger rpc GetStore store_id: 1", ("stranger", "rpc", "GetStore", "store_id: 1")),
    ],
)
def test_a_question_is_one_line(text: str, parts: tuple[str, ...]) -> None:
    question = Question.of(text)
    assert (question.whom, question.method, question.path, question.body) == parts


def test_a_difference_covers_what_it_names() -> None:
    some = Difference("GET ~/x", ("whole",), Kind.DIFFERENT, "", ("body.regions.*.down",))
    assert some.is_about("follower GET ~/x", "whole")
    assert not some.is_about("GET ~/x", "misused")
    assert some.covers("body.regions.3.down.peer")
    assert not some.covers("body.count")


def test_every_emulated_path_is_asked_for() -> None:
    member = cast(Any, SimpleNamespace())
    router = PdHttp(member, Registry(), 0).router(())
    asked = {(one.method, tuple(one.path.partition("?")[0].split("/"))) for one in ASKED}
    unasked = [
        f"{method} {'/'.join(pattern)}"
        for method, pattern, _ in router._routes
        if pattern != ("", "metrics")  # compared by names of metrics
        and not any(method == verb and _fits(pattern, path) for verb, path in asked)
    ]
    assert unasked == []


def _fits(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(pattern) == len(path) and all(
        wanted == found or wanted.startswith("{") for wanted, found in zip(pattern, path, strict=True)
    )


def test_every_method_of_pd_is_asked_for() -> None:
    methods = {name for name, one in vars(services.PD).items() if isinstance(one, Method)}
    assert methods - {one.path for one in ASKED if one.method == "rpc"} == set()


def test_every_difference_is_about_something_that_is_asked() -> None:
    asked = set(fidelity_page.questions(TABLE))
    assert [one.question for one in TABLE.differences if one.question not in asked] == []
    states = {state.name for state in TABLE.states}
    assert {state for one in TABLE.differences for state in one.states} <= states


def test_every_difference_has_a_reason_of_its_own_words() -> None:
    assert [one.question for one in TABLE.differences if len(one.why.split()) < 3] == []
