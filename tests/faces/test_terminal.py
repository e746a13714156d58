"""What a person sees on a terminal, and what happens when nobody looks any more."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

import pytest
from shell import CLI, PATIENCE_S, Shell

from drillyard.faces import exits


def on_terminal(shell: Shell, *words: str) -> tuple[int, str]:
    """The command with a terminal for its stdout and stderr: its exit code, and what it drew without the colours."""
    ours, theirs = pty.openpty()
    command = subprocess.Popen([*CLI, *words], env={**shell.env, "TERM": "xterm"}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = bytearray()
    while True:
        try:
            drawn += os.read(ours, 1 << 16)
        except OSError:  # the terminal's other end is closed: the command is gone
            break
    os.close(ours)
    return command.wait(PATIENCE_S), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())


def test_a_terminal_gets_a_row_per_member_and_a_line_per_gate(drillyard: Shell) -> None:
    code, drawn = on_terminal(drillyard, "up", "--topology", str(drillyard.topology(1, 1)))
    assert code == exits.OK, drawn
    assert re.search(r"pd0 +emulated PD 8\.\d+\.\d+ +running +\d+ +127\.0\.0\.1:\d+", drawn)
    assert re.search(r"tikv0 +emulated TiKV 8\.\d+\.\d+ +running", drawn)
    assert re.search(r"data-path +open", drawn)
    assert "waits for the gates before it" in drawn
    assert "default is ready after" in drawn.splitlines()[-1]

    drillyard("stop", "tikv0")
    code, drawn = on_terminal(drillyard, "verify", "--wait", "--timeout", "1")
    assert code == exits.NOT_READY
    assert re.search(r"tikv0 +emulated TiKV.* exit code 0, asked +127\.0\.0\.1:\d+ +tikv0 exited with code 0", drawn)
    assert re.search(r"processes +closed +tikv0 exited with code 0 \(asked for\)", drawn)
    assert "error: default is not ready" in drawn


def test_a_reader_that_leaves_changes_neither_the_work_nor_its_exit_code(drillyard: Shell) -> None:
    command = drillyard.begin("up", "--topology", str(drillyard.topology(1, 1)))
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.wait(PATIENCE_S) == exits.OK
    assert command.stderr.read() == ""
    command.stderr.close()


@pytest.mark.parametrize("count", ["0", "1", "100000"])
def test_following_a_quiet_cluster_ends_with_its_reader(drillyard: Shell, count: str) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    assert drillyard("down").code == exits.OK
    command = drillyard.begin("logs", "--follow", "--lines", count)
    assert command.stdout is not None
    assert command.stderr is not None
    if count != "0":
        assert command.stdout.readline()
    command.stdout.close()
    assert command.wait(PATIENCE_S) == exits.OK
    assert command.stderr.read() == ""
    command.stderr.close()


def test_logs_are_followed_until_nobody_reads(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    command = drillyard.begin("logs", "tikv0", "--follow", "--lines", "1", "--json")
    assert command.stdout is not None
    assert command.stderr is not None
    assert set(json.loads(command.stdout.readline())) == {"member", "text"}
    drillyard("restart", "tikv0")
    while "Welcome to TiKV" not in (line := json.loads(command.stdout.readline()))["text"]:
        assert line["member"] == "tikv0"
    command.stdout.close()
    drillyard("restart", "tikv0")  # new lines, which it cannot write
    assert command.wait(PATIENCE_S) == exits.OK
    assert command.stderr.read() == ""
    command.stderr.close()
