"""Simulated clusters, seed by seed: run by processes of the emulator, judged here.

Rules: the emulator simulates and watches its invariants; the histories of the clients come back and are judged by
`judge.consistency`, which shares no code with it. A seed fails by either, and every failure is told with the seed, the
version and the command that replays it. Seeds go to as many processes as wanted, a few at a time and in order, so that
a run that is ended early has run a range of seeds without large holes. Nothing outlives the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from drillyard import __version__
from drillyard.judge import consistency
from drillyard.runtimes.abilities import Misuse, RuntimeRefusal
from drillyard.waiting import Clock

BATCH = 5  # seeds that a process is given at a time: in the end one waits for the last of another
STEPS_PER_KEY = 100_000
LINE_BYTES = 64 << 20
COUNTS = ("events", "messages", "elections", "splits", "merges", "moves", "steps", "crashes", "lost_batches", "calls")
NOT_LINEARIZABLE = "linearizable history"
ENDLESS = 1 << 40


@dataclass(frozen=True, slots=True)
class SimulationOrder:
    """Which seeds, for how long, on how many processes. Without an end the seeds go on until the time is over."""

    first: int
    last: int = ENDLESS
    minutes: float | None = None
    jobs: int = 0  # 0: one for each core
    stores: int | None = None  # None: each seed draws it

    def check(self) -> None:
        if self.last < self.first:
            raise Misuse(f"{self.first}..{self.last} is no range of seeds", "give the lower one first")
        if self.last == ENDLESS and self.minutes is None:
            raise Misuse("the seeds have no end", "give --seed, --seeds or --minutes")
        if self.minutes is not None and self.minutes <= 0:
            raise Misuse("that is no time to run", "give --minutes a number above 0")


def order_of(
    seed: int | None, seeds: str | None, minutes: float | None, jobs: int = 0, stores: int | None = None
) -> SimulationOrder:
    """What is meant by the words of a command line."""
    if (seed is not None) + (seeds is not None) + (minutes is not None and seeds is None) != 1:
        raise Misuse("which seeds are meant is not clear", "give one of --seed N, --seeds A..B, --minutes MINUTES")
    if seed is not None:
        return SimulationOrder(seed, seed, jobs=jobs, stores=stores)
    if seeds is None:
        return SimulationOrder(secrets.randbelow(ENDLESS >> 10), minutes=minutes, jobs=jobs, stores=stores)
    first, dots, last = seeds.partition("..")
    if not (first.isdecimal() and dots and last.isdecimal()):
        raise Misuse(f"{seeds!r} is no range of seeds", "give the first and the last, such as --seeds 0..99")
    return SimulationOrder(int(first), int(last), minutes, jobs, stores)


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What became of one seed. `invariant` names the promise that was broken; the tale is for reading."""

    seed: int
    trace: str
    virtual_s: float
    counts: dict[str, int]
    stores: int | None = None  # that were asked for
    invariant: str = ""
    text: str = ""
    tale: tuple[tuple[float, str], ...] = ()

    @property
    def has_passed(self) -> bool:
        return not self.invariant

    @property
    def replay(self) -> str:
        asked_for = "" if self.stores is None else f" --stores {self.stores}"
        return f"drillyard sim --seed {self.seed}{asked_for}"


@dataclass(slots=True)
class SimulationReport:
    """The seeds that were run, and those that failed."""

    order: SimulationOrder
    version: str = __version__
    seeds: int = 0
    undecided: int = 0  # histories that the judge gave up on
    elapsed_s: float = 0.0
    virtual_s: float = 0.0
    totals: Counter[str] = field(default_factory=Counter)
    failures: list[SeedReport] = field(default_factory=list)
    only: SeedReport | None = None  # if it was one seed

    @property
    def has_passed(self) -> bool:
        return not self.failures

    @property
    def times_real_time(self) -> float:
        """Seconds that went by inside the clusters for each one here, by all processes together."""
        return self.virtual_s / self.elapsed_s if self.elapsed_s else 0.0


async def simulate(
    order: SimulationOrder, clock: Clock, tell: Callable[[SimulationReport], None] = lambda report: None
) -> SimulationReport:
    """Runs the seeds; `tell` hears of the report as it grows, after each seed."""
    order.check()
    report = SimulationReport(order)
    began = clock.monotonic()
    deadline = None if order.minutes is None else began + 60 * order.minutes
    batches = _batches(order)

    def is_over() -> bool:
        return deadline is not None and clock.monotonic() >= deadline

    async def work() -> None:
        async with _simulator(order) as simulator:
            for batch in batches:
                if is_over():
                    return
                async for told in simulator.run(batch):
                    _take(report, told)
                    report.elapsed_s = clock.monotonic() - began
                    tell(report)
                    if is_over():
                        return

    jobs = order.jobs or os.cpu_count() or 1
    async with asyncio.TaskGroup() as group:
        for _ in range(min(jobs, order.last - order.first + 1)):
            group.create_task(work())
    report.elapsed_s = clock.monotonic() - began
    report.failures.sort(key=lambda failure: failure.seed)
    return report


