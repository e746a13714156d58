"""`drillyard conformance` with every program there is: all of them run, and what they cannot do is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_pd import BUILT
from schema_check import problems

RUN_S = 300
# What a program cannot do on emulated members, by program and check, and why. One that can is taken out.
KNOWN: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "conformance.md"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory, page: Path) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "DRILLYARD_HOME": str(home), "DRILLYARD_REAL_PD_DIR": str(BUILT)}
    command = [sys.executable, "-m", "drillyard", "conformance", "--json", "--complete", "--report", str(page)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
    told: dict[str, Any] = json.loads(ran.stdout)
    assert ran.returncode == told["exit_code"], ran.stderr
    return told


@pytest.mark.timeout(RUN_S)
def test_everything_was_run(document: dict[str, Any]) -> None:
    assert problems(document) == []
    not_run = [row for row in document["conformance"]["rows"] if row["result"] == "not run"]
    assert not_run == []


def test_what_fails_is_known(document: dict[str, Any]) -> None:
    rows = document["conformance"]["rows"]
    failed = {(row["program"], one["check"]): one["why"] for row in rows for one in row["checks"] if not one["passed"]}
    assert {name: why for name, why in failed.items() if name not in KNOWN} == {}
    assert [name for name in KNOWN if name not in failed] == [], "these pass: take them out of the list"


def test_the_page_is_dated_and_has_every_row(document: dict[str, Any], page: Path) -> None:
    text = page.read_text()
    assert "Run on 20" in text
    for row in document["conformance"]["rows"]:
        assert f"| {row['program']} | {row['version']} | {row['area']} |" in text
