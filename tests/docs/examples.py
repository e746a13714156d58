"""The command blocks and programs of the documents, and how one is run: also for the tier with Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("images/*.md")])
RUN_BY_CI = re.compile(r"\./yard (check|test|bench|docs|verify-vendor)\b")
IN_CONTAINERS = re.compile(r"docker compose|--runtime compose")


@dataclass(frozen=True)
class Example:
    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def run(self, environment: Mapping[str, str], inside: Sequence[str] = ()) -> None:
        """Run it whole and look for what it promises to print; `inside` is a command that runs a command."""
        command = [*inside, *(["sh", "-eu"] if self.language == "sh" else [sys.executable, "-"])]
        done = subprocess.run(
            command, input=self.text, cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{self}\n{done.stdout}\n{done.stderr}"
        for promised in re.findall(r"# prints: (.*)$", self.text, re.MULTILINE):
            assert promised in done.stdout.splitlines(), f"{self} never printed {promised!r}:\n{done.stdout}"
        told = done.stdout + done.stderr
        for promised in re.findall(r"# says: (.*)$", self.text, re.MULTILINE):
            assert any(promised in line for line in told.splitlines()), f"{self} never said {promised!r}:\n{told}"


def examples(*, in_containers: bool) -> list[Example]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in re.finditer(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            example = Example(document, text.count("\n", 0, block.start()) + 1, block[1], block[2])
            is_wanted = bool(IN_CONTAINERS.search(example.text)) == in_containers
            if is_wanted and not RUN_BY_CI.search(example.text):
                found.append(example)
    return found


def clear_up(environment: Mapping[str, str]) -> None:
    """Whatever a failed example left running must not disturb the next one."""
    listed = subprocess.run(
        ["./yard", "list", "--json"], cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=True
    )
    for name in [one["deployment"] for one in json.loads(listed.stdout)["deployments"]]:
        subprocess.run(
            ["./yard", "down", "--name", name, "--delete-data"], cwd=ROOT, env=dict(environment), capture_output=True
        )
