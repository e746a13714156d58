"""Transactions over the wire: what only a running store shows, waiting for locks above all."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tikv_cluster import Cluster
from tikv_members import Place, call, kind_of, wait_until

from drillyard.wire import kvrpcpb
from drillyard.wire.services import TIKV

Op = kvrpcpb.Op
clock = iter(range(1000, 1 << 40, 10))  # timestamps, each of them larger than all before


class Client:
    def __init__(self, place: Place) -> None:
        self.place = place

    def ask(self, method: Any, **fields: Any) -> Any:
        context = self.place.context(**fields.pop("context", {}))
        return call(self.place.address, method, method.request(context=context, **fields))

    def prewrite(self, start: int, values: dict[bytes, bytes], **fields: Any) -> Any:
        mutations = [kvrpcpb.Mutation(op=Op.Put, key=key, value=value) for key, value in values.items()]
        fields.setdefault("primary_lock", min(values))
        return self.ask(TIKV.KvPrewrite, start_version=start, mutations=mutations, lock_ttl=3000, **fields)

    def commit(self, start: int, at: int, *wanted: bytes) -> Any:
        return self.ask(TIKV.KvCommit, start_version=start, commit_version=at, keys=wanted)

    def write(self, values: dict[bytes, bytes]) -> int:
        start, commit = next(clock), next(clock)
        assert not self.prewrite(start, values).errors
        assert not self.commit(start, commit, *values).HasField("error")
        return commit

    def lock(self, start: int, key: bytes, wait_ms: int, **fields: Any) -> Any:
        mutations = [kvrpcpb.Mutation(op=Op.PessimisticLock, key=key)]
        fields.setdefault("for_update_ts", start)
        return self.ask(
            TIKV.KvPessimisticLock,
            start_version=start,
            mutations=mutations,
            primary_lock=key,
            lock_ttl=3000,
            wait_timeout=wait_ms,
            **fields,
        )

    def unlock(self, start: int, key: bytes) -> None:
        self.ask(TIKV.KVPessimisticRollback, start_version=start, for_update_ts=start, keys=[key])

    def scan(self, at: int, **fields: Any) -> list[tuple[bytes, bytes]]:
        fields.setdefault("limit", 10_000)
        return [(pair.key, pair.value) for pair in self.ask(TIKV.KvScan, version=at, **fields).pairs]


def wait_for_waiters(cluster: Cluster, count: int) -> None:
    wanted = f'tikv_lock_wait_queue_entries_gauge_vec{{type="waiters"}} {count}'

    def are_there() -> bool:
        address = cluster.place().address
        port = next(member.status_port for member in cluster.members if member.address == address)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            return wanted in page.read().decode()

    wait_until(f"{count} wait for a lock", are_there)


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return Client(cluster.place())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_large_requests_go_in_several_commands(client: Client) -> None:
    values = {b"large-%05d" % number: b"x" * (300 if number % 50 == 0 else 9) for number in range(1500)}
    commit = client.write(values)
    found = client.scan(commit, start_key=b"large-", end_key=b"large.")
    assert found == sorted(values.items())
    assert client.scan(commit - 1, start_key=b"large-", end_key=b"large.") == []
    backwards = client.scan(commit, start_key=b"large.", end_key=b"large-", reverse=True, limit=700)
    assert backwards == found[:-701:-1]
    answer = client.ask(TIKV.KvBatchGet, keys=list(values), version=commit)
    assert {pair.key: pair.value for pair in answer.pairs} == values


def test_a_region_resolves_and_collects_all_that_it_has(client: Client) -> None:
    start, commit = next(clock), next(clock)
    values = {b"many-%04d" % number: b"1" for number in range(600)}
    client.prewrite(start, values)
    locks = client.ask(TIKV.KvScanLock, max_version=start, start_key=b"many-", end_key=b"many.", limit=500).locks
    assert [lock.key for lock in locks] == sorted(values)[:500]
    infos = [kvrpcpb.TxnInfo(txn=start, status=commit), kvrpcpb.TxnInfo(txn=next(clock), status=0)]
    assert not client.ask(TIKV.KvResolveLock, txn_infos=infos).HasField("error")
    assert client.scan(commit, start_key=b"many-", end_key=b"many.") == sorted(values.items())
    later = client.write(dict.fromkeys(values, b"2"))
    assert not client.ask(TIKV.KvGC, safe_point=later).HasField("error")
    assert client.scan(commit, start_key=b"many-", end_key=b"many.") == []
    assert len(client.scan(later, start_key=b"many-", end_key=b"many.")) == 600
    assert not client.ask(TIKV.KvDeleteRange, start_key=b"many-0100", end_key=b"many.").error
    assert len(client.scan(later, start_key=b"many-", end_key=b"many.")) == 100


def test_a_waiter_is_woken_by_the_release(cluster: Cluster, client: Client, pool: ThreadPoolExecutor) -> None:
    holder, waiter = next(clock), next(clock)
    assert not client.lock(holder, b"wait", 1).errors
    waiting: Future[Any] = pool.submit(client.lock, waiter, b"wait", 20_000)
    wait_for_waiters(cluster, 1)
    assert not waiting.done()
    client.unlock(holder, b"wait")
    conflict = waiting.result(10).errors[0].conflict
    assert (conflict.start_ts, conflict.conflict_ts, conflict.conflict_commit_ts) == (waiter, holder, 0)
    assert not client.lock(waiter, b"wait", 1).errors
    client.unlock(waiter, b"wait")


def test_a_forced_waiter_has_the_lock_when_it_wakes(cluster: Cluster, client: Client, pool: ThreadPoolExecutor) -> None:
    holder, waiter = next(clock), next(clock)
    client.lock(holder, b"force", 1)
    forced = kvrpcpb.PessimisticLockWakeUpMode.WakeUpModeForceLock
    waiting = pool.submit(client.lock, waiter, b"force", 20_000, wake_up_mode=forced)
    wait_for_waiters(cluster, 1)
    fields: dict[str, Any] = {"for_update_ts": holder, "pessimistic_actions": [1]}
    client.prewrite(holder, {b"force": b"v"}, **fields)
    commit = next(clock)
    client.commit(holder, commit, b"force")
    (result,) = waiting.result(10).results
    assert (result.locked_with_conflict_ts, result.value) == (commit, b"v")
    client.unlock(commit, b"force")


@pytest.mark.parametrize("wait_ms", [-1, 200])
def test_a_wait_ends_in_time(client: Client, wait_ms: int) -> None:
    holder = next(clock)
    client.lock(holder, b"late", 1)
    answer = client.lock(next(clock), b"late", wait_ms)
    assert answer.errors[0].locked.lock_version == holder
    client.unlock(holder, b"late")


def test_a_circle_of_waits_is_a_deadlock(cluster: Cluster, client: Client, pool: ThreadPoolExecutor) -> None:
    first, second = next(clock), next(clock)
    client.lock(first, b"dead-a", 1)
    client.lock(second, b"dead-b", 1)
    waiting = pool.submit(client.lock, first, b"dead-b", 20_000)
    wait_for_waiters(cluster, 1)
    deadlock = client.lock(second, b"dead-a", 20_000).errors[0].deadlock
    assert (deadlock.lock_ts, deadlock.lock_key, deadlock.deadlock_key) == (first, b"dead-a", b"dead-b")
    chain = [(entry.txn, entry.wait_for_txn, entry.key) for entry in deadlock.wait_chain]
    assert chain == [(first, second, b"dead-b"), (second, first, b"dead-a")]
    assert not waiting.done()
    client.unlock(second, b"dead-b")
    assert waiting.result(10).errors[0].conflict.conflict_ts == second
    client.unlock(first, b"dead-a")


def test_requests_that_belong_elsewhere(client: Client) -> None:
    epoch = client.place.region.region_epoch
    old = type(epoch)(conf_ver=epoch.conf_ver, version=epoch.version + 1)
    for method, fields in (
        (TIKV.KvGet, {"key": b"k", "version": 9}),
        (TIKV.KvCommit, {"keys": [b"k"], "start_version": 1, "commit_version": 2}),
        (TIKV.KvResolveLock, {"start_version": 1}),
    ):
        request = method.request(context=client.place.context(), **fields)
        request.context.region_epoch.CopyFrom(old)
        assert kind_of(call(client.place.address, method, request).region_error) == "epoch_not_match"
    long = b"k" * 8193
    assert "max key size" in client.ask(TIKV.KvGet, key=long, version=9).error.abort
    assert "max key size" in client.prewrite(next(clock), {long: b"v"}).errors[0].abort
    newer = client.ask(TIKV.KvGet, key=b"k", version=9, context={"api_version": kvrpcpb.APIVersion.V2})
    assert "Api version in request does not match" in newer.error.abort
    too_large = client.prewrite(next(clock), {b"k": b"x" * (9 << 20)})
    assert kind_of(too_large.region_error) == "raft_entry_too_large"
    assert call(client.place.address, TIKV.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest()).safe_ts == 0
