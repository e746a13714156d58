"""The health check's shell line, run by a shell that finds only what an image has: curl, wget, both, neither."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from drillyard.runtimes.compose_file import health_check
from drillyard.topology import Role

CURL, LOCALHOST, NUMERIC = "curl", "wget localhost", "wget 127.0.0.1"
PATHS = {Role.PD: ":2379/pd/api/v1/health", Role.TIKV: ":20180/status"}


class Image:
    """A directory with the programs that an image has; each writes down how it was called."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._calls = directory / "calls"
        (directory / "bin").mkdir()

    def has(self, program: str, *, localhost: int, numeric: int = 99) -> None:
        """A program that ends with these codes."""
        path = self._directory / "bin" / program
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{program} $*" >>"{self._calls}"\n'
            f'case "$*" in *//localhost:*) exit {localhost} ;; *) exit {numeric} ;; esac\n'
        )
        path.chmod(0o755)

    def check(self, role: Role) -> int:
        """How the health check ends there."""
        shell = ["/bin/sh", "-c", health_check(role)]
        ran = subprocess.run(shell, env={"PATH": str(self._directory / "bin")}, capture_output=True, check=False)
        return ran.returncode

    @property
    def calls(self) -> list[list[str]]:
        return [line.split() for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def told(calls: list[list[str]]) -> list[str]:
    """Which program asked whom."""
    return [CURL if call[0] == "curl" else LOCALHOST if "//localhost:" in call[-1] else NUMERIC for call in calls]


CASES: list[tuple[str, dict[str, tuple[int, int]], bool, list[str]]] = [
    ("curl passes", {"curl": (0, 99)}, True, [CURL]),
    ("curl fails on an HTTP error", {"curl": (22, 99)}, False, [CURL]),
    ("both, curl passes", {"curl": (0, 99), "wget": (1, 1)}, True, [CURL]),
    ("both, curl fails: wget is no second opinion", {"curl": (7, 99), "wget": (0, 0)}, False, [CURL]),
    ("wget passes on localhost", {"wget": (0, 99)}, True, [LOCALHOST]),
    ("wget reaches only 127.0.0.1", {"wget": (1, 0)}, True, [LOCALHOST, NUMERIC]),
    ("wget reaches neither", {"wget": (1, 8)}, False, [LOCALHOST, NUMERIC]),
    ("an image with neither", {}, False, []),
]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(("programs", "passes", "asked"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_health_check_takes_what_the_image_has(
    image: Image, role: Role, programs: dict[str, tuple[int, int]], passes: bool, asked: list[str]
) -> None:
    for program, (localhost, numeric) in programs.items():
        image.has(program, localhost=localhost, numeric=numeric)
    assert (image.check(role) == 0) == passes
    assert told(image.calls) == asked
    assert all(call[-1].endswith(PATHS[role]) for call in image.calls)


def test_curl_fails_on_an_http_error_and_both_give_up_in_time(image: Image) -> None:
    image.has("curl", localhost=0)
    image.check(Role.PD)
    assert image.calls[0][:-1] == ["curl", "-fsS", "-m", "2", "-o", "/dev/null"]


def test_wget_throws_the_answer_away_and_gives_up_in_time(image: Image) -> None:
    image.has("wget", localhost=1, numeric=1)
    image.check(Role.TIKV)
    assert [call[:-1] for call in image.calls] == [["wget", "-q", "-T", "1", "-O", "/dev/null"]] * 2, (
        "two of them fit into the timeout"
    )
