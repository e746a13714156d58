"""The command blocks of the documents that need Docker do what they say, on the images that are built here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_subject import REAL_PD, remove_project
from examples import Example, clear_up, examples


@pytest.fixture
def inside(tmp_path: Path) -> list[str]:
    """A command that runs a command with an /etc/hosts of its own, so that an example may add to it."""
    hosts = tmp_path / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text())
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The images that are built here instead of the vendor's, the checkout's Python, and a `sudo` that just runs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "sudo").chmod(0o755)
    made = {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DRILLYARD_HOME": str(tmp_path / "home"),
        "PD_IMAGE": REAL_PD.pd or "",
        "TIKV_IMAGE": REAL_PD.tikv or "",
        "TIKV_OPEN_FILES": "20000",
    }
    yield made
    clear_up(made)
    for project in ("tikv", "drillyard-default"):
        remove_project(project)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", examples(in_containers=True), ids=str)
def test_example_does_what_it_says(example: Example, environment: dict[str, str], inside: list[str]) -> None:
    example.run(environment, inside)
