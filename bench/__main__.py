"""Measure, print a table and one JSON document, and keep the results. See --help."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    calls,
    containers,
    failover,
    figures,
    kept,
    regions,
    ruler,
    simulation,
    soak,
    start,
    sweeps,
    throughput,
)
from bench.figures import Results
from bench.plan import Bench, BenchFailed, spans


def benches(soak_minutes: float = 60.0) -> tuple[Bench, ...]:
    return (
        Bench("commands", "--help, status and the other commands", start.commands, rounds=1),
        Bench("start", "up, from command to ready, and down", start.start, rounds=20),
        Bench("memory", "idle members", start.memory),
        Bench("failover", "SIGKILL of leaders until clients are served", failover.measure),
        Bench("throughput", "official clients on one region and on sixteen", throughput.measure),
        Bench("transactions", "scans and transactions of official clients", throughput.transactions),
        Bench("calls", "what HTTP/2 and gRPC alone cost a server", calls.measure),
        Bench("fresh", "a cluster for a test, and reset", start.fresh),
        Bench("regions", "1, 100 and 1,000 regions, idle and after the loss of a store", regions.measure, rounds=1),
        Bench("simulation", "whole clusters on virtual time", simulation.simulation),
        Bench("checker", "linearizability of histories", simulation.checker),
        Bench("in-flight", "a sweep: 1 to 256 operations in flight", sweeps.in_flight),
        Bench("keys", "a sweep: 100 to 1,000,000 keys", sweeps.keys, rounds=1),
        Bench("members", "a sweep: 3 to 9 stores, and PD members", sweeps.members),
        Bench("ruler", "the outage ruler and an independent client", ruler.measure, is_usual=False),
        Bench("compose", "starts in containers; Docker and scripts/build-images", containers.measure, is_usual=False),
        Bench("soak", "an hour of load, or --minutes", partial(soak.measure, soak_minutes), rounds=1, is_usual=False),
    )


def main() -> int:
    options = _options()
    known = benches(options.minutes)
    chosen = [bench for bench in known if (bench.name in options.bench if options.bench else bench.is_usual)]
    told = [taken(bench, options.runs or bench.rounds, options.keep) for bench in chosen]
    print(figures.table(row for one in told for row in one["figures"]))
    for one in told:
        for what, why in one.get("missing", {}).items():
            _say(f"{one['bench']}: without {what}: {why}")
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        _say(f"wrote {options.json}")
    failed = [one["bench"] for one in told if "failure" in one]
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def taken(bench: Bench, rounds: int, is_kept: bool) -> dict[str, Any]:
    """All rounds of one bench. One that fails ends, and the other benches go on; what it has by then is kept."""
    results, began = Results(), time.monotonic()
    told = kept.document(bench.name, results, 0.0, "")
    for number in spans(rounds, bench.limit_s):
        _say(f"{bench.name}: round {number} of {rounds}")
        failure = ""
        try:
            bench.measure(results)
        except Exception as trouble:  # whatever it is, it is told, and the other benches are worth their time
            failure = f"round {number}: {type(trouble).__name__}: {trouble}"
            _say(f"{bench.name}: {failure}")
            if not isinstance(trouble, BenchFailed):
                traceback.print_exc()
        told = kept.document(bench.name, results, time.monotonic() - began, failure)
        if is_kept:
            kept.keep(told)
        if failure:
            break
    return told


def _options() -> argparse.Namespace:
    usual = "\n".join(f"  {bench.name:<12} {bench.what}" for bench in benches() if bench.is_usual)
    others = "\n".join(f"  {bench.name:<12} {bench.what}" for bench in benches() if not bench.is_usual)
    parser = argparse.ArgumentParser(
        prog="./yard bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure clusters of emulated members from outside. Each round starts a cluster of its own, under\n"
        "a temporary home and on free ports, and removes it.",
        epilog=f"taken when none is named:\n{usual}\n\non request:\n{others}",
    )
    names = [bench.name for bench in benches()]
    parser.add_argument("bench", nargs="*", choices=[*names, []], metavar="BENCH", help="which, as listed below")
    parser.add_argument("--runs", type=_count, metavar="N", help="how many rounds, instead of each bench's own number")
    parser.add_argument("--keep", action="store_true", help="keep the results in bench/results, of which docs are made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON document there")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="how long a soak loads (60)")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds, from 1 on")
    return int(text)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
