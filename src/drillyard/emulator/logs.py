"""A member's log, line for line in the format of TiKV and PD.

    [2026/11/23 07:50:25.632 +00:00] [INFO] [util.go:47] ["Welcome to TiKV"] [key=value]

Rules: one event is one line, whatever its text holds; every line is in the file before the call returns, because the
last line before a death is the one somebody will want. A disk that takes no line does not stop a member by itself:
lines that were lost are counted, and said as soon as one can be written again.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

LEVELS = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "critical": 50, "fatal": 50}
_QUOTED_FOR = frozenset('"=[]')


class Log:
    """Writes lines at or above a level to one file descriptor."""

    def __init__(self, descriptor: int, level: str = "info", *, owns: bool = False) -> None:
        self._descriptor = descriptor
        self._threshold = LEVELS[level]
        self._owns = owns
        self._minute = -1
        self._stamp = ""
        self._zone = ""
        self.lost = 0

    def set_level(self, level: str) -> None:
        self._threshold = LEVELS[level]

    def debug(self, message: str, **fields: object) -> None:
        if self._threshold <= LEVELS["debug"]:
            self._write("DEBUG", message, fields)

    def info(self, message: str, **fields: object) -> None:
        if self._threshold <= LEVELS["info"]:
            self._write("INFO", message, fields)

    def warn(self, message: str, **fields: object) -> None:
        if self._threshold <= LEVELS["warn"]:
            self._write("WARN", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write("ERROR", message, fields)

    def fatal(self, message: str, **fields: object) -> None:
        """Says why the member stops; stopping is the caller's."""
        self._write("FATAL", message, fields)

    def failure(self, message: str, error: BaseException, **fields: object) -> None:
        """An exception that nobody expected, with where it came from."""
        trace = "".join(traceback.format_exception(error))
        self._write("ERROR", message, {**fields, "error": f"{type(error).__name__}: {error}", "stack": trace})

    def slow_sync(self, took_s: float) -> None:
        """The disk took very long, in etcd's words."""
        self.warn("slow fdatasync", took=f"{took_s:.3f}s")

    def close(self) -> None:
        if self._owns:
            os.close(self._descriptor)
            self._owns = False

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        caller = sys._getframe(2)
        parts = [f"[{self._now()}] [{level}] [{_place(caller)}] [{quoted(message)}]"]
        parts += [f"[{quoted(key)}={quoted(_text(value))}]" for key, value in fields.items()]
        if self.lost:
            parts.append(f"[lost_lines={self.lost}]")
        try:
            os.write(self._descriptor, (" ".join(parts) + "\n").encode("utf-8", "backslashreplace"))
            self.lost = 0
        except OSError:
            self.lost += 1

    def _now(self) -> str:
        now = time.time()
        minute, within = divmod(now, 60)
        if minute != self._minute:
            local = time.localtime(now)
            self._minute = int(minute)
            self._stamp = time.strftime("%Y/%m/%d %H:%M", local)
            sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
            self._zone = f"{sign}{offset // 3600:02d}:{offset % 3600 // 60:02d}"
        return f"{self._stamp}:{int(within):02d}.{int(within % 1 * 1000):03d} {self._zone}"


def open_log(path: str | Path | None, level: str = "info") -> Log:
    """A log that appends to a file, or writes to stderr."""
    if path is None:
        return Log(2, level)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Log(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644), level, owns=True)


def quoted(text: str) -> str:
    """The text itself, or as a JSON string where it would otherwise break the line's form."""
    if any(character <= " " or character in _QUOTED_FOR for character in text):
        return json.dumps(text, ensure_ascii=False)
    return text


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _place(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119  # on every line: keep it cheap
