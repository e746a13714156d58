"""Loads that record what they did: tikv-python in threads and our own client in one loop, on the same keys.

Rules: all times are one monotonic clock's. An answer is recorded as it was given. A write without an answer is unknown;
one that tikv-python sent again by itself, after an attempt that may have been applied, is recorded as one more write of
unknown outcome (it says so in its debug log). Keys written by compare-and-swap are written by nothing that does not
take TiKV's atomic path. Values are never used twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tikv
from drillyard.clients.tikv import Outcome as OurOutcome
from drillyard.clients.tikv import RawClient as OurClient
from drillyard.clients.tikv import Result
from drillyard.judge.consistency import Kind, Operation, Outcome

TIMEOUT_S = 2.0  # of one call: also how long a paused leader can hold one
PACE_S = 0.004
MOST_OPERATIONS = 4000  # of one worker


@dataclass(slots=True)
class Call:
    """One call of a client while it runs: `repeats` counts the times that it was sent again in silence."""

    client: str
    called: float
    repeats: int = 0

    def operation(self, kind: Kind, key: bytes, value: bytes | None = None) -> Operation:
        return Operation(kind, key, self.called, time.monotonic(), value, client=self.client)


class History:
    """Operations of all workers, on keys of its own, and how many were acknowledged to each worker."""

    def __init__(self, seed: str) -> None:
        self._lock = threading.Lock()
        self.seed = seed
        self.plain = [f"plain-{seed}-{i}".encode() for i in range(8)]
        self.swapped = [f"swap-{seed}-{i}".encode() for i in range(4)]
        self.operations: list[Operation] = []
        self.acknowledged: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()

    def add(self, operations: Sequence[Operation], repeats: int = 0) -> None:
        again = [replace(op, outcome=Outcome.UNKNOWN) for op in operations if op.kind is not Kind.GET] * repeats
        with self._lock:
            self.operations += [*operations, *again]
            done = [op for op in operations if op.outcome is Outcome.OK]
            if done:
                self.acknowledged[done[0].client] += 1

    def note(self, trouble: str) -> None:
        with self._lock:
            self.trouble[trouble] += 1


class _Repeats(logging.Filter):
    """Counts, per thread, the attempts of tikv-python that may have been applied before it sent them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, Call] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        call = self.calls.get(record.thread or 0)
        if call is not None and str(record.msg).startswith("retrying") and isinstance(record.args, tuple):
            _, reason, cause = record.args
            harmless = reason == "pd_rpc" or "not_leader" in str(cause) or "no leader" in str(cause)
            call.repeats += not harmless
        return False  # nothing of it is printed


@contextmanager
def repeats_told() -> Iterator[_Repeats]:
    logger = logging.getLogger("tikv")
    told, level = _Repeats(), logger.level
    logger.addFilter(told)
    logger.setLevel(logging.DEBUG)
    try:
        yield told
    finally:
        logger.setLevel(level)
        logger.removeFilter(told)


class Worker:
    """One client that does one thing after the other until it is told to stop."""

    def __init__(self, name: str, history: History) -> None:
        self.name = name
        self.history = history
        self.chance = random.Random(f"{history.seed}/{name}")
        self._written = 0

    def value(self) -> bytes:
        self._written += 1
        return f"{self.name}.{self._written}".encode()

    def some(self) -> list[bytes]:
        return sorted(self.chance.sample(self.history.plain, 3))

    def range(self) -> tuple[list[bytes], bytes, bytes]:
        """Neighbouring keys, all of them recorded, and the bounds that hold just them."""
        first = self.chance.randrange(len(self.history.plain) - 2)
        keys = self.history.plain[first : first + 3]
        return keys, keys[0], keys[-1] + b"\0"


