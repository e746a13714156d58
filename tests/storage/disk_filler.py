"""A process that writes until its disk is full, and says what was acknowledged and how the storage ended.

    disk_filler.py DATA [--file-limit BYTES]

Prints JSON: the number of acknowledged batches, the cause and text of the failure, whether it was reported to
on_failure, whether the low-water mark was seen before, and what further use of the storage and a restart in the same
place do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
from pathlib import Path
from typing import Any

from drillyard.emulator.storage import Batch, Storage, StorageFailed, StorageOptions, StorageRefused

MIB = 1 << 20
OPTIONS = StorageOptions(memtable_bytes=MIB, reserve_bytes=6 * MIB, low_water_bytes=6 * MIB)


async def fill(storage: Storage) -> dict[str, Any]:
    told: list[Exception] = []
    storage.on_failure = told.append
    acknowledged, warned = 0, False
    try:
        while True:
            batch = Batch()
            batch.put(b"key %08d" % acknowledged, random.randbytes(4_000))
            storage.write(batch)
            await storage.durable()
            acknowledged += 1
            warned = warned or storage.is_almost_full()
    except StorageFailed as failure:
        report = {"cause": failure.cause.name, "reason": failure.reason, "mend": failure.mend}
    try:
        storage.get(b"key 00000000")
    except StorageFailed:
        report["afterwards"] = "dead"
    return report | {"acknowledged": acknowledged, "warned": warned, "told": len(told)}


def reopen(path: Path) -> str:
    try:
        storage = Storage.open(path, "tikv", OPTIONS)
    except StorageRefused as refused:
        return refused.cause.name
    released = storage.reserve_released
    storage.close()
    return "opened with the reserve" if released else "opened"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--file-limit", type=int)
    arguments = parser.parse_args()
    storage = Storage.open(arguments.data, "tikv", OPTIONS)
    if arguments.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_limit, resource.RLIM_INFINITY))
    report = asyncio.run(fill(storage))
    storage.close()
    if arguments.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report["restart"] = reopen(arguments.data)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
