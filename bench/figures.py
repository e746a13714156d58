"""What is measured: every figure with its target, the samples taken of it, and the rows they come to. Pure.

Rules: a figure is declared here once, whichever bench measures it, and its `key` never changes: kept results and the
documents refer to it. A figure that grows with the work has one declaration and one row for each size (`at`). A rate
is better when it is higher, everything else when it is lower. What cannot be measured on a machine is missing, with the
reason, and never a zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """`target` bounds the median and `p95_target` the 95th percentile; None: no target."""

    key: str
    name: str
    unit: str
    target: float | None = None
    is_rate: bool = False
    p95_target: float | None = None
    at: int | None = None  # the size at which it was taken, in a sweep

    def of(self, size: int) -> Figure:
        return replace(self, at=size)

    def is_met(self, median: float, p95: float) -> bool | None:
        if self.target is None:
            return None
        is_met = median >= self.target if self.is_rate else median <= self.target
        return is_met and (self.p95_target is None or p95 <= self.p95_target)


HELP = Figure("help", "`drillyard --help`", "s", 0.20)
STATUS = Figure("status", "`drillyard status` of a healthy cluster", "s", 0.5)
UP = Figure("up", "`drillyard up`, the command's start to its end, six gates open", "s", 2.0, p95_target=3.0)
UP_COMMAND_CPU = Figure("up-command-cpu", "CPU of the command `up`, without keeper and members", "s")
UP_MEMBERS_CPU = Figure("up-members-cpu", "CPU of the six members until `up` has ended", "s")
LAG = Figure("lag", "ready reported after the members' logs make it true", "s", 0.1)
STOP = Figure("stop", "`drillyard down --delete-data` of the six", "s", 1.0)
FRESH = Figure("fresh", "a fresh cluster for a test, made and proven", "s", 2.0)
FRESH_GONE = Figure("fresh-gone", "the removal of a test's cluster, proven", "s")
RESET = Figure("reset", "`reset` of a running cluster with 1,000 keys, empty and proven", "s", 0.3)
RSS = Figure("rss-idle", "memory of an idle member, resident, the largest of six", "MB")
PSS = Figure("pss-idle", "memory of an idle member, proportional, the largest of six", "MB", 55.0)
PSS_IMPORTS = Figure("pss-imports", "memory of a process that has only imported a TiKV, proportional", "MB")
PSS_AFTER = Figure("pss-after", "memory of a member after the throughput bench, proportional, the largest", "MB", 90.0)
STORE_LOST = Figure("store-lost", "served again after SIGKILL of the region's leader", "s", 2.0)
PD_ELECTED = Figure("pd-elected", "PD's next leader serves, by its log, after SIGKILL of the leader", "s")
PD_LOST = Figure("pd-lost", "served again after SIGKILL of PD's leader", "s", 2.0)

PUTS = Figure("puts-unary", "puts, 64 in flight, unary (tikv-client)", "/s", 1500, is_rate=True)
GETS = Figure("gets-unary", "linearizable gets, 64 in flight, unary (tikv-client)", "/s", 2200, is_rate=True)
BATCH_PUTS = Figure("puts-batch", "puts, 64 in flight, BatchCommands (client-go)", "/s", 6000, is_rate=True)
BATCH_GETS = Figure(
    "gets-batch", "linearizable gets, 64 in flight, BatchCommands (client-go)", "/s", 10000, is_rate=True
)

SIMULATION = Figure(
    "simulation-three-stores",
    "`drillyard sim --stores 3`: 3 PD and 3 stores, default storm, times real time",
    "x",
    300,
    is_rate=True,
)
SIMULATION_DRAWN = Figure("simulation-all-cores", "the same with 3 to 5 stores, as each seed draws", "x", is_rate=True)
SIMULATION_ALONE = Figure("simulation", "the latter on one core (`--jobs 1`)", "x", is_rate=True)
CHECKER = Figure("checker", "linearizability of 100,000 operations over 1,000 keys", "s", 10.0)
TROUBLED = Figure("checker-troubled", "the same, a tenth of the puts failed or of unknown outcome", "s")
BANK = Figure("bank", "strict serializability of a bank's history of 400 transactions, until decided", "s")

OUTAGE = Figure("outage", "outage of a killed region leader, by the ruler", "s")
DISAGREEMENT = Figure("disagreement", "ruler and an independent client, difference of one outage", "ms", 50.0)


def step(what: str) -> Figure:
    """A step of a start, from the command's own start on."""
    return Figure(f"up: {what}", what, "s")


def command(words: str) -> Figure:
    """A command of a healthy cluster, from its start to its end."""
    return Figure(f"command-{words.partition(' ')[0]}", f"`drillyard {words}`", "s")


@dataclass(slots=True)
class Results:
    """Samples by figure, in the order in which the figures first came, and what could not be measured."""

    samples: dict[Figure, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, figure: Figure, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)

    def miss(self, what: str, why: str) -> None:
        """These figures are left out on this machine."""
        self.missing[what] = why

    def rows(self) -> list[dict[str, Any]]:
        return [_row(figure, values) for figure, values in self.samples.items()]


def percentile(values: list[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _row(figure: Figure, values: list[float]) -> dict[str, Any]:
    median, p95 = statistics.median(values), percentile(values, 0.95)
    row: dict[str, Any] = {"key": figure.key, "figure": figure.name, "unit": figure.unit}
    if figure.at is not None:
        row["at"] = figure.at
    row |= {"median": _short(median), "worst": _short(min(values) if figure.is_rate else max(values))}
    if figure.p95_target is not None:
        row |= {"p95": _short(p95), "p95_target": figure.p95_target}
    return row | {
        "runs": len(values),
        "target": figure.target,
        "is_rate": figure.is_rate,
        "met": figure.is_met(median, p95),
        "samples": [_short(value) for value in values],
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 1000 else round(value)


# ---- the table ----


def table(rows: Iterable[dict[str, Any]]) -> str:
    words = {True: "met", False: "MISSED", None: ""}
    lines = ["| figure | median | worst | runs | target | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        name = row["figure"] if "at" not in row else f"{row['figure']}: {row['at']:,}"
        cells = (name, measured(row), written(row["worst"], row["unit"]), row["runs"], wanted(row), words[row["met"]])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def measured(row: Mapping[str, Any]) -> str:
    p95 = f" (p95 {written(row['p95'], row['unit'])})" if "p95" in row else ""
    return written(row["median"], row["unit"]) + p95


def wanted(row: Mapping[str, Any]) -> str:
    if row["target"] is None:
        return ""
    sign = "≥" if row["is_rate"] else "≤"
    p95 = f" (p95 {written(row['p95_target'], row['unit'])})" if "p95" in row else ""
    return f"{sign} {written(row['target'], row['unit'])}{p95}"


def written(value: float, unit: str) -> str:
    """A value for people: three digits are enough."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    number = f"{value:,.{digits}f}"
    return f"{number}{unit}" if unit.startswith("/") else f"{number} {unit}".rstrip()
