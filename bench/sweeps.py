"""Cost as work grows: more operations in flight, more keys, more members. (More regions: bench/regions.py.)

Rules: every point is taken in every round, so that what disturbs a round disturbs all its points; only the keys, which
take long to load, grow on one cluster in one round.
"""

from __future__ import annotations

import time

from bench.deployment import Deployment, cpu_s, pd_addresses, standing, temporary
from bench.figures import Figure, Results
from bench.load import Client, Load, clients
from bench.plan import spans
from bench.start import largest

IN_FLIGHT = (1, 4, 16, 64, 256)
IN_FLIGHT_S = 0.7
KEYS = (100, 10_000, 1_000_000)
KEYS_SPANS, KEYS_S = 5, 1.0
KEYS_LIMIT_S = 60.0  # after so long no more spans and restarts of a size are begun
MEMBERS = (3, 5, 9)
IDLE_S, ALONE_S = 1.5, 1.0


def in_flight_figures(client: Client, action: str) -> tuple[Figure, Figure, Figure]:
    """The rate, the median and the 99th percentile of one operation, by operations in flight."""
    key, name = f"in-flight-{action}-{client.name.lower()}", f"{action}s ({client.value})"
    return (
        Figure(f"{key}-rate", f"{name}, by operations in flight", "/s", is_rate=True),
        Figure(f"{key}-p50", f"p50 of {name}, by operations in flight", "ms"),
        Figure(f"{key}-p99", f"p99 of {name}, by operations in flight", "ms"),
    )


def in_flight(results: Results) -> None:
    with standing() as deployment:
        for client in clients(results):
            load = Load(client, pd_addresses(deployment.members()))
            load.fill()
            for count in IN_FLIGHT:
                for action in ("put", "get"):
                    seen = load.run(action, in_flight=count, seconds=IN_FLIGHT_S)
                    figures = in_flight_figures(client, action)
                    for figure, value in zip(figures, (seen.rate, seen.p50_ms, seen.p99_ms), strict=True):
                        results.add(figure.of(count), value)


KEYS_LOADED = Figure("keys-loaded", "keys loaded in batches of 500, by keys", "/s", is_rate=True)
KEYS_RATES = {
    action: Figure(f"keys-{action}", f"{action}s, 64 in flight (tikv-client), by keys", "/s", is_rate=True)
    for action in ("put", "get", "scan")
}
KEYS_PSS = Figure("keys-pss", "memory of a member, proportional, the largest, by keys", "MB")
KEYS_RESTART = Figure("keys-restart", "`drillyard up` of the stopped cluster, by keys", "s")


def keys(results: Results) -> None:
    with standing() as deployment:
        if Client.UNARY not in clients(results):
            return
        for count in KEYS:
            load = Load(Client.UNARY, pd_addresses(deployment.members()))
            results.add(KEYS_LOADED.of(count), load.fill(count))
            for _ in spans(KEYS_SPANS, KEYS_LIMIT_S):
                for action, figure in KEYS_RATES.items():
                    results.add(figure.of(count), load.run(action, keys=count, seconds=KEYS_S).rate)
                results.add(KEYS_PSS.of(count), largest(deployment)[1])
            for _ in spans(KEYS_SPANS, KEYS_LIMIT_S):
                deployment.run("down")
                results.add(KEYS_RESTART.of(count), deployment.up().took_s)


def members_figures(kind: str) -> tuple[Figure, Figure, Figure, Figure]:
    """Start, CPU and memory of all members, and a put, by how many members of a kind there are."""
    key = kind.partition(" ")[0].lower()
    return (
        Figure(f"members-{key}-up", f"`drillyard up`, by {kind}", "s"),
        Figure(f"members-{key}-cpu", f"CPU of all members, idle, by {kind}", "% of a core"),
        Figure(f"members-{key}-pss", f"memory of all members, proportional, by {kind}", "MB"),
        Figure(f"members-{key}-put", f"p50 of a put, one in flight (tikv-client), by {kind}", "ms"),
    )


def members(results: Results) -> None:
    """Stores beside three PD members, and PD members beside three stores; regions keep three replicas."""
    base = _members(3, 3, results)
    for count in MEMBERS:
        for kind, pds, stores in (("stores", 3, count), ("PD members", count, 3)):
            taken = base if count == 3 else _members(pds, stores, results)
            for figure, value in zip(members_figures(kind), taken, strict=True):
                if value is not None:
                    results.add(figure.of(count), value)


def _members(pds: int, stores: int, results: Results) -> tuple[float, float, float, float | None]:
    with temporary(pds, stores) as deployment:
        took_s = deployment.up().took_s
        rows = deployment.members()
        time.sleep(IDLE_S)  # what follows a start
        began, used_s = time.perf_counter(), cpu_s(rows)
        time.sleep(IDLE_S)
        cpu = 100 * (cpu_s(rows) - used_s) / (time.perf_counter() - began)
        memory = sum(pss for _, pss in deployment.memory_mb())
        return took_s, cpu, memory, _put_ms(deployment, results)


def _put_ms(deployment: Deployment, results: Results) -> float | None:
    if Client.UNARY not in clients(results):
        return None
    return Load(Client.UNARY, pd_addresses(deployment.members())).run("put", in_flight=1, seconds=ALONE_S).p50_ms
