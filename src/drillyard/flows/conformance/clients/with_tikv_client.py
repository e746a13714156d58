"""What `drillyard conformance` has the PyPI client tikv-client (Rust inside) do, in a process of its own: its raw and
its transactional interface, synchronous and asyncio. Usage: with_tikv_client.py raw|raw-asyncio|txn|txn-asyncio
PD_ENDPOINT,… Each check is told by one line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import tikv_client
from tikv_client import asynchronous

CHECK_S = 20.0
IS_ASYNCIO = sys.argv[1:2] != [] and sys.argv[1].endswith("-asyncio")
Act = Callable[[], Awaitable[None]]


def told(name: str, error: BaseException | None) -> None:
    line: dict[str, object] = {"check": name, "passed": error is None}
    if error is not None:
        line["why"] = f"{type(error).__name__}: {error}"
    print(json.dumps(line), flush=True)


async def tell(name: str, act: Act) -> None:
    try:
        await (asyncio.wait_for(act(), CHECK_S) if IS_ASYNCIO else act())
    except Exception as error:
        told(name, error)
    else:
        told(name, None)


def expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, wanted {wanted!r:.200}")


class Waiting:
    """A synchronous client behind the asyncio interface, so that one scenario serves both."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute

        async def call(*arguments: Any, **named: Any) -> Any:
            value = attribute(*arguments, **named)
            return Waiting(value) if type(value).__module__.startswith("tikv_client") else value

        return call


# ---- raw ----


async def raw(client: Any) -> None:
    async def reads_and_writes() -> None:
        await client.delete(b"rust-0")
        expect(await client.get(b"rust-0"), None)
        await client.put(b"rust-0", b"zero")
        expect(await client.get(b"rust-0"), b"zero")

    async def batches() -> None:
        await client.batch_put({b"rust-%d" % i: b"%d" % i for i in range(1, 6)})
        found = dict(await client.batch_get([b"rust-1", b"rust-5", b"rust-9"]))
        expect(found, {b"rust-1": b"1", b"rust-5": b"5"})

    async def scans() -> None:
        expect(await client.scan(b"rust-1", b"rust-4", 10), [(b"rust-%d" % i, b"%d" % i) for i in (1, 2, 3)])
        expect(await client.scan(b"rust-1", b"rust-4", 2), [(b"rust-1", b"1"), (b"rust-2", b"2")])
        expect(await client.scan_keys(b"rust-", b"rust.", 10), [b"rust-%d" % i for i in range(6)])

    async def deletes() -> None:
        await client.delete(b"rust-0")
        await client.batch_delete([b"rust-1", b"rust-2"])
        await client.delete_range(b"rust-3", b"rust-5")
        expect(await client.scan_keys(b"rust-", b"rust.", 10), [b"rust-5"])

    await tell("get, put", reads_and_writes)
    await tell("batch_put, batch_get", batches)
    await tell("scan, scan_keys", scans)
    await tell("delete, batch_delete, delete_range", deletes)


# ---- transactions ----


async def txn(client: Any) -> None:
    async def timestamps() -> None:
        one, two = await client.current_timestamp(), await client.current_timestamp()
        expect(one < two, True)

    await tell("current_timestamp grows", timestamps)
    for kind, is_pessimistic in (("optimistic", False), ("pessimistic", True)):
        await tell(f"{kind} commit", lambda: commits(client, is_pessimistic))  # noqa: B023
        await tell(f"{kind} reads and scans of its own writes", lambda: own_writes(client, is_pessimistic))  # noqa: B023
        await tell(f"{kind} rollback", lambda: rolls_back(client, is_pessimistic))  # noqa: B023
    await tell("get_for_update, batch_get_for_update, lock_keys", lambda: locks(client))
    await tell("a write conflict is told", lambda: conflicts(client))
    await tell("insert of a key that is there is refused", lambda: inserts(client))
    await tell("snapshot: get, batch_get, scan, key_exists", lambda: snapshots(client))