class PlainPython(Worker):
    """tikv-python with everything but swaps."""

    def __init__(self, name: str, history: History, endpoints: list[str], told: _Repeats) -> None:
        super().__init__(name, history)
        self._client = tikv.RawClient(endpoints, timeout=TIMEOUT_S, atomic=self.atomic)
        self._told = told
        self._seen: dict[bytes, bytes | None] = {}

    atomic = False

    def run(self, stop: threading.Event) -> None:
        with self._client:
            for _ in range(MOST_OPERATIONS):
                if stop.wait(PACE_S):
                    return
                self.step()

    def step(self) -> None:
        dice = self.chance.randrange(100)
        key = self.chance.choice(self.history.plain)
        if dice < 35:
            self._get(key)
        elif dice < 60:
            value = self.value()
            self._write(Kind.PUT, {key: value}, lambda: self._client.put(key, value))
        elif dice < 66:
            self._write(Kind.DELETE, {key: None}, lambda: self._client.delete(key))
        elif dice < 74:
            pairs = {k: self.value() for k in self.some()}
            self._write(Kind.PUT, pairs, lambda: self._client.put_many(pairs))
        elif dice < 78:
            keys = self.some()
            self._write(Kind.DELETE, dict.fromkeys(keys), lambda: self._client.delete_many(keys))
        elif dice < 82:
            keys, start, end = self.range()
            self._write(Kind.DELETE, dict.fromkeys(keys), lambda: self._client.delete_range(start, end))
        elif dice < 90:
            keys = self.some()
            self._read(keys, lambda: self._client.get_many(keys))
        else:
            keys, start, end = self.range()
            back = dice >= 95
            self._read(keys, lambda: dict(self._client.scan(start, end, reverse=back)))

    def _get(self, key: bytes) -> bool:
        def look() -> dict[bytes, bytes]:
            found = self._client.get(key)
            return {} if found is None else {key: found}

        return self._read([key], look)

    def _read(self, keys: list[bytes], look: Callable[[], dict[bytes, bytes]]) -> bool:
        with self._call() as call:
            found = self._tried(look)
        if found is None:
            return False
        self._seen.update((key, found.get(key)) for key in keys)
        self.history.add([call.operation(Kind.GET, key, found.get(key)) for key in keys])
        return True

    def _write(self, kind: Kind, pairs: Mapping[bytes, bytes | None], write: Callable[[], object]) -> None:
        with self._call() as call:
            done = self._tried(lambda: (write(),)) is not None
        outcome = Outcome.OK if done else Outcome.UNKNOWN
        operations = [replace(call.operation(kind, key, value), outcome=outcome) for key, value in pairs.items()]
        self.history.add(operations, call.repeats)

    def _tried(self, act: Callable[[], Any]) -> Any | None:
        try:
            return act()
        except tikv.TiKVError as error:
            self.history.note(f"{type(error).__name__}: {error}"[:160])
            return None

    @contextmanager
    def _call(self) -> Iterator[Call]:
        call = Call(self.name, time.monotonic())
        thread = threading.get_ident()
        self._told.calls[thread] = call
        try:
            yield call
        finally:
            del self._told.calls[thread]


class AtomicPython(PlainPython):
    """tikv-python in its atomic mode, on the keys of the swaps: it never sends a swap again by itself."""

    atomic = True

    def step(self) -> None:
        dice = self.chance.randrange(100)
        key = self.chance.choice(self.history.swapped)
        if dice < 35:
            self._get(key)
        elif dice < 88:
            self._swap(key, self._seen.get(key))
        elif dice < 96:
            value = self.value()
            self._write(Kind.PUT, {key: value}, lambda: self._client.put(key, value))
        else:
            self._write(Kind.DELETE, {key: None}, lambda: self._client.delete(key))

    def _swap(self, key: bytes, expected: bytes | None) -> None:
        new = self.value()
        with self._call() as call:
            answer = self._tried(lambda: self._client.compare_and_swap(key, expected, new))
        operation = replace(call.operation(Kind.SWAP, key, new), expected=expected)
        if answer is None:
            self.history.add([replace(operation, outcome=Outcome.UNKNOWN)])
            return
        self._seen[key] = new if answer.swapped else answer.previous
        self.history.add([replace(operation, swapped=answer.swapped, previous=answer.previous)])


OUTCOMES = {Result.OK: Outcome.OK, Result.FAILED: Outcome.FAILED, Result.UNKNOWN: Outcome.UNKNOWN}


