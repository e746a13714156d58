"""The keeper: one small process per deployment that starts its members, sees them end, and carries out requests.

Started as `python -P -m drillyard.runtimes.keeper DIRECTORY COMMAND_FD READY_FD [LIFELINE_FD]`; it detaches, takes the
deployment's keeper lock (for life), starts every member of `launch.json`, lets go of COMMAND_FD (the lock of the
command that starts it: held by both, so that no other command comes between when that one is killed), writes one byte
to READY_FD and serves JSON lines on a Unix socket. When LIFELINE_FD, a pipe, comes to its end, the deployment's owner
is gone, and it stops everything.

Rules: one thread, because the kernel ties the members' lives to the thread that started them. It signals only its own
children that it has not reaped. Every request to end a member is in the journal before the signal is sent, every exit
before anybody is told. It polls nothing: the kernel wakes it. Standard library only, no asyncio: it stays small. It is
never in the data path, knows no PD or TiKV, and does not restart a member that nobody asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from drillyard.runtimes import journal
from drillyard.runtimes.connections import Client
from drillyard.runtimes.processes import NOT_STARTED, Guard, identity, spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from drillyard.runtimes.journal import Record

LOCK_PATIENCE_S = 10  # another command may be sweeping after a lost keeper


class Refused(Exception):
    """The request cannot be carried out as things are; the words go back to who asked."""


class Waiter:
    """Somebody who asked, and is answered when `wanted` happens to the member."""

    def __init__(self, answer: Callable[[Record], None], member: str, wanted: str) -> None:
        self.answer = answer
        self.member = member
        self.wanted = wanted


class Keeper:
    def __init__(self, launch: Record, book: journal.Journal, lock: int) -> None:
        self.specs: dict[str, Record] = {spec["name"]: spec for spec in launch["members"]}
        self.guard = Guard(lock) if launch["guard"] == "pipe" else None
        self.state = journal.State()
        self.book = book
        self.clients: list[Client] = []
        self.waiters: list[Waiter] = []
        self.deadlines: dict[str, float] = {}  # member -> when its grace is over
        self.restarting: set[str] = set()
        self.closing: list[Callable[[Record], None]] | None = None  # who waits for the whole to stop; None: it runs
        self.stopped: list[str] = []
        self.killed: list[str] = []
        self.closed_by = "down"
        self.is_done = False
        self.selector = selectors.DefaultSelector()

    def record(self, what: str, member: str = "", **more: object) -> None:
        record = self.book.write(what, member, **more)
        self.state.apply(record)
        for client in self.clients:
            if client.is_subscriber and member:
                client.send({"event": record})
        settled = [w for w in self.waiters if w.member == member and (what == w.wanted or what == journal.EXITED)]
        for waiter in settled:
            if what == journal.EXITED and waiter.wanted == journal.STARTED and self._will_restart(member):
                continue  # its exit is the first half of what was asked for
            self.waiters.remove(waiter)
            happened = what == waiter.wanted
            waiter.answer({"ok": True, "record": record} if happened else {"ok": False, "error": f"{member} ended"})

    def _will_restart(self, member: str) -> bool:
        return member in self.restarting and self.closing is None

    def start(self, *members: str) -> None:
        started = {}
        for member in members:  # first all of them, then the records: a disk that syncs slowly delays nobody
            spec = self.specs[member]
            try:
                started[member] = pid = spawn(spec["argv"], spec["out"], dies_with_us=self.guard is None)
            except OSError as error:  # no more processes, or no memory for one: the others live on
                how = {"pid": None, "code": NOT_STARTED, "signal": None, "asked": False}
                self.record(journal.EXITED, member, **how, note=f"could not be started: {error}")
                continue
            if self.guard is not None:
                self.guard.watch(pid)
        for member, pid in started.items():
            self.record(journal.STARTED, member, pid=pid, identity=identity(pid))

    def reap(self) -> None:
        """Take note of every child that ended, stopped or went on, whoever caused it."""
        while True:
            pid = 0
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return
            member = next((name for name, run in self.state.runs.items() if run["pid"] == pid), None)
            if member is None:
                continue
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                self.record(journal.PAUSED if os.WIFSTOPPED(status) else journal.RESUMED, member, pid=pid)
            else:
                self._exited(member, pid, os.waitstatus_to_exitcode(status))

    def _exited(self, member: str, pid: int, code: int) -> None:
        run, spec = self.state.runs[member], self.specs[member]
        note = run["stopping"] + (f", killed after {spec['grace_s']:g} s of grace" if run["escalated"] else "")
        self.deadlines.pop(member, None)
        if self.guard is not None:
            self.guard.forget(pid)
        how = {"code": None if code < 0 else code, "signal": -code if code < 0 else None}
        self.record(journal.EXITED, member, pid=pid, **how, asked=bool(run["stopping"]), note=note)
        is_wanted_again = self._will_restart(member)
        self.restarting.discard(member)
        if is_wanted_again:
            self.start(member)
        if self.closing is not None:
            self._stop_next_rank()

    def handle(self, client: Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            number, do = request["id"], str(request["do"])
        except (ValueError, KeyError, TypeError):
            client.send({"id": None, "ok": False, "error": "this is not a request"})
            return

        def answer(reply: Record) -> None:
            client.send({"id": number, **reply})

        try:
            if do in ("status", "subscribe"):
                client.is_subscriber = client.is_subscriber or do == "subscribe"
                answer({"ok": True, "runs": self.state.runs, "closing": self.closing is not None})
            elif do == "stop-all":
                self.stop_all(answer)
            else:
                self._handle_member(do, str(request.get("member")), answer)
        except Refused as refusal:
            answer({"ok": False, "error": str(refusal)})

    def _handle_member(self, do: str, member: str, answer: Callable[[Record], None]) -> None:
        if member not in self.specs:
            raise Refused(f"there is no member {member!r}")
        if self.closing is not None:
            raise Refused("the deployment is stopping")
        run = self.state.runs.get(member) or journal.new_run()
        if do in ("start", "restart") and run["pid"] is None:
            self.waiters.append(Waiter(answer, member, journal.STARTED))
            self.start(member)
        elif do == "start":
            raise Refused(f"{member} is stopping" if run["stopping"] else f"{member} runs already")
        elif run["pid"] is None:
            raise Refused(f"{member} does not run")
        elif do in ("stop", "restart", "kill"):
            self.waiters.append(Waiter(answer, member, journal.STARTED if do == "restart" else journal.EXITED))
            (self.restarting.add if do == "restart" else self.restarting.discard)(member)
            self.end(member, do, signal.SIGKILL if do == "kill" else signal.SIGTERM)
        elif do in ("pause", "resume"):
            is_pause = do == "pause"
            if run["paused"] == is_pause:
                raise Refused(f"{member} is paused already" if is_pause else f"{member} is not paused")
            self.waiters.append(Waiter(answer, member, journal.PAUSED if is_pause else journal.RESUMED))
            os.kill(run["pid"], signal.SIGSTOP if is_pause else signal.SIGCONT)
        else:
            raise Refused(f"{do!r} is not known here")

    def end(self, member: str, by: str, number: int) -> None:
        """Write down that the member's end is asked for, then send the signal."""
        run = self.state.runs[member]
        self.record(journal.STOPPING, member, by=by, pid=run["pid"])
        os.kill(run["pid"], number)
        if number == signal.SIGTERM:
            os.kill(run["pid"], signal.SIGCONT)  # a paused member would keep the request waiting
            self.deadlines.setdefault(member, time.monotonic() + self.specs[member]["grace_s"])

    def escalate(self) -> float | None:
        """Kill those whose grace is over; the seconds to the next such moment."""
        now = time.monotonic()
        for member in [name for name, deadline in self.deadlines.items() if deadline <= now]:
            del self.deadlines[member]
            self.record(journal.ESCALATED, member)
            self.killed.append(member)
            os.kill(self.state.runs[member]["pid"], signal.SIGKILL)
        return min(self.deadlines.values()) - now if self.deadlines else None

    def stop_all(self, answer: Callable[[Record], None]) -> None:
        if self.closing is None:
            self.closing, self.stopped, self.killed = [], [], []
        self.closing.append(answer)
        self._stop_next_rank()

    def _stop_next_rank(self) -> None:
        """Members of a lower rank are gone before those of a higher one are asked: stores need PD, not the reverse."""
        running = [name for name, run in self.state.runs.items() if run["pid"] is not None]
        first = min((self.specs[name]["rank"] for name in running), default=None)
        for name in running:
            if self.specs[name]["rank"] == first and name not in self.stopped:
                self.stopped.append(name)
                self.end(name, self.closed_by, signal.SIGTERM)
        if not running and not self.is_done:
            self.is_done = True
            self.book.write(journal.KEEPER_STOPPED)
            for answer in self.closing or ():
                answer({"ok": True, "stopped": self.stopped, "killed": self.killed})

    def serve(self, listener: socket.socket, wakeups: socket.socket) -> None:
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(wakeups, selectors.EVENT_READ, self._woken)
        while not self.is_done:
            patience = self.escalate()
            for key, _ in self.selector.select(None if patience is None else max(0.0, patience)):
                key.data(key.fileobj)
            for client in [c for c in self.clients if not c.is_open]:
                self.clients.remove(client)
                self.selector.unregister(client.socket)
                client.socket.close()

    def hold(self, lifeline: int) -> None:
        self.selector.register(lifeline, selectors.EVENT_READ, self._owner_gone)

    def _owner_gone(self, lifeline: int) -> None:
        self.selector.unregister(lifeline)
        if self.closing is None:
            self.closed_by = "owner gone"
            self.stop_all(lambda _: None)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client = Client(listener.accept()[0])
        except OSError:  # it gave up, or there are too many: not worth the members' lives
            return
        self.clients.append(client)
        self.selector.register(client.socket, selectors.EVENT_READ, lambda _: self._read(client))

    def _read(self, client: Client) -> None:
        for line in client.lines():
            self.handle(client, line)

    def _woken(self, wakeups: socket.socket) -> None:
        numbers = wakeups.recv(4096)
        self.reap()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stop_all(lambda _: None)


