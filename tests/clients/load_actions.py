"""What a load has to do, whichever client it goes through."""

from __future__ import annotations

import pytest

from bench.load import Client, Load
from bench.plan import BenchFailed
from tikv import RawClient

KEYS = 1200  # two full batches and one that is not


def check_every_action(client: Client, pd_endpoints: list[str]) -> None:
    load = Load(client, pd_endpoints)
    assert load.fill(KEYS) > 0
    with RawClient(pd_endpoints) as witness:
        held = dict(witness.scan(prefix=b"bench-"))
    assert set(held) == {b"bench-%08d" % number for number in range(KEYS)}
    assert {len(value) for value in held.values()} == {100}
    for action in ("put", "get", "scan", "txn-put", "transfer"):
        seen = load.run(action, in_flight=4, keys=KEYS, seconds=0.1)
        assert min(seen.done, seen.warmed) >= 4
        assert seen.rate > 0
        assert 0 < seen.p50_ms <= seen.p99_ms
        assert seen.cpu_s > 0


def check_a_call_that_fails(client: Client, pd_endpoints: list[str]) -> None:
    """A value that is not there is no figure."""
    with RawClient(pd_endpoints) as other:
        other.delete_range(b"bench-", b"bench.")
    with pytest.raises(BenchFailed, match="bench-00000000"):
        Load(client, pd_endpoints).run("get", in_flight=1, keys=1, seconds=0.1)
