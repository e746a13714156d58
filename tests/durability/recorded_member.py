"""Runs an emulated server, and keeps a note of how much of each write-ahead log is durable.

    recorded_member.py LENGTHS [--acknowledge-early] pd|tikv FLAGS...

The note is replaced at each completed sync, before anything is acknowledged. --acknowledge-early plants a bug: the
storage says "durable" when it is asked, and the disk follows slowly.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from drillyard.emulator.storage import Storage, StorageOptions

SLOW_S = 1.0


class SlowDisk:
    def __init__(self, database: Any) -> None:
        self._database = database

    def flush_wal(self, sync: bool) -> None:
        time.sleep(SLOW_S)
        self._database.flush_wal(sync)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def record_into(note: Path, bug: bool) -> None:
    correct_open, correct_when_durable = Storage.open.__func__, Storage.when_durable  # type: ignore[attr-defined]
    fresh = note.with_suffix(".new")

    def record(lengths: Mapping[str, int]) -> None:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, json.dumps(lengths).encode())
        os.close(descriptor)
        fresh.rename(note)

    def open_recorded(kind: type[Storage], path: Any, role: Any, options: StorageOptions) -> Storage:
        storage: Storage = correct_open(kind, path, role, replace(options, on_synced=record))
        if bug:
            storage._database = SlowDisk(storage._database)
        return storage

    def acknowledge_early(self: Storage, call: Callable[[], None]) -> None:
        correct_when_durable(self, lambda: None)
        asyncio.get_running_loop().call_soon(call)

    setattr(Storage, "open", classmethod(open_recorded))  # noqa: B010
    if bug:
        setattr(Storage, "when_durable", acknowledge_early)  # noqa: B010


def main() -> int:
    note, *rest = sys.argv[1:]
    bug = rest[0] == "--acknowledge-early"
    role, *flags = rest[1:] if bug else rest
    record_into(Path(note), bug)
    module = importlib.import_module(f"drillyard.emulator.{role}.server")
    exit_code: int = module.main(flags)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
