"""What official clients get of a cluster, on one region and on sixteen."""

from __future__ import annotations

import os

from bench import figures
from bench.deployment import Deployment, pd_addresses, standing
from bench.figures import Figure, Results
from bench.load import KEYS, Client, Load, Missing, program
from bench.splitting import split, spread
from bench.start import largest

REGIONS = 16
IS_A_CORE_FREE = (os.cpu_count() or 1) >= 8  # six members, the client and PD's leader keep that many busy
RATES = {
    (Client.UNARY, "puts"): figures.PUTS,
    (Client.UNARY, "gets"): figures.GETS,
    (Client.BATCH, "puts"): figures.BATCH_PUTS,
    (Client.BATCH, "gets"): figures.BATCH_GETS,
}
P50_MS = {"put": 3.0, "get": 1.5}


def alone(client: Client, action: str) -> tuple[Figure, Figure]:
    """The median and the 99th percentile of one operation at a time."""
    name = f"a {action}, one in flight ({client.value})"
    key = f"{action}-alone-{client.name.lower()}"
    return (
        Figure(f"{key}-p50", f"p50 of {name}", "ms", P50_MS[action]),
        Figure(f"{key}-p99", f"p99 of {name}", "ms"),
    )


def spread_rate(client: Client, action: str) -> tuple[Figure, Figure]:
    """On sixteen regions: the rate, and how many times that of one region."""
    key, name = f"{action}-{client.name.lower()}", f"{action}, 64 in flight, {REGIONS} regions over three leaders"
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


def measure(results: Results) -> None:
    with standing() as deployment:
        loads = [Load(client, pd_addresses(deployment.members())) for client in clients(results)]
        if not loads:
            return
        loads[0].fill()
        for load in loads:
            for action, act in (("put", load.put), ("get", load.get)):
                seen = act(in_flight=1, seconds=1.0)
                p50, p99 = alone(load.client, action)
                results.add(p50, seen.p50_ms)
                results.add(p99, seen.p99_ms)
        rates = {key: rate for load in loads for key, rate in _rates(load).items()}
        for key, rate in rates.items():
            results.add(RATES[key], rate)
        results.add(figures.PSS_AFTER, largest(deployment)[1])
        _spread(deployment, loads, rates, results)


def _rates(load: Load) -> dict[tuple[Client, str], float]:
    return {(load.client, "puts"): load.put().rate, (load.client, "gets"): load.get().rate}


def _spread(
    deployment: Deployment, loads: list[Load], before: dict[tuple[Client, str], float], results: Results
) -> None:
    members = deployment.members()
    split(members, [b"bench-%08d" % (KEYS * number // REGIONS) for number in range(1, REGIONS)])
    spread(members)
    for load in loads:
        for (client, action), rate in _rates(load).items():
            absolute, ratio = spread_rate(client, action)
            results.add(absolute, rate)
            results.add(ratio, rate / before[client, action])
