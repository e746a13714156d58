"""Samples become rows: what is the median and the worst, what misses its target, and how it is written."""

from __future__ import annotations

from typing import Any

import pytest

from bench.figures import Figure, Results, percentile, table, wanted, written

TIME = Figure("up", "start", "s", 2.0, p95_target=3.0)
RATE = Figure("puts", "puts", "/s", 100, is_rate=True)


def row_of(figure: Figure, *samples: float) -> dict[str, Any]:
    results = Results()
    for sample in samples:
        results.add(figure, sample)
    (row,) = results.rows()
    return row


@pytest.mark.parametrize(
    ("figure", "samples", "median", "worst", "is_met"),
    [
        (TIME, (1.0, 1.5, 2.5), 1.5, 2.5, True),
        (TIME, (1.0, 2.1, 2.2), 2.1, 2.2, False),
        (TIME, (1.0, 1.5, 3.5), 1.5, 3.5, False),  # by its p95
        (RATE, (90, 110, 120), 110, 90, True),
        (RATE, (90, 95, 120), 95, 90, False),
        (Figure("x", "x", "s"), (1.0,), 1.0, 1.0, None),
        (Figure("x", "x", "", 0.0), (0.0, 0.0), 0.0, 0.0, True),
    ],
)
def test_a_row(figure: Figure, samples: tuple[float, ...], median: float, worst: float, is_met: bool | None) -> None:
    row = row_of(figure, *samples)
    assert (row["median"], row["worst"], row["met"], row["runs"]) == (median, worst, is_met, len(samples))


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.05, 1.0), (0.5, 10.0), (0.51, 11.0), (0.95, 19.0), (1.0, 20.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(20, 0, -1)], share) == value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.123, "s", "0.12 s"), (12.34, "ms", "12.3 ms"), (1234.5, "/s", "1,234/s"), (3.0, "", "3.00")],
)
def test_values_are_written_with_three_digits(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_the_table_tells_sizes_and_what_is_missed() -> None:
    results = Results()
    results.add(TIME, 2.5)
    for size in (1, 1000):
        results.add(Figure("y", "regions", "ms").of(size), 5.0)
    rows = results.rows()
    assert [row.get("at") for row in rows] == [None, 1, 1000]
    assert "| MISSED |" in table(rows)
    assert "regions: 1,000" in table(rows)
    assert wanted(rows[0]) == "≤ 2.00 s (p95 3.00 s)"
    assert wanted(rows[1]) == ""
