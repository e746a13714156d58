"""Which lines of a log matter to somebody who reads it because something went wrong.

Rules: a line is marked by what it says of itself (its level, a panic, a traceback), or because the catalogue of causes
knows it. A mark supports the eye and decides nothing. What is shown is bounded: the beginning, the end, and between
them the lines that matter most; a line that is left out is counted. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from drillyard.judge import causes

HEAD_LINES = 40  # version, configuration
TAIL_LINES = 400  # more is in the log itself, one click away
MARKED_LINES = 60  # of those between the two, the latest
LISTED_LINES, LISTED_WARNINGS = 30, 10  # above the log
LISTED_CHARS = 500
LINE_CHARS = 2000  # TiKV tells its whole configuration in one line


class Mark(StrEnum):
    """From the most to the least telling; the names are the page's classes."""

    FATAL = "fatal"
    TELLING = "telling"
    ERROR = "error"
    WARN = "warn"

    @property
    def words(self) -> str:
        return "known cause" if self is Mark.TELLING else self.value.upper()


_SAID = (
    (Mark.FATAL, r"\[(?:FATAL|CRITICAL|PANIC)\]|\"level\": ?\"(?:fatal|panic|dpanic)\"|^(?:panic|fatal error): "),
    (Mark.FATAL, r"\bpanicked at\b|^Traceback \(most recent call last\)|^Segmentation fault|\bcore dumped\b"),
    (Mark.ERROR, r"\[ERROR\]|\"level\": ?\"error\"|^(?:ERROR|error|Error)\b[: ]|^[\w.]+(?:Error|Exception)(?:: |$)"),
    (Mark.WARN, r"\[WARN(?:ING)?\]|\"level\": ?\"warn\"|^(?:WARN|WARNING|warning|Warning)\b[: ]"),
)
_LEVELS = tuple((mark, re.compile(pattern)) for mark, pattern in _SAID)
_NUMBER = re.compile(r"\d+(?:[0-9A-F]{4,})?")  # and keys
_LEVEL_WORD = re.compile(r"\[(?:WARN|ERROR|FATAL|CRITICAL|PANIC)\]|\bpanic(?:ked)?\b", re.IGNORECASE)


def mark_of(line: str) -> Mark | None:
    said = next((mark for mark, pattern in _LEVELS if pattern.search(line)), None)
    return Mark.TELLING if said is not Mark.FATAL and _is_known(line) else said


def _is_known(line: str) -> bool:
    """Whether the catalogue of causes knows its words, whatever its level is."""
    return _is_telling(_NUMBER.sub("0", _LEVEL_WORD.sub("", line)))


@lru_cache(maxsize=4096)
def _is_telling(words: str) -> bool:
    """A log says much the same again and again, and the catalogue is long."""
    return causes.is_telling(words)


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # from 1, in the log as the bundle has it
    text: str
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Marked:
    """A log as a page shows it: its lines in order (a jump in the numbers is a gap), those to list above it, and how
    many there are of each mark in the whole log."""

    lines: tuple[Line, ...]
    listed: tuple[Line, ...]
    counts: dict[Mark, int]
    total: int


def marked(text: str, tail_lines: int = TAIL_LINES) -> Marked:
    every = [Line(at, one, mark_of(one)) for at, one in enumerate(text.splitlines(), 1)]
    listed = _latest(every, (Mark.FATAL, Mark.TELLING, Mark.ERROR), LISTED_LINES)
    listed += _latest(every, (Mark.WARN,), LISTED_WARNINGS)
    end = max(HEAD_LINES, len(every) - tail_lines)
    between = _latest(every[HEAD_LINES:end], tuple(Mark), MARKED_LINES)
    shown = {line.number: line for line in (*every[:HEAD_LINES], *between, *listed, *every[end:])}
    counts = Counter(line.mark for line in every if line.mark is not None)
    return Marked(
        _cut(shown.values(), LINE_CHARS), _cut(listed, LISTED_CHARS), {mark: counts[mark] for mark in Mark}, len(every)
    )


def _latest(lines: Sequence[Line], marks: tuple[Mark, ...], most: int) -> list[Line]:
    return [line for line in lines if line.mark in marks][-most:]


def _cut(lines: Iterable[Line], chars: int) -> tuple[Line, ...]:
    ordered = sorted(lines, key=lambda line: line.number)
    return tuple(line if len(line.text) <= chars else replace(line, text=_short(line.text, chars)) for line in ordered)


def _short(text: str, chars: int) -> str:
    return f"{text[:chars]} … {len(text) - chars} more characters"