class Ours(Worker):
    """Our own client: every call is one attempt."""

    def __init__(self, name: str, history: History, client: OurClient) -> None:
        super().__init__(name, history)
        self._client = client
        self._seen: dict[bytes, bytes | None] = {}

    async def run(self, stop: threading.Event) -> None:
        for _ in range(MOST_OPERATIONS):
            if stop.is_set():
                return
            await self.step()
            await asyncio.sleep(PACE_S)

    async def step(self) -> None:
        dice = self.chance.randrange(100)
        key = self.chance.choice(self.history.plain)
        call = Call(self.name, time.monotonic())
        if dice < 30:
            outcome = await self._client.get(key)
            self._keep(outcome, [call.operation(Kind.GET, key, outcome.value)])
        elif dice < 60:
            value = self.value()
            outcome = await self._client.put(key, value)
            self._keep(outcome, [call.operation(Kind.PUT, key, value)])
        elif dice < 66:
            outcome = await self._client.delete(key)
            self._keep(outcome, [call.operation(Kind.DELETE, key)])
        elif dice < 72:
            keys, start, end = self.range()
            outcome = await self._client.scan(start, end, 100)
            found = dict(outcome.pairs)
            self._keep(outcome, [call.operation(Kind.GET, key, found.get(key)) for key in keys])
        elif dice < 75:
            keys, start, end = self.range()
            outcome = await self._client.delete_range(start, end)
            self._keep(outcome, [call.operation(Kind.DELETE, key) for key in keys])
        else:
            await self._swap(call, self.chance.choice(self.history.swapped))

    async def _swap(self, call: Call, key: bytes) -> None:
        expected, new = self._seen.get(key), self.value()
        outcome = await self._client.compare_and_swap(key, expected, new)
        operation = replace(call.operation(Kind.SWAP, key, new), expected=expected)
        if outcome.is_ok:
            self._seen[key] = new if outcome.swapped else outcome.previous
            operation = replace(operation, swapped=outcome.swapped, previous=outcome.previous)
        self._keep(outcome, [operation])

    def _keep(self, outcome: OurOutcome, operations: list[Operation]) -> None:
        if not outcome.is_ok:
            self.history.note(f"{outcome.kind}: {outcome.reason}"[:160])
        self.history.add([replace(op, outcome=OUTCOMES[outcome.result]) for op in operations])


@dataclass(slots=True)
class Load:
    """All workers while they run."""

    history: History
    workers: list[str]
    stop: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, each: int, timeout_s: float, what: str) -> float:
        """Until that many more operations were acknowledged to every worker: how long it took."""
        began = time.monotonic()
        goal = {name: self.history.acknowledged[name] + each for name in self.workers}
        while late := [name for name, count in goal.items() if self.history.acknowledged[name] < count]:
            waited = time.monotonic() - began
            assert waited < timeout_s, f"{what}: {late} after {waited:.1f} s; {self.history.trouble.most_common(5)}"
            time.sleep(0.02)
        return time.monotonic() - began


@contextmanager
def load(endpoints: list[str], seed: str) -> Iterator[Load]:
    """Five workers on the cluster for the block; all have ended after it."""
    history = History(seed)
    with repeats_told() as told:
        pythons = [PlainPython(f"plain{i}", history, endpoints, told) for i in range(2)]
        pythons += [AtomicPython(f"atomic{i}", history, endpoints, told) for i in range(2)]
        running = Load(history, [*(worker.name for worker in pythons), "ours"])
        threads = [threading.Thread(target=worker.run, args=(running.stop,)) for worker in pythons]
        threads.append(threading.Thread(target=lambda: asyncio.run(_ours(endpoints, running))))
        for thread in threads:
            thread.start()
        try:
            yield running
        finally:
            running.stop.set()
            for thread in threads:
                thread.join()


async def _ours(endpoints: list[str], running: Load) -> None:
    client = OurClient(endpoints, timeout_s=TIMEOUT_S)
    try:
        await Ours("ours", running.history, client).run(running.stop)
    finally:
        client.close()
