"""Histories for the checker, made from a seed: what clients of a correct store could have seen. Pure."""

from __future__ import annotations

import random
from dataclasses import replace

from drillyard.judge.consistency import Kind, Operation, Outcome
from drillyard.judge.transactions import Transaction

CLIENTS = 16
OPERATION_S = 0.004  # mean


def of_registers(operations: int, keys: int, seed: int, trouble: float = 0.0) -> list[Operation]:
    """Clients that put and get; each operation takes effect at an instant between its call and its return.

    `trouble` is the share of the puts that fail or are given up by their client, half and half; of what was given up
    half takes effect, after the client has turned to something else.
    """
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
    for at, operation in sorted(planned, key=lambda one: one[0]):
        if operation.kind is Kind.GET:
            history.append(replace(operation, value=held.get(operation.key)))
            continue
        is_troubled = trouble > 0 and chance.random() < trouble
        outcome = chance.choice((Outcome.FAILED, Outcome.UNKNOWN)) if is_troubled else Outcome.OK
        if outcome is Outcome.OK or (outcome is Outcome.UNKNOWN and chance.random() < 0.5):
            held[operation.key] = operation.value
        until = chance.uniform(operation.called, at) if outcome is Outcome.UNKNOWN else operation.returned
        history.append(replace(operation, outcome=outcome, returned=until))
    return history


ACCOUNTS = tuple(b"account-%02d" % number for number in range(12))


def of_a_bank(transactions: int, seed: int) -> tuple[list[Transaction], dict[bytes, bytes]]:
    """Transfers between accounts and audits of all of them by several clients, with failures and unknown outcomes of
    which half took effect, some of them late; and the balances before. In the order of their instants."""
    chance = random.Random(seed)
    free_at = [0.0] * CLIENTS
    planned: list[tuple[float, float, float, int]] = []
    for number in range(transactions):
        client = number % CLIENTS
        called = free_at[client] + chance.random() * OPERATION_S
        returned = free_at[client] = called + chance.expovariate(1 / OPERATION_S)
        planned.append((chance.uniform(called, returned), called, returned, client))
    opening = dict.fromkeys(ACCOUNTS, b"100")
    held, history = dict(opening), []
    for at, called, returned, client in sorted(planned):
        who = f"client {client}"
        if chance.random() < 0.25:
            history.append(Transaction(called, returned, dict(held), client=who))
            continue
        giver, taker = chance.sample(ACCOUNTS, 2)
        reads = {giver: held[giver], taker: held[taker]}
        amount = chance.randint(0, int(held[giver]))
        writes = {giver: b"%d" % (int(held[giver]) - amount), taker: b"%d" % (int(held[taker]) + amount)}
        outcome = chance.choices([Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN], [90, 5, 5])[0]
        if outcome is Outcome.OK or (outcome is Outcome.UNKNOWN and chance.random() < 0.5):
            held |= writes
        # A client that gave up has returned before what it asked for took effect.
        until = returned if outcome is Outcome.OK else chance.uniform(called, at)
        history.append(Transaction(called, until, reads, writes, outcome, who))
    return history, opening
