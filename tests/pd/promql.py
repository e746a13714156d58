"""A small evaluator of PromQL: the forms that the stock alert rules use, over scrapes that a test holds.

A `History` is a list of scrapes at times of the test's choosing. Values are vectors: samples with labels. Rates are
taken between the first and the last scrape of the window, without Prometheus' extrapolation, so that two scrapes that
are the window apart give the plain quotient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TOKEN = re.compile(
    r"\s*(\d+(?:\.\d+)?(?:[smhd](?![a-z]))?|[a-zA-Z_:][\w:]*|\"[^\"]*\"|'[^']*'|=~|!=|!~|>=|<=|==|[-+*/(){}\[\],=<>])"
)
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(slots=True)
class History:
    scrapes: list[tuple[float, Vector]] = field(default_factory=list)

    def add(self, at_s: float, instance: str, job: str, text: str) -> None:
        """One member's /metrics at a time. Scrapes come in the order of their times."""
        if not self.scrapes or self.scrapes[-1][0] != at_s:
            self.scrapes.append((at_s, {}))
        for line in text.splitlines():
            if line.startswith("#") or not (match := _SAMPLE.match(line)):
                continue
            labels = {"__name__": match[1], "instance": instance, "job": job}
            labels.update(_LABEL.findall(match[2] or ""))
            self.scrapes[-1][1][frozenset(labels.items())] = float(match[3])

    def range(self, until_s: float, span_s: float) -> dict[Labels, list[tuple[float, float]]]:
        found: dict[Labels, list[tuple[float, float]]] = {}
        for at_s, samples in self.scrapes:
            if until_s - span_s <= at_s <= until_s:
                for labels, value in samples.items():
                    found.setdefault(labels, []).append((at_s, value))
        return found


def fires(history: History, expression: str) -> bool:
    """Whether an alert's expression gives anything at the last scrape."""
    return bool(_Query(history, expression).run())


def without_name(labels: Labels) -> Labels:
    return frozenset(pair for pair in labels if pair[0] != "__name__")


def _rate(points: list[tuple[float, float]]) -> float | None:
    return _increase(points) / (points[-1][0] - points[0][0]) if len(points) > 1 else None  # type: ignore[operator]


def _increase(points: list[tuple[float, float]]) -> float | None:
    """A counter that falls began again at nothing."""
    if len(points) < 2:
        return None
    steps = pairwise(points)
    return sum(later - former if later >= former else later for (_, former), (_, later) in steps)


def _delta(points: list[tuple[float, float]]) -> float | None:
    return points[-1][1] - points[0][1] if len(points) > 1 else None


def _changes(points: list[tuple[float, float]]) -> float | None:
    return float(sum(1 for (_, former), (_, later) in pairwise(points) if former != later))


_OVER_TIME: Mapping[str, Callable[[list[tuple[float, float]]], float | None]] = {
    "rate": _rate,
    "irate": lambda points: _rate(points[-2:]),
    "increase": _increase,
    "delta": _delta,
    "changes": _changes,
}
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right if right else math.nan,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "==": lambda left, right: left == right,
}


