"""Which directories a member refuses, and in which words: a reason and a mend."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from drillyard.emulator import data_directory
from drillyard.emulator.storage import Batch, Cause, Storage, StorageOptions, StorageRefused
from drillyard.emulator.version import ON_DISK_FORMAT

MIB = 1 << 20
SMALL = StorageOptions(memtable_bytes=MIB, reserve_bytes=3 * MIB, low_water_bytes=4 * MIB)


KILLED_CHILD = """
import os, signal, sys
from drillyard.emulator.storage import Batch, Storage, StorageOptions
storage = Storage.open(sys.argv[1], "tikv", StorageOptions(reserve_bytes=0))
for number in range(500):
    batch = Batch()
    batch.put(b"key %d" % number, b"v" * 100)
    storage.write(batch)
storage.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""


def refusal(path: Path, kind: data_directory.Kind = "tikv") -> StorageRefused:
    with pytest.raises(StorageRefused) as raised:
        Storage.open(path, kind, SMALL)
    assert str(path) in raised.value.reason
    assert raised.value.mend
    assert str(raised.value) == f"{raised.value.reason}; {raised.value.mend}"
    return raised.value


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def made(path: Path, keys: int = 100) -> Path:
    """A directory with data in tables and in the log."""
    storage = Storage.open(path, "tikv", SMALL)
    for number in range(keys):
        batch = Batch()
        batch.put(b"key %d" % number, b"v" * 100)
        storage.write(batch)
    storage.close()
    return path


def test_a_new_directory_is_private_and_says_whose_it_is(tmp_path: Path) -> None:
    data = made(tmp_path / "deep" / "data")
    assert data.stat().st_mode & 0o777 == 0o700
    assert json.loads((data / "drillyard.json").read_text()) == {"kind": "tikv", "format": ON_DISK_FORMAT}
    assert (data / "drillyard.reserve").stat().st_size == SMALL.reserve_bytes


def test_a_fresh_mount_with_lost_and_found_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    tmp_path.chmod(0o755)
    made(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_crash_while_the_identity_was_written_leaves_a_usable_directory(tmp_path: Path) -> None:
    (tmp_path / "drillyard.json.new").write_text('{"ki')
    (tmp_path / "drillyard.lock").write_text("")
    made(tmp_path)


@pytest.mark.parametrize("stranger", ["raftdb.info", "member", "notes.txt"])
def test_a_foreign_directory_is_refused_and_left_as_it_was(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).write_text("precious")
    tmp_path.chmod(0o755)
    refused = refusal(tmp_path)
    assert refused.cause is Cause.FOREIGN
    assert stranger in refused.reason
    assert contents(tmp_path) == {stranger: b"precious"}
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert refusal(tmp_path / "data").cause is Cause.FOREIGN


def test_the_directory_of_another_kind_of_member_is_refused(tmp_path: Path) -> None:
    refused = refusal(made(tmp_path / "data"), "pd")
    assert refused.cause is Cause.OTHER_KIND
    assert "tikv" in refused.reason
    assert "pd" in refused.reason


def test_a_newer_format_is_refused_before_the_database_is_touched(tmp_path: Path) -> None:
    data = made(tmp_path / "data")
    (data / "drillyard.json").write_text(json.dumps({"kind": "tikv", "format": ON_DISK_FORMAT + 1, "more": "fields"}))
    before = contents(data / "db")
    refused = refusal(data)
    assert refused.cause is Cause.NEWER_FORMAT
    assert str(ON_DISK_FORMAT + 1) in refused.reason
    assert contents(data / "db") == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "tikv"}', '{"kind": "tikv", "format": "x"}', "\x00" * 40])
def test_an_unreadable_identity_is_refused_as_corrupted(tmp_path: Path, text: str) -> None:
    data = made(tmp_path / "data")
    (data / "drillyard.json").write_text(text)
    assert refusal(data).cause is Cause.CORRUPTED


