"""A command's side of the keeper: whether it lives, what it says, and the sweep after one that was lost.

Rules: the keeper holds `keeper.lock` as long as it lives, so the lock, not a pid file, says whether it does. Whoever
finds it gone without a farewell takes the lock, ends what it left (pid and start compared), and writes that down.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from drillyard.runtimes import journal
from drillyard.runtimes.abilities import Busy, KeeperFailed, StartRefused, WrongState
from drillyard.runtimes.plans import SOCKET_PATH_LIMIT
from drillyard.runtimes.processes import identity, signal_if_same

ANSWER_S = 5.0  # a keeper answers within milliseconds; longer means that it is stopped or stuck
START_S = 20.0
SWEEP_S = 10.0
NO_SOCKET_S = SWEEP_S + 2.0  # how long its lock may be held without a socket: while it comes or goes, or in a sweep


class KeeperGone(Exception):
    """Nobody serves the socket."""


def socket_path(directory: Path) -> Path:
    """Where the keeper listens: in the deployment's directory, or in a short one when that is too long for a socket."""
    path = directory / "keeper.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    short = Path(f"/tmp/drillyard-{os.getuid()}")  # noqa: S108 - not TMPDIR: every command must find the same one
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StartRefused(f"{short} is not a private directory of yours", "remove it")
    return short / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"


def is_alive(directory: Path) -> bool:
    """Whether a keeper holds its lock. Those who look share the lock, so that they do not mistake each other for it."""
    try:
        handle = os.open(directory / "keeper.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def command_lock(directory: Path, command: str) -> Iterator[int]:
    """One command at a time starts or stops a deployment; the next is told who is at it. Gives the open lock file."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "command.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another command"
            raise Busy(
                f"deployment {directory.name!r} is being worked on by {owner}", "wait until it is done"
            ) from None
        if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
            raise Busy(f"deployment {directory.name!r} was just removed by another command", "try again")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{command} (pid {os.getpid()})\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


def launch(directory: Path, command: int, held: tuple[int, ...], lifeline: int | None = None) -> None:
    """Start the keeper and return once it serves and has started every member. Blocks.

    `command` is the open file of the command lock. The keeper holds it too until it serves: if we are killed before,
    no other command finds half a start. `held` are open files that it keeps as long as it lives.
    When `lifeline` comes to its end, it stops.
    """
    reader, writer = os.pipe()
    out = os.open(directory / "keeper.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    handles = [command, writer] if lifeline is None else [command, writer, lifeline]
    argv = [sys.executable, "-P", "-m", "drillyard.runtimes.keeper", str(directory), *map(str, handles)]
    try:
        starter = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, pass_fds=[*handles, *held]
        )
    finally:
        os.close(out)
        os.close(writer)
    try:
        starter.wait(START_S)  # it leaves the keeper behind and goes
        if _wait_readable(reader, START_S) and os.read(reader, 1):
            return
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait()
    finally:
        os.close(reader)
    last = (directory / "keeper.out").read_text(errors="replace").strip().splitlines()[-1:]
    why = last[0] if last else "it said nothing"
    raise KeeperFailed(f"the keeper did not start: {why}", f"see {directory / 'keeper.out'}")


def sweep(directory: Path) -> bool:
    """After a keeper that went without a farewell: end what it left, write it down. False when one lives after all."""
    if journal.fold(journal.read(directory / "journal.jsonl")).keeper is None:
        return not is_alive(directory)
    handle = os.open(directory / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        state = journal.fold(journal.read(directory / "journal.jsonl"))
        if state.keeper is not None:
            _sweep(state, journal.Journal(directory / "journal.jsonl"))
        return True
    finally:
        os.close(handle)


def _sweep(state: journal.State, book: journal.Journal) -> None:
    left = {name: run for name, run in state.runs.items() if run["pid"] is not None}
    swept = {n for n, run in left.items() if signal_if_same(run["pid"], run["identity"] or "", signal.SIGKILL)}
    wait_gone([(run["pid"], run["identity"]) for run in left.values()], SWEEP_S)
    for name, run in left.items():
        note = "keeper lost, swept" if name in swept else "keeper lost"
        asked = bool(run["stopping"])
        book.write(journal.EXITED, name, pid=run["pid"], code=None, signal=None, asked=asked, note=note)
    book.write(journal.KEEPER_LOST)
    book.close()


def wait_gone(processes: list[tuple[int, str | None]], timeout_s: float) -> tuple[int, ...]:
    """Wait until the processes are gone; the pids of those that are not when the time is over. Blocks."""
    deadline = time.monotonic() + timeout_s
    for pid, known in processes:
        while known is not None and identity(pid) == known and (rest := deadline - time.monotonic()) > 0:
            _wait_for_end(pid, rest)
    return tuple(pid for pid, known in processes if known is not None and identity(pid) == known)


def _wait_for_end(pid: int, timeout_s: float) -> None:
    """Return when the process ends, or after a moment where the kernel cannot tell us."""
    if not hasattr(os, "pidfd_open"):
        time.sleep(0.02)
        return
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        _wait_readable(handle, timeout_s)
    finally:
        os.close(handle)


def _wait_readable(handle: int, timeout_s: float) -> bool:
    poll = select.poll()  # unlike select(), it takes any file number
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


async def ask(socket: Path, do: str, member: str = "", timeout_s: float | None = None) -> dict[str, Any]:
    """One request, one answer. Raises KeeperGone, KeeperFailed when it does not answer, WrongState when it refuses."""
    try:
        async with _connection(socket) as (reader, writer), asyncio.timeout(timeout_s or ANSWER_S):
            writer.write(json.dumps({"id": 1, "do": do, "member": member}).encode() + b"\n")
            answer = await _read(reader)
    except TimeoutError:
        raise KeeperFailed(f"the keeper at {socket} does not answer", "`drillyard down` ends it") from None
    if answer is None:
        raise KeeperGone
    if not answer["ok"]:
        raise WrongState(answer["error"], "see `drillyard status`")
    return answer


async def subscribe(socket: Path) -> AsyncGenerator[dict[str, Any], None]:
    """First the keeper's status, then every record as it is written; ends when the keeper goes."""
    async with _connection(socket) as (reader, writer):
        writer.write(b'{"id": 1, "do": "subscribe"}\n')
        while (message := await _read(reader)) is not None:
            yield message.get("event", message)


@asynccontextmanager
async def _connection(socket: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=1 << 22)
    except (FileNotFoundError, ConnectionRefusedError):
        raise KeeperGone from None
    try:
        yield reader, writer
    except (ConnectionResetError, BrokenPipeError):
        raise KeeperGone from None
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        return None
    message: dict[str, Any] = json.loads(line)
    return message
