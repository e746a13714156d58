"""The load of official clients: a program for each client in bench/loads, all with the same arguments and answer.

    PROGRAM PD_ENDPOINT,... ACTION IN_FLIGHT KEYS SECONDS

ACTION is `put`, `get` or `scan` (of 100 pairs from a key on), `txn-put` (an optimistic transaction that writes one key)
or `transfer` (a pessimistic one that locks, reads and writes two), by IN_FLIGHT workers, each of which begins an
operation when its last has ended, on keys drawn evenly of KEYS; no two transactions want the same key. Or it is `fill`,
which writes all KEYS once in batches of 500 and takes no heed of SECONDS. Values have 100 bytes. A short warm-up is not
counted. A call that fails ends the program.

It prints one line of JSON: `done` operations within `seconds`, the median and the 99th percentile of an operation;
and, for what an operation costs, the operations of the warm-up and the CPU time of both together.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.figures import Results
from bench.kept import ROOT
from bench.plan import BenchFailed

LOADS = Path(__file__).with_name("loads")
BUILD = ROOT / "scripts" / "build-client-go"
IN_FLIGHT, KEYS, SECONDS = 64, 5000, 1.5
LIMIT_S = 600.0


class Client(Enum):
    UNARY = "tikv-client"
    BATCH = "client-go"


class Missing(Exception):
    """This client is not on this machine."""


@dataclass(frozen=True, slots=True)
class Load:
    """One client of one cluster."""

    client: Client
    endpoints: Sequence[str]

    def fill(self, keys: int = KEYS) -> float:
        """How many keys a second were written."""
        told = self._run("fill", 8, keys, 0.0)
        return float(told["done"] / told["seconds"])

    def run(self, action: str, in_flight: int = IN_FLIGHT, keys: int = KEYS, seconds: float = SECONDS) -> Seen:
        return Seen(**self._run(action, in_flight, keys, seconds))

    def _run(self, action: str, in_flight: int, keys: int, seconds: float) -> dict[str, Any]:
        numbers = (str(in_flight), str(keys), str(seconds))
        command = [*program(self.client), ",".join(self.endpoints), action, *numbers]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        if ran.returncode:
            raise BenchFailed(f"{self.client.value} {action} {' '.join(numbers)} failed: {ran.stderr[-1000:]}")
        told: dict[str, Any] = json.loads(ran.stdout)
        return told


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client did and saw."""

    done: int
    seconds: float
    p50_ms: float
    p99_ms: float
    warmed: int
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    @property
    def all(self) -> int:
        return self.done + self.warmed


def clients(results: Results) -> list[Client]:
    """Those that are on this machine; the others are missing in the results."""
    there = []
    for client in Client:
        try:
            program(client)
        except Missing as missing:
            results.miss(client.value, str(missing))
        else:
            there.append(client)
    return there


@functools.cache
def program(client: Client) -> tuple[str, ...]:
    """The command of a client's program; what has to be built is built at the first call."""
    if client is Client.UNARY:
        if importlib.util.find_spec("tikv_client") is None:
            raise Missing("there is no wheel of tikv-client for this Python (3.11 on x86-64 Linux is wanted)")
        return sys.executable, str(LOADS / "with_tikv_client.py")
    built = subprocess.run([BUILD, "load"], capture_output=True, text=True)
    if built.returncode:
        raise Missing(f"scripts/build-client-go load: {built.stderr.strip().rpartition('build-client-go: ')[2]}")
    directory = Path(os.environ.get("DRILLYARD_REAL_PD_DIR", ROOT / ".cache" / "real-pd"))
    return (str(directory / "client-go-load"),)
