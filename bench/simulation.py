"""The pure parts: how fast whole clusters are simulated, and how fast histories are judged."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench import checked_histories, figures
from bench.deployment import Deployment
from bench.figures import Results
from bench.plan import BenchFailed
from drillyard.judge import consistency, transactions
from drillyard.judge.consistency import Operation, Verdict

# So many seeds that the start of the processes, and the wait for the last of them, hardly count: 0.3 s.
RUNS = (
    (figures.SIMULATION, ("--seeds", "6000..6799", "--stores", "3")),
    (figures.SIMULATION_DRAWN, ("--seeds", "6000..6799")),
    (figures.SIMULATION_ALONE, ("--seeds", "6000..6399", "--jobs", "1")),
)
OPERATIONS, KEYS = 100_000, 1_000
TRANSACTIONS = 400


def simulation(results: Results) -> None:
    """`drillyard sim` as its user runs it, on all cores and on one: the same seeds in each round, all judged."""
    with tempfile.TemporaryDirectory() as home:
        command = Deployment(Path(home), Path())
        for figure, options in RUNS:
            told = command.run("sim", *options).document["simulation"]
            if told["failures"]:
                raise BenchFailed(f"a seed broke a promise: {told['failures'][0]['replay']}")
            results.add(figure, told["virtual_s"] / told["elapsed_s"])


def checker(results: Results) -> None:
    _judge_registers(results, figures.CHECKER, checked_histories.of_registers(OPERATIONS, KEYS, seed=1))
    troubled = checked_histories.of_registers(OPERATIONS, KEYS, seed=1, trouble=0.1)
    _judge_registers(results, figures.TROUBLED, troubled)
    history, opening = checked_histories.of_a_bank(TRANSACTIONS, seed=1)
    began = time.perf_counter()
    judged = transactions.check(history, initial=opening)
    results.add(figures.BANK, time.perf_counter() - began)
    _expect_fine(judged)


def _judge_registers(results: Results, figure: figures.Figure, operations: list[Operation]) -> None:
    began = time.perf_counter()
    judged = consistency.check(operations)
    results.add(figure, time.perf_counter() - began)
    _expect_fine(judged)


def _expect_fine(judged: consistency.Judgement | transactions.Judgement) -> None:
    if judged.verdict is not Verdict.LINEARIZABLE:
        raise BenchFailed(f"the history is of a correct store, but was judged {judged.explain()}")