def spoil(file: Path) -> None:
    file.write_bytes(b"\xee" * 20 + file.read_bytes()[20:])


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*"])
def test_a_spoilt_database_is_refused_as_corrupted_and_released(tmp_path: Path, pattern: str) -> None:
    data = made(tmp_path / "data")
    intact = shutil.copytree(data / "db", tmp_path / "intact")
    for file in (data / "db").glob(pattern):
        spoil(file)
    assert refusal(data).cause is Cause.CORRUPTED
    shutil.rmtree(data / "db")
    intact.rename(data / "db")
    Storage.open(data, "tikv", SMALL).close()  # the refusal let go of the lock


def recyclable(kind: int, size: int) -> bytes:
    """Garbage that RocksDB takes for a record of a recycled log; its reader never comes back from it."""
    return struct.pack("<IHBI", 1, 100, kind, 77) + random.randbytes(size)


@pytest.mark.parametrize("kind", [5, 6, 7, 8, 11])
def test_garbage_that_would_trap_rocksdb_is_cut_off_the_log_or_refused(tmp_path: Path, kind: int) -> None:
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", KILLED_CHILD, str(data)], timeout=60)
    intact = shutil.copytree(data, tmp_path / "intact")
    (log,) = (data / "db").glob("*.log")
    with log.open("ab") as file:  # behind what was synced
        file.write(recyclable(kind, 50_000))
    storage = Storage.open(data, "tikv", SMALL)
    assert len(storage.scan(b"key ", b"key!", 1000)) == 500
    storage.close()
    (log,) = (intact / "db").glob("*.log")
    content = log.read_bytes()
    log.write_bytes(content[:32768] + recyclable(kind, len(content) - 32768 - 11))  # where a block begins
    assert "acknowledged" in refusal(intact).reason
    (manifest,) = (data / "db").glob("MANIFEST-*")
    with manifest.open("ab") as file:
        file.write(recyclable(kind, 1000))
    assert refusal(data).cause is Cause.CORRUPTED


HOLED_CHILD = """
import os, signal, sys
from pathlib import Path
from drillyard.emulator.storage import Batch, Storage, StorageOptions
storage = Storage.open(sys.argv[1], "tikv", StorageOptions(reserve_bytes=0))
(log,) = Path(sys.argv[1], "db").glob("*.log")

def put(key, size):
    batch = Batch()
    batch.put(key, b"v" * size)
    storage.write(batch)
    return log.stat().st_size

one, two = put(b"key 1", 100), put(b"key 2", 100)
more = 2  # bytes that the length of a long value takes
three = put(b"key 3", 32768 - two - (two - one - 100) - more)
put(b"key 4", 100)
print(two, three, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_stands_behind_a_hole_in_the_log_is_not_taken_up(tmp_path: Path) -> None:
    # Nothing was synced, and the power went: the page with the third record never arrived, that with the fourth did.
    data = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", HOLED_CHILD, str(data)], timeout=60, capture_output=True, text=True)
    begin, end = map(int, done.stdout.split())
    assert end == 32768, "the third record ends where a block does, so that the fourth could be read without it"
    (log,) = (data / "db").glob("*.log")
    with log.open("r+b") as file:
        file.seek(begin)
        file.write(b"\0" * (end - begin))
    storage = Storage.open(data, "tikv", SMALL)
    try:
        assert [key for key, _ in storage.scan(b"key ", b"key!", 9)] == [b"key 1", b"key 2"]
    finally:
        storage.close()


def test_a_missing_table_is_refused_as_corrupted(tmp_path: Path) -> None:
    data = made(tmp_path / "data")
    for table in (data / "db").glob("*.sst"):
        table.unlink()
    assert refusal(data).cause is Cause.CORRUPTED


def test_a_log_damaged_before_its_synced_end_is_refused_again_and_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", KILLED_CHILD, str(data)], timeout=60)
    (log,) = (data / "db").glob("*.log")
    with log.open("r+b") as file:
        file.seek(log.stat().st_size // 2)
        file.write(b"\xee" * 20)
    for _ in range(2):  # RocksDB alone opens it, with half of the keys, and has forgotten the damage the second time
        refused = refusal(data)
        assert refused.cause is Cause.CORRUPTED
        assert "acknowledged" in refused.reason


def test_a_note_of_the_last_sync_that_cannot_be_read_only_weakens_the_check(tmp_path: Path) -> None:
    data = made(tmp_path / "data")
    for garbage in (b"", b"\xff" * 5, b"\xff" * 12, b"\xff" * 40):
        (data / "drillyard.synced").write_bytes(garbage)
        Storage.open(data, "tikv", SMALL).close()


def test_a_directory_in_use_names_the_process_that_uses_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    code = (
        "import sys; from drillyard.emulator.storage import Storage\n"
        "storage = Storage.open(sys.argv[1], 'tikv'); print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        refused = refusal(data)
        assert refused.cause is Cause.IN_USE
        assert f"pid {child.pid}" in refused.reason
    finally:
        child.kill()
        child.communicate(timeout=30)
    Storage.open(data, "tikv", SMALL).close()  # the lock ended with its process


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the answer of the system is played."""

    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "data"))

    monkeypatch.setattr("drillyard.emulator.data_directory.os.open", denied)
    assert refusal(tmp_path / "data").cause is Cause.NOT_WRITABLE


