"""Bundles of a cluster that says what a test wants: what goes in, what stays out, and which ends were told of."""

from __future__ import annotations

import asyncio
import html
import json
import tarfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from stub_cluster import StubCluster

from drillyard.flows import evidence
from drillyard.flows.report import Diagnosis
from drillyard.flows.up import diagnose
from drillyard.runtimes.abilities import Exit, RuntimeRefusal
from drillyard.topology import Role

T = TypeVar("T")


def with_stubs(directory: Path, act: Callable[[StubCluster], Awaitable[T]]) -> T:
    async def run() -> T:
        async with StubCluster(directory) as stub:
            return await act(stub)

    return asyncio.run(run())


async def save(stub: StubCluster, reason: str = "why") -> Path:
    scene = evidence.Scene(reason, await stub.runtime.deployment("stub"))
    return await evidence.save(stub.scope().runtime, scene, time.time())


async def save_unseen(stub: StubCluster) -> str:
    return await evidence.save_unseen_end(stub.scope().runtime, await stub.runtime.deployment("stub"), time.time())


def test_secrets_are_in_no_file_no_page_and_not_in_the_archive(tmp_path: Path) -> None:
    async def act(stub: StubCluster) -> Path:
        member = (await stub.runtime.deployment("stub")).member("tikv1")
        member.log_path.write_text('[INFO] ["config"] [password="hunter2"]\n[ERROR] ["x"] [url=http://u:hunter2@h/]\n')
        stub.runtime.change("tikv1", argv=("tikv-server", "--auth-token", "hunter2"))
        stub.world.bodies["/pd/api/v1/config"] = (200, b'{"security": {"api-key": "hunter2"}}')
        return await save(stub)

    bundle = with_stubs(tmp_path, act)
    for path in bundle.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    with tarfile.open(bundle.with_name(f"{bundle.name}.tar.gz")) as archive:
        for name in archive.getnames():
            file = archive.extractfile(name) if archive.getmember(name).isfile() else None
            assert file is None or b"hunter2" not in file.read(), name
    assert '"api-key": "[redacted]"' in (bundle / "pd" / "pd0.txt").read_text()
    assert json.loads((bundle / "bundle.json").read_text())["redacted"] == 6, "one argv, two of a log, three PD"
    assert "6 secrets were taken out" in (bundle / "index.html").read_text()


def test_a_runtime_that_refuses_costs_its_part_and_no_other(tmp_path: Path) -> None:
    async def act(stub: StubCluster) -> Path:
        async def refuse(name: str) -> dict[str, bytes]:
            raise RuntimeRefusal("no daemon answers", "start it")

        stub.runtime.keepsakes = refuse  # type: ignore[method-assign]
        return await save(stub)

    bundle = with_stubs(tmp_path, act)
    assert "no daemon answers; start it" in (bundle / "runtime-refused.txt").read_text()
    assert len(json.loads((bundle / "members.json").read_text())) == 6
    assert "6 of 6 members run" in (bundle / "index.html").read_text()
    assert "There is no log of it" in (bundle / "members" / "tikv1.html").read_text()


def test_an_unasked_end_is_saved_once_and_its_cause_is_named(tmp_path: Path) -> None:
    async def act(stub: StubCluster) -> tuple[str, str, str, str]:
        nothing = await save_unseen(stub)
        member = (await stub.runtime.deployment("stub")).member("tikv1")
        member.log_path.write_text('[INFO] ["Welcome to TiKV"]\n[FATAL] ["cluster ID mismatch, local 1 != remote 2"]\n')
        stub.runtime.end("tikv1", Exit(1, None, asked=False, at=time.time()))
        first = await save_unseen(stub)
        return nothing, first, await save_unseen(stub), await saved_after_a_second_end(stub)

    async def saved_after_a_second_end(stub: StubCluster) -> str:
        """Of a time before the bundle was finished: the member ended while it was being written."""
        stub.runtime.end("tikv2", Exit(2, None, asked=False, at=time.time() - 3600))
        return await save_unseen(stub)

    nothing, first, again, second = with_stubs(tmp_path, act)
    assert (nothing, again) == ("", "")
    assert second not in ("", first)
    told = json.loads((Path(first) / "bundle.json").read_text())
    assert (told["reason"], told["text"]) == ("unasked-end", "stub: tikv1 ended: exit code 1, unexpected")
    assert told["causes"]["tikv1"]["name"] == "cluster-id-mismatch"
    page = (Path(first) / "index.html").read_text()
    assert "tikv1 holds the data of another cluster" in page
    assert "drillyard down --delete-data" in page, "the mend"


def test_asked_ends_and_a_damaged_bundle(tmp_path: Path) -> None:
    async def act(stub: StubCluster) -> tuple[str, str]:
        stub.runtime.end("tikv0", Exit(0, None, asked=True, at=time.time()))
        asked = await save_unseen(stub)
        stub.runtime.end("tikv1", Exit(1, None, asked=False, at=time.time()))
        (Path(await save_unseen(stub)) / "members.json").write_text("{")
        return asked, await save_unseen(stub)

    asked, after_damage = with_stubs(tmp_path, act)
    assert asked == ""
    assert after_damage, "what cannot be read tells of nothing"


def test_a_diagnosis_asks_everything_and_has_a_page_for_each_member(tmp_path: Path) -> None:
    async def act(stub: StubCluster) -> Diagnosis:
        stub.world.own_health["pd1"] = False
        stub.world.store_state["tikv2"] = "Disconnected"
        return await diagnose(stub.scope(), "stub")

    diagnosis = with_stubs(tmp_path, act)
    trouble = diagnosis.report.trouble
    assert trouble is not None
    assert diagnosis.page is not None
    assert trouble.evidence == diagnosis.evidence == str(diagnosis.page.parent)
    page = html.unescape(diagnosis.page.read_text())
    for said in (trouble.text, "pd1 says that it is not healthy", "tikv2 is Disconnected, not Up", "data-path"):
        assert said in page
    for role in Role:
        for number in range(3):
            assert (diagnosis.page.parent / "members" / f"{role.value}{number}.html").exists()


def test_a_diagnosis_of_a_healthy_cluster_says_so(tmp_path: Path) -> None:
    diagnosis = with_stubs(tmp_path, lambda stub: diagnose(stub.scope(), "stub"))
    assert diagnosis.report.is_ready
    assert diagnosis.page is not None
    assert "stub is ready: 6 of 6 gates are open" in diagnosis.page.read_text()