def main(directory: Path, command: int, ready: int, *lifelines: int) -> None:
    os.umask(0o077)
    for handle in (command, ready, *lifelines):
        os.set_inheritable(handle, False)
    lock = os.open(directory / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    signal.alarm(LOCK_PATIENCE_S)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(0)
    launch = json.loads((directory / "launch.json").read_text())
    book = journal.Journal(directory / "journal.jsonl")
    keeper = Keeper(launch, book, lock)
    wakeups, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the wake-up carries the news
    Path(launch["socket"]).unlink(missing_ok=True)  # whoever left it is gone: we hold the lock
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(launch["socket"])
    listener.listen(64)
    keeper.record(journal.KEEPER_STARTED, keeper=os.getpid(), identity=identity(os.getpid()))
    keeper.start(*keeper.specs)
    fcntl.flock(command, fcntl.LOCK_UN)  # a member that was forked and is not executed yet has a copy of the file
    os.close(command)
    with contextlib.suppress(BrokenPipeError):  # the command was killed meanwhile: the next one finds us
        os.write(ready, b"!")
    os.close(ready)
    for lifeline in lifelines:
        keeper.hold(lifeline)
    keeper.serve(listener, wakeups)
    Path(launch["socket"]).unlink(missing_ok=True)


if __name__ == "__main__":
    if os.fork() == 0:  # so it is nobody's child and no session leader: it outlives the command, without a terminal
        main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
