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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from drillyard.flows.exhibits import Disk, Host

T = TypeVar("T")


def read(directories: Iterable[Path]) -> Host:
    """The facts, with the file systems of these directories."""
    import psutil  # costs a hundredth of a second that no other command pays

    memory, swap, booted_at = _had(psutil.virtual_memory), _had(psutil.swap_memory), _had(psutil.boot_time)
    return Host(
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        system=_system(),
        cpus=os.cpu_count() or 0,
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        load=_had(os.getloadavg) or (),
        memory=memory.total if memory is not None else 0,
        memory_available=memory.available if memory is not None else 0,
        swap_used=swap.used if swap is not None else 0,
        open_files="{} (hard limit {})".format(*(_limit(one) for one in resource.getrlimit(resource.RLIMIT_NOFILE))),
        uptime_s=max(0.0, time.time() - booted_at) if booted_at is not None else 0.0,
        timezone=time.strftime("%z %Z"),
        disks=_disks(directories),
    )


def _had(ask: Callable[[], T]) -> T | None:
    """The answer of the system; None where it hides it, as some containers do."""
    try:
        return ask()
    except (OSError, RuntimeError):
        return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


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
