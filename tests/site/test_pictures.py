"""The terminal of the pictures: what a command draws, moves over and colours is what the picture shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.terminal import COLUMNS, LINES, Frame, frames_of, picture_of, text_of

DRAWS = r"""
import os, sys
print("size", *os.get_terminal_size())
print("first\nsecond", flush=True)
sys.stdout.write("\x1b[2Aover \x1b[1;32mgreen\x1b[0m   gap\x1b[K\n\n")
"""


def drawn(program: str) -> list[Frame]:
    return frames_of([sys.executable, "-c", program], {**os.environ, "COLUMNS": "7"}, Path("/"))


def test_a_table_that_is_drawn_again_is_seen_as_a_person_sees_it() -> None:
    frames = drawn(DRAWS)
    rows = [row.rstrip() for row in text_of(frames[-1]).splitlines()]
    assert rows == [f"size {COLUMNS} {LINES}", "over green   gap", "second"]
    runs = {run.text.strip(): run for run in frames[-1][1]}
    assert runs["green"].is_bold
    assert runs["green"].column == 5
    assert runs["green"].colour != runs["over"].colour


def test_a_picture_is_well_formed_and_keeps_columns() -> None:
    picture = picture_of("say '<&>'", drawn("print('a  <&>')")[-1])
    svg = ElementTree.fromstring(picture)
    shown = {"".join(text.itertext()): float(text.attrib["x"]) for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"$", "say '<&>'", "a", "<&>"} == set(shown)
    two_columns = shown["say '<&>'"] - shown["$"]
    assert shown["<&>"] - shown["a"] == pytest.approx(1.5 * two_columns, abs=0.2)
