"""The shell of a member: its one event loop, its listeners, and how it ends.

Rules
- One asyncio loop per process (uvloop when installed); everything that decides runs in it.
- One port serves gRPC and HTTP/1.1: the first bytes of a connection tell which, and the transport is handed over to the
  right protocol in the same loop.
- SIGTERM and SIGINT cancel `main`, whose `finally` clauses clean up; the exit code is 0. A `NamedStop` is a FATAL line
  in the log, one line on stderr and exit code 1. Anything else that escapes, background tasks and callbacks included,
  ends the member the same way: a member with a part missing must not go on.
- How late the loop runs is measured all the time and exported: by the ticks that a member has anyway, where they are as
  frequent as that, and by a timer otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, cast

from msgspec import Struct

from drillyard.emulator.http import HttpProtocol, Router
from drillyard.emulator.logs import Log
from drillyard.emulator.metrics import Registry
from drillyard.wire.rpc import Handlers, Wire, protocol_factory

PREFACE = b"PRI * HTTP/2.0"
SNIFF_S = 10.0  # a connection says within this what it speaks
SILENCE_S = 30.0  # a gRPC connection that sends nothing this long is asked for a sign of life
MAX_CONNECTIONS = 4096
BACKLOG = 1024
CLEAN_UP_S = 10.0
LAG_PERIOD_S = 0.1  # at most two of these pass without a look
LAG_WORTH_A_LINE_S = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class NamedStop(Exception):
    """A reason for which the member cannot go on, and what whoever runs it can do."""

    def __init__(self, cause: str, mend: str = "") -> None:
        super().__init__(f"{cause}; {mend}" if mend else cause)
        self.cause = cause
        self.mend = mend


class Member:
    """What `main` gets: log, metrics, tasks under watch, and the ways to end."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.metrics = Registry()
        self.loop = asyncio.get_running_loop()
        self._main: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: Exception | None = None
        self._ending = False
        self.lag = LoopLag(self.metrics, log)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a background task; if it fails, the member stops."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def fail(self, error: Exception) -> None:
        """Ends the member for this reason; the first one counts."""
        if self._failure is None:
            self._failure = error
            self._end()

    @staticmethod
    def keep() -> None:
        """What is there by now stays for good: collections of garbage pass it over, which are slices of the loop.

        A part of it that goes all the same, and is a cycle, is lost memory: so only after modules and data were loaded.
        """
        gc.freeze()

    async def until_stopped(self) -> None:
        """Waits for a signal or a failure, which arrives as cancellation."""
        await self.loop.create_future()

    async def listen(self, host: str, port: int, handlers: Handlers, router: Router | None = None) -> Listener:
        """A started `Listener`; closing it is the caller's."""
        listener = Listener(self.log)
        await listener.start(host, port, handlers, router)
        return listener

    async def live(self, main: Callable[[Member], Awaitable[None]]) -> None:
        """Runs `main` to its end; raises why the member had to stop, if it had to."""

        async def run_main() -> None:
            await main(self)

        self._main = self.loop.create_task(run_main(), name="main")
        for number in STOP_SIGNALS:
            self.loop.add_signal_handler(number, self._on_signal, number)
        self.loop.set_exception_handler(self._on_loop_error)
        await asyncio.wait({self._main})
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLEAN_UP_S)
        if self._failure is not None:
            raise self._failure
        if not self._main.cancelled() and (error := self._main.exception()) is not None:
            raise error

    def _on_signal(self, number: int) -> None:
        self.log.info("received signal to exit", signal=signal.Signals(number).name)
        self._end()

    def _end(self) -> None:
        """Once only: a second cancellation would break into the cleaning up after the first."""
        if self._main is not None and not self._ending:
            self._ending = True
            self._main.cancel()
            self.loop.call_later(CLEAN_UP_S, self._give_up)

    def _give_up(self) -> None:
        self.log.fatal("cleaning up took too long; leaving it", seconds=CLEAN_UP_S)
        os._exit(1)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.failure("a background task broke", error, task=task.get_name())
            self.fail(cast(Exception, error))

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        self.log.failure(context["message"], error)
        if not isinstance(error, OSError):  # a socket that breaks is the world's business
            self.fail(error)


