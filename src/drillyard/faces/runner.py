"""Runs one command of the command line: its loop, its signals, and what every way to end looks like.

Rules: no traceback reaches the user. A refusal is told with its mend and its exit code; an interruption (Ctrl-C, or the
SIGTERM of a CI job) cancels the work, waits for its evidence, and says where that is; a fault of ours is told as such,
with the traceback in a file. With --json stdout holds exactly one document, also when it tells an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drillyard.faces import console, document, exits
from drillyard.flows.report import Ending, Trouble
from drillyard.runtimes.abilities import Misuse, RuntimeRefusal
from drillyard.topology import TopologyError

READER_POLL_S = 0.2


@dataclass(slots=True)
class Command:
    """One command as it was asked for: its name, and how it wants to be told."""

    name: str
    is_json: bool
    is_long: bool = False  # it waits, so that progress is worth showing
    has_picture: bool = True  # there are members and gates to draw on the way
    is_endless: bool = False  # only an interruption ends it
    began: float = field(default_factory=time.time)
    listener: console.Lines = field(init=False)

    def __post_init__(self) -> None:
        if self.is_json or not self.is_long:
            self.listener = console.Quiet(self.began)
        elif self.has_picture and sys.stdout.isatty():
            self.listener = console.Table(self.began)
        else:
            self.listener = console.Lines(self.began)

    def end(self, exit_code: int, show: Callable[[], object], trouble: Trouble | None = None, /, **parts: Any) -> int:
        """Tell the result: one document, with the trouble as its error if there is one, or what `show` writes."""
        self.listener.stop()
        if trouble is not None:
            parts["error"] = document.of_trouble(trouble)
        if self.is_json:
            console.say(json.dumps(document.envelope(self.name, exit_code, **parts)))
        else:
            show()
        return exit_code

    def refuse(self, exit_code: int, kind: str, error: tuple[str, str]) -> int:
        """Tell an error that has no report: what is wrong, and its mend; and where evidence was saved, if it was."""
        wrong, mend = error
        told = document.of_error(kind, wrong, mend)
        if self.listener.trouble is not None:
            told["evidence"] = self.listener.trouble.evidence

        def show() -> None:
            console.complain(f"error: {wrong}")
            for name in ("mend", "evidence"):
                if told.get(name):
                    console.complain(f"  {name}: {console.as_called(told[name])}")

        return self.end(exit_code, show, error=told)


def run(command: Command, work: Callable[[], Awaitable[int]]) -> int:
    """Run the work to its exit code."""
    stopped_by: list[int] = []

    async def guarded() -> int:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            stopped_by.append(signal.SIGTERM)
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work()

    try:
        return asyncio.run(guarded())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _interrupted(command, exits.TERMINATED if stopped_by else exits.INTERRUPTED)
    except TopologyError as error:
        wrong = "; ".join(f"{problem.field}: {problem.wrong}" for problem in error.problems)
        mend = "; ".join(dict.fromkeys(problem.mend for problem in error.problems))
        return command.refuse(exits.BAD_INPUT, "bad-input", (wrong, mend))
    except Misuse as error:
        return command.refuse(exits.BAD_INPUT, "bad-input", (error.wrong, error.mend))
    except RuntimeRefusal as error:
        return command.refuse(exits.COULD_NOT_START, Ending.COULD_NOT_START.value, (error.wrong, error.mend))
    except OSError as error:
        wrong = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        mend = "see that the directory of DRILLYARD_HOME can be written and has space"
        return command.refuse(exits.COULD_NOT_START, Ending.COULD_NOT_START.value, (wrong, mend))
    except Exception as error:
        return _fault(command, error)


async def while_read(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until it is done or nobody reads stdout any more, which shows only in a look when nothing is said."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done() and console.is_read():
            await asyncio.wait([working], timeout=READER_POLL_S)
        if working.done():
            working.result()
    finally:
        working.cancel()


def _interrupted(command: Command, exit_code: int) -> int:
    trouble = command.listener.trouble
    if command.is_endless:
        return exit_code
    if trouble is None:
        return command.refuse(exit_code, Ending.INTERRUPTED.value, ("interrupted", ""))
    return command.end(exit_code, lambda: console.show_trouble(trouble), trouble)


def _fault(command: Command, error: Exception) -> int:
    handle, path = tempfile.mkstemp(prefix="drillyard-fault-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        file.write(f"command: {command.name}\n\n{''.join(traceback.format_exception(error))}")
    wrong = f"this is a fault in drillyard: {type(error).__name__}: {error}"
    return command.refuse(exits.FAULT, "fault", (wrong, f"please report it with {Path(path)}"))
