"""How a member lives and ends: signals, named stops, defects, and what the one who started it gets to see."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import asyncio, sys
from drillyard.emulator.logs import open_log
from drillyard.emulator.member import Member, NamedStop, run
"""
ENDING = """
sys.exit(run(main, open_log(sys.argv[1])))
"""
PATIENCE_S = 30


def start(tmp_path: Path, main: str) -> subprocess.Popen[str]:
    code = PRELUDE + main + ENDING
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "member.log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], tmp_path: Path) -> tuple[int, str, str]:
    """Exit code, stderr and log."""
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said, (tmp_path / "member.log").read_text()


WAITING = """
async def main(member: Member) -> None:
    print("ready", flush=True)
    try:
        await member.until_stopped()
    finally:
        await asyncio.sleep(0.01)
        member.log.info("cleaned up")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_end(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, WAITING)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, said, log = finish(process, tmp_path)
    assert (code, said) == (0, "")
    assert f"[signal={number.name}]" in log
    assert '["cleaned up"]' in log
    assert log.rstrip().endswith("[stopped]")


def test_a_second_signal_does_not_break_into_the_cleaning_up(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        WAITING.replace("sleep(0.01)", "sleep(0.5)").replace("finally:", "finally:\n        print(flush=True)"),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    code, said, log = finish(process, tmp_path)
    assert (code, said) == (0, "")
    assert '["cleaned up"]' in log


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (
            "async def main(member):\n    raise NamedStop('the disk is full', 'make room')",
            "the disk is full; make room",
        ),
        (
            "async def main(member):\n"
            "    member.loop.call_later(0.01, member.fail, NamedStop('the disk is full', 'make room'))\n"
            "    await member.until_stopped()",
            "the disk is full; make room",
        ),
        (
            "async def broken(): raise KeyError('x')\n"
            "async def main(member):\n    member.spawn(broken(), 'ticker')\n    await member.until_stopped()",
            "the member broke: KeyError: 'x'; its log has the details",
        ),
        (
            "def broken(): raise KeyError('x')\n"
            "async def main(member):\n    member.loop.call_soon(broken)\n    await member.until_stopped()",
            "the member broke: KeyError: 'x'; its log has the details",
        ),
        (
            "async def main(member):\n    raise KeyError('x')",
            "the member broke: KeyError: 'x'; its log has the details",
        ),
    ],
    ids=["named", "named-later", "task", "callback", "main"],
)
def test_every_other_end_has_a_line_and_exit_code_1(tmp_path: Path, main: str, line: str) -> None:
    code, said, log = finish(start(tmp_path, main), tmp_path)
    assert code == 1
    assert said == line + "\n"
    assert "Traceback" not in said
    assert re.search(r"^\[[^]]+\] \[FATAL\] ", log, re.MULTILINE)
    assert ("stack=" in log) == ("KeyError" in line)


def test_a_main_that_returns_is_a_clean_end(tmp_path: Path) -> None:
    code, said, _ = finish(start(tmp_path, "async def main(member):\n    return None"), tmp_path)
    assert (code, said) == (0, "")


def test_it_runs_without_uvloop(tmp_path: Path) -> None:
    main = """
sys.modules["uvloop"] = None
async def main(member: Member) -> None:
    member.log.info("loop", kind=type(member.loop).__module__)
"""
    code, _, log = finish(start(tmp_path, main), tmp_path)
    assert code == 0
    assert "asyncio" in log


def test_the_loops_lag_is_measured(tmp_path: Path) -> None:
    main = """
import time
async def main(member: Member) -> None:
    await asyncio.sleep(0.25)
    time.sleep(1.5)
    await asyncio.sleep(0.25)
    print(member.metrics.render().decode())
"""
    process = start(tmp_path, main)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    found = re.search(r"^drillyard_loop_lag_seconds (\S+)$", out, re.MULTILINE)
    assert found is not None
    assert 1.0 < float(found[1]) < 20
    assert "the member stood still" in (tmp_path / "member.log").read_text()
