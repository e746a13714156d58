"""A process that writes through the storage and says what was acknowledged, until it is killed.

    storage_writer.py DATA LENGTHS ACKNOWLEDGED [--planted-bug NAME] [--cut-in-sync N]

Each acknowledged batch appends its number to ACKNOWLEDGED; each completed sync replaces LENGTHS by the bytes of each
log file that are durable. With --cut-in-sync the disk never completes its Nth sync, and the power goes while it is
under way. The planted bugs acknowledge before the disk has answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drillyard.emulator.storage import Batch, Storage, StorageOptions


class DyingDisk:
    """RocksDB, but one sync is never completed: the machine loses its power in the middle of it."""

    def __init__(self, database: Any, last_sync: int) -> None:
        self._database = database
        self._left = last_sync
        self.begun = 0

    def flush_wal(self, sync: bool) -> None:
        self._left -= 1
        self.begun += 1
        time.sleep(0.005)  # much is written while it works
        if self._left == 0:
            time.sleep(0.3)  # whoever does not wait for the disk has time to say so
            os.kill(os.getpid(), signal.SIGKILL)
        self._database.flush_wal(sync)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def plant(bug: str) -> None:
    correct, report = Storage.when_durable, Storage._take_report

    def without_sync(self: Storage, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)

    def when_sync_begins(self: Storage, call: Callable[[], None]) -> None:
        correct(self, lambda: None)
        asyncio.get_running_loop().call_soon(call)

    def with_the_sync_under_way(self: Storage, written: int, calls: list[Callable[[], None]]) -> None:
        late, self._waiting = self._waiting, []
        report(self, self._written, calls + late)

    write = Storage.write

    def all_lazily(self: Storage, batch: Batch) -> None:
        write(self, batch, lazily=True)

    bugs: dict[str, tuple[str, Any]] = {
        "all-lazily": ("write", all_lazily),
        "without-sync": ("when_durable", without_sync),
        "when-sync-begins": ("when_durable", when_sync_begins),
        "with-the-sync-under-way": ("_take_report", with_the_sync_under_way),
    }
    setattr(Storage, *bugs[bug])


def say(acknowledged: int, number: int) -> None:
    os.write(acknowledged, b"%d\n" % number)


async def write_forever(storage: Storage, acknowledged: int, syncs_begun: Callable[[], int]) -> None:
    chance = random.Random(1)
    number = 0
    while True:
        for _ in range(chance.randrange(1, 9)):
            batch = Batch()
            value = chance.randbytes(chance.choice((10, 100, 3000)))
            batch.put(b"head %08d" % number, value)
            batch.put(b"tail %08d" % number, value[::-1])
            storage.write(batch)
            storage.when_durable(partial(say, acknowledged, number))
            number += 1
        # Do not run away from the disk, but always write something while it works on a sync.
        begun = syncs_begun()
        while len(storage._waiting) > 64 and syncs_begun() == begun:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("acknowledged", type=Path)
    parser.add_argument("--planted-bug")
    parser.add_argument("--cut-in-sync", type=int)
    arguments = parser.parse_args()
    if arguments.planted_bug is not None:
        plant(arguments.planted_bug)

    def record(lengths: Mapping[str, int]) -> None:
        fresh = arguments.lengths.with_suffix(".new")
        fresh.write_text(json.dumps(lengths))
        fresh.rename(arguments.lengths)

    options = StorageOptions(memtable_bytes=1 << 20, reserve_bytes=0, on_synced=record)
    storage = Storage.open(arguments.data, "tikv", options)
    disk: DyingDisk | None = None
    if arguments.cut_in_sync is not None:
        disk = storage._database = DyingDisk(storage._database, arguments.cut_in_sync)
    acknowledged = os.open(arguments.acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(write_forever(storage, acknowledged, lambda: disk.begun if disk else 0))


if __name__ == "__main__":
    main()
