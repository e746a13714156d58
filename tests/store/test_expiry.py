"""Values that expire, in the pure store: how they are kept, and that replicas decide alike."""

from __future__ import annotations

import pytest

from drillyard.emulator.store import expiry
from drillyard.emulator.store.checksum import Crc64
from drillyard.emulator.store.commands import (
    CompareAndSwap,
    Expire,
    Growth,
    Lifetime,
    Put,
    Swapped,
    Write,
    Written,
    apply_write,
    encode_write,
)
from drillyard.emulator.store.region import Peer
from drillyard.emulator.store.state import Family, MemoryState
from drillyard.emulator.store.store import first_region
from drillyard.wire import drillpb

REGION = first_region(1, Peer(2, 1))


def apply(state: MemoryState, command: Write | CompareAndSwap, growth: Growth | None = None) -> object:
    record = drillpb.Command.FromString(encode_write(command, REGION))
    return apply_write(record, REGION, state, growth or Growth())


@pytest.mark.parametrize(
    ("expires_s", "now_s", "value"),
    [(0, 1 << 40, b"v"), (100, 99, b"v"), (100, 100, None), (100, 101, None)],
)
def test_a_value_lives_up_to_its_last_second(expires_s: int, now_s: int, value: bytes | None) -> None:
    assert expiry.living(expiry.pack(b"v", expires_s), now_s) == value


def test_it_is_kept_as_tikv_keeps_it() -> None:
    assert expiry.pack(b"value", 258) == b"value\0\0\0\0\0\0\x01\x02"
    assert expiry.unpack(b"\0\0\0\0\0\0\0\x09") == expiry.Mortal(b"", 9)
    with pytest.raises(ValueError, match="carries no expiry"):
        expiry.unpack(b"1234567")


@pytest.mark.parametrize(("ttl_s", "expires_s"), [(0, 0), (5, 1005), ((1 << 64) - 1, (1 << 64) - 1)])
def test_when_it_expires(ttl_s: int, expires_s: int) -> None:
    assert expiry.expiry_of(ttl_s, 1000) == expires_s


def test_what_expired_is_not_there_for_a_swap() -> None:
    state = MemoryState()
    apply(state, Write((Put(b"k", expiry.pack(b"old", 100)),)))
    assert apply(state, CompareAndSwap(b"k", None, b"new", lifetime=Lifetime(99, 0))) == Swapped(False, b"old")
    assert apply(state, CompareAndSwap(b"k", b"old", b"new", lifetime=Lifetime(100, 0))) == Swapped(False, None)
    assert apply(state, CompareAndSwap(b"k", None, b"new", lifetime=Lifetime(100, 200))) == Swapped(True, None)
    assert state.get(b"k") == expiry.pack(b"new", 200)


def test_a_bare_swap_takes_values_as_they_are() -> None:
    state = MemoryState()
    assert apply(state, CompareAndSwap(b"k", None, b"12345678")) == Swapped(True, None)
    assert apply(state, CompareAndSwap(b"k", b"12345678", b"v")) == Swapped(True, b"12345678")
    assert state.get(b"k") == b"v"


def test_a_sweep_deletes_what_expired_by_the_time_in_the_entry() -> None:
    state, growth = MemoryState(), Growth()
    pairs = {b"over": 100, b"just over": 200, b"not yet": 201, b"never": 0}
    apply(state, Write(tuple(Put(key, expiry.pack(b"v", end), Family.LOCK) for key, end in pairs.items())))
    swept = Write(tuple(Expire(key, 200, Family.LOCK) for key in (*pairs, b"missing")))
    assert apply(state, swept, growth) == Written()
    assert sorted(state.pairs[Family.LOCK]) == [b"never", b"not yet"]
    assert growth.keys == -2


def test_a_sweep_leaves_what_was_written_anew() -> None:
    state = MemoryState()
    apply(state, Write((Put(b"k", expiry.pack(b"old", 100)),)))
    seen_expired = Expire(b"k", 150)
    apply(state, Write((Put(b"k", expiry.pack(b"new", 300)),)))
    apply(state, Write((seen_expired,)))
    assert state.get(b"k") == expiry.pack(b"new", 300)


def test_bare_values_in_a_store_that_expects_expiries_end_no_replica() -> None:
    state = MemoryState()
    apply(state, Write((Put(b"k", b"short"),)))
    assert apply(state, Write((Expire(b"k", 1),))) == Written()
    swap = CompareAndSwap(b"k", b"short", b"new", lifetime=Lifetime(1, 0))
    assert apply(state, swap) == Swapped(True, b"short")


def test_the_checksum_is_that_of_xz() -> None:
    crc = Crc64()
    crc.update(b"12345")
    crc.update(b"6789")
    assert crc.value == 0x995DC9BBDF1939FA
    assert Crc64().value == 0
