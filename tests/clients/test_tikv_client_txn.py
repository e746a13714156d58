"""The PyPI client tikv-client (Rust inside): its transactional API, and money that no fault makes or loses."""

from __future__ import annotations

import asyncio

import pytest
import tikv_client as blocking
from bank import Bank, Tally
from client_cluster import ClientCluster
from client_faults import FAULTS
from tikv_client import asynchronous as tikv_client

from drillyard.wire import keys

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


def test_transactions_over_several_regions(cluster: ClientCluster) -> None:
    wanted = {b"region-%02d" % number: b"%d" % number for number in range(20)}

    async def scenario() -> None:
        client = await tikv_client.TransactionClient.connect(cluster.pd_endpoints)
        before = await client.begin(False)  # it meets regions that it has not heard of when it commits
        for key, value in wanted.items():
            await before.put(key, value)
        await asyncio.to_thread(cluster.split, *(keys.encode(b"region-%02d" % number) for number in (5, 10, 15)))
        await before.commit()
        snapshot = client.snapshot(await client.current_timestamp(), False)
        assert list(await snapshot.scan(b"region-", b"region.", 100)) == list(wanted.items())
        assert dict(await snapshot.batch_get(list(wanted))) == wanted
        after = await client.begin(True)
        await after.lock_keys(list(wanted))
        for key in wanted:
            await after.delete(key)
        await after.commit()
        assert list(await snapshot.scan_keys(b"region-03", b"region-12", 100)) == list(wanted)[3:12]
        now = client.snapshot(await client.current_timestamp(), False)
        assert list(await now.scan(b"region-", b"region.", 100)) == []

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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of transactions that could not end
def test_the_bank_keeps_its_money_through_kills_and_pauses(cluster: ClientCluster) -> None:
    async def scenario() -> Tally:
        bank = Bank(cluster.pd_endpoints, seed=6)
        await bank.found()
        work = bank.start()
        for fault in BANK_FAULTS:
            before = bank.tally.transfers
            member = await asyncio.to_thread(fault.choose, cluster)
            await asyncio.to_thread(fault.strike, cluster.cluster, member)
            await asyncio.sleep(0.8)  # the fault lasts
            await asyncio.to_thread(fault.undo, cluster.cluster, member)
            async with asyncio.timeout(20):
                while bank.tally.transfers < before + 10:
                    assert not any(task.done() for task in work), "somebody has found a wrong sum"
                    await asyncio.sleep(0.02)
        await bank.close()
        await asyncio.gather(*work)
        return bank.tally

    tally = asyncio.run(scenario())
    cluster.heal()
    print(tally)
    assert tally.transfers >= 40
    assert tally.reads >= 10
