"""A disk that fills up: the storage ends by name, nothing acknowledged is lost, and the reserve lets it open again.

Everywhere a limit on the size of files stands in for the full disk: it needs no rights. Where a small file system can
be mounted (as root, or in a user namespace) the same is seen on a disk that is full indeed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drillyard.emulator.storage import Storage, StorageOptions

FILLER = Path(__file__).with_name("disk_filler.py")
MIB = 1 << 20
SIZE = 40 * MIB
MOUNT = (
    f'mount -t tmpfs -o size={SIZE} small "$0" && "$@"; status=$?; cp -a "$0"/data "$0".kept; umount "$0"; exit $status'
)


def ways_to_fill_a_disk() -> dict[str, list[str] | None]:
    """The limit, and the first way to mount that works here."""
    ways: dict[str, list[str] | None] = {"file size limit": None}
    prefixes = ([], ["unshare", "--user", "--map-root-user", "--mount"]) if sys.platform == "linux" else ()
    for prefix in prefixes:
        probe = "d=$(mktemp -d) && mount -t tmpfs none $d && umount $d; s=$?; rmdir $d; exit $s"
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*prefix, "sh", "-c", probe], capture_output=True).returncode == 0:
                return ways | {"small file system": prefix}
    return ways


WAYS = ways_to_fill_a_disk()


def run(command: list[str]) -> dict[str, Any]:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stderr
    report: dict[str, Any] = json.loads(answer.stdout)
    return report


def check(report: dict[str, Any], data: Path) -> None:
    assert report["cause"] == "DISK_FULL"
    assert report["told"] == 1
    assert report["afterwards"] == "dead"
    assert "free some space" in report["mend"]
    assert report["acknowledged"] > 10
    storage = Storage.open(data, "tikv", StorageOptions(reserve_bytes=0))
    try:
        keys = {key for key, _ in storage.scan(b"key ", b"key!", 1 << 30, keys_only=True)}
        assert keys >= {b"key %08d" % number for number in range(report["acknowledged"])}
    finally:
        storage.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_ends_the_storage_by_name_and_what_was_acknowledged_is_there_afterwards(
    tmp_path: Path, way: str
) -> None:
    prefix = WAYS[way]
    if prefix is None:
        report = run([sys.executable, str(FILLER), str(tmp_path / "data"), "--file-limit", str(600_000)])
        assert report["restart"] == "opened"
        check(report, tmp_path / "data")
        return
    mount = tmp_path / "small"
    mount.mkdir()
    report = run([*prefix, "sh", "-c", MOUNT, str(mount), sys.executable, str(FILLER), str(mount / "data")])
    assert report["warned"]  # before it was too late
    assert report["restart"] == "opened with the reserve"
    check(report, tmp_path / "small.kept")
