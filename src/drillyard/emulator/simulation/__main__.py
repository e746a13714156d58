"""Simulations as a process: seeds in, one JSON document a line out.

    python -P -m drillyard.emulator.simulation --seeds 0..99 [--stores 3] [--history] [--tale]

`--seeds -` takes such ranges from standard input, one a line, until that ends: a process may be given more seeds as it
is done with some.

A line is written as soon as its seed is done. It is for the command line and other programs of ours; the exit code is 0
when all seeds passed, 1 when one broke a promise, 2 for arguments that cannot be read.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterable
from typing import Any

from msgspec.structs import asdict

from drillyard.emulator.simulation.clusters import Call, Scale, Simulation, Violation
from drillyard.emulator.simulation.world import SECOND_US

Json = dict[str, Any]


def seeds_of(text: str) -> range:
    """`7` or `3..9`, both ends included."""
    text = text.strip()
    first, dots, last = text.partition("..")
    if not first.isdecimal() or (dots and not last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed and no range such as 0..99")
    return range(int(first), int(last or first) + 1)


def run(seed: int, scale: Scale | None = None, *, with_history: bool, with_tale: bool) -> Json:
    """One seed, as a document."""
    simulation = Simulation(seed, scale)
    told: Json = {"seed": seed}
    try:
        outcome = simulation.run()
    except Violation as violation:
        told |= {"passed": False, "invariant": violation.invariant, "text": str(violation)}
    except Exception as fault:  # whatever it is, the seed that leads to it must be told
        told |= {"passed": False, "invariant": "no exception", "text": f"{type(fault).__name__}: {fault}"}
    else:
        told |= {"passed": True, **asdict(outcome)}
        history = outcome.history
        del told["history"]
        told["calls"] = len(history)
        if with_history:
            told["history"] = [_call(call) for call in history]
    told["trace"] = simulation.world.trace
    told["virtual_us"] = simulation.world.now_us
    if with_tale or not told["passed"]:
        told["tale"] = [[round(at / SECOND_US, 6), text] for at, text in simulation.world.tale]
    return told


def _call(call: Call) -> list[object]:
    """In the order of the fields; bytes as text, since all keys and values here are."""
    return [value.decode() if isinstance(value, bytes) else value for value in asdict(call).values()]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m drillyard.emulator.simulation")
    parser.add_argument("--seeds", type=_wanted, required=True, metavar="A..B")
    parser.add_argument("--stores", type=int, help="of each cluster, instead of as many as the seed draws")
    parser.add_argument("--history", action="store_true", help="what the clients saw")
    parser.add_argument("--tale", action="store_true", help="what happened, for a person to read")
    given = parser.parse_args(arguments)
    gc.freeze()
    gc.disable()  # a seed makes little garbage that is tied in knots, besides the cluster itself when it is over
    is_sound = True
    for seed in (seed for seeds in given.seeds for seed in seeds):
        told = run(seed, Scale(stores=given.stores), with_history=given.history, with_tale=given.tale)
        gc.collect()
        is_sound &= told["passed"]
        try:
            print(json.dumps(told, separators=(",", ":")), flush=True)
        except BrokenPipeError:  # nobody wants to know any more
            return 1
    return 0 if is_sound else 1


def _wanted(text: str) -> Iterable[range]:
    return map(seeds_of, sys.stdin) if text == "-" else (seeds_of(text),)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
