"""The storage against a dict, its group commit, and what a failing disk does to it."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drillyard.emulator import storage as storage_module
from drillyard.emulator.storage import Batch, Cause, Storage, StorageFailed, StorageOptions

SMALL = StorageOptions(memtable_bytes=1 << 20, reserve_bytes=1 << 20, low_water_bytes=1 << 20)


@contextmanager
def opened(path: Path, options: StorageOptions = SMALL) -> Iterator[Storage]:
    storage = Storage.open(path, "tikv", options)
    try:
        yield storage
    finally:
        storage.close()


def put(storage: Storage, *keys: bytes, value: bytes = b"v") -> None:
    batch = Batch()
    for key in keys:
        batch.put(key, value)
    storage.write(batch)


class Disk:
    """Stands between the storage and RocksDB: each sync can be watched, held up, or made to fail."""

    def __init__(self, storage: Storage) -> None:
        self._database: Any = storage._database
        self.syncs = 0
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        storage._database = self

    def flush_wal(self, sync: bool) -> None:
        self.syncs += 1
        self.entered.set()
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        self._database.flush_wal(sync)

    def write(self, batch: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self._database.write(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Reading and writing


def test_what_was_written_is_read_scanned_and_kept_over_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as storage:
        put(storage, b"a", b"b", b"c", b"d", value=b"1")
        batch = Batch()
        batch.put(b"b", b"2")
        batch.delete(b"a")
        batch.delete_range(b"c", b"d")
        batch.delete_range(b"z", b"a")  # empty
        assert len(batch) == 3
        assert batch.size_bytes > 0
        storage.write(batch)
    with opened(tmp_path / "data") as storage:
        assert storage.get(b"a") is None
        assert storage.get(b"b") == b"2"
        assert storage.scan(b"", None, 10) == [(b"b", b"2"), (b"d", b"1")]
        assert storage.scan(b"", b"d", 10) == [(b"b", b"2")]
        assert storage.scan(b"", None, 1, reverse=True, keys_only=True) == [(b"d", b"")]
        assert storage.scan(b"b", b"b", 10) == []
        assert storage.scan(b"a", b"z", 0) == []


def test_a_view_shows_one_moment(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        put(storage, b"a", b"b", value=b"old")
        view = storage.view()
        put(storage, b"b", b"c", value=b"new")
        assert view.get(b"b") == b"old"
        assert view.get(b"c") is None
        assert list(view.walk(b"a", b"c")) == [(b"a", b"old"), (b"b", b"old")]
        assert view.scan(b"a", None, 5, reverse=True) == [(b"b", b"old"), (b"a", b"old")]
        view.close()
        assert storage.get(b"b") == b"new"


def test_a_walk_over_large_values_reads_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever walks on the loop can only pause between two reads."""
    read, slices = storage_module._read, []

    def recorded(*arguments: Any) -> list[tuple[bytes, bytes]]:
        slices.append(read(*arguments))
        return slices[-1]

    monkeypatch.setattr(storage_module, "_read", recorded)
    keys = [b"%03d" % number for number in range(100)]
    with opened(tmp_path) as storage:
        put(storage, *keys, value=b"v" * 100_000)
        assert [key for key, _ in storage.view().walk(b"", None)] == keys
    assert max(sum(len(value) for _, value in found) for found in slices) <= (256 << 10) + 100_000


def test_a_view_is_read_on_another_thread_while_the_loop_writes(tmp_path: Path) -> None:
    keys = [b"%06d" % number for number in range(5000)]

    async def scenario(storage: Storage) -> None:
        put(storage, *keys, value=b"old")
        view = storage.view()
        task = asyncio.to_thread(lambda: [list(view.walk(b"", None)) for _ in range(5)])
        reading = asyncio.create_task(task)
        rounds = 0
        while not reading.done():
            put(storage, *keys[:100], value=b"new %d" % rounds)
            await storage.durable()
            rounds += 1
        for seen in await reading:
            assert seen == [(key, b"old") for key in keys]
        view.close()
        assert rounds > 0

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


KEYS = st.binary(min_size=1, max_size=3).filter(lambda key: key[0] > 1)
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.binary(max_size=4)),
    st.tuples(st.just("delete"), KEYS, st.just(b"")),
    st.tuples(st.just("delete_range"), KEYS, KEYS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(OPERATIONS, max_size=6)),
        st.tuples(st.just("reopen"), st.just([])),
    ),
    max_size=12,
)
QUERIES = st.lists(st.tuples(KEYS, st.none() | KEYS, st.integers(0, 5), st.booleans()), max_size=8)


