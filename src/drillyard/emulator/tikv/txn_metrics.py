"""What is counted of transactions, under TiKV's names. Its scheduler is here the region's log: there are no latches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from drillyard.emulator.metrics import Registry


class TxnMetrics:
    def __init__(self, metrics: Registry) -> None:
        self._loop = asyncio.get_running_loop()
        self._durations = metrics.histogram(
            "tikv_scheduler_command_duration_seconds", "From a command's arrival to its outcome.", ("type",)
        )
        self._stages = metrics.counter("tikv_scheduler_stage_total", "Commands by stage.", ("type", "stage"))
        self._running = metrics.gauge("tikv_scheduler_contex_total", "Commands that are under way.").labels()
        entries = metrics.gauge("tikv_lock_wait_queue_entries_gauge_vec", "Who waits for locks.", ("type",))
        self.waiters = entries.labels("waiters")

    @contextmanager
    def command(self, kind: str) -> Iterator[None]:
        self._stages.labels(kind, "new").inc()
        self._running.inc()
        began = self._loop.time()
        try:
            yield
            self._stages.labels(kind, "write_finish").inc()
        except BaseException:
            self._stages.labels(kind, "error").inc()
            raise
        finally:
            self._running.dec()
            self._durations.labels(kind).observe(self._loop.time() - began)
