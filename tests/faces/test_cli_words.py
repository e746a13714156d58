"""The command line without a cluster: help, bad input, and what is told to people and to programs."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import pytest
from schema_check import SCHEMA, problems
from shell import Shell

from drillyard.faces import cli, exits
from drillyard.faces.console import is_read, show_members
from drillyard.flows.report import Ending, MemberRow

SOURCE = Path(exits.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
COMMANDS: tuple[str, ...] = ("up", "verify", "prove", "status", "list", "logs", "connect", "down", "version")
COMMANDS += ("adopt", "diagnose", "start", "stop", "restart", "kill", "pause", "resume", "reset", "conformance", "sim")

BAD_INPUT = [
    ("no such command", ["fly"], "No such command 'fly'"),
    ("no such option", ["up", "--fast"], "--fast"),
    ("no number", ["up", "--pd", "many"], "--pd"),
    ("no PD", ["up", "--pd", "0"], "0 PD members"),
    ("no TiKV", ["up", "--tikv", "0"], "0 TiKV members"),
    ("too many", ["up", "--tikv", "900"], "900 TiKV members"),
    ("no profile", ["up", "--profile", "fast"], "'fast' is no profile"),
    ("no topology file", ["up", "--topology", "/nowhere.toml"], "/nowhere.toml cannot be read"),
    ("file and counts", ["up", "--topology", "x.toml", "--pd", "3"], "a topology and counts or a profile were given"),
    ("no time", ["up", "--timeout", "0"], "0 s is no time to wait"),
    ("no deployment name", ["up", "--name", "Not a name"], "'Not a name' is no deployment name"),
    ("no deployment", ["verify"], "there is no deployment 'default'"),
    ("no deployment to diagnose", ["diagnose"], "there is no deployment 'default'"),
    ("no deployment to stop", ["down"], "there is no deployment 'default'"),
    ("no deployment for a member", ["kill", "tikv0"], "there is no deployment 'default'"),
    ("a reset that does not say what it deletes", ["reset"], "a reset deletes every key of deployment 'default'"),
    ("no deployment to reset", ["reset", "--delete-data"], "there is no deployment 'default'"),
    ("no member named", ["kill"], "MEMBER"),
    ("a measure's option without it", ["kill", "tikv0", "--watch", "3"], "--watch"),
    ("no time to measure", ["pause", "tikv0", "--measure", "--timeout", "0"], "that is no time to wait"),
    ("no deployment to measure", ["stop", "tikv0", "--measure"], "there is no deployment 'default'"),
    ("no seed to simulate", ["sim"], "which seeds are meant is not clear"),
    ("no range of seeds", ["sim", "--seeds", "9..2"], "9..2 is no range of seeds"),
    ("a negative count of lines", ["logs", "--lines", "-1"], "--lines"),
]


@pytest.mark.parametrize(("words", "told"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT])
def test_bad_input_is_named_with_its_mend_and_exit_code_2(drillyard: Shell, words: list[str], told: str) -> None:
    document = drillyard(*words, "--json").document
    assert document["exit_code"] == exits.BAD_INPUT
    assert document["error"]["kind"] == "bad-input"
    assert told in document["error"]["text"]
    assert document["error"]["mend"]


@pytest.mark.parametrize("words", [["--wait", "3"], ["--wait=3"]], ids=" ".join)
def test_a_wait_that_is_given_its_length_is_told_where_that_goes(drillyard: Shell, words: list[str]) -> None:
    assert "mend: say how long with --timeout SECONDS; see " in drillyard("verify", *words).err
    assert "--timeout SECONDS" in drillyard("verify", *words, "--json").document["error"]["mend"]


@pytest.mark.parametrize("case", [BAD_INPUT[0], BAD_INPUT[3], BAD_INPUT[11]], ids=lambda case: str(case[0]))
def test_people_are_told_on_stderr(drillyard: Shell, case: tuple[str, list[str], str]) -> None:
    ran = drillyard(*case[1])
    assert (ran.code, ran.out) == (exits.BAD_INPUT, "")
    assert ran.err.startswith("error: ")
    assert case[2] in ran.err
    assert "  mend: " in ran.err


def test_an_executable_that_cannot_be_run_could_not_start(drillyard: Shell) -> None:
    ran = drillyard("up", "--pd-binary", "/nowhere/pd-server", "--json")
    assert ran.code == exits.COULD_NOT_START
    assert ran.document["error"]["kind"] == "could-not-start"
    assert "/nowhere/pd-server does not exist" in ran.document["error"]["text"]


def test_a_home_that_cannot_be_written_could_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    ran = Shell(tmp_path / "file" / "home")("up", "--json")
    assert ran.code == exits.COULD_NOT_START
    assert "DRILLYARD_HOME" in ran.document["error"]["mend"]


def test_help_names_every_command_and_the_exit_codes(drillyard: Shell) -> None:
    ran = drillyard("--help")
    assert ran.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", ran.out, re.MULTILINE), command
    assert "130 interrupted" in ran.out
    assert drillyard().out == ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.app([command, "--help"], prog_name="drillyard", standalone_mode=False) == 0
    assert "--json" in capsys.readouterr().out


def test_help_imports_nothing_of_ours_but_the_command_line() -> None:
    """Six members and every help pay for imports: at module level the command line knows only Click."""
    tree = ast.parse((SOURCE / "cli.py").read_text())
    imported = {
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"__future__", "io", "os", "sys", "typing", "click"}


def test_nothing_there_is_an_empty_list(drillyard: Shell) -> None:
    assert drillyard("list").out == ""
    assert drillyard("list", "--json").document["deployments"] == []


def test_commands_to_type_next_are_told_as_this_person_types_them(drillyard: Shell) -> None:
    drillyard.env["DRILLYARD_CALLED_AS"] = "./yard"
    assert "see ./yard --help" in drillyard("fly").err
    assert "see ./yard up --help" in drillyard("up", "--fast").err
    assert "Usage: ./yard up" in drillyard("up", "--help").out
    assert drillyard("fly", "--json").document["command"] == "drillyard"
    damaged = drillyard.home / "deployments" / "broken"
    damaged.mkdir(parents=True)
    (damaged / "plan.json").write_text("{")
    assert "`./yard down --delete-data --name broken` removes it" in drillyard("list").out
    assert "(`./yard down --delete-data`)" in drillyard("status", "--name", "broken").err


def test_only_a_pipe_can_lose_its_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as pipe, (tmp_path / "file").open("w") as file:
        for stdout in (None, file, pipe):
            monkeypatch.setattr(sys, "stdout", stdout)
            assert is_read(), stdout
        os.close(ours)
        assert not is_read()


def test_members_stand_in_columns_however_they_ended(capsys: pytest.CaptureFixture[str]) -> None:
    ended = MemberRow("pd0", "pd", "real", "exited", None, 1, "", False, {"client": "h:1"}, Path("x"))
    runs = MemberRow("tikv0", "tikv", "emulated", "running", 7, None, "", None, {"client": "h:2"}, Path("x"))
    show_members([ended, runs])
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("h:1") == second.index("h:2")
    assert "exited (exit code 1, unexpected)" in first


def test_version(drillyard: Shell) -> None:
    assert drillyard("version").out.startswith("drillyard ")
    assert drillyard("version", "--json").document["version"]


def test_every_exit_code_is_documented_once_and_distinct() -> None:
    codes = {name: value for name, value in vars(exits).items() if isinstance(value, int)}
    assert len(set(codes.values())) == len(codes)
    documented = re.findall(r"^\| (\d+) \|", (DOCS / "json.md").read_text(), re.MULTILINE)
    assert sorted(map(int, documented)) == sorted(codes.values())
    assert set(exits.OF_ENDING) == set(Ending)


def test_every_part_of_the_schema_is_documented() -> None:
    text = (DOCS / "json.md").read_text()
    for part in SCHEMA["properties"]:
        assert f"`{part}`" in text, part


def test_the_check_itself_finds_what_is_wrong() -> None:
    good = {"format": 1, "command": "version", "ok": True, "exit_code": 0, "version": "1"}
    assert problems(good) == []
    assert problems({**good, "format": 2}) == ["$.format: 2 is not 1"]
    assert problems({**good, "ok": 1}) == ["$.ok: 1 is no boolean"]
    assert problems({**good, "extra": 1}) == ["$: extra is unknown"]
    assert problems({"format": 1}) == [f"$: {name} is missing" for name in ("command", "ok", "exit_code")]
    assert problems({**good, "lines": [{"member": "pd0"}]}) == ["$.lines[0]: text is missing"]
