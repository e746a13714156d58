"""A terminal of fixed size: runs a command on it, and makes a picture of what it shows.

Rules: the command is run as it is and sees a real terminal; what it writes goes through a terminal emulator, so that a
live table looks as it does to a person. A picture is one SVG without anything from elsewhere: text in the reader's own
fixed font, each run of it stretched to the columns that it takes.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

import pyte

COLUMNS, LINES = 120, 60
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE = 8.4, 19, 14
MARGIN, BAR = 16, 34
BACKGROUND, FOREGROUND, DIM = "#10161d", "#d5dbe1", "#78838f"
COLOURS = {
    "default": FOREGROUND,
    "black": "#4b5661",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#e3b341",  # as terminals call yellow
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
    "white": FOREGROUND,
}
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"


@dataclass(frozen=True, slots=True)
class Run:
    """Characters side by side that look alike."""

    column: int
    text: str
    colour: str = FOREGROUND
    is_bold: bool = False


Frame: TypeAlias = tuple[tuple[Run, ...], ...]


def frames_of(command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> list[Frame]:
    """Run the command to its end on a terminal; what the terminal showed each time that something was written."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    known = {name: value for name, value in environment.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    running = subprocess.Popen(
        command, cwd=cwd, env={**known, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    frames: list[Frame] = []
    while True:
        try:
            written = os.read(ours, 1 << 16)
        except OSError:  # nobody has the other end open any more: the command is gone
            break
        if not written:
            break
        stream.feed(written)
        frames.append(_frame(screen))
    os.close(ours)
    running.wait()
    return frames


def text_of(frame: Frame) -> str:
    return "\n".join("".join(run.text for run in row) for row in frame)


def _frame(screen: pyte.Screen) -> Frame:
    rows = [tuple(_runs([screen.buffer[line][column] for column in range(COLUMNS)])) for line in range(LINES)]
    while rows and not any(run.text.strip() for run in rows[-1]):
        rows.pop()
    return tuple(rows)


def _runs(cells: Sequence[pyte.screens.Char]) -> Iterable[Run]:
    column = 0
    for (colour, is_bold), alike in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        text = "".join(cell.data for cell in alike)
        shown = COLOURS.get(colour) or (f"#{colour}" if len(colour) == 6 else FOREGROUND)
        yield Run(column, text, shown, is_bold)
        column += len(text)


def picture_of(prompt: str, frame: Frame) -> str:
    """The command line and what it showed, as one SVG."""
    typed = (Run(0, "$ ", DIM), Run(2, prompt, FOREGROUND, is_bold=True))
    rows = (typed, *frame)
    columns = max(run.column + len(run.text.rstrip()) for row in rows for run in row)
    width = round(2 * MARGIN + columns * CELL_WIDTH)
    height = round(BAR + len(rows) * CELL_HEIGHT + MARGIN)
    dots = "".join(
        f'<circle cx="{MARGIN + 5 + 18 * at}" cy="{BAR // 2}" r="5" fill="{colour}"/>'
        for at, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    lines = "\n".join(_line(row, BAR + (at + 0.75) * CELL_HEIGHT) for at, row in enumerate(rows) if row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" font-family="{FONTS}" font-size="{FONT_SIZE}">\n'
        f"<title>{escape(prompt)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="9" fill="{BACKGROUND}"/>\n{dots}\n{lines}\n</svg>\n'
    )


def _line(row: Iterable[Run], y: float) -> str:
    """A row, word group by word group: a font of another width must not shift what stands in columns."""
    return "".join(_text(run, found, y) for run in row for found in re.finditer(r"\S+(?: \S+)*", run.text))


def _text(run: Run, found: re.Match[str], y: float) -> str:
    x, width = MARGIN + (run.column + found.start()) * CELL_WIDTH, len(found[0]) * CELL_WIDTH
    looks = f'fill="{run.colour}"' + (' font-weight="bold"' if run.is_bold else "")
    place = f'x="{x:.1f}" y="{y:.1f}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f"<text {place} {looks}>{escape(found[0])}</text>"
