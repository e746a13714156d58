"""Stubs answer at once, and a test that stands still for a moment is no member that hangs."""

from __future__ import annotations

import pytest

from drillyard.flows import evidence, lookout


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long for an answer when there is one look only. Where a stub hangs the test undoes it, or waits for it."""
    monkeypatch.setattr(lookout, "ONE_LOOK_PATIENCE_S", 20.0)
    monkeypatch.setattr(evidence, "VIEW_PATIENCE_S", 20.0)
