"""What happened in one PD member since it started, counted: for its metrics.

Rules: counts only grow, over all leads of the process, as Prometheus wants them. Names and labels are PD's. Whoever
makes something happen counts it; nobody decides by these numbers.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct, field

from drillyard.wire import metapb


class Events(Struct):
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)  # type, event
    finished_s: list[tuple[str, float]] = field(default_factory=list)  # type, duration: taken when they are shown
    heartbeats: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # address, store, status
    messages: Counter[tuple[str, int, str, str]] = field(default_factory=Counter)  # address, store, type, status
    timestamps: Counter[str] = field(default_factory=lambda: Counter({"save": 0, "system_time_slow": 0}))  # shown at 0

    def heartbeat(self, store: metapb.Store | None, status: str) -> None:
        if store is not None:
            self.heartbeats[store.address, store.id, status] += 1

    def message(self, store: metapb.Store | None, kind: str, status: str = "ok") -> None:
        """Something went down a store's heartbeat stream, or did not: `err`."""
        if store is not None:
            self.messages[store.address, store.id, kind, status] += 1

    def operator_finished(self, kind: str, seconds: float) -> None:
        self.operators[kind, "finish"] += 1
        self.finished_s.append((kind, seconds))
        del self.finished_s[:-10_000]  # nobody asks for the metrics
