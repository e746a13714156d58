"""Logs that are files: their last lines, and every line that is written from now on.

Rules: bounded, whatever the file's length; a file that cannot be read has no lines. Following polls, because the
members write their files themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from drillyard.waiting import Clock, Deadline, until

TAIL_BYTES = 1 << 20
HEAD_BYTES = 64 << 10  # a server tells its version and its configuration there, and why it could not start
FOLLOW_POLL_S = 0.1
FOLLOW_SLICE_S = 3600.0
_CHUNK = 1 << 20


def tail(path: Path) -> bytes:
    """The last mebibyte of a file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES)
    except OSError:
        return b""


def both_ends(path: Path) -> bytes:
    """The beginning and the end of a file; where something between them is left out, a line says so."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= HEAD_BYTES + TAIL_BYTES:
                return file.read(HEAD_BYTES + TAIL_BYTES)
            head = file.read(HEAD_BYTES)
            file.seek(size - TAIL_BYTES)
            return _joined(head, file.read(TAIL_BYTES), size)
    except OSError:
        return b""


def shorten(content: bytes, head: int, tail: int) -> bytes:
    """The first `head` and the last `tail` bytes in whole lines; all of it when it is not longer."""
    if len(content) <= head + tail:
        return content
    return _joined(content[:head], content[len(content) - tail :], len(content))


def _joined(head: bytes, tail: bytes, size: int) -> bytes:
    head = head[: head.rfind(b"\n") + 1]
    tail = tail[tail.find(b"\n") + 1 :] if b"\n" in tail[:-1] else tail
    return b"%s[drillyard: %d bytes are left out here]\n%s" % (head, size - len(head) - len(tail), tail)


def tail_lines(path: Path, count: int) -> tuple[str, ...]:
    return last_lines(tail(path), count)


def last_lines(content: bytes, count: int) -> tuple[str, ...]:
    lines = content.decode("utf-8", "replace").splitlines()
    return tuple(lines[max(0, len(lines) - count) :])


def by_last_written(paths: Sequence[Path]) -> list[Path]:
    """The files in the order in which they were written to last; lines of an output carry no time."""
    return sorted(paths, key=_written_at)


def _written_at(path: Path) -> float:
    try:
        found = path.stat()
    except OSError:
        return 0.0
    return found.st_mtime if found.st_size else 0.0


async def follow(paths: Sequence[tuple[str, Path]]) -> AsyncIterator[tuple[str, str]]:
    """(member, line) for every line that is added to one of the members' files, until the caller has enough."""
    followed = [_Followed(member, path) for member, path in paths]

    async def look() -> list[tuple[str, str]] | None:
        return [(one.member, text) for one in followed for text in one.read()] or None

    while True:
        for line in await until(look, Deadline.after(Clock(), FOLLOW_SLICE_S), poll_s=FOLLOW_POLL_S) or []:
            yield line


class _Followed:
    """One file from its present end on; a file that was cut or made anew is read from its beginning."""

    def __init__(self, member: str, path: Path) -> None:
        self.member = member
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[str]:
        try:
            size = self._path.stat().st_size
            if size < self._at:
                self._at, self._rest = 0, b""
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(_CHUNK)
        except OSError:
            return []
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]
