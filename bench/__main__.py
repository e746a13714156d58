"""Measure, and print a table and one JSON document. See --help."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import containers, figures, regions, ruler, service
from bench import soak as soaking
from bench.deployment import COMMAND, Bench, BenchFailed, reported_s, temporary
from bench.figures import Results
from drillyard.clients.calls import CallFailed

IDLE_S = 5.0  # from ready until memory is read
BENCHES = ("help", "start", "memory", "failover", "throughput", "reset")
ON_REQUEST = (
    "regions",
    "ruler",
    "compose",
    "soak",
)  # a minute a run; Docker and scripts/build-images; `--minutes`, alone


def main() -> int:
    options = _options()
    chosen = options.bench or list(BENCHES)
    if "soak" in chosen:
        return _soak(options)
    results = Results()
    try:
        for run in range(1, options.runs + 1):
            _say(f"run {run} of {options.runs}")
            if "help" in chosen:
                results.add(figures.HELP, _help_s())
            if "compose" in chosen:
                containers.measure(results)
            if set(chosen) - {"help", "compose"}:
                with temporary() as bench:
                    _measure(bench, chosen, results)
    except (BenchFailed, CallFailed, subprocess.TimeoutExpired) as failure:
        _say(f"failed: {failure}")
        return 1
    print(results.table())
    _write({"machine": _machine(), "results": list(results.rows())}, options.json)
    return 0


def _soak(options: argparse.Namespace) -> int:
    try:
        with temporary() as bench:
            bench.up()
            document = soaking.soak(bench, options.minutes, options.rate)
    except (BenchFailed, CallFailed, subprocess.TimeoutExpired) as failure:
        _say(f"failed: {failure}")
        return 1
    print(soaking.table(document))
    _write({"machine": _machine(), "soak": document}, options.json)
    return 0


def _write(document: dict[str, Any], file: Path | None) -> None:
    if file is None:
        print(json.dumps(document))
    else:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _say(f"wrote {file}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./yard bench",
        description="Measure a cluster of six emulated members, from outside. Each run starts a cluster of its own, "
        "under a temporary home and on free ports, and removes it.",
    )
    parser.add_argument(
        "bench",
        nargs="*",
        choices=[*BENCHES, *ON_REQUEST, []],
        metavar="BENCH",
        help=f"which of: {', '.join(BENCHES)} (all of these); and on request {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--runs", type=_count, default=5, metavar="N", help="how many runs (5)")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="how long a soak loads (60)")
    parser.add_argument("--rate", type=_count, default=200, metavar="N", help="calls a second of a soak (200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document there, not to stdout")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs, from 1 on")
    return int(text)


def _measure(bench: Bench, chosen: list[str], results: Results) -> None:
    up = bench.up()
    if "start" in chosen:
        results.add(figures.READY, up.took_s)
        results.add(figures.LAG, reported_s(up) - bench.truth_s())
    if "memory" in chosen:
        time.sleep(IDLE_S)
        memory = bench.memory_mb()
        results.add(figures.RSS, max(rss for rss, _ in memory))
        results.add(figures.PSS, max(pss for _, pss in memory))
    if "failover" in chosen:
        results.add(figures.STORE_LOST, asyncio.run(service.store_lost(bench)))
        results.add(figures.PD_LOST, asyncio.run(service.pd_lost(bench)))
    if "throughput" in chosen:
        puts, gets = asyncio.run(service.throughput(bench))
        results.add(figures.PUTS, puts)
        results.add(figures.GETS, gets)
    if "reset" in chosen:
        results.add(figures.RESET, asyncio.run(service.reset(bench)))
    if "ruler" in chosen:
        ruler.measure(bench, results)
    if "regions" in chosen:
        regions.measure(bench, results)
    if "start" in chosen:
        results.add(figures.STOP, bench.run("down", "--delete-data").took_s)


def _help_s() -> float:
    began = time.perf_counter()
    subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def _machine() -> dict[str, str | int | None]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": None if load is None else f"{load:.1f}",
    }


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
