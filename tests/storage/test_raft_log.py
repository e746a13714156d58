"""A group's log on disk: what a Ready says is what a restart finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from drillyard.emulator.raft.types import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Ready,
    SnapshotMeta,
)
from drillyard.emulator.storage import Batch, Cause, LoadedLog, RaftLog, Storage, StorageFailed, StorageOptions

OPTIONS = StorageOptions(reserve_bytes=0)
GROUP = 2


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(term, index, b"data %d" % index) for index in range(first, last + 1))


def stage(storage: Storage, log: RaftLog, ready: Ready) -> None:
    batch = Batch()
    log.stage(batch, ready)
    storage.write(batch)


def loaded(path: Path, group: int = GROUP) -> LoadedLog:
    storage = Storage.open(path, "tikv", OPTIONS)
    try:
        return RaftLog(storage, group).load()
    finally:
        storage.close()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path, "tikv", OPTIONS)


@pytest.fixture
def log(storage: Storage) -> RaftLog:
    log = RaftLog(storage, GROUP)
    assert log.load() == LoadedLog(HardState(), (), 0, 0)
    return log


def test_hard_state_and_entries_are_found_again(tmp_path: Path, storage: Storage, log: RaftLog) -> None:
    change = Entry(2, 4, b"why", ConfigurationChange((Change(ChangeKind.ADD_LEARNER, 9),)))
    stage(storage, log, Ready(1, HardState(1, 3, 0), entries=entries(1, 3)))
    stage(storage, log, Ready(2, HardState(2, 3, 2), entries=(change,)))
    stage(storage, log, Ready(3))
    storage.close()
    assert loaded(tmp_path) == LoadedLog(HardState(2, 3, 2), (*entries(1, 3), change), 0, 0)


def test_entries_replace_all_from_the_first_of_them_on(tmp_path: Path, storage: Storage, log: RaftLog) -> None:
    stage(storage, log, Ready(1, entries=entries(1, 9)))
    stage(storage, log, Ready(2, entries=entries(4, 5, term=2)))
    stage(storage, log, Ready(3, entries=entries(6, 6, term=2)))
    storage.close()
    assert loaded(tmp_path).entries == (*entries(1, 3), *entries(4, 6, term=2))


def test_compaction_forgets_the_front_and_remembers_where_it_ended(
    tmp_path: Path, storage: Storage, log: RaftLog
) -> None:
    stage(storage, log, Ready(1, entries=(*entries(1, 3), *entries(4, 9, term=2))))
    for upto in (4, 2, 7, 7):  # what is forgotten already is no error
        batch = Batch()
        log.compact(batch, upto)
        storage.write(batch)
    stage(storage, log, Ready(2, entries=entries(10, 11, term=2)))
    storage.close()
    assert loaded(tmp_path) == LoadedLog(HardState(), entries(8, 11, term=2), 7, 2)


def test_all_entries_may_be_compacted(tmp_path: Path, storage: Storage, log: RaftLog) -> None:
    stage(storage, log, Ready(1, entries=entries(1, 5)))
    batch = Batch()
    log.compact(batch, 5)
    storage.write(batch)
    stage(storage, log, Ready(2, entries=entries(6, 6)))
    storage.close()
    assert loaded(tmp_path) == LoadedLog(HardState(), entries(6, 6), 5, 1)


def test_what_is_not_there_cannot_be_compacted(storage: Storage, log: RaftLog) -> None:
    stage(storage, log, Ready(1, entries=entries(1, 5)))
    with pytest.raises(ValueError, match="1 to 5"):
        log.compact(Batch(), 6)
    storage.close()


@pytest.mark.parametrize("place", [3, 100])
def test_a_snapshot_replaces_the_whole_log(tmp_path: Path, storage: Storage, log: RaftLog, place: int) -> None:
    stage(storage, log, Ready(1, HardState(1, 1, 1), entries=entries(1, 9)))
    meta = SnapshotMeta(place, 6, Configuration(frozenset({1, 2, 3})))
    stage(storage, log, Ready(2, HardState(6, 0, place), snapshot=meta))
    stage(storage, log, Ready(3, entries=entries(place + 1, place + 2, term=6)))
    storage.close()
    assert loaded(tmp_path) == LoadedLog(HardState(6, 0, place), entries(place + 1, place + 2, term=6), place, 6)


@pytest.mark.parametrize("first", [7, 12])
def test_entries_must_join_the_log(storage: Storage, log: RaftLog, first: int) -> None:
    stage(storage, log, Ready(1, entries=entries(1, 10)))
    batch = Batch()
    log.compact(batch, 7)
    storage.write(batch)
    with pytest.raises(ValueError, match="8 to 10"):
        log.stage(Batch(), Ready(2, entries=entries(first, 13)))
    storage.close()


def test_groups_and_data_do_not_touch_each_other(tmp_path: Path, storage: Storage, log: RaftLog) -> None:
    neighbours = [RaftLog(storage, group) for group in (GROUP - 1, GROUP + 1)]
    for neighbour in neighbours:
        neighbour.load()
        stage(storage, neighbour, Ready(1, HardState(1, 1, 1), entries=entries(1, 4)))
    stage(storage, log, Ready(1, HardState(5, 5, 5), entries=entries(1, 8)))
    batch = Batch()
    batch.put(b"\x02", b"data")
    log.destroy(batch)
    storage.write(batch)
    stage(storage, log, Ready(1, entries=entries(1, 2, term=7)))  # the group may come back
    assert storage.get(b"\x02") == b"data"
    storage.close()
    assert loaded(tmp_path, GROUP) == LoadedLog(HardState(), entries(1, 2, term=7), 0, 0)
    for group in (GROUP - 1, GROUP + 1):
        assert loaded(tmp_path, group) == LoadedLog(HardState(1, 1, 1), entries(1, 4), 0, 0)


@pytest.mark.parametrize("damage", ["missing", "garbage", "misplaced"])
def test_a_log_with_a_hole_or_garbage_is_corrupted(storage: Storage, log: RaftLog, damage: str) -> None:
    stage(storage, log, Ready(1, entries=entries(1, 5)))
    batch = Batch()
    key = log._entry_key(3)
    if damage == "missing":
        batch.delete(key)
    else:
        record = storage.get(log._entry_key(4)) if damage == "misplaced" else b"\xff\xff"
        assert record is not None
        batch.put(key, record)
    storage.write(batch)
    failures: list[Exception] = []
    storage.on_failure = failures.append
    with pytest.raises(StorageFailed) as raised:
        RaftLog(storage, GROUP).load()
    assert raised.value.cause is Cause.CORRUPTED
    assert failures == [raised.value]
    storage.close()