class _Query:
    """Recursive descent: `and`, then comparisons, sums, products, and the atoms."""

    def __init__(self, history: History, text: str) -> None:
        self._history = history
        self._now_s = history.scrapes[-1][0]
        self._tokens = _tokens(text)

    def run(self) -> Vector | float:
        value = self._and()
        if self._tokens:
            raise ValueError(f"not understood: {' '.join(self._tokens)}")
        return value

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, wanted: str = "") -> str:
        token = self._tokens.pop(0)
        if wanted and token != wanted:
            raise ValueError(f"{wanted} is wanted, not {token}")
        return token

    def _and(self) -> Vector | float:
        left = self._compared()
        while self._next() == "and":
            self._take()
            right = {without_name(labels) for labels in _vector(self._compared())}
            left = {labels: value for labels, value in _vector(left).items() if without_name(labels) in right}
        return left

    def _compared(self) -> Vector | float:
        left = self._sum()
        while self._next() in _COMPARISONS:
            holds = _COMPARISONS[self._take()]
            left = _filtered(left, self._sum(), holds)
        return left

    def _sum(self) -> Vector | float:
        left = self._product()
        while self._next() in ("+", "-"):
            left = _combined(left, _ARITHMETIC[self._take()], self._product)
        return left

    def _product(self) -> Vector | float:
        left = self._atom()
        while self._next() in ("*", "/"):
            left = _combined(left, _ARITHMETIC[self._take()], self._atom)
        return left

    def _atom(self) -> Vector | float:
        token = self._take()
        if token == "(":
            value = self._and()
            self._take(")")
            return value
        if token == "-":
            return _combined(0.0, _ARITHMETIC["-"], self._atom)
        if token[0].isdigit():
            return float(token)
        if token in ("sum", "count"):
            return self._aggregate(token)
        if token == "histogram_quantile":
            self._take("(")
            share = float(self._take())
            self._take(",")
            buckets = self._and()
            self._take(")")
            return _quantiles(share, _vector(buckets))
        if token in _OVER_TIME:
            self._take("(")
            name, matches = self._selector(self._take())
            span_s = self._span()
            self._take(")")
            return self._over_time(_OVER_TIME[token], partial(_is_match, name, matches), span_s)
        if token == "abs":
            self._take("(")
            inner = _vector(self._and())
            self._take(")")
            return {labels: abs(value) for labels, value in inner.items()}
        return self._instant(*self._selector(token))

    def _aggregate(self, kind: str) -> Vector:
        by = self._grouping()
        self._take("(")
        inner = _vector(self._and())
        self._take(")")
        by = by or self._grouping()
        groups: dict[Labels, list[float]] = {}
        for labels, value in inner.items():
            groups.setdefault(frozenset(pair for pair in labels if pair[0] in by), []).append(value)
        return {labels: float(len(values)) if kind == "count" else sum(values) for labels, values in groups.items()}

    def _grouping(self) -> set[str]:
        if self._next().lower() != "by":
            return set()
        self._take()
        self._take("(")
        names = {self._take()}
        while self._take() == ",":
            names.add(self._take())
        return names

    def _selector(self, name: str) -> tuple[str, list[tuple[str, str, str]]]:
        matches: list[tuple[str, str, str]] = []
        if self._next() == "{":
            self._take()
            while self._next() != "}":
                matches.append((self._take(), self._take(), self._take()[1:-1]))
                if self._next() == ",":
                    self._take()
            self._take()
        return name, matches

    def _span(self) -> float:
        self._take("[")
        text = self._take()
        self._take("]")
        return float(text[:-1]) * _SPANS[text[-1]]

    def _instant(self, name: str, matches: list[tuple[str, str, str]]) -> Vector:
        at_s = self._now_s
        if self._next() == "offset":
            self._take()
            text = self._take()
            at_s -= float(text[:-1]) * _SPANS[text[-1]]
        for then_s, samples in reversed(self._history.scrapes):
            if then_s <= at_s:
                return {labels: value for labels, value in samples.items() if _is_match(name, matches, labels)}
        return {}

    def _over_time(
        self,
        apply: Callable[[list[tuple[float, float]]], float | None],
        is_match: Callable[[Labels], bool],
        span_s: float,
    ) -> Vector:
        found: Vector = {}
        for labels, points in self._history.range(self._now_s, span_s).items():
            if is_match(labels) and (value := apply(points)) is not None:
                found[without_name(labels)] = value
        return found


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"not understood: {text[place:]}")
        tokens.append(match[1])
        place = match.end()
    return tokens


def _is_match(name: str, matches: list[tuple[str, str, str]], labels: Labels) -> bool:
    given = dict(labels)
    if given["__name__"] != name:
        return False
    for label, operator, wanted in matches:
        value = given.get(label, "")
        is_equal = bool(re.fullmatch(wanted, value)) if "~" in operator else value == wanted
        if is_equal is operator.startswith("!"):
            return False
    return True


def _vector(value: Vector | float) -> Vector:
    return value if isinstance(value, dict) else {frozenset(): value}


def _combined(
    left: Vector | float, apply: Callable[[float, float], float], read: Callable[[], Vector | float]
) -> Vector | float:
    right = read()
    if not isinstance(left, dict) and not isinstance(right, dict):
        return apply(left, right)
    if not isinstance(right, dict):
        return {without_name(labels): apply(value, right) for labels, value in _vector(left).items()}
    if not isinstance(left, dict):
        return {without_name(labels): apply(left, value) for labels, value in right.items()}
    others = {without_name(labels): value for labels, value in right.items()}
    pairs = ((without_name(labels), value) for labels, value in left.items())
    return {labels: apply(value, others[labels]) for labels, value in pairs if labels in others}


def _filtered(left: Vector | float, right: Vector | float, holds: Callable[[float, float], bool]) -> Vector | float:
    if isinstance(right, dict):
        raise TypeError("the rules compare with numbers only")
    return {labels: value for labels, value in _vector(left).items() if holds(value, right)}


def _quantiles(share: float, buckets: Vector) -> Vector:
    """Of each histogram, the value below which this share of its observations lies, within the bucket evenly spread."""
    histograms: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"].replace("+Inf", "inf"))
        rest = frozenset(pair for pair in labels if pair[0] != "le")
        histograms.setdefault(rest, []).append((bound, count))
    return {
        labels: value for labels, each in histograms.items() if not math.isnan(value := _quantile(share, sorted(each)))
    }


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    total = buckets[-1][1]
    if not total:
        return math.nan
    rank, lower, below = share * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
