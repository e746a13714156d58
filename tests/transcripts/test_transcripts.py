"""Whole conversations between Raft nodes, word for word.

`DRILLYARD_WRITE_TRANSCRIPTS=1 pytest tests/transcripts` writes what happens now into the files; read the difference
before you keep it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conversation import replay

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_conversation(path: Path) -> None:
    expected = path.read_text(encoding="utf-8")
    happened = replay(expected)
    if os.environ.get("DRILLYARD_WRITE_TRANSCRIPTS"):
        path.write_text(happened, encoding="utf-8")
    assert happened == path.read_text(encoding="utf-8")


def test_no_transcript_is_missing() -> None:
    assert len(TRANSCRIPTS) >= 10
