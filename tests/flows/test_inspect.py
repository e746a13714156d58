"""What the members' logs say, read from their files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from stub_cluster import StubCluster

from drillyard.flows import inspect


@pytest.mark.parametrize(
    ("log_at", "out_at", "told"),
    [(1000, 2000, ["log", "out"]), (2000, 1000, ["out", "log"]), (1000, 1000, ["log", "out"])],
)
def test_what_was_written_last_is_told_last(tmp_path: Path, log_at: int, out_at: int, told: list[str]) -> None:
    async def run() -> list[str]:
        async with StubCluster(tmp_path) as stub:
            scope = stub.scope()
            member = (await scope.runtime.deployment("stub")).member("tikv1")
            for path, text, at in ((member.log_path, "log", log_at), (member.out_path, "out", out_at)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
                os.utime(path, (at, at))
            return [line.text for line in await inspect.logs(scope, "stub", "tikv1", 10)]

    assert asyncio.run(run()) == told
