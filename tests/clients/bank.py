"""Money that is moved between accounts by transactions of tikv-client, while others add it up as of one timestamp.

    python tests/clients/bank.py PD_ENDPOINTS

prints what was done so far, as JSON, twice a second, until SIGTERM; it ends with 0 if no sum was ever wrong, and all
transfers and sums fit one order in which each saw those before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass

from tikv_client import asynchronous as tikv_client

from drillyard.judge.consistency import Outcome, Verdict
from drillyard.judge.transactions import Transaction, check

ACCOUNTS = [b"account-%02d" % number for number in range(12)]
OPENING = 100
CLERKS = 4
CALL_S = 5.0
SERVED_S = 20.0


@dataclass(slots=True)
class Tally:
    transfers: int = 0
    failures: int = 0
    reads: int = 0


class Bank:
    """Transfers between accounts by several clients, while others add up all accounts as of one timestamp."""

    def __init__(self, pd_endpoints: list[str], seed: int) -> None:
        self._pd_endpoints = pd_endpoints
        self._chance = random.Random(seed)
        self._is_open = True
        self.tally = Tally()
        self.history: list[Transaction] = []

    async def found(self) -> None:
        client = await self._client()
        transaction = await client.begin(False)
        for account in ACCOUNTS:
            await transaction.put(account, b"%d" % OPENING)
        await transaction.commit()

    async def _client(self, former: tikv_client.TransactionClient | None = None) -> tikv_client.TransactionClient:
        """A client in the place of one that failed: once it was told of no leader of PD, it panics for good. Who has
        none yet asks again for a while: to connect takes an answer of PD like any other call."""
        deadline = time.monotonic() + SERVED_S
        while True:
            try:
                return await asyncio.wait_for(tikv_client.TransactionClient.connect(self._pd_endpoints), CALL_S)
            except Exception:
                if former is not None:
                    return former
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def clerk(self, pessimistic: bool) -> None:
        client = await self._client()
        while self._is_open:
            try:
                await asyncio.wait_for(self._transfer(client, pessimistic), CALL_S)
                self.tally.transfers += 1
            except Exception:
                self.tally.failures += 1
                await asyncio.sleep(0.02)
                client = await self._client(client)

    async def _transfer(self, client: tikv_client.TransactionClient, pessimistic: bool) -> None:
        giver, taker = sorted(self._chance.sample(ACCOUNTS, 2), reverse=self._chance.random() < 0.2)
        called, reads, writes, outcome = time.monotonic(), dict[bytes, bytes](), dict[bytes, bytes](), Outcome.FAILED
        transaction = await client.begin(pessimistic)
        read = transaction.get_for_update if pessimistic else transaction.get
        try:
            reads = {giver: await read(giver), taker: await read(taker)}
            amount = self._chance.randint(0, int(reads[giver]))
            writes = {giver: b"%d" % (int(reads[giver]) - amount), taker: b"%d" % (int(reads[taker]) + amount)}
            for account, balance in writes.items():
                await transaction.put(account, balance)
            outcome = Outcome.UNKNOWN
            await transaction.commit()
            outcome = Outcome.OK
        except BaseException:
            with contextlib.suppress(Exception):  # where it does not come through, its locks are left for others
                await asyncio.wait_for(transaction.rollback(), 1)
            raise
        finally:
            self.history.append(Transaction(called, time.monotonic(), reads, writes, outcome))

    async def auditor(self) -> None:
        client = await self._client()
        while self._is_open:
            try:
                await asyncio.wait_for(self.audit(client), CALL_S)
                self.tally.reads += 1
            except AssertionError:
                self._is_open = False
                raise
            except Exception:
                await asyncio.sleep(0.02)
                client = await self._client(client)

    async def audit(self, client: tikv_client.TransactionClient) -> None:
        called = time.monotonic()
        at = await client.current_timestamp()
        pairs = await client.snapshot(at, False).scan(b"account-", b"account.", 100)
        sums = [sum(int(value) for _, value in pairs)]
        again = await client.snapshot(at, False).batch_get(ACCOUNTS)
        sums.append(sum(int(value) for _, value in again))
        assert sums == [OPENING * len(ACCOUNTS)] * 2, f"the money as of {at} is {sums}, not {OPENING * len(ACCOUNTS)}"
        assert sorted(pairs) == sorted(again)
        self.history.append(Transaction(called, time.monotonic(), dict(pairs)))

    async def close(self) -> None:
        self._is_open = False
        client = await self._client()
        deadline = time.monotonic() + SERVED_S
        while True:
            try:
                await asyncio.wait_for(self.audit(client), CALL_S)
                break
            except (TimeoutError, Exception) as error:
                if isinstance(error, AssertionError) or time.monotonic() > deadline:
                    raise
                client = await self._client(client)
        judged = check(self.history, initial=dict.fromkeys(ACCOUNTS, b"%d" % OPENING))
        assert judged.verdict is Verdict.LINEARIZABLE, judged.explain()

    def start(self) -> list[asyncio.Task[None]]:
        """Everybody at work; the last one audits."""
        work = [self.clerk(pessimistic=number % 2 == 1) for number in range(CLERKS)]
        return [asyncio.create_task(each) for each in (*work, self.auditor())]


async def main(pd_endpoints: list[str]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    bank = Bank(pd_endpoints, seed=7)
    await bank.found()
    work = bank.start()
    while not stop.is_set() and not any(task.done() for task in work):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.5)
        print(json.dumps(asdict(bank.tally)), flush=True)
    await bank.close()
    await asyncio.gather(*work)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].split(",")))
    os._exit(0)  # the threads of tikv-client do not survive the interpreter's end, and bring the process down with them
