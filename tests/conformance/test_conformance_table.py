"""The conformance table: what a row comes to, what is told of it, and how pd-ctl's words are judged."""

from __future__ import annotations

import pytest

from drillyard.flows.conformance import jobs, pd_ctl, suite
from drillyard.flows.conformance.pd_ctl import Command, failure_of
from drillyard.flows.conformance.programs import MENDS, Missing, Ran
from drillyard.flows.conformance.table import Check, ConformanceReport, Result, Row, lines_of, markdown

GOOD = Check("put", True)
BAD = Check("get", False, "it said\n  nothing")
PASSED = Row("client", "1.0", "raw", (GOOD, GOOD))
FAILED = Row("client", "1.0", "txn", (GOOD, BAD))
NOT_RUN = Row("other", "", "raw", not_run="other is not on this machine", mend="install it")


def report(*rows: Row) -> ConformanceReport:
    return ConformanceReport(rows, at=1_795_000_000.0, emulated="8.1.0", elapsed_s=61.4)


@pytest.mark.parametrize(
    ("row", "result"),
    [
        (PASSED, Result.PASSED),
        (FAILED, Result.FAILED),
        (NOT_RUN, Result.NOT_RUN),
        (Row("client", "1.0", "raw"), Result.FAILED),  # a program that told nothing has shown nothing
    ],
)
def test_what_a_row_comes_to(row: Row, result: Result) -> None:
    assert row.result is result


def test_what_was_not_run_is_no_failure_and_makes_the_table_incomplete() -> None:
    assert report(PASSED).has_passed
    assert report(PASSED).is_complete
    assert report(PASSED, NOT_RUN).has_passed
    assert not report(PASSED, NOT_RUN).is_complete
    assert not report(PASSED, FAILED).has_passed


def test_a_failed_row_names_what_failed_and_one_that_was_not_run_its_mend() -> None:
    assert lines_of(FAILED) == ["failed   client 1.0: txn (1 of 2)", "  failed: get: it said nothing"]
    assert lines_of(NOT_RUN)[1] == "  mend: install it"


def test_the_page_has_every_row_and_the_date() -> None:
    page = markdown(report(PASSED, FAILED, NOT_RUN))
    assert "Run on 2026-11-18" in page
    assert "1 passed, 1 failed, 1 not run; 3 of 4 checks in 61 s" in page
    assert "| client | 1.0 | raw | passed: all 2 |" in page
    assert "| client | 1.0 | txn | **failed**: 1 of 2 |" in page
    assert "| other |  | raw | not run: other is not on this machine |" in page
    assert "- failed: `get`: it said nothing" in page


@pytest.mark.parametrize(
    ("prints", "said", "is_good"),
    [
        (pd_ctl.JSON, '{"count": 0}', True),
        (pd_ctl.JSON, "null", True),
        (pd_ctl.JSON, "Failed to get store: [404] 404 page not found", False),
        (pd_ctl.JSON, '"[PD:cluster:ErrNotBootstrapped]TiKV cluster not bootstrapped"', False),
        (pd_ctl.JSON, "", False),
        (pd_ctl.DONE, "Success! The store is set as Offline.", True),
        (pd_ctl.DONE, "Failed! [405]", False),
        (pd_ctl.DONE, "", False),
    ],
)
def test_pd_ctl_is_judged_by_what_it_prints(prints: str, said: str, is_good: bool) -> None:
    assert (failure_of(Command("x", prints), 0, said, "") == "") is is_good


def test_pd_ctl_that_does_not_end_well_has_failed() -> None:
    assert "no end" in failure_of(Command("x"), None, "{}", "")
    assert "exit code 1: boom" in failure_of(Command("x"), 1, "", "boom")


def test_a_client_is_taken_at_its_word_line_by_line() -> None:
    out = '{"check": "a", "passed": true}\nnoise\n{"check": "b", "passed": false, "why": "c"}\n'
    assert jobs._told_by(Ran(0, out, "")) == (Check("a", True), Check("b", False, "c"))


@pytest.mark.parametrize(("ran", "why"), [(Ran(0, "", ""), "told nothing"), (Ran(None, "", ""), "still running")])
def test_a_client_that_tells_nothing_or_does_not_end_has_failed(ran: Ran, why: str) -> None:
    (check,) = jobs._told_by(ran)
    assert not check.is_passed
    assert why in check.why


def test_every_program_that_is_needed_has_a_mend() -> None:
    needed = {name for part in suite.PARTS for job in part.jobs for name in job.executables}
    assert needed <= set(MENDS)
    assert all(Missing(name).mend for name in MENDS)


def test_no_row_is_there_twice() -> None:
    rows = [(job.program, job.area, part.pd) for part in suite.PARTS for job in part.jobs]
    assert len(rows) == len(set(rows))
