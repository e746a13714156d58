"""A member's metrics, in Prometheus' text format.

Counters, gauges and histograms with labels, and the `process_*` metrics that every real server has. A metric is made
once, at start; making it twice, or with a name Prometheus would refuse, is a mistake of ours and raises. Keep the child
that `labels` gives where a path is hot. Not for use from other threads, beyond plain increments.
"""

from __future__ import annotations

import math
import os
import re
import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_STARTED_AT = time.time()

Samples = Iterator[tuple[str, str, float]]  # suffix of the name, one more label, value


class Counter:
    """Only goes up."""

    kind = "counter"

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by

    def samples(self) -> Samples:
        yield "", "", self.value


class Gauge:
    """Goes up and down; `read_from` asks a function each time instead."""

    kind = "gauge"

    def __init__(self) -> None:
        self.value = 0.0
        self._read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        self.value = value

    def inc(self, by: float = 1.0) -> None:
        self.value += by

    def dec(self, by: float = 1.0) -> None:
        self.value -= by

    def read_from(self, read: Callable[[], float]) -> None:
        self._read = read

    def samples(self) -> Samples:
        yield "", "", self.value if self._read is None else self._read()


class Histogram:
    """Counts observations by size."""

    kind = "histogram"

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Samples:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            yield "_bucket", f'le="{_number(bound)}"', total
        yield "_sum", "", self._sum
        yield "_count", "", total


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Family(Generic[Metric]):
    """One name, and a metric for each combination of label values."""

    def __init__(self, name: str, about: str, labels: Sequence[str], make: Callable[[], Metric]) -> None:
        self._name = name
        self._about = about
        self._labels = tuple(labels)
        self._make: Callable[[], Metric] = make
        self._children: dict[tuple[str, ...], Metric] = {}

    def labels(self, *values: object) -> Metric:
        key = tuple(str(value) for value in values)
        if len(key) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {len(key)} values")
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._make()
        return child

    def clear(self) -> None:
        """Forgets all children: for states that no longer hold, such as a leader's own gauges."""
        self._children.clear()

    def lines(self) -> Iterator[str]:
        if not self._children:
            return
        about = self._about.replace("\\", "\\\\").replace("\n", "\\n")
        yield f"# HELP {self._name} {about}"
        yield f"# TYPE {self._name} {next(iter(self._children.values())).kind}"
        for values, child in self._children.items():
            own: list[str] = [f'{label}="{_escaped(value)}"' for label, value in zip(self._labels, values, strict=True)]
            for suffix, extra, number in child.samples():
                inside = ",".join([*own, extra] if extra else own)
                yield (
                    f"{self._name}{suffix}{{{inside}}} {_number(number)}"
                    if inside
                    else (f"{self._name}{suffix} {_number(number)}")
                )


class Registry:
    """All metrics of one member."""

    def __init__(self) -> None:
        self._families: dict[str, Family[Counter] | Family[Gauge] | Family[Histogram]] = {}
        self._before: list[Callable[[], None]] = []
        self._add_process()

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Family[Counter]:
        return self._add(Family(name, about, labels, Counter))

    def gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        return self._add(Family(name, about, labels, Gauge))

    def histogram(
        self, name: str, about: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
    ) -> Family[Histogram]:
        return self._add(Family(name, about, labels, lambda: Histogram(bounds)))

    def before_render(self, update: Callable[[], None]) -> None:
        """`update` is called whenever somebody asks for the metrics."""
        self._before.append(update)

    def render(self) -> bytes:
        for update in self._before:
            update()
        lines = [line for family in self._families.values() for line in family.lines()]
        return ("\n".join(lines) + "\n").encode()

    def _add(self, family: AnyFamily) -> AnyFamily:
        name = family._name
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no metric name")
        if name in self._families:
            raise ValueError(f"metric {name} exists already")
        self._families[name] = family
        return family

    def _add_process(self) -> None:
        start = self.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
        start.labels().set(_process_start())
        resident = self.gauge("process_resident_memory_bytes", "Resident memory size in bytes.").labels()
        resident.read_from(resident_memory)
        cpu = self.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.").labels()
        files = self.gauge("process_open_fds", "Number of open file descriptors.").labels()
        limit = self.gauge("process_max_fds", "Maximum number of open file descriptors.").labels()

        def update() -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            cpu.value = usage.ru_utime + usage.ru_stime
            files.set(_open_files())
            limit.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

        self.before_render(update)


AnyFamily = TypeVar("AnyFamily", Family[Counter], Family[Gauge], Family[Histogram])


def resident_memory() -> int:
    """Bytes of RAM that this process holds."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the most it ever held
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _process_start() -> float:
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
        return booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return _STARTED_AT


def _open_files() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir()) - 1
    except OSError:
        return 0


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
