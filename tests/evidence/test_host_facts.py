"""The machine's facts: those of this one, and of one that hides them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from drillyard.flows import host_facts


def test_this_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    host = host_facts.read([tmp_path / "nothing", tmp_path / "data", tmp_path])
    assert host.kernel
    assert host.system
    assert 0 < host.usable_cpus <= host.cpus
    assert 0 < host.memory_available <= host.memory
    assert host.uptime_s > 0
    assert "hard limit" in host.open_files
    assert [disk.directory for disk in host.disks] == [str(tmp_path / "data")], "one for each file system that is there"
    assert 0 < host.disks[0].free <= host.disks[0].total


def test_what_the_system_hides_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(*_: object) -> None:
        raise RuntimeError("line 'btime' was not found in /proc/stat")

    for name in ("virtual_memory", "swap_memory", "boot_time"):
        monkeypatch.setattr(psutil, name, hide)
    host = host_facts.read([])
    assert (host.memory, host.memory_available, host.swap_used, host.uptime_s, host.disks) == (0, 0, 0, 0.0, ())
    assert host.cpus > 0
