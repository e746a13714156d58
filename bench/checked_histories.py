"""Histories for the checker, made from a seed: what clients of a correct store could have seen. Pure."""

from __future__ import annotations

import random
from dataclasses import replace

from drillyard.judge.consistency import Kind, Operation

CLIENTS = 16
OPERATION_S = 0.004  # mean


def of_registers(operations: int, keys: int, seed: int) -> list[Operation]:
    """Clients that put and get; each operation takes effect at an instant between its call and its return."""
    chance = random.Random(seed)
    free_at = [0.0] * CLIENTS
    planned = []
    for number in range(operations):
        client = number % CLIENTS
        called = free_at[client] + chance.random() * OPERATION_S
        returned = called + chance.expovariate(1 / OPERATION_S)
        free_at[client] = returned
        key = b"key-%d" % chance.randrange(keys)
        put = b"value-%d" % number if chance.random() < 0.5 else None
        operation = Operation(Kind.GET if put is None else Kind.PUT, key, called, returned, put, client=str(client))
        planned.append((chance.uniform(called, returned), operation))
    held: dict[bytes, bytes | None] = {}
    history = []
    for _, operation in sorted(planned, key=lambda one: one[0]):
        if operation.kind is Kind.PUT:
            held[operation.key] = operation.value
        history.append(replace(operation, value=held.get(operation.key)))
    return history
