"""The three families: a plain model and the state of a member under an unwritten batch say the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from drillyard.emulator.storage import Batch, Storage, StorageOptions
from drillyard.emulator.store.state import FAMILIES, Family, MemoryState, Span
from drillyard.emulator.tikv.engine import _Pairs

KEYS = [bytes([a, b]) for a in b"abc" for b in b"\x00xyz\xff"]


def test_spans() -> None:
    state = MemoryState()
    for key in (b"a", b"b", b"c"):
        state.put(key, key * 2)
    state.put(b"b", b"other", Family.LOCK)
    assert state.scan(Span(b"", b""), 2) == [(b"a", b"aa"), (b"b", b"bb")]
    assert state.scan(Span(b"", b""), 2, reverse=True) == [(b"c", b"cc"), (b"b", b"bb")]
    assert state.scan(Span(b"b", b"c"), 9) == [(b"b", b"bb")]
    assert state.scan(Span(b"c", b"b"), 9) == []
    state.delete_range(Span(b"b", b""))
    assert state.scan(Span(b"", b""), 9) == [(b"a", b"aa")]
    assert state.get(b"b", Family.LOCK) == b"other"


@pytest.mark.parametrize("seed", range(6))
def test_an_unwritten_batch_is_read_like_what_is_written(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    storage = Storage.open(tmp_path, "tikv", StorageOptions(reserve_bytes=0, low_water_bytes=0))
    noise = Batch()
    noise.put(b"2r", b"a record of the store")
    storage.write(noise)
    try:
        model, pairs = MemoryState(), _Pairs(storage)
        for number in range(600):
            family = chance.choice(FAMILIES)
            first, second = chance.choice(KEYS), chance.choice([*KEYS, b""])
            match chance.randrange(8):
                case 0 | 1 | 2:
                    for state in (model, pairs):
                        state.put(first, b"%d" % number, family)
                case 3:
                    for state in (model, pairs):
                        state.delete(first, family)
                case 4 if chance.random() < 0.3:
                    for state in (model, pairs):
                        state.delete_range(Span(first, second, family))
                case 5 if chance.random() < 0.2:
                    storage.write(pairs.take())
                case _:
                    span, limit = Span(first, second, family), chance.randrange(1, 6)
                    reverse = chance.random() < 0.5
                    assert pairs.scan(span, limit, reverse) == model.scan(span, limit, reverse)
                    assert pairs.get(first, family) == model.get(first, family)
    finally:
        storage.close()