@settings(max_examples=60)
@given(steps=STEPS, queries=QUERIES)
def test_the_storage_behaves_like_a_sorted_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[Any]]], queries: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("model")
    model: dict[bytes, bytes] = {}
    storage = Storage.open(path, "tikv", SMALL)
    try:
        for step, operations in steps:
            if step == "reopen":
                storage.close()
                storage = Storage.open(path, "tikv", SMALL)
            else:
                storage.write(batch_of(operations, model))
        view = storage.view()
        for start, end, limit, reverse in queries:
            wanted = sorted(pair for pair in model.items() if start <= pair[0] and (end is None or pair[0] < end))
            if reverse:
                wanted.reverse()
            assert storage.scan(start, end, limit, reverse=reverse) == wanted[:limit]
            assert view.scan(start, end, limit, reverse=reverse) == wanted[:limit]
            assert storage.get(start) == view.get(start) == model.get(start)
        assert storage.scan(b"", None, 1000) == sorted(model.items())
        view.close()
    finally:
        storage.close()


def batch_of(operations: list[tuple[str, bytes, bytes]], model: dict[bytes, bytes]) -> Batch:
    batch = Batch()
    for name, key, other in operations:
        if name == "put":
            batch.put(key, other)
            model[key] = other
        elif name == "delete":
            batch.delete(key)
            model.pop(key, None)
        else:
            batch.delete_range(key, other)
            for doomed in [each for each in model if key <= each < other]:
                del model[doomed]
    return batch


# Group commit


def test_all_that_waits_shares_one_sync_and_is_called_in_order(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        disk, called = Disk(storage), list[int]()
        disk.gate.clear()
        put(storage, b"first")
        storage.when_durable(lambda: called.append(0))
        await until(disk.entered.is_set)
        for number in range(1, 65):
            put(storage, b"key %d" % number)
            storage.when_durable(lambda number=number: called.append(number))  # type: ignore[misc]
        await asyncio.sleep(0)
        assert called == []  # the disk has not answered
        disk.gate.set()
        await until(lambda: len(called) == 65)
        assert called == list(range(65))
        assert disk.syncs == 2  # what came during the first sync shares the second

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


def test_with_nothing_to_make_durable_the_call_comes_without_a_sync_and_never_at_once(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        disk, called = Disk(storage), list[str]()
        storage.when_durable(lambda: called.append("idle"))
        assert called == []
        await until(lambda: called == ["idle"])
        assert disk.syncs == 0
        disk.gate.clear()
        put(storage, b"a")
        storage.when_durable(lambda: called.append("written"))
        await until(disk.entered.is_set)
        storage.when_durable(lambda: called.append("after"))  # keeps its place although it waits for nothing new
        disk.gate.set()
        await until(lambda: len(called) == 3)
        assert called == ["idle", "written", "after"]

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


def test_what_is_written_lazily_waits_for_a_sync_that_is_made_for_others(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        disk, called = Disk(storage), list[str]()
        batch = Batch()
        batch.put(b"lazy", b"value")
        storage.write(batch, lazily=True)
        assert storage.get(b"lazy") == b"value"
        storage.when_durable(lambda: called.append("nothing promised"))
        await until(lambda: called == ["nothing promised"])
        assert disk.syncs == 0
        put(storage, b"promised")
        storage.when_durable(lambda: called.append("promised"))
        await until(lambda: called == ["nothing promised", "promised"])
        assert disk.syncs == 1

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


def test_the_last_of_many_syncs_is_noted_soon_after_it(tmp_path: Path) -> None:
    def noted() -> int:
        return int.from_bytes((tmp_path / "drillyard.synced").read_bytes()[:8], "big")

    async def scenario(storage: Storage) -> None:
        for number in range(20):
            put(storage, b"key %d" % number)
            await storage.durable()
        await until(lambda: noted() == storage._database.latest_sequence_number())

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


def test_a_table_that_is_written_out_after_the_last_sync_is_noted_too(tmp_path: Path) -> None:
    """The log that it was made of is gone by then: without a note its loss would be taken for a torn write."""

    def noted() -> int:
        return (storage._directory.noted_manifest() or (0, 0))[1]

    def length() -> int:
        (manifest,) = (tmp_path / "db").glob("MANIFEST-*")
        return manifest.stat().st_size

    async def scenario() -> None:
        put(storage, b"key")
        await storage.durable()
        await until(lambda: noted() == length())
        before = length()
        for number in range(40):
            put(storage, b"large %d" % number, value=random.randbytes(1 << 16))  # nobody asks for a sync of these
        await until(lambda: noted() == length() > before)

    with opened(tmp_path) as storage:
        asyncio.run(scenario())


def test_a_call_that_raises_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        problems, called = list[Any](), list[str]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
        put(storage, b"a")
        storage.when_durable(lambda: called.append("before"))
        storage.when_durable(lambda: [][0])
        storage.when_durable(lambda: called.append("behind"))
        await until(lambda: called == ["before", "behind"])
        assert [type(problem) for problem in problems] == [IndexError]

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))


def test_many_writers_at_once_find_all_they_wrote(tmp_path: Path) -> None:
    async def writer(storage: Storage, name: int) -> None:
        for number in range(40):
            put(storage, b"%02d/%02d" % (name, number))
            await storage.durable()

    async def scenario(storage: Storage) -> None:
        disk = Disk(storage)
        await asyncio.gather(*(writer(storage, name) for name in range(32)))
        assert disk.syncs <= 32 * 40 // 4

    with opened(tmp_path) as storage:
        asyncio.run(scenario(storage))
    with opened(tmp_path) as storage:
        found = storage.scan(b"", None, 10_000, keys_only=True)
        assert [key for key, _ in found] == [b"%02d/%02d" % pair for pair in itertools.product(range(32), range(40))]


def test_each_completed_sync_tells_how_far_every_log_file_is_durable(tmp_path: Path) -> None:
    told: list[Mapping[str, int]] = []
    options = StorageOptions(reserve_bytes=0, on_synced=told.append)

    async def scenario(storage: Storage) -> None:
        for number in range(3):
            put(storage, b"key %d" % number, value=b"x" * 1000)
            await storage.durable()
            assert len(told) == number + 1
            (length,) = told[-1].values()
            assert length >= 1000 * (number + 1)

    with opened(tmp_path, options) as storage:
        asyncio.run(scenario(storage))


# Failure


def test_a_failed_sync_ends_the_storage_acknowledges_nothing_and_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        disk, called, failures = Disk(storage), list[str](), list[Exception]()
        storage.on_failure = failures.append
        put(storage, b"a")
        disk.failure = Exception("IO error: While fdatasync: /data/000004.log: Input/output error")
        storage.when_durable(lambda: called.append("acknowledged"))
        with pytest.raises(StorageFailed) as raised:
            await storage.durable()
        assert raised.value.cause is Cause.BROKEN_DISK
        assert failures == [raised.value]
        assert raised.value is storage.failure
        assert str(tmp_path) in str(raised.value)
        assert raised.value.mend in str(raised.value)
        disk.failure = None  # the disk works again; the storage must not
        for use in (
            lambda: put(storage, b"b"),
            lambda: storage.get(b"a"),
            lambda: storage.scan(b"", None, 1),
            storage.view,
            storage.sync,
        ):
            with pytest.raises(StorageFailed):
                use()
        with pytest.raises(StorageFailed):
            storage.when_durable(lambda: called.append("acknowledged"))
        storage.close()
        await asyncio.sleep(0)
        assert disk.syncs == 1
        assert called == []
        assert len(failures) == 1

    asyncio.run(scenario(Storage.open(tmp_path, "tikv", SMALL)))
    with opened(tmp_path):
        pass  # it let go of the directory


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("IO error: No space left on device: While appending to file: /d/000009.log", Cause.DISK_FULL),
        ("IO error: Disk quota exceeded: While appending", Cause.DISK_FULL),
        ("IO error: File too large: While appending to file", Cause.DISK_FULL),
        ("Corruption: block checksum mismatch", Cause.CORRUPTED),
        ("IO error: Read-only file system: While open", Cause.NOT_WRITABLE),
        ("something new", Cause.BROKEN_DISK),
    ],
)
def test_a_failed_write_names_its_cause(tmp_path: Path, words: str, cause: Cause) -> None:
    storage = Storage.open(tmp_path, "tikv", SMALL)
    failures: list[Exception] = []
    storage.on_failure = failures.append
    Disk(storage).failure = Exception(words)
    with pytest.raises(StorageFailed) as raised:
        put(storage, b"a")
    assert raised.value.cause is cause
    assert words in raised.value.reason
    assert failures == [raised.value]
    storage.close()


