"""What README and docs/performance.md quote is what is kept in bench/results; and plots show what was measured."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import bench
from bench import kept
from bench.costs import PARTS, cost
from bench.figures import Figure
from tools import performance_page, plot
from tools.performance_page import BLOCK, DRAWN, PAGE, README, TABLES, renewed
from tools.plot import Line, Panel, Point

ROW: dict[str, Any] = {
    "key": "up",
    "figure": "start",
    "unit": "s",
    "median": 1.5,
    "worst": 2.5,
    "runs": 5,
    "target": 1.0,
    "is_rate": False,
    "met": False,
}
MACHINE = {"cores": 2, "architecture": "x86_64", "memory_gib": 24, "system": "Linux 6", "python": "3.11.7", "load": 0.1}
TOLD = {"machine": MACHINE, "date": "2026-01-02 03:04 UTC", "commit": "abc", "figures": [ROW]}


def test_a_block_is_made_afresh_and_the_rest_is_left() -> None:
    text = "before\n<!-- measured: table life -->\nold\n<!-- end -->\nafter\n<!-- measured: machine -->\n<!-- end -->\n"
    made = renewed(text, {"start": TOLD})
    assert made.startswith("before\n")
    assert "\nafter\n" in made
    assert "old" not in made
    assert "| start | **1.50 s** | 2.50 s | 5 | ≤ 1.00 s |" in made
    assert "2 cores (x86_64), 24 GiB" in made
    assert "`abc`" in made
    assert renewed(made, {"start": TOLD}) == made


def test_what_was_not_measured_has_no_row_but_is_told() -> None:
    text = "<!-- measured: table life -->\n<!-- end -->"
    made = renewed(text, {"start": TOLD | {"missing": {"client-go": "Go is missing"}}})
    assert made.count("\n| ") == 3  # head, rule, one row
    assert "Not measured: client-go, because Go is missing." in made


def test_sizes_are_columns() -> None:
    rows = [ROW | {"key": "k", "figure": "start, by keys", "at": at, "median": at / 10} for at in (10, 20)]
    made = renewed("<!-- measured: sizes keys -->\n<!-- end -->", {"keys": TOLD | {"figures": rows}})
    assert "| | 10 | 20 |" in made
    assert "| start | 1.00 s | 2.00 s |" in made


@pytest.mark.parametrize("path", [PAGE, README])
def test_every_block_can_be_made(path: Path) -> None:
    asked = [found["what"] for found in BLOCK.finditer(path.read_text())]
    assert asked
    for what in asked:
        kind, _, name = what.partition(" ")
        assert kind in performance_page.BLOCKS
        assert kind != "table" or name in TABLES


def test_every_plot_is_on_the_page() -> None:
    assert set(re.findall(r"\(plots/(\S+)\.svg\)", PAGE.read_text())) == set(DRAWN)


def test_every_key_that_a_page_asks_for_is_a_figure() -> None:
    """Declared by a bench, made by one of its functions, or kept already."""
    modules = [importlib.import_module(f"bench.{found.name}") for found in pkgutil.iter_modules(bench.__path__)]
    declared = {one.key for module in modules for one in vars(module).values() if isinstance(one, Figure)}
    made = {*TABLES["steps"], *TABLES["large"], *(key for key in TABLES["spread"] if key.startswith("cost-"))}
    there = {row["key"] for one in kept.read().values() for row in one["figures"]}
    asked = {key for keys in TABLES.values() for key in keys}
    asked |= {key for _, panels in DRAWN.values() for panel in panels for _, key in panel.lines}
    assert asked <= declared | made | there


def test_what_an_operation_costs_tells_what_bounds_its_rate() -> None:
    client, action, rate = performance_page.COSTS["calls"][0]
    costs = dict(zip(PARTS, (100.0, 20.0, 0.0, 60.0), strict=True))
    rows = [ROW | {"key": cost(action, client, part).key, "median": value} for part, value in costs.items()]
    told = {"throughput": TOLD | {"figures": [*rows, ROW | {"key": rate, "median": 4000.0}]}}
    made = renewed("<!-- measured: costs calls -->\n<!-- end -->", told)
    assert "| 100 | 20.0 | 140 | 0.00 | 60.0 | 10,000/s by the leader's process | 4,000/s |" in made
    rows[-1] |= {"median": 160.0}
    made = renewed("<!-- measured: costs calls -->\n<!-- end -->", told | {"x": TOLD | {"figures": rows}})
    assert "6,667/s by 2 cores" in made


@pytest.mark.parametrize(
    ("values", "is_log", "ticks"),
    [
        ((0.0, 8.3), False, (0, 2, 4, 6, 8, 10)),
        ((3.0, 1200.0), False, (0, 200, 400, 600, 800, 1000, 1200)),
        ((0.0,), False, (0,)),
        ((1.5, 8.0), True, (1, 2, 5, 10)),
        ((1.5, 80_000.0), True, (1, 10, 100, 1000, 10_000, 100_000)),
    ],
)
def test_ticks_are_round_and_hold_the_values(values: tuple[float, ...], is_log: bool, ticks: tuple[float, ...]) -> None:
    axis = plot.axis(values, is_log)
    if max(values):
        assert axis.ticks == pytest.approx(ticks)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert all(0 <= axis.at(value) <= 1 for value in values)


def test_a_plot_is_a_picture_with_named_axes_and_a_point_for_each_median() -> None:
    points = (Point(1, 10.0, 12.0), Point(100, 20.0, 30.0))
    panel = Panel("Puts & gets", "keys", "ms", (Line("a < b", points), Line("c", points[:1])))
    root = ElementTree.fromstring(plot.svg("about", [panel, panel]))
    tag = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{tag}text")]
    assert words.count("keys") == words.count("ms") == words.count("Puts & gets") == words.count("a < b") == 2
    assert len(list(root.iter(f"{tag}circle"))) == 6
