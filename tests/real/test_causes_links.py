"""Causes that need a network to cut and a real PD: links between containers are cut inside their own network
namespaces, and stores are removed from a real PD. Each cause is named, and no other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from compose_subject import REAL_PD
from links import Cuts, containers
from real_pd import executable
from shell import Shell

NAME = "cut"
PROJECT = f"drillyard-{NAME}"
PDS, TIKVS = ("pd0", "pd1", "pd2"), ("tikv0", "tikv1", "tikv2")
provokes = pytest.mark.provokes


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with containers(tmp_path_factory.mktemp("cut") / "home", NAME, REAL_PD) as shell:
        yield shell


@pytest.fixture
def cuts(yard: Shell) -> Iterator[Cuts]:
    """Links to cut; all are mended afterwards, and the cluster is whole again before the next test."""
    made = Cuts(PROJECT)
    yield made
    made.mend()
    ran = yard("verify", "--wait", "--name", NAME, "--timeout", "60", "--json")
    assert ran.code == 0, ran


def cause(yard: Shell, *name: str) -> dict[str, Any]:
    document = yard("verify", *name, "--json").document
    found: dict[str, Any] = document["error"]["cause"] if "error" in document else {"name": "", "members": []}
    return found


def wait_for_cause(yard: Shell, name: str) -> dict[str, Any]:
    """What is cut shows after a while; then this cause is named, and it stays."""
    deadline, seen = time.monotonic() + 90, dict[str, None]()
    while (found := cause(yard, "--name", NAME))["name"] != name:
        seen[found["name"]] = None
        assert time.monotonic() < deadline, f"{name} was never named, but {', '.join(seen)}"
    again = cause(yard, "--name", NAME)
    assert again["name"] == name, again
    return found


def leader(cuts: Cuts) -> str:
    answer = httpx.get(f"http://{cuts.address('pd0')}:2379/pd/api/v1/leader", timeout=5)
    return str(answer.json()["name"])


@provokes("pd-leader-unreachable")
def test_followers_that_do_not_reach_the_pd_leader(yard: Shell, cuts: Cuts) -> None:
    leads = leader(cuts)
    followers = [pd for pd in PDS if pd != leads]
    for pd in followers:
        cuts.drop(pd, "OUTPUT", "-p", "tcp", "-d", cuts.address(leads), "--dport", "2379")
    found = wait_for_cause(yard, "pd-leader-unreachable")
    assert found["members"] == followers
    assert leads in found["text"]


@provokes("pd-no-leader")
def test_pd_members_that_cannot_agree_on_a_leader(yard: Shell, cuts: Cuts) -> None:
    for pd in PDS:
        cuts.drop(pd, "INPUT", "-p", "tcp", "--dport", "2380")
    found = wait_for_cause(yard, "pd-no-leader")
    assert found["members"] == list(PDS)


@provokes("store-disconnected", "store-down")
def test_a_store_that_pd_does_not_hear(yard: Shell, cuts: Cuts) -> None:
    config = {"max-store-down-time": "40s"}
    httpx.post(f"http://{cuts.address('pd0')}:2379/pd/api/v1/config", json=config, timeout=5).raise_for_status()
    for pd in PDS:
        cuts.drop("tikv1", "OUTPUT", "-p", "tcp", "-d", cuts.address(pd))
    found = wait_for_cause(yard, "store-disconnected")
    assert found["members"] == ["tikv1"]
    found = wait_for_cause(yard, "store-down")
    assert found["members"] == ["tikv1"]


@provokes("store-offline", "store-tombstone")
def test_a_store_that_is_removed(tmp_path: Path) -> None:
    yard = Shell(tmp_path / "home")
    try:
        ran = yard("up", "--pd-binary", str(executable("pd-server-81")), "--tikv", "4", "--json")
        assert ran.code == 0, ran
        endpoint = ran.document["report"]["pd_endpoints"][0]
        with httpx.Client(base_url=f"http://{endpoint}/pd/api/v1", timeout=5) as pd:
            pd.post("/config", json={"replica-schedule-limit": 0}).raise_for_status()
            stores = pd.get("/stores").json()["stores"]
            holding = next(
                one for one in stores if one["status"].get("region_count") and not one["status"].get("leader_count")
            )
            pd.delete(f"/store/{holding['store']['id']}").raise_for_status()
            members = ran.document["report"]["members"]
            member = next(one["name"] for one in members if one["addresses"]["client"] == holding["store"]["address"])
            found = cause(yard)
            assert (found["name"], found["members"]) == ("store-offline", [member])
            pd.post("/config", json={"replica-schedule-limit": 64}).raise_for_status()
        log = Path(next(one["log_path"] for one in members if one["name"] == member))
        deadline = time.monotonic() + 90
        while "store is tombstone" not in log.read_text():  # PD lists it no more, and tells it with its next heartbeat
            assert time.monotonic() < deadline, cause(yard)
            time.sleep(0.1)
        found = cause(yard)
        assert (found["name"], found["members"]) == ("store-tombstone", [member])
    finally:
        yard.clear()