def test_a_damaged_block_is_an_error_and_never_a_missing_key(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        for number in range(200):
            put(storage, b"key %06d" % number, value=random.randbytes(4000))
    table = max((tmp_path / "db").glob("*.sst"), key=lambda file: file.stat().st_size)
    with table.open("r+b") as file:
        file.seek(table.stat().st_size // 2)
        file.write(b"\xff" * 64)
    storage = Storage.open(tmp_path, "tikv", SMALL)
    failures: list[Exception] = []
    storage.on_failure = failures.append
    with pytest.raises(StorageFailed) as raised:
        storage.scan(b"", None, 1000)
    assert raised.value.cause is Cause.CORRUPTED
    assert failures == [raised.value]
    storage.close()


def test_a_view_on_another_thread_reports_damage_on_the_loop(tmp_path: Path) -> None:
    async def scenario(storage: Storage) -> None:
        told: list[tuple[int, Exception]] = []
        storage.on_failure = lambda failure: told.append((threading.get_ident(), failure))
        put(storage, b"a")
        await storage.durable()
        view = storage.view()
        view._cursor = None  # as good as any damage
        with pytest.raises(StorageFailed):
            await asyncio.to_thread(view.scan, b"", None, 1)
        await until(lambda: bool(told))
        assert told == [(threading.get_ident(), storage.failure)]

    storage = Storage.open(tmp_path, "tikv", SMALL)
    asyncio.run(scenario(storage))
    storage.close()


def test_closing_makes_what_was_written_durable_and_is_done_once(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, "tikv", SMALL)
    disk = Disk(storage)
    put(storage, b"a")
    storage.close()
    storage.close()
    assert disk.syncs == 1
    with pytest.raises(RuntimeError, match="closed"):
        storage.get(b"a")
