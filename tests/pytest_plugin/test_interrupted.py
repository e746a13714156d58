"""What is left when pytest is interrupted or killed while a test has a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from users_suite import PATIENCE_S, Ran, Suite

from drillyard.runtimes import keeper_link

HANGS = """
def test_that_hangs(tikv_cluster, fresh_tikv_cluster):
    fresh_tikv_cluster.kill("tikv0")
    draft = pathlib.Path("hangs.new")
    draft.write_text(str(os.getpid()))
    draft.rename("hangs")
    while True:  # a signal that comes just before one long sleep would be noticed after it
        time.sleep(0.05)
"""


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def hanging(suite: Suite, *options: str) -> tuple[subprocess.Popen[str], int]:
    """A pytest whose test hangs, and the process that runs the test."""
    suite.write("test_hangs.py", HANGS)
    begun = suite.begin(*options)
    flag = suite.directory / "hangs"
    until(lambda: flag.exists() or begun.poll() is not None, "the test hangs")
    assert begun.poll() is None, suite.end(begun).out
    return begun, int(flag.read_text())


def are_down(suite: Suite) -> bool:
    return not any(keeper_link.is_alive(path) for path in (suite.home / "deployments").iterdir())


def test_an_interruption_saves_evidence_and_takes_everything_down(suite: Suite) -> None:
    begun, _ = hanging(suite)
    begun.send_signal(signal.SIGINT)
    ran = suite.end(begun)
    assert ran.code == 2, ran.out
    told = [line for line in ran.out.splitlines() if line.startswith("test_hangs.py::test_that_hangs: interrupted; ")]
    assert len(told) == 2, "one line for each cluster"
    assert list(suite.deployments().values()) == [["evidence"], ["evidence"]]
    assert any('"signal_name": "SIGKILL"' in path.read_text() for path in suite.home.rglob("members.json"))


def test_an_interruption_of_workers_leaves_nothing_running(suite: Suite) -> None:
    begun, worker = hanging(suite, "-n", "1")
    for pid in (worker, begun.pid):  # as a terminal does it, to all of its foreground
        os.kill(pid, signal.SIGINT)
    assert suite.end(begun).code == 2
    until(lambda: are_down(suite), "no keeper is left")


def test_what_a_killed_pytest_had_stops_at_once_and_the_next_session_removes_it(suite: Suite) -> None:
    begun, pid = hanging(suite)
    assert pid == begun.pid
    begun.kill()
    begun.wait()
    until(lambda: are_down(suite), "the keepers stop their members when their owner is gone")
    left = list(suite.deployments())
    assert len(left) == 2
    suite.write("test_hangs.py", "def test_next(tikv_cluster):\n    assert tikv_cluster.report.is_ready\n")
    ran: Ran = suite.run()
    assert ran.code == 0, ran.out
    for name in left:
        ran.line(f"{name} is taken down: the process that it belonged to was killed")
    assert suite.deployments() == {}
