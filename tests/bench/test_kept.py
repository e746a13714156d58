"""Results on disk: what was kept is read, and a failure is told beside what was measured before it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import kept
from bench.figures import Figure, Results
from bench.plan import Bench, BenchFailed

FIGURE = Figure("x", "x", "s")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "DIRECTORY", tmp_path / "results")
    return tmp_path / "results"


def measured(bad_round: int) -> Bench:
    """It fails in that round."""

    def measure(results: Results) -> None:
        if sum(map(len, results.samples.values())) + 1 == bad_round:
            raise BenchFailed("the cluster does not serve")
        results.add(FIGURE, 1.0)
        results.miss("client-go", "Go is missing")

    return Bench("some", "", measure)


def test_what_is_kept_is_read_again(directory: Path) -> None:
    told = command.taken(measured(0), rounds=3, is_kept=True)
    assert kept.read() == {"some": told}
    assert told["figures"][0]["samples"] == [1.0, 1.0, 1.0]
    assert told["missing"] == {"client-go": "Go is missing"}
    assert {"commit", "date", "machine"} <= set(told)


def test_the_rounds_before_a_failure_are_kept(directory: Path) -> None:
    told = command.taken(measured(3), rounds=5, is_kept=True)
    assert told["figures"][0]["runs"] == 2
    assert told["failure"] == "round 3: BenchFailed: the cluster does not serve"
    assert kept.read() == {"some": told}


@pytest.mark.parametrize("trouble", [BenchFailed("x"), OSError("x"), subprocess.TimeoutExpired("x", 1), KeyError("x")])
def test_a_bench_that_has_nothing_leaves_what_was_there(directory: Path, trouble: Exception) -> None:
    command.taken(measured(0), rounds=1, is_kept=True)
    before = kept.read()

    def measure(results: Results) -> None:
        raise trouble

    assert "failure" in command.taken(Bench("some", "", measure), rounds=1, is_kept=True)
    assert kept.read() == before


def test_a_file_has_a_line_for_each_figure(directory: Path) -> None:
    command.taken(measured(0), rounds=1, is_kept=True)
    text = (directory / "some.json").read_text()
    assert json.loads(text)["figures"]
    assert [line for line in text.splitlines() if '"key": "x"' in line]