class LoopLag:
    """How late the event loop runs."""

    def __init__(self, metrics: Registry, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        gauge = metrics.gauge("drillyard_loop_lag_seconds", "How late the event loop ran, at worst, lately.")
        distribution = metrics.histogram("drillyard_loop_lag_seconds_distribution", "How late the event loop ran.")
        self._gauge, self._distribution = gauge.labels(), distribution.labels()
        self._timer = self._loop.call_later(LAG_PERIOD_S, self._look, self._loop.time() + LAG_PERIOD_S)

    def note(self, late_s: float) -> None:
        """A timer of the member's ran so late. Looking by a timer for this alone is put off: each wakes the process."""
        late_s = max(0.0, late_s)
        self._distribution.observe(late_s)
        self._gauge.set(max(late_s, self._gauge.value * 0.98))  # an outlier fades over some seconds
        if late_s > LAG_WORTH_A_LINE_S:
            self._log.warn("the member stood still: paused, or starved of CPU", seconds=f"{late_s:.2f}")
        self._timer.cancel()
        self._timer = self._loop.call_later(2 * LAG_PERIOD_S, self._look, self._loop.time() + 2 * LAG_PERIOD_S)

    def _look(self, due: float) -> None:
        self.note(self._loop.time() - due)


class Listener:
    """One port for gRPC and, if there is a router, HTTP/1.1."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self.host = ""
        self.port = 0

    async def start(self, host: str, port: int, handlers: Handlers, router: Router | None = None) -> None:
        """Binds; port 0 takes a free one."""
        make_grpc = protocol_factory(handlers, self._handler_broke) if handlers else None
        make_http = None if router is None else lambda: HttpProtocol(router, self._handler_broke)
        speakers = _Speakers(make_grpc, make_http)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self, speakers), host, port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise NamedStop(
                f"cannot listen on {host}:{port}: {reason}", "stop whoever has the address, or choose another"
            ) from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    @property
    def connections(self) -> int:
        return len(self._open)

    async def close(self) -> None:
        """Stops listening and ends every connection; calls in progress are cancelled."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._open):
            connection.end()
        await asyncio.sleep(0)  # cancelled handlers run their clean-up

    def _handler_broke(self, request: str, error: Exception) -> None:
        self._log.failure("a request broke its handler", error, request=request)

    def admit(self, connection: _Connection) -> bool:
        if len(self._open) >= MAX_CONNECTIONS:
            self._log.warn("too many connections; one more was refused", limit=MAX_CONNECTIONS)
            return False
        self._open.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)


class _Speakers(Struct, frozen=True):
    """The protocols that a port speaks; None for one that it does not."""

    grpc: Callable[[], Wire] | None
    http: Callable[[], HttpProtocol] | None


class _Connection(asyncio.Protocol):
    """Reads the first bytes of a connection and hands it to the protocol they belong to."""

    def __init__(self, listener: Listener, speakers: _Speakers) -> None:
        self._listener = listener
        self._speakers = speakers
        self._head = b""
        self._timer: asyncio.TimerHandle | None = None
        self._protocol: Wire | HttpProtocol | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._listener.admit(self):
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(SNIFF_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if len(self._head) < len(PREFACE) and PREFACE.startswith(self._head):
            return
        make = self._speakers.grpc if self._head.startswith(PREFACE) else self._speakers.http
        if make is None:
            self._transport.abort()
            return
        self._hand_over(make())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._listener.forget(self)

    def end(self) -> None:
        if self._protocol is None:
            self._transport.abort()
        else:
            self._protocol.end_connection()

    def _hand_over(self, protocol: Wire | HttpProtocol) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._protocol = protocol
        protocol.on_lost = lambda: self._listener.forget(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if isinstance(protocol, Wire):
            protocol.keep_alive(SILENCE_S)
        protocol.data_received(self._head)
        self._head = b""


def run(main: Callable[[Member], Awaitable[None]], log: Log) -> int:
    """Runs a member to its end and gives the exit code."""
    _raise_file_limit()

    async def live() -> None:
        member = Member(log)
        member.keep()
        await member.live(main)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(live())
    except NamedStop as stop:
        log.fatal(stop.cause, mend=stop.mend)
        _say(str(stop))
        return 1
    except Exception as error:
        log.failure("the member broke; this is a defect", error)
        log.fatal("the member broke", error=f"{type(error).__name__}: {error}")
        _say(f"the member broke: {type(error).__name__}: {error}; its log has the details")
        return 1
    log.info("stopped")
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's own cleaning up, which takes a member a seventh of the CPU time that
    its imports do, of six members at once. What must be closed is closed by then."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


def _raise_file_limit() -> None:
    """Every client connection is an open file, and the usual limit is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS calls its limit infinite and then refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever listened to stderr may be gone
        os.write(2, f"{line}\n".encode())
