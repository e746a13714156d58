"""The files of an evidence bundle: a directory and a `.tar.gz` of it, bounded and without secrets.

Rules: it grows under a name that ends in `.partial` and gets its own when it is whole, so whoever sees the directory
sees all of it; what was cut short stays as it is, for it is evidence too. Every text is redacted on its way in. Each
file and all of them together have a limit; of what is too long the end is kept (and of a log its beginning), with a
line that says what was left out. For the owner only. Nothing is ever rewritten or deleted, except the bundle's own
`.partial` archive. Raises OSError.
"""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from drillyard.flows.exhibits import Kept
from drillyard.flows.redaction import redact
from drillyard.runtimes import logs

FILE_BYTES = 1 << 20  # a record or an answer that is longer is of no cluster that runs on one machine
LOG_BYTES = logs.HEAD_BYTES + logs.TAIL_BYTES + (1 << 10)  # what a runtime hands over of one
BUNDLE_BYTES = 48 << 20  # with its pages it stays below 64 MiB, and packed below what a ticket or a mail takes
PARTIAL = ".partial"
ARCHIVE = ".tar.gz"
_MOST_OF_ONE_SECOND = 1000


class Bundle:
    """A bundle that is being written."""

    def __init__(self, parent: Path, reason: str, now: float) -> None:
        self._path, self._draft = _reserve(parent, reason, now)
        self._left = BUNDLE_BYTES
        self.redacted = 0
        self.kept: list[Kept] = []

    def write(self, path: str, content: str | bytes, limit: int = FILE_BYTES) -> str:
        """Write a text without its secrets and within its limit; what was written."""
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        found = redact(raw.decode("utf-8", "surrogateescape"))
        clean = found.text.encode("utf-8", "surrogateescape")
        room = min(limit, self._left)
        head = min(logs.HEAD_BYTES, room // 8)
        short = logs.shorten(clean, head, room - head)
        self.redacted += found.count
        self._left = max(0, self._left - len(short))
        self._put(path, short, cut=max(0, len(clean) - len(short)))
        return short.decode("utf-8", "replace")

    def write_all(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Write many. Logs come last and share what room there is, so that none takes that of another."""
        is_log = {path: path.startswith("logs/") for path in files}
        written = {}
        for at, path in enumerate(sorted(files, key=lambda path: (is_log[path], path))):
            share = self._left // (len(files) - at)
            written[path] = self.write(path, files[path], min(LOG_BYTES, share) if is_log[path] else FILE_BYTES)
        return written

    def write_page(self, path: str, text: str) -> None:
        """A page, which is redacted and bounded as it is drawn."""
        self._put(path, text.encode("utf-8", "replace"), cut=0)

    def finish(self) -> Path:
        """Pack it and give it its name; its directory."""
        archive = self._path.with_name(self._path.name + ARCHIVE)
        draft = archive.with_name(archive.name + PARTIAL)
        try:
            with (
                os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
                tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar,
            ):
                tar.add(self._draft, arcname=self._path.name, filter=_nobodys)
            draft.replace(archive)
        finally:
            draft.unlink(missing_ok=True)
        self._draft.rename(self._path)
        return self._path

    def _put(self, path: str, data: bytes, cut: int) -> None:
        for parent in reversed(Path(path).parents):
            (self._draft / parent).mkdir(mode=0o700, exist_ok=True)  # one by one: only the last would get the mode
        _write(self._draft / path, data)
        self.kept.append(Kept(path, len(data), cut))


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who made it is nobody's business, and an id means nothing elsewhere."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def newest(parent: Path) -> Path | None:
    """The bundle that was finished last."""
    return max(_whole(parent), key=lambda path: path.stat().st_mtime, default=None)


def _whole(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in parent.iterdir() if path.is_dir() and path.suffix != PARTIAL)


def _reserve(parent: Path, reason: str, now: float) -> tuple[Path, Path]:
    """A name that no bundle has, and the new directory in which it grows."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{reason}"
    for number in range(1, _MOST_OF_ONE_SECOND):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        draft = path.with_name(path.name + PARTIAL)
        try:
            draft.mkdir(mode=0o700)
        except FileExistsError:
            continue
        if not path.exists():  # asked with the draft in hand: nobody else can take the name now
            return path, draft
        draft.rmdir()
    raise FileExistsError(f"{parent} holds a thousand bundles of one second")


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