async def commits(client: Any, is_pessimistic: bool) -> None:
    transaction = await client.begin(is_pessimistic)
    for i in range(10):
        await transaction.put(b"rtx-%d" % i, b"%d" % i)
    await transaction.commit()
    after = await client.begin(False)
    expect(await after.get(b"rtx-3"), b"3")
    expect(dict(await after.batch_get([b"rtx-1", b"rtx-9", b"rtx-none"])), {b"rtx-1": b"1", b"rtx-9": b"9"})
    expect([key for key, _ in list(await after.scan(b"rtx-2", b"rtx-5", 10))], [b"rtx-2", b"rtx-3", b"rtx-4"])
    await after.commit()
    removing = await client.begin(is_pessimistic)
    await removing.delete(b"rtx-3")
    await removing.commit()
    last = await client.begin(False)
    expect(await last.get(b"rtx-3"), None)
    await last.commit()


async def own_writes(client: Any, is_pessimistic: bool) -> None:
    transaction = await client.begin(is_pessimistic)
    await transaction.put(b"rown-1", b"new")
    expect(await transaction.get(b"rown-1"), b"new")
    expect(await transaction.key_exists(b"rown-1"), True)
    expect(list(await transaction.scan_keys(b"rown-", b"rown.", 10)), [b"rown-1"])
    await transaction.rollback()


async def rolls_back(client: Any, is_pessimistic: bool) -> None:
    transaction = await client.begin(is_pessimistic)
    await transaction.put(b"rback", b"never")
    await transaction.rollback()
    after = await client.begin(False)
    expect(await after.get(b"rback"), None)
    await after.commit()


async def locks(client: Any) -> None:
    setting = await client.begin(False)
    await setting.put(b"rlock-1", b"one")
    await setting.commit()
    transaction = await client.begin(True)
    expect(await transaction.get_for_update(b"rlock-1"), b"one")
    expect(dict(await transaction.batch_get_for_update([b"rlock-1", b"rlock-2"])), {b"rlock-1": b"one"})
    await transaction.lock_keys([b"rlock-3"])
    await transaction.put(b"rlock-1", b"two")
    await transaction.commit()
    after = await client.begin(False)
    expect(await after.get(b"rlock-1"), b"two")
    await after.commit()


async def conflicts(client: Any) -> None:
    first = await client.begin(False)
    second = await client.begin(False)
    await second.put(b"rconflict", b"second")
    await second.commit()
    await first.put(b"rconflict", b"first")
    try:
        await first.commit()
    except Exception as error:
        expect("onflict" in str(error), True)
    else:
        raise AssertionError("both were committed")


async def inserts(client: Any) -> None:
    setting = await client.begin(False)
    await setting.put(b"rinsert", b"there")
    await setting.commit()
    transaction = await client.begin(True)
    try:
        await transaction.insert(b"rinsert", b"again")
        await transaction.commit()
    except Exception as error:
        expect("xist" in str(error), True)
    else:
        raise AssertionError("it was inserted")


async def snapshots(client: Any) -> None:
    setting = await client.begin(False)
    await setting.put(b"rsnap", b"before")
    await setting.commit()
    snapshot = client.snapshot(await client.current_timestamp(), False)
    snapshot = await snapshot if asyncio.iscoroutine(snapshot) else snapshot
    changing = await client.begin(False)
    await changing.put(b"rsnap", b"after")
    await changing.commit()
    expect(await snapshot.get(b"rsnap"), b"before")
    expect(dict(await snapshot.batch_get([b"rsnap"])), {b"rsnap": b"before"})
    expect(list(await snapshot.scan(b"rsnap", b"rsnaq", 10)), [(b"rsnap", b"before")])
    expect(await snapshot.key_exists(b"rsnap"), True)


def main(area: str, endpoints: list[str]) -> None:
    kind, _, flavour = area.partition("-")
    scenario = raw if kind == "raw" else txn
    name = "RawClient" if kind == "raw" else "TransactionClient"
    if flavour:

        async def asyncio_flavour() -> None:
            await scenario(await getattr(asynchronous, name).connect(endpoints))

        asyncio.run(asyncio_flavour())
        return
    # The synchronous interface runs its own loop, which must not run already: so the scenario is stepped by hand.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    client = Waiting(getattr(tikv_client, name).connect(endpoints))
    step(scenario(client))


def step(work: Any) -> None:
    try:
        while True:
            work.send(None)
    except StopIteration:
        pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
    # The extension's own threads may still hold Python objects, and abort a process that ends in good order.
    os._exit(0)
