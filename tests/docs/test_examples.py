"""Every command block and program in the documents does what it says, on a cluster of its own.

A `sh` block is run as one script with `sh -eu` from the top of the checkout; a `python` block as a program. What a line
prints is stated behind it as `# prints: ...`. Blocks that call the test commands themselves are run by `.ci/run`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN_BY_CI = re.compile(r"\./yard (check|test|bench)\b")


@dataclass(frozen=True)
class Example:
    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def examples() -> list[Example]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in re.finditer(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            example = Example(document, text.count("\n", 0, block.start()) + 1, block[1], block[2])
            if not RUN_BY_CI.search(example.text):
                found.append(example)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", examples(), ids=str)
def test_example_does_what_it_says(example: Example, tmp_path: Path) -> None:
    environment = {**os.environ, "DRILLYARD_HOME": str(tmp_path / "home")}
    command = ["sh", "-eu"] if example.language == "sh" else [sys.executable, "-"]
    try:
        done = subprocess.run(
            command, input=example.text, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{example}\n{done.stdout}\n{done.stderr}"
        for promised in re.findall(r"# prints: (.*)$", example.text, re.MULTILINE):
            assert promised in done.stdout.splitlines(), f"{example} never printed {promised!r}:\n{done.stdout}"
    finally:
        clear_up(environment)


def clear_up(environment: dict[str, str]) -> None:
    """Whatever a failed example left running must not disturb the next one."""
    listed = subprocess.run(
        ["./yard", "list", "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    for name in [one["deployment"] for one in json.loads(listed.stdout)["deployments"]]:
        subprocess.run(
            ["./yard", "down", "--name", name, "--delete-data"], cwd=ROOT, env=environment, capture_output=True
        )


def test_documents_have_examples() -> None:
    assert any(example.document.name == "README.md" for example in examples())
