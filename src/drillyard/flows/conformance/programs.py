"""Where the programs of others are, and how one is run: as a process of its own, within its time.

Rules: a program that is missing is told with the mend, never looked for elsewhere or installed. Executables are found
in the directory named by DRILLYARD_REAL_PD_DIR, where `scripts/build-real-pd` and `scripts/build-client-go` of a
checkout put them, or on the PATH; Python clients are packages of this Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = "DRILLYARD_REAL_PD_DIR"
PROGRAM_S = 120.0

MENDS: Mapping[str, str] = {
    "pd-ctl": "in a checkout, `scripts/build-real-pd` builds it (needs Go 1.21 or newer)",
    "pd-server-81": "in a checkout, `scripts/build-real-pd` builds it (needs Go 1.21 or newer)",
    "pd-server-66": "in a checkout, `scripts/build-real-pd` builds it (needs Go 1.21 or newer)",
    "client-go-conformance": "in a checkout, `scripts/build-client-go` builds it (needs Go 1.21 or newer)",
    "tikv-client": "`pip install tikv-client==0.0.4` (Python 3.11 on x86-64 Linux)",
    "tikv-python": "`pip install tikv-python==0.1.1`",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a process ended, and what it wrote."""

    code: int | None  # None: it was still running when its time was over
    out: str
    errors: str


class Missing(Exception):
    """A program is not on this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not on this machine")
        self.mend = MENDS[name]


def executable(name: str) -> Path:
    named = os.environ.get(DIRECTORY)
    if named and os.access(path := Path(named) / name, os.X_OK):
        return path
    found = shutil.which(name)
    if found is None:
        raise Missing(name)
    return Path(found)


def package_version(name: str) -> str:
    import importlib.metadata  # late: no other command needs it

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(name) from None


async def run(command: Sequence[str | Path], within_s: float = PROGRAM_S) -> Ran:
    """Run it to its end; it is killed when its time is over or the run is interrupted."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    reading = asyncio.ensure_future(process.communicate())
    try:
        done, _ = await asyncio.wait([reading], timeout=within_s)
        code = process.returncode if done else None
        if not done:
            process.kill()
        out, errors = await reading
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        reading.cancel()
    return Ran(code, out.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))


def client_script(name: str) -> list[str]:
    """The command of one of our scripts that use a Python client, without its arguments."""
    return [sys.executable, str(Path(__file__).with_name("clients") / name)]
