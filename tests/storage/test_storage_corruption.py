"""Bytes of a stopped member's files that changed: it refuses, fails by name, or gives right data. Never wrong data.

What the sync note vouches for must be there; a flip in a write-ahead log's last, unsynced bytes cannot be told from a
power cut and may lose them, so all is synced here.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from drillyard.emulator.data_directory import DataDirectory
from drillyard.emulator.rocksdb_logs import intact_length
from drillyard.emulator.storage import Cause, Storage, StorageFailed, StorageOptions, StorageRefused

OPTIONS = StorageOptions(memtable_bytes=64 << 10, cache_bytes=64 << 10, reserve_bytes=0, low_water_bytes=0)
WRITER = """
import os, random, signal, sys
from drillyard.emulator.storage import Batch, Storage, StorageOptions
options = StorageOptions(memtable_bytes=64 << 10, cache_bytes=64 << 10, reserve_bytes=0, low_water_bytes=0)
storage = Storage.open(sys.argv[1], "tikv", options)
chance = random.Random(5)
for number in range(60):
    batch = Batch()
    for _ in range(20):
        batch.put(b"k%06d" % chance.randrange(800), chance.randbytes(150))
    batch.delete(b"k%06d" % chance.randrange(800))
    storage.write(batch)
storage.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""
FLIPS = 40


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and a log, as a SIGKILL leaves them, and all of it vouched for.

    Made again if RocksDB has written a table out after the last sync.
    """
    for _ in range(20):
        data = tmp_path_factory.mktemp("intact") / "data"
        subprocess.run([sys.executable, "-c", WRITER, str(data)], timeout=60)
        if is_noted(data):
            break
    assert is_noted(data)
    assert list((data / "db").glob("*.sst"))
    assert any(log.stat().st_size for log in (data / "db").glob("*.log"))
    return data


def is_noted(data: Path) -> bool:
    """Whether the last sync knew the whole MANIFEST."""
    (manifest,) = (data / "db").glob("MANIFEST-*")
    directory = DataDirectory(data)
    directory.claim("tikv", 0)
    noted = directory.noted_manifest()
    directory.release()
    return noted is not None and noted[1] == manifest.stat().st_size


def read(data: Path) -> list[tuple[bytes, bytes]]:
    storage = Storage.open(data, "tikv", OPTIONS)
    try:
        return storage.scan(b"k", b"l", 1 << 30)
    finally:
        storage.close()


def flip(files: list[Path], chance: random.Random) -> str:
    file = chance.choice([file for file in files if file.stat().st_size])
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    for at in range(place, min(len(content), place + chance.choice((1, 1, 8, 200)))):
        content[at] ^= chance.randrange(1, 256)
    file.write_bytes(content)
    return f"{file.name} at {place} of {len(content)}"


def test_no_flip_of_bytes_gives_wrong_data(intact: Path, tmp_path: Path) -> None:
    right = read(shutil.copytree(intact, tmp_path / "right"))
    assert len(right) > 500
    outcomes: Counter[str] = Counter()
    for seed in range(FLIPS):
        chance = random.Random(seed)
        data = shutil.copytree(intact, tmp_path / f"flip {seed}")
        kinds = ("*.sst", "*.log", "*.sst", "*.log", "MANIFEST-*", "CURRENT")
        where = flip(sorted((data / "db").glob(kinds[seed % len(kinds)])), chance)
        try:
            found = read(data)
        except (StorageRefused, StorageFailed) as error:
            outcomes[f"{type(error).__name__} {error.cause.name}"] += 1
        else:
            assert found == right, (seed, where)
            outcomes["right"] += 1
        shutil.rmtree(data, ignore_errors=True)  # a thread of RocksDB may still be at it
    assert outcomes.keys() <= {"StorageRefused CORRUPTED", "StorageFailed CORRUPTED", "right"}, outcomes
    assert outcomes["StorageRefused CORRUPTED"] > 5, outcomes


def test_a_manifest_that_ends_too_early_is_refused(intact: Path, tmp_path: Path) -> None:
    """Found above: RocksDB takes it for a torn write, and opens without the tables that the rest told of."""
    data = shutil.copytree(intact, tmp_path / "data")
    (manifest,) = (data / "db").glob("MANIFEST-*")
    whole = manifest.read_bytes()
    assert intact_length(manifest) == len(whole)
    manifest.write_bytes(whole[:-20])
    with pytest.raises(StorageRefused) as refused:
        read(data)
    assert refused.value.cause is Cause.CORRUPTED
    manifest.write_bytes(whole + whole[:5])  # behind what was durable, a write may be torn
    assert read(data)