def _batches(order: SimulationOrder) -> Iterator[tuple[int, int]]:
    for first in range(order.first, order.last + 1, BATCH):
        yield first, min(first + BATCH - 1, order.last)


@contextlib.asynccontextmanager
async def _simulator(order: SimulationOrder) -> AsyncIterator[_Simulator]:
    """A process that is there for the block."""
    arguments = ["--seeds", "-", "--history"]
    if order.first == order.last:
        arguments.append("--tale")
    if order.stores is not None:
        arguments += ["--stores", str(order.stores)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "drillyard.emulator.simulation", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    try:
        yield _Simulator(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Simulator:
    """A process that simulates the seeds it is given."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, batch: tuple[int, int]) -> AsyncIterator[dict[str, Any]]:
        """The documents of a batch, as they come."""
        wanted, answers = self._process.stdin, self._process.stdout
        assert wanted is not None
        assert answers is not None
        wanted.write(b"%d..%d\n" % batch)
        for seed in range(batch[0], batch[1] + 1):
            line = await answers.readline()
            if not line:
                code = await self._process.wait()
                wrong = f"the simulation of seed {seed} ended with exit code {code} and said nothing"
                raise RuntimeRefusal(wrong, f"see what it says: drillyard sim --seed {seed}")
            yield json.loads(line)


def _take(report: SimulationReport, told: dict[str, Any]) -> None:
    one, is_decided = _judged(told, report.order.stores)
    report.seeds += 1
    report.undecided += not is_decided
    report.virtual_s += one.virtual_s
    report.totals.update(one.counts)
    if not one.has_passed:
        report.failures.append(one)
    if report.order.first == report.order.last:
        report.only = one


def _judged(told: dict[str, Any], stores: int | None) -> tuple[SeedReport, bool]:
    """The report on a seed, and whether its history could be decided."""
    invariant, text = told.get("invariant", ""), told.get("text", "")
    verdict = consistency.Verdict.LINEARIZABLE
    if not invariant:
        judgement = consistency.check(map(_operation, told["history"]), steps_per_key=STEPS_PER_KEY)
        verdict = judgement.verdict
        if verdict is consistency.Verdict.NOT_LINEARIZABLE:
            invariant, text = NOT_LINEARIZABLE, judgement.explain()
    report = SeedReport(
        told["seed"],
        told["trace"],
        told["virtual_us"] / 1e6,
        {name: told.get(name, 0) for name in COUNTS},
        stores,
        invariant,
        text,
        tuple((at, line) for at, line in told.get("tale", ())),
    )
    return report, verdict is not consistency.Verdict.UNDECIDED


def _operation(call: list[Any]) -> consistency.Operation:
    client, kind, key, value, called, returned, outcome, expected, swapped, previous = call
    return consistency.Operation(
        consistency.Kind("compare-and-swap" if kind == "swap" else kind),
        key,
        called,
        returned,
        value,
        consistency.Outcome(outcome),
        expected,
        swapped,
        previous,
        str(client),
    )


def lines_of(report: SimulationReport) -> list[str]:
    """The report for a person: the tale of a single seed, the failures, and the sum."""
    lines: list[str] = []
    if report.only is not None:
        lines += [f"{at:9.3f} s  {text}" for at, text in report.only.tale]
        lines += ["", f"trace {report.only.trace}"]
    for failure in report.failures:
        lines += [
            f"seed {failure.seed} fails, version {report.version}: {failure.text}",
            f"  replay: {failure.replay}",
        ]
    lines.append(progress_of(report))
    totals = report.totals
    parts = [f"{totals[name]:,} {name.replace('_', ' ')}" for name in COUNTS if totals[name]]
    lines.append(", ".join(parts))
    if report.undecided:
        lines.append(f"{report.undecided} histories were too hard to decide")
    return lines


def progress_of(report: SimulationReport) -> str:
    rate = 60 * report.seeds / report.elapsed_s if report.elapsed_s else 0.0
    failed = f", {len(report.failures)} failed" if report.failures else ""
    return (
        f"{report.seeds:,} seeds{failed}: {report.virtual_s:,.0f} s of virtual time in {report.elapsed_s:,.1f} s "
        f"({report.times_real_time:,.0f} times real time, {rate:,.0f} seeds a minute)"
    )
