"""The exit codes of the command line, each with one meaning. They are part of the interface and documented."""

from __future__ import annotations

from drillyard.flows.report import Ending

OK = 0
FAULT = 1  # ours: a bug
BAD_INPUT = 2
COULD_NOT_START = 3
NOT_READY = 4
MEMBER_EXITED = 5
NOT_CLEAN = 6
NOT_CONFORMANT = 7
INTERRUPTED = 130
TERMINATED = 143

OF_ENDING = {
    Ending.OK: OK,
    Ending.COULD_NOT_START: COULD_NOT_START,
    Ending.NOT_READY: NOT_READY,
    Ending.MEMBER_EXITED: MEMBER_EXITED,
    Ending.NOT_CLEAN: NOT_CLEAN,
    Ending.WRITES_LOST: NOT_READY,  # the cluster is not as it was promised, which no wait will mend
    Ending.INTERRUPTED: INTERRUPTED,
}
