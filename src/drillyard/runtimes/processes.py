"""Processes by what identifies them, and the start of a member that cannot outlive its keeper.

Rules: a process is a pid *and* its start (`identity`), because pids come round again; nothing is signalled by pid
alone unless the caller is its parent and has not reaped it. Standard library only, and little of it: the keeper lives
on this. It does not wait for anything and keeps no record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

IS_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1
GUARD_FILES = 256  # beyond any file the keeper has open when it makes its guard
NOT_STARTED = 127  # the exit code of a member whose executable could not be run, as a shell reports it


def identity(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None when it is gone or only waits to be reaped."""
    if pid <= 0:
        return None
    if not IS_LINUX:
        return _identity_by_ps(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]  # ticks are counted from the boot
    except (FileNotFoundError, ProcessLookupError):
        return None
    after_name = text[text.rindex(b")") + 2 :].split()  # the name may hold blanks and parentheses
    state, start_ticks = after_name[0], after_name[19].decode()
    return None if state in (b"Z", b"X") else f"{boot}-{start_ticks}"


def _identity_by_ps(pid: int) -> str | None:
    import subprocess  # only where there is no /proc: it costs half a megabyte

    command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    line = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, check=False).stdout.strip()
    state, _, start = line.partition(" ")
    return None if not line or state.startswith("Z") else start.strip().replace(" ", "_")


def signal_if_same(pid: int, known: str, number: int) -> bool:
    """Send the signal if `pid` is still the process that was known; say whether it was sent."""
    handle = _open_handle(pid)  # from here on the handle cannot come to mean another process
    try:
        if identity(pid) != known:
            return False
        if handle is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _open_handle(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone, or a kernel without it: the check of the identity decides
        return None


def spawn(argv: list[str], out_path: str, *, dies_with_us: bool) -> int:
    """Start a member and return its pid. Call it from the main thread: on Linux the death of the *thread* counts.

    What it prints goes to `out_path`. When it cannot be run, the child says so there and exits with NOT_STARTED.
    """
    prctl = _load_prctl() if dies_with_us and IS_LINUX else None
    parent = os.getpid()
    # A signal between fork and exec would run the parent's handler in the child, and wake the parent through the pipe
    # that both still share. So they wait until the child has the default handlers.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(out_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        os.dup2(1, 2)
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the request was in force
                os._exit(NOT_STARTED)
        os.execv(argv[0], argv)  # noqa: S606 - the point of this function
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _load_prctl() -> Callable[..., int]:
    import ctypes

    return ctypes.CDLL(None, use_errno=True).prctl


class Guard:
    """Kills the members when the keeper is gone, where the kernel does not: a child that reads a pipe until its end.

    Of the keeper's files it holds on to `lock` alone, so that nobody takes the keeper's place before it is done.
    """

    def __init__(self, lock: int) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for number in range(3, GUARD_FILES):
                if number not in (reader, lock):
                    with contextlib.suppress(OSError):
                        os.close(number)
            _stand_guard(reader)
        os.close(reader)

    def watch(self, pid: int) -> None:
        os.write(self._writer, f"+ {pid} {identity(pid)}\n".encode())

    def forget(self, pid: int) -> None:
        os.write(self._writer, f"- {pid} -\n".encode())


def _stand_guard(reader: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, str] = {}
    try:
        with os.fdopen(reader) as lines:
            for line in lines:
                sign, pid, known = line.split()
                watched.pop(int(pid), None)
                if sign == "+":
                    watched[int(pid)] = known
        for member, known in watched.items():
            signal_if_same(member, known, signal.SIGKILL)
    finally:
        os._exit(0)
