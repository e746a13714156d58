"""The machine that the members share, as far as it explains what they do: processors, memory, disks, limits, clock.

Rules: facts as the system tells them, asked once; a fact that cannot be had is left empty and stops nothing. Nothing
here names users, hosts or networks.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from drillyard.flows.exhibits import Disk, Host


def read(directories: Iterable[Path]) -> Host:
    """The facts, with the file systems of these directories."""
    import psutil  # costs a hundredth of a second that no other command pays

    memory, swap = psutil.virtual_memory(), 0
    with contextlib.suppress(OSError, RuntimeError):  # some containers hide it
        swap = psutil.swap_memory().used
    return Host(
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        system=_system(),
        cpus=os.cpu_count() or 0,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        load=_load(),
        memory=memory.total,
        memory_available=memory.available,
        swap_used=swap,
        open_files="{} (hard limit {})".format(*(_limit(one) for one in resource.getrlimit(resource.RLIMIT_NOFILE))),
        uptime_s=max(0.0, time.time() - psutil.boot_time()),
        timezone=time.strftime("%z %Z"),
        disks=_disks(directories),
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _load() -> tuple[float, ...]:
    try:
        return os.getloadavg()
    except OSError:
        return ()


def _limit(value: int) -> str:
    return "none" if value == resource.RLIM_INFINITY else str(value)


def _disks(directories: Iterable[Path]) -> tuple[Disk, ...]:
    """One for each file system; of its directories the first is named."""
    found: dict[int, Disk] = {}
    for directory in directories:
        with contextlib.suppress(OSError):
            device = directory.stat().st_dev
            if device not in found:
                usage = shutil.disk_usage(directory)
                found[device] = Disk(str(directory), usage.total, usage.free)
    return tuple(found.values())
