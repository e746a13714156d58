"""The Python API on emulated members: contexts that prove, clean up after themselves, and keep evidence of failures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shell import Shell

import drillyard
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import NotReady, Wanted, Yard
from drillyard.runtimes.abilities import Misuse, NoSuchMember
from drillyard.topology import TopologyError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def topology(home: Path) -> Path:
    """A small cluster on free ports."""
    return Shell(home).topology(1, 1)


def deployments(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "deployments").iterdir())


def test_a_cluster_for_the_block(home: Path, topology: Path) -> None:
    async def run() -> None:
        async with drillyard.cluster(home=home, topology=topology) as c:
            assert c.report is not None
            assert c.report.is_ready
            client = RawClient(c.pd_endpoints)
            assert (await client.put(b"k", b"v")).is_ok
            assert (await client.get(b"k")).value == b"v"
            client.close()
            assert (await c.stop("tikv0")).state == "stopped"
            assert not (await c.verify()).is_ready
            assert (await c.start("tikv0")).state == "running"
            assert (await c.verify(wait_s=60)).is_ready
            assert [line.member for line in await c.logs("pd0", lines=1)][:1] == ["pd0"]
            with pytest.raises(NoSuchMember, match="no member 'tikv9'"):
                await c.kill("tikv9")

    asyncio.run(run())
    assert deployments(home) == [], "gone, with nothing left"


def test_the_sync_twin_and_a_name_that_is_kept(home: Path, topology: Path) -> None:
    with drillyard.cluster_sync("mine", keep=True, home=home, topology=topology) as c:
        assert c.report is not None
        assert c.report.is_ready
        running = {row.name: row.pid for row in c.status().members}
    with drillyard.cluster_sync("mine", home=home) as again:
        assert {row.name: row.pid for row in again.status().members} == running, "it was up, so nothing was started"
    yard = Yard(home)
    standing = asyncio.run(yard.cluster("mine").status())
    assert standing.is_up, "one that was there before is left as it was found"
    assert asyncio.run(yard.cluster("mine").down(delete_data=True)).is_clean


def test_a_block_that_fails_keeps_evidence_before_the_data_goes(home: Path, topology: Path) -> None:
    names: list[str] = []

    def block() -> None:
        with drillyard.cluster_sync(home=home, topology=topology) as c:
            names.append(c.name)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        block()
    note = next(note for note in raised.value.__notes__ if note.startswith("drillyard: evidence is in "))
    bundle = Path(note.removeprefix("drillyard: evidence is in "))
    assert "Welcome to TiKV" in (bundle / "logs" / "tikv0.log").read_text()
    assert "GET /pd/api/v1/health\nHTTP 200" in (bundle / "pd" / "pd0.txt").read_text()
    assert sorted(path.name for path in (home / "deployments" / names[0]).iterdir()) == ["evidence"]


def test_what_cannot_be_made_ready_is_raised_with_its_report(home: Path, topology: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tikv-server"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    refused = drillyard.cluster_sync(home=home, topology=topology, tikv_binary=str(broken))
    with pytest.raises(NotReady, match="exit code 7") as raised, refused:
        pass
    trouble = raised.value.report.trouble
    assert trouble is not None
    assert trouble.culprit == "tikv0"
    assert Path(trouble.evidence).is_dir()


def test_a_cancelled_block_is_taken_down(home: Path, topology: Path) -> None:
    async def run() -> None:
        entered = asyncio.Event()

        async def block() -> None:
            async with drillyard.cluster(home=home, topology=topology):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(block())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert asyncio.run(Yard(home).list()).standings == ()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Wanted(tikv=0), "0 TiKV members"),
        (Wanted(profile="fast"), "'fast' is no profile"),
        (Wanted(timeout_s=-1), "-1 s is no time to wait"),
        (Wanted(pd=3, topology="x.toml"), "a topology and counts"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(home: Path, wanted: Wanted, told: str) -> None:
    with pytest.raises(TopologyError, match=told):
        asyncio.run(Yard(home).up(wanted))
    assert not home.exists()


def test_a_name_that_is_no_name(home: Path) -> None:
    with pytest.raises(Misuse, match="is no deployment name"), drillyard.cluster_sync("Not a name", home=home):
        pass


@pytest.mark.parametrize(
    ("wanted", "pd", "tikv"),
    [
        (Wanted(version="v8.1.0"), "pingcap/pd:v8.1.0", "pingcap/tikv:v8.1.0"),
        (Wanted(version="v8.1.0", tikv_image="mine:1"), "pingcap/pd:v8.1.0", "mine:1"),
        (Wanted(pd_image="mine:1"), "mine:1", None),
    ],
)
def test_images_by_version_or_by_name(wanted: Wanted, pd: str, tikv: str | None) -> None:
    images = wanted.request("a").images
    assert images is not None
    assert (images.pd, images.tikv) == (pd, tikv)


def test_counts_for_containers_have_the_real_servers_timings() -> None:
    local, containers = (Wanted(pd=1, runtime=runtime).request("a").topology for runtime in (None, "compose"))
    assert local is not None
    assert containers is not None
    assert (local.profile.value, containers.profile.value) == ("laptop", "upstream")
