"""Plots as SVG: panels of lines, two beside each other, with axes that name their units. Pure.

Rules: the same data gives the same text, so that a test can tell a stale plot. A picture brings its own background, and
turns dark with it where the reader's system is dark: it is readable on any page. A line goes through medians; a thin
stroke leads from each to the worst that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 58, 46  # its margins, round the axes
COLOURS = (("#0b6e99", "#5cc8f2"), ("#b4430a", "#ff9d5c"), ("#3f7a1c", "#9bd66b"), ("#7a3ea8", "#d3a2f7"))
TICKS = 6  # at most, but one

STYLE = """
  .back { fill: #ffffff } .frame { stroke: #c4cad0 } .grid { stroke: #e4e8ec }
  text { fill: #24303a; font: 12px system-ui, sans-serif } .title { font-weight: 600; font-size: 13px }
  .small { font-size: 11px } polyline { fill: none; stroke-width: 2 } .worst { stroke-width: 1; opacity: .6 }
"""
DARK = ".back { fill: #1d2329 } .frame { stroke: #56616b } .grid { stroke: #333c44 } text { fill: #dfe5ea }"


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """`y` names what is measured and its unit. Both axes are linear from zero on, unless they are told to be
    logarithmic."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    is_x_log: bool = True
    is_y_log: bool = False


def svg(about: str, panels: Sequence[Panel]) -> str:
    """One picture of all panels; `about` is for who does not see it."""
    rows = -(-len(panels) // 2)
    width, height = 2 * WIDTH, rows * HEIGHT
    light = "".join(f" .l{number} {{ stroke: {one}; fill: {one} }}" for number, (one, _) in enumerate(COLOURS))
    dark = "".join(f" .l{number} {{ stroke: {one}; fill: {one} }}" for number, (_, one) in enumerate(COLOURS))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(about)}</title>",
        f"<style>{STYLE} {light}\n  @media (prefers-color-scheme: dark) {{ {DARK} {dark} }}\n"
        "  polyline[class] { fill: none }\n</style>",
        f'<rect class="back" width="{width}" height="{height}" rx="8"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % 2 * WIDTH},{number // 2 * HEIGHT})">')
        parts += [f"  {part}" for part in _panel(panel)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to their place between 0 and 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool

    def at(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.is_log else float
        span = scale(self.high) - scale(self.low)
        return (scale(value) - scale(self.low)) / span if span else 0.5


def axis(values: Sequence[float], is_log: bool) -> Axis:
    """An axis that holds the values, with round ticks: linear ones begin at zero."""
    if is_log:
        low, high = (max(1e-9, edge(values)) for edge in (min, max))
        ticks = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
        below, above = max(t for t in ticks if t <= low * 1.0001), min(t for t in ticks if t >= high * 0.9999)
        shown = [t for t in ticks if below <= t <= above]
        if len(shown) > TICKS + 1:
            shown = [t for t in shown if round(math.log10(t), 6).is_integer()]
        return Axis(below, above, tuple(shown), True)
    most = max([*values, 1e-9])
    steps = (digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 2.5, 5))
    step = next(step for step in steps if step * TICKS >= most)
    count = math.ceil(most / step)
    return Axis(0.0, step * count, tuple(step * number for number in range(count + 1)), False)


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for line in panel.lines for point in line.points]
    xs = sorted({point.x for point in points})
    across = Axis(min(xs) if panel.is_x_log else 0.0, max(xs), tuple(xs), panel.is_x_log)
    up = axis([value for point in points for value in (point.median, point.worst)], panel.is_y_log)

    def x_of(value: float) -> str:
        return f"{LEFT + 10 + across.at(value) * (WIDTH - LEFT - RIGHT - 24):.1f}"

    def y_of(value: float) -> str:
        return f"{HEIGHT - BOTTOM - up.at(max(value, up.low)) * (HEIGHT - TOP - BOTTOM):.1f}"

    yield f'<text class="title" x="{LEFT}" y="22">{escape(panel.title)}</text>'
    yield from _legend(panel.lines)
    for tick in up.ticks:
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(tick)}" y2="{y_of(tick)}"/>'
        yield f'<text class="small" x="{LEFT - 6}" y="{y_of(tick)}" dy="4" text-anchor="end">{_number(tick)}</text>'
    for tick in across.ticks:
        x = x_of(tick)
        yield f'<line class="frame" x1="{x}" x2="{x}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        yield f'<text class="small" x="{x}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<line class="frame" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    yield f'<text x="{middle:g}" y="{HEIGHT - 10}" text-anchor="middle">{escape(panel.x)}</text>'
    centre = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text transform="translate(16,{centre:g}) rotate(-90)" text-anchor="middle">{escape(panel.y)}</text>'
    for number, line in enumerate(panel.lines):
        for point in line.points:
            x = x_of(point.x)
            span = f'y1="{y_of(point.median)}" y2="{y_of(point.worst)}"'
            yield f'<line class="l{number} worst" x1="{x}" x2="{x}" {span}/>'
        path = " ".join(f"{x_of(point.x)},{y_of(point.median)}" for point in line.points)
        yield f'<polyline class="l{number}" points="{path}"/>'
        for point in line.points:
            yield f'<circle class="l{number}" cx="{x_of(point.x)}" cy="{y_of(point.median)}" r="3"/>'


def _legend(lines: Sequence[Line]) -> Iterator[str]:
    """In one row, each name as wide as its letters take."""
    widths = [20 + 5.8 * len(line.name) + 10 for line in lines]
    starts = [LEFT + sum(widths[:number]) for number in range(len(lines))]
    for number, (line, x) in enumerate(zip(lines, starts, strict=True)):
        yield f'<line class="l{number}" x1="{x:g}" x2="{x + 14:g}" y1="40" y2="40" stroke-width="3"/>'
        yield f'<text class="small" x="{x + 19:g}" y="44">{escape(line.name)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"
