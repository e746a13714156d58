"""The PyPI client tikv-client (Rust inside): its transactional API, and money that no fault makes or loses."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass

import pytest
import tikv_client as blocking
from client_cluster import ClientCluster
from client_faults import FAULTS
from tikv_client import asynchronous as tikv_client

ACCOUNTS = [b"account-%02d" % number for number in range(12)]
OPENING = 100
CLIENTS = 4
CALL_S = 5.0
BANK_FAULTS = [fault for fault in FAULTS if fault.name != "PD leader paused"]  # this client waits for ever then


def test_every_operation_optimistic_and_pessimistic(cluster: ClientCluster) -> None:
    async def scenario() -> None:
        client = await tikv_client.TransactionClient.connect(cluster.pd_endpoints)
        for pessimistic in (False, True):
            mark = b"p" if pessimistic else b"o"
            first = await client.begin(pessimistic)
            for number in range(5):
                await first.put(mark + b"%d" % number, b"%d" % number)
            assert await first.get(mark + b"1") == b"1"
            await first.commit()
            second = await client.begin(pessimistic)
            assert await second.get(mark + b"9") is None
            assert await second.key_exists(mark + b"0")
            await second.delete(mark + b"0")
            await second.put(mark + b"4", b"x" * 1000)
            assert await second.scan(mark, mark + b"~", 3) == [(mark + b"%d" % i, b"%d" % i) for i in (1, 2, 3)]
            await second.commit()
            snapshot = client.snapshot(await client.current_timestamp(), pessimistic)
            assert await snapshot.get(mark + b"0") is None
            found = dict(await snapshot.batch_get([mark + b"1", mark + b"4", mark + b"7"]))
            assert found == {mark + b"1": b"1", mark + b"4": b"x" * 1000}
            assert list(await snapshot.scan_keys(mark, mark + b"~", 9)) == [mark + b"%d" % i for i in (1, 2, 3, 4)]
            third = await client.begin(pessimistic)
            await third.put(mark + b"1", b"never")
            await third.rollback()
            assert await client.snapshot(await client.current_timestamp(), pessimistic).get(mark + b"1") == b"1"

    asyncio.run(scenario())


def test_conflicts_are_told(cluster: ClientCluster) -> None:
    async def scenario() -> None:
        client = await tikv_client.TransactionClient.connect(cluster.pd_endpoints)
        early, late = await client.begin(False), await client.begin(False)
        await late.put(b"conflict", b"late")
        await late.commit()
        await early.put(b"conflict", b"early")
        with pytest.raises(Exception, match="WriteConflict"):
            await early.commit()
        holder = await client.begin(True)
        assert await holder.get_for_update(b"conflict") == b"late"
        assert dict(await holder.batch_get_for_update([b"conflict", b"nothing"])) == {b"conflict": b"late"}
        await holder.put(b"conflict", b"held")
        await holder.commit()
        taken = await client.begin(False)
        await taken.insert(b"conflict", b"again")
        with pytest.raises(Exception, match="AlreadyExist"):
            await taken.commit()

    asyncio.run(scenario())


def test_the_blocking_client(cluster: ClientCluster) -> None:
    """It runs the thread's event loop, which must be there."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        client = blocking.TransactionClient.connect(cluster.pd_endpoints)
        transaction = client.begin(pessimistic=True)
        transaction.lock_keys([b"blocking"])
        transaction.put(b"blocking", b"1")
        transaction.commit()
        assert client.snapshot(client.current_timestamp(), pessimistic=False).get(b"blocking") == b"1"
    finally:
        asyncio.set_event_loop(None)
        loop.close()


# ---- the bank ----


@dataclass(slots=True)
class Tally:
    transfers: int = 0
    failures: int = 0
    reads: int = 0


class Bank:
    """Transfers between accounts by several clients, while others add up all accounts as of one timestamp."""

    def __init__(self, cluster: ClientCluster, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._is_open = True
        self.tally = Tally()

    async def found(self) -> None:
        client = await self._client()
        transaction = await client.begin(False)
        for account in ACCOUNTS:
            await transaction.put(account, b"%d" % OPENING)
        await transaction.commit()

    async def _client(self) -> tikv_client.TransactionClient:
        return await tikv_client.TransactionClient.connect(self._cluster.pd_endpoints)

    async def clerk(self, pessimistic: bool) -> None:
        client = await self._client()
        while self._is_open:
            try:
                await asyncio.wait_for(self._transfer(client, pessimistic), CALL_S)
                self.tally.transfers += 1
            except Exception:
                self.tally.failures += 1
                await asyncio.sleep(0.02)

    async def _transfer(self, client: tikv_client.TransactionClient, pessimistic: bool) -> None:
        giver, taker = sorted(self._chance.sample(ACCOUNTS, 2), reverse=self._chance.random() < 0.2)
        transaction = await client.begin(pessimistic)
        read = transaction.get_for_update if pessimistic else transaction.get
        try:
            has, gets = int(await read(giver)), int(await read(taker))
            amount = self._chance.randint(0, has)
            await transaction.put(giver, b"%d" % (has - amount))
            await transaction.put(taker, b"%d" % (gets + amount))
            await transaction.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # where it does not come through, its locks are left for others
                await asyncio.wait_for(transaction.rollback(), 1)
            raise

    async def auditor(self) -> None:
        client = await self._client()
        while self._is_open:
            try:
                await asyncio.wait_for(self.audit(client), CALL_S)
                self.tally.reads += 1
            except AssertionError:
                raise
            except Exception:
                await asyncio.sleep(0.02)

    async def audit(self, client: tikv_client.TransactionClient) -> None:
        at = await client.current_timestamp()
        pairs = await client.snapshot(at, False).scan(b"account-", b"account.", 100)
        sums = [sum(int(value) for _, value in pairs)]
        again = await client.snapshot(at, False).batch_get(ACCOUNTS)
        sums.append(sum(int(value) for _, value in again))
        assert sums == [OPENING * len(ACCOUNTS)] * 2, f"the money as of {at} is {sums}, not {OPENING * len(ACCOUNTS)}"
        assert sorted(pairs) == sorted(again)

    async def close(self) -> None:
        self._is_open = False
        client = await self._client()
        deadline = time.monotonic() + 20
        while True:
            try:
                return await asyncio.wait_for(self.audit(client), CALL_S)
            except (TimeoutError, Exception) as error:
                if isinstance(error, AssertionError) or time.monotonic() > deadline:
                    raise


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of transactions that could not end
def test_the_bank_keeps_its_money_through_kills_and_pauses(cluster: ClientCluster) -> None:
    async def scenario() -> Tally:
        bank = Bank(cluster, seed=6)
        await bank.found()
        work = [asyncio.create_task(bank.clerk(pessimistic=number % 2 == 1)) for number in range(CLIENTS)]
        watch = asyncio.create_task(bank.auditor())
        for fault in BANK_FAULTS:
            before = bank.tally.transfers
            member = await asyncio.to_thread(fault.choose, cluster)
            await asyncio.to_thread(fault.strike, cluster.cluster, member)
            await asyncio.sleep(0.8)  # the fault lasts
            await asyncio.to_thread(fault.undo, cluster.cluster, member)
            async with asyncio.timeout(20):
                while bank.tally.transfers < before + 10:
                    assert not watch.done() or watch.result() is None
                    await asyncio.sleep(0.02)
        await bank.close()
        await asyncio.gather(*work)
        await watch
        return bank.tally

    tally = asyncio.run(scenario())
    cluster.heal()
    print(tally)
    assert tally.transfers >= 40
    assert tally.reads >= 10