# A disk that is full, as the storage sees it


class Disk:
    """Plays how much space is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.reserve: Path | None = None
        monkeypatch.setattr(data_directory, "free_bytes", self._answer)
        monkeypatch.setattr("drillyard.emulator.storage.free_bytes", self._answer)

    def _answer(self, path: Path) -> int:
        released = self.reserve is not None and not self.reserve.exists()
        return self.free + (SMALL.reserve_bytes if released else 0)


def test_the_low_water_mark_is_seen_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, free=100 * MIB)
    monkeypatch.setattr("drillyard.emulator.storage._SPACE_AGE_S", -1.0)
    storage = Storage.open(tmp_path, "tikv", SMALL)
    assert not storage.is_almost_full()
    disk.free = SMALL.low_water_bytes - 1
    assert storage.is_almost_full()
    assert storage.available == SMALL.low_water_bytes - 1
    disk.free = SMALL.low_water_bytes
    assert not storage.is_almost_full()
    storage.close()


def test_the_reserve_is_released_only_to_open_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(tmp_path / "data")
    disk = Disk(monkeypatch, free=3 * MIB)  # too little to write much, enough to open
    disk.reserve = data / "drillyard.reserve"
    storage = Storage.open(data, "tikv", SMALL)
    assert not storage.reserve_released
    storage.close()
    assert disk.reserve.exists()
    disk.free = 0
    storage = Storage.open(data, "tikv", SMALL)
    assert storage.reserve_released
    assert storage.is_almost_full()
    storage.close()
    assert not disk.reserve.exists()
    disk.reserve, disk.free = None, 0
    refused = refusal(data)  # and there is no second reserve
    assert refused.cause is Cause.DISK_FULL
    assert "free" in refused.mend
    disk.free = 100 * MIB
    Storage.open(data, "tikv", SMALL).close()
    assert (data / "drillyard.reserve").stat().st_size == SMALL.reserve_bytes  # set aside again


def test_without_room_for_it_no_reserve_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, free=SMALL.reserve_bytes + SMALL.low_water_bytes - 1)
    data = made(tmp_path / "data")
    assert not (data / "drillyard.reserve").exists()


def test_capacity_and_used_bytes_are_those_of_the_disk_and_the_database(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, "tikv", SMALL)
    before = storage.used_bytes
    batch = Batch()
    batch.put(b"key", b"v" * 100_000)
    storage.write(batch)
    assert before + 100_000 <= storage.used_bytes < before + 200_000
    assert 0 < storage.available <= storage.capacity
    storage.close()
