"""Results on disk: one JSON file for each bench, kept in the repository; the documents are made from them.

Rules: a file says what it was measured with: the commit, the day and the machine. A bench that failed is told in its
file, beside the rounds that it did; one that has nothing leaves the file that was there.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.figures import Results

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "bench" / "results"


def document(bench: str, results: Results, took_s: float, failure: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "bench": bench,
        "command": f"./yard bench {bench}",
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "took_s": round(took_s, 1),
        "figures": results.rows(),
    }
    if results.missing:
        told["missing"] = results.missing
    if failure:
        told["failure"] = failure
    return told


def keep(told: dict[str, Any]) -> Path | None:
    if not told["figures"]:
        return None
    DIRECTORY.mkdir(exist_ok=True)
    file = DIRECTORY / f"{told['bench']}.json"
    rows = ",\n    ".join(json.dumps(row) for row in told["figures"])  # one line each, for readable changes
    rest = json.dumps(told | {"figures": "@"}, indent=2)
    file.write_text(rest.replace('"@"', f"[\n    {rows}\n  ]") + "\n", encoding="utf-8")
    return file


def read() -> dict[str, dict[str, Any]]:
    """What is kept, by bench."""
    files = sorted(DIRECTORY.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


@functools.cache
def machine() -> dict[str, str | int | float | None]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


@functools.cache
def _commit() -> str:
    """Of what is measured; results that were just written do not make it another."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return f"{commit}, changed" if _git("status", "--porcelain", "--", "src", "bench/*.py") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
