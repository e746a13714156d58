"""What was measured: samples per figure, their median and worst, and the table. Pure; it measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure to measure. `target` is the most (or, for a rate, the least) that it should be; None: no target."""

    name: str
    unit: str
    target: float | None = None
    is_rate: bool = False

    def is_met(self, value: float) -> bool | None:
        if self.target is None:
            return None
        return value >= self.target if self.is_rate else value <= self.target


HELP = Figure("drillyard --help", "s", 0.25)
READY = Figure("command to ready: drillyard up, start to exit", "s", 3.0)
LAG = Figure("ready reported after the truth in the members' logs", "s", 0.15)
RSS = Figure("memory of an idle member, RSS, the largest of six", "MB", 60.0)
PSS = Figure("memory of an idle member, PSS, the largest of six", "MB")
STORE_LOST = Figure("served again after SIGKILL of the region leader", "s", 3.0)
PD_LOST = Figure("served again after SIGKILL of the PD leader", "s", 3.0)
OUTAGE = Figure("outage of a killed region leader, by the ruler", "s")
DISAGREEMENT = Figure("ruler and an independent client, difference of one outage", "ms", 50.0)
PUTS = Figure("puts, 64 in flight, one client process", "/s", is_rate=True)
GETS = Figure("gets, 64 in flight, one client process", "/s", is_rate=True)
RESET = Figure("reset of a running cluster with 1,000 keys, empty and proven", "s", 0.3)
STOP = Figure("drillyard down --delete-data, start to exit", "s")


@dataclass(slots=True)
class Results:
    """Samples by figure, in the order in which the figures first came."""

    samples: dict[Figure, list[float]] = field(default_factory=dict)

    def add(self, figure: Figure, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)

    def rows(self) -> Iterable[dict[str, Any]]:
        for figure, values in self.samples.items():
            median = statistics.median(values)
            yield {
                "figure": figure.name,
                "unit": figure.unit,
                "median": round(median, 3),
                "worst": round(min(values) if figure.is_rate else max(values), 3),
                "runs": len(values),
                "target": figure.target,
                "met": figure.is_met(median),
                "samples": [round(value, 3) for value in values],
            }

    def table(self) -> str:
        words = {True: "met", False: "MISSED", None: ""}
        lines = ["| figure | median | worst | runs | target | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
        for row in self.rows():
            unit = row["unit"]
            target = "" if row["target"] is None else f"{row['target']:g} {unit}"
            median, worst = (_written(row[key], unit) for key in ("median", "worst"))
            cells = (row["figure"], median, worst, row["runs"], target, words[row["met"]])
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        return "\n".join(lines)


def _written(value: float, unit: str) -> str:
    digits = 2 if unit == "s" else 0
    return f"{value:.{digits}f} {unit}"
