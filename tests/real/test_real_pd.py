"""Emulated stores under a real PD, which checks every rule that it relies on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from real_pd import RealPd, voters_of
from tikv_members import TikvProcess, wait_until

from tikv import RawClient, TiKVError


@pytest.fixture(scope="module")
def stores(pd: RealPd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TikvProcess]]:
    """Four stores, the last not started yet."""
    home = tmp_path_factory.mktemp("stores")
    members = [TikvProcess(home / f"tikv{number}", pd.endpoints) for number in range(4)]
    try:
        yield members
    finally:
        for member in members:
            member.kill()


def write_and_read(pd: RealPd, key: bytes) -> None:
    """Through whoever serves, as often as it takes."""

    def attempt() -> bool:
        client = RawClient(pd.endpoints.split(","), timeout=3)
        try:
            client.put(key, b"value of " + key)
            return bool(client.get(key) == b"value of " + key)
        except TiKVError:
            return False
        finally:
            client.close()

    wait_until(f"{key!r} is written and read", attempt)


def log_of(stores: list[TikvProcess]) -> str:
    return "".join(member.log_text for member in stores)


def leading_store(pd: RealPd) -> int:
    region = pd.region()
    return int(region["leader"].get("store_id", 0)) if region else 0


def is_led_by(pd: RealPd, store_id: int) -> bool:
    return leading_store(pd) == store_id


def stop_balancing(pd: RealPd) -> None:
    """From here on PD moves what it is told to move and what lacks a replica, nothing of its own accord."""
    balancers = {"balance-leader-scheduler", "balance-region-scheduler"}

    def are_gone() -> bool:
        left = balancers & set(pd.get("schedulers") or ())
        for name in left:
            pd.control("scheduler", "remove", name)
        return not left and not pd.get("operators")

    wait_until("PD balances nothing any more", are_gone)


# The tests of this file are one story: each begins where the one before it ended.


def test_three_stores_come_up(pd: RealPd, stores: list[TikvProcess], tmp_path: Path) -> None:
    for member in stores[:3]:
        member.start()
    wait_until("three stores are Up", lambda: list(pd.store_states().values()) == ["Up"] * 3)
    shown = pd.get("stores")["stores"][0]["store"]
    assert shown["version"] == "8.1.0"
    assert shown["git_hash"].startswith("drillyard-")


def test_a_fresh_pd_has_its_region_split_and_each_part_replicated(pd: RealPd, stores: list[TikvProcess]) -> None:
    wait_until("five regions", lambda: len(pd.regions()) == 5)
    wait_until("three voters each", lambda: all(len(voters_of(region)) == 3 for region in pd.regions()))
    regions = pd.regions()
    assert regions[0]["start_key"] == regions[-1]["end_key"] == ""
    for one, next_one in pairwise(regions):
        assert one["end_key"] == next_one["start_key"] != ""
    assert [region["epoch"] for region in regions] == [{"conf_ver": 5, "version": 5}] * 5
    assert pd.get("regions/check/miss-peer")["count"] == 0
    for key in (b"a", b"replicated", b"zzz"):
        write_and_read(pd, key)
    client = RawClient(pd.endpoints.split(","))
    assert [key for key, _ in client.scan()] == [b"a", b"replicated", b"zzz"]
    client.close()


def test_a_region_is_split_and_merged_by_pd_ctl(pd: RealPd, stores: list[TikvProcess]) -> None:
    stop_balancing(pd)
    write_and_read(pd, b"b")
    before = pd.region()
    pd.control("operator", "add", "split-region", str(before["id"]), "--policy=scan")
    wait_until("six regions", lambda: len(pd.regions()) == 6)
    wait_until("each part is led", lambda: all(region["leader"].get("store_id") for region in pd.regions()))
    left, right = pd.regions()[:2]
    assert right["id"] == before["id"]
    assert left["end_key"] == right["start_key"]
    assert {peer["store_id"] for peer in left["peers"]} == {peer["store_id"] for peer in right["peers"]}
    write_and_read(pd, b"a")
    write_and_read(pd, b"c")
    pd.control("operator", "add", "merge-region", str(left["id"]), str(right["id"]))
    wait_until("five regions again", lambda: len(pd.regions()) == 5)
    merged = pd.region()
    assert (merged["id"], merged["start_key"], merged["end_key"]) == (right["id"], "", before["end_key"])
    assert merged["epoch"]["version"] > max(left["epoch"]["version"], right["epoch"]["version"])
    client = RawClient(pd.endpoints.split(","))
    assert [client.get(key) for key in (b"a", b"b", b"c")] == [b"value of a", b"value of b", b"value of c"]
    client.close()
    wait_until("the source is gone everywhere", lambda: log_of(stores).count(f"region {left['id']} is a part") == 3)


def test_leadership_moves_by_pd_ctl(pd: RealPd, stores: list[TikvProcess]) -> None:
    region = pd.region()
    for target in sorted(pd.voters() - {leading_store(pd)}):
        assert "Success" in pd.control("operator", "add", "transfer-leader", str(region["id"]), str(target))
        wait_until(f"store {target} leads", partial(is_led_by, pd, target))
        write_and_read(pd, b"led by %d" % target)
    assert pd.region()["epoch"] == region["epoch"]


def test_a_peer_moves_to_a_fourth_store_through_the_joint_state(pd: RealPd, stores: list[TikvProcess]) -> None:
    stores[3].start()
    wait_until("the fourth store is Up", lambda: pd.store_states().get(stores[3].address) == "Up")
    fourth = pd.store_ids()[stores[3].address]
    region = pd.region()
    leaving = leading_store(pd)  # the hardest one: leadership has to move on the way
    pd.control("operator", "add", "transfer-peer", str(region["id"]), str(leaving), str(fourth))
    wait_until("the peer has moved", lambda: fourth in pd.voters() and leaving not in pd.voters())
    assert len(pd.voters()) == 3
    # One for the learner, two for entering and two for leaving the joint state, one for the removal.
    moved = {"conf_ver": region["epoch"]["conf_ver"] + 6, "version": region["epoch"]["version"]}
    assert pd.region()["epoch"] == moved
    write_and_read(pd, b"moved")
    left = next(member for member in stores if pd.store_ids()[member.address] == leaving)
    wait_until("the old peer is destroyed", lambda: "is destroyed" in left.log_text)


def test_a_killed_store_is_disconnected_and_comes_back(pd: RealPd, stores: list[TikvProcess]) -> None:
    leader = leading_store(pd)
    killed = next(member for member in stores if pd.store_ids()[member.address] == leader)
    killed.kill()
    write_and_read(pd, b"without one")
    wait_until("PD notices", lambda: pd.store_states()[killed.address] == "Disconnected", timeout_s=40)
    killed.start()
    wait_until("it is Up again", lambda: set(pd.store_states().values()) == {"Up"})
    wait_until("no peer is pending", lambda: all(len(voters_of(region)) == 3 for region in pd.regions()))


def test_the_leader_of_pd_dies(pd: RealPd, stores: list[TikvProcess]) -> None:
    leader = pd.leader()
    assert leader is not None
    pd.kill(leader)
    wait_until("another PD member leads", lambda: pd.leader() not in (None, leader), timeout_s=60)
    wait_until("all stores are Up", lambda: list(pd.store_states().values()) == ["Up"] * 4)
    write_and_read(pd, b"under another PD")
    wait_until("PD knows the first region again", lambda: len(pd.voters()) == 3 and leading_store(pd))
    target = min(pd.voters() - {leading_store(pd)})
    transfer = ("operator", "add", "transfer-leader", str(pd.region()["id"]), str(target))
    wait_until("PD takes orders again", lambda: "Success" in pd.control(*transfer))
    wait_until("steps reach the stores again", lambda: leading_store(pd) == target)


def test_nothing_that_was_acknowledged_is_lost(pd: RealPd, stores: list[TikvProcess]) -> None:
    for member in stores:
        member.kill()
    for member in stores:
        member.start()
    write_and_read(pd, b"after all were killed")
    client = RawClient(pd.endpoints.split(","))
    for key in (b"a", b"replicated", b"zzz", b"moved", b"without one", b"under another PD"):
        assert client.get(key) == b"value of " + key
    client.close()
