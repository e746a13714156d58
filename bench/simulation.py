"""The pure parts: how fast whole clusters are simulated, and how fast histories are judged. Each on one core."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench import checked_histories, figures
from bench.deployment import Deployment
from bench.figures import Results
from bench.plan import BenchFailed
from drillyard.judge import consistency, transactions
from drillyard.judge.consistency import Verdict

SEEDS = "1..40"
OPERATIONS, KEYS = 100_000, 1_000
TRANSACTIONS = 400


def simulation(results: Results) -> None:
    """The same seeds each time, invariants and histories checked, as `drillyard sim` does."""
    with tempfile.TemporaryDirectory() as home:
        told = Deployment(Path(home), Path()).run("sim", "--seeds", SEEDS, "--jobs", "1").document["simulation"]
    results.add(figures.SIMULATION, told["virtual_s"] / told["elapsed_s"])


def checker(results: Results) -> None:
    operations = checked_histories.of_registers(OPERATIONS, KEYS, seed=1)
    began = time.perf_counter()
    judged: consistency.Judgement | transactions.Judgement = consistency.check(operations)
    results.add(figures.CHECKER, time.perf_counter() - began)
    _expect_fine(judged)
    history, opening = checked_histories.of_a_bank(TRANSACTIONS, seed=1)
    began = time.perf_counter()
    judged = transactions.check(history, initial=opening)
    results.add(figures.BANK, time.perf_counter() - began)
    _expect_fine(judged)


def _expect_fine(judged: consistency.Judgement | transactions.Judgement) -> None:
    if judged.verdict is not Verdict.LINEARIZABLE:
        raise BenchFailed(f"the history is of a correct store, but was judged {judged.explain()}")
