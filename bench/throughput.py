"""What official clients get of a cluster, on one region and on sixteen, and what an operation costs."""

from __future__ import annotations

import os

from bench import figures
from bench.costs import Parts
from bench.deployment import pd_addresses, standing
from bench.figures import Figure, Results
from bench.load import KEYS, Client, Load, clients
from bench.splitting import split, spread
from bench.start import largest

REGIONS = 16
IS_A_CORE_FREE = (os.cpu_count() or 1) >= 8  # six members, the client and PD's leader keep that many busy
RATES = {
    (Client.UNARY, "put"): figures.PUTS,
    (Client.UNARY, "get"): figures.GETS,
    (Client.BATCH, "put"): figures.BATCH_PUTS,
    (Client.BATCH, "get"): figures.BATCH_GETS,
}
ACTIONS = ("put", "get")
P50_MS = {"put": 3.0, "get": 1.5}
ALONE_S = 1.0
LARGE = {
    "scan": "scans of 100 pairs",
    "txn-put": "optimistic transactions that write one key",
    "transfer": "pessimistic transactions that read and write two keys",
}


def alone(client: Client, action: str) -> tuple[Figure, Figure]:
    """The median and the 99th percentile of one operation at a time."""
    name = f"a {action}, one in flight ({client.value})"
    key = f"{action}-alone-{client.name.lower()}"
    return (
        Figure(f"{key}-p50", f"p50 of {name}", "ms", P50_MS[action]),
        Figure(f"{key}-p99", f"p99 of {name}", "ms"),
    )


def large(client: Client, action: str) -> tuple[Figure, Figure]:
    """The rate with 64 in flight, and the median of one at a time."""
    key, name = f"{action}-{client.name.lower()}", LARGE[action]
    return (
        Figure(f"{key}-rate", f"{name}, 64 in flight ({client.value})", "/s", is_rate=True),
        Figure(f"{key}-p50", f"p50 of {name}, one in flight ({client.value})", "ms"),
    )


def spread_rate(client: Client, action: str) -> tuple[Figure, Figure]:
    """On sixteen regions: the rate, and how many times that of one region."""
    key, name = f"{action}s-{client.name.lower()}", f"{action}s, 64 in flight, {REGIONS} regions over three leaders"
    return (
        Figure(f"{key}-spread", f"{name} ({client.value})", "/s", is_rate=True),
        Figure(
            f"{key}-spread-ratio",
            f"{name}, times those of one region ({client.value})",
            "x",
            1.3 if IS_A_CORE_FREE else None,
            is_rate=True,
        ),
    )


def measure(results: Results) -> None:
    with standing() as deployment:
        members = deployment.members()
        loads = [Load(client, pd_addresses(members)) for client in clients(results)]
        if not loads:
            return
        loads[0].fill()
        for load in loads:
            for action in ACTIONS:
                seen = load.run(action, in_flight=1, seconds=ALONE_S)
                for figure, value in zip(alone(load.client, action), (seen.p50_ms, seen.p99_ms), strict=True):
                    results.add(figure, value)
        parts = Parts.of(members)
        rates = [(load, action, parts.run(load, action, results).rate) for load in loads for action in ACTIONS]
        for load, action, rate in rates:
            results.add(RATES[load.client, action], rate)
        results.add(figures.PSS_AFTER, largest(deployment)[1])
        split(members, [b"bench-%08d" % (KEYS * number // REGIONS) for number in range(1, REGIONS)])
        spread(members)
        for load, action, before in rates:
            rate = parts.run_spread(load, action, results).rate
            absolute, ratio = spread_rate(load.client, action)
            results.add(absolute, rate)
            results.add(ratio, rate / before)


def transactions(results: Results) -> None:
    """Scans stand here too: like transactions they are many reads and writes in one operation."""
    with standing() as deployment:
        members = deployment.members()
        for load in [Load(client, pd_addresses(members)) for client in clients(results)]:
            load.fill()
            parts = Parts.of(members)
            for action in LARGE:
                rate, p50 = large(load.client, action)
                results.add(rate, parts.run(load, action, results).rate)
                results.add(p50, load.run(action, in_flight=1, seconds=ALONE_S).p50_ms)
