"""What a power cut leaves holds everything that was acknowledged.

SIGKILL alone shows nothing: what was never synced is still in the page cache. So a child records how much of each
write-ahead log was durable at each completed sync; after the kill the logs are cut to that length, or somewhere behind
it with whatever a disk may have there; and the storage must come back with all that was acknowledged, and with
nothing in half. A storage that acknowledges before the disk has answered must not pass.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drillyard.emulator.storage import Storage, StorageOptions

WRITER = Path(__file__).with_name("storage_writer.py")
PAGE = 4096


def nothing_behind(durable: bytes, lost: bytes) -> bytes:
    return durable


def torn(durable: bytes, lost: bytes) -> bytes:
    """Some of what was on its way arrived."""
    return durable + lost[: random.randrange(len(lost) + 1)]


def zeros_behind(durable: bytes, lost: bytes) -> bytes:
    """The length arrived, the data did not."""
    return durable + b"\0" * len(lost)


def garbage_behind(durable: bytes, lost: bytes) -> bytes:
    return durable + random.randbytes(len(lost))


def pages_missing(durable: bytes, lost: bytes) -> bytes:
    """Pages arrive in any order."""
    pages = [lost[start : start + PAGE] for start in range(0, len(lost), PAGE)]
    return durable + b"".join(page if random.random() < 0.5 else b"\0" * len(page) for page in pages)


DISKS = [nothing_behind, torn, zeros_behind, garbage_behind, pages_missing]


class Machine:
    """A data directory, and a process that writes to it until the power goes."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.lengths = home / "lengths"
        self.log = home / "acknowledged"
        self.command = [sys.executable, str(WRITER), str(self.data), str(self.lengths), str(self.log)]

    def run_until_cut(self, *arguments: str, batches: int = 0) -> None:
        """Runs until so many batches are acknowledged, or until it dies of its own disk."""
        child = subprocess.Popen([*self.command, *arguments])
        deadline = time.monotonic() + 60
        try:
            while child.poll() is None and (batches == 0 or len(self.acknowledged()) < batches):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == -signal.SIGKILL

    def acknowledged(self) -> list[int]:
        return [int(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def lose_what_was_not_synced(self, disk: Callable[[bytes, bytes], bytes]) -> None:
        lengths = json.loads(self.lengths.read_text()) if self.lengths.exists() else {}
        for log in (self.data / "db").glob("*.log"):
            content, length = log.read_bytes(), lengths.get(log.name, 0)
            assert len(content) >= length
            log.write_bytes(disk(content[:length], content[length:]))

    def missing(self) -> list[int]:
        """Acknowledged batches that are not there; and nothing may be there in half, or with a gap before it."""
        storage = Storage.open(self.data, "tikv", StorageOptions(reserve_bytes=0))
        try:
            heads = {int(key[5:]): value for key, value in storage.scan(b"head ", b"head!", 1 << 30)}
            tails = {int(key[5:]): value for key, value in storage.scan(b"tail ", b"tail!", 1 << 30)}
        finally:
            storage.close()
        assert heads == {number: value[::-1] for number, value in tails.items()}
        assert sorted(heads) == list(range(len(heads)))
        return [number for number in self.acknowledged() if number not in heads]


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("batches", [1, 300, 3000])
def test_what_was_acknowledged_survives_a_power_cut(
    tmp_path: Path, disk: Callable[[bytes, bytes], bytes], batches: int
) -> None:
    machine = Machine(tmp_path)
    machine.run_until_cut(batches=batches)
    machine.lose_what_was_not_synced(disk)
    assert len(machine.acknowledged()) >= batches
    assert machine.missing() == []


@pytest.mark.parametrize("sync", [1, 2, 40])
def test_a_power_cut_in_the_middle_of_a_sync_loses_only_what_nobody_was_promised(tmp_path: Path, sync: int) -> None:
    machine = Machine(tmp_path)
    machine.run_until_cut("--cut-in-sync", str(sync))
    machine.lose_what_was_not_synced(nothing_behind)
    assert bool(machine.acknowledged()) is (sync > 1)
    assert machine.missing() == []


@pytest.mark.parametrize("bug", ["without-sync", "all-lazily", "when-sync-begins", "with-the-sync-under-way"])
def test_acknowledging_before_the_disk_has_answered_is_caught(tmp_path: Path, bug: str) -> None:
    # Whether anything was written in the unlucky moment is up to the threads, so the bug gets several chances.
    for cut in range(5, 13):
        home = tmp_path / str(cut)
        home.mkdir()
        machine = Machine(home)
        if bug in ("without-sync", "all-lazily"):
            machine.run_until_cut("--planted-bug", bug, batches=300)
        else:
            machine.run_until_cut("--planted-bug", bug, "--cut-in-sync", str(cut))
        machine.lose_what_was_not_synced(nothing_behind)
        if machine.missing():
            return
    pytest.fail(f"no power cut caught {bug}")


def test_a_second_power_cut_soon_after_the_first_loses_nothing_of_either_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run_until_cut(batches=500)
    machine.lose_what_was_not_synced(torn)
    before = machine.acknowledged()
    assert machine.missing() == []
    machine.lengths.unlink()
    machine.log.unlink()
    machine.run_until_cut(batches=1)  # writes the same batches over the old ones
    machine.lose_what_was_not_synced(nothing_behind)
    assert machine.missing() == []
    machine.log.write_text("".join(f"{number}\n" for number in before))
    assert machine.missing() == []
