"""A store's life in PD's replicated state, and the watch over those that leave."""

from __future__ import annotations

import pytest

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.departures import FOREVER_S, LOOK_EVERY_NS, Departures
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.reports import Reports
from drillyard.emulator.pd.stores import UNLIMITED_RATE, label_mistake, merged_labels, strict_mistake
from drillyard.wire import drillpb, metapb, pdpb

MIB = 1 << 20
UP, OFFLINE, TOMBSTONE = metapb.Up, metapb.Offline, metapb.Tombstone


def apply(cluster: Cluster, **command: object) -> Outcome:
    return cluster.apply(drillpb.PdCommand(**command).SerializeToString())  # type: ignore[arg-type]


def said(outcome: Outcome) -> str:
    return "" if outcome.refusal is None else outcome.refusal.message


def store(store_id: int, **fields: object) -> metapb.Store:
    kept = {"address": f"127.0.0.1:2016{store_id}", "version": "8.1.0", **fields}
    return metapb.Store(id=store_id, **kept)  # type: ignore[arg-type]


def cluster_of(stores: int) -> Cluster:
    cluster = Cluster()
    region = metapb.Region(
        id=2, region_epoch=metapb.RegionEpoch(version=1, conf_ver=1), peers=[metapb.Peer(id=20, store_id=1)]
    )
    apply(cluster, bootstrap=drillpb.PdBootstrap(store=store(1), region=region))
    for store_id in range(2, stores + 1):
        apply(cluster, put_store=store(store_id))
    for store_id in range(1, stores + 1):
        apply(cluster, store_beat=drillpb.PdStoreBeat(store_id=store_id, at_ns=5))
    return cluster


def remove(cluster: Cluster, store_id: int, *, force: bool = False, replicas: int = 3) -> str:
    removal = drillpb.PdStoreRemoval(store_id=store_id, physically_destroyed=force, replicas=replicas)
    return said(apply(cluster, remove_store=removal))


def move_region(cluster: Cluster, *stores: int) -> None:
    region = metapb.Region()
    region.CopyFrom(next(iter(cluster.regions)))
    region.region_epoch.conf_ver += 1
    del region.peers[:]
    region.peers.extend(metapb.Peer(id=20 + each, store_id=each) for each in stores)
    assert apply(cluster, put_region=region).refusal is None


NOT_ENOUGH = (
    "[PD:core:ErrStoresNotEnough]can not remove store {} since the number of up stores would be {} while need {}"
)


def test_with_as_many_stores_as_replicas_none_may_leave_but_a_destroyed_one() -> None:
    cluster = cluster_of(3)
    assert remove(cluster, 3) == NOT_ENOUGH.format(3, 2, 3)
    assert cluster.stores[3].state == UP
    assert remove(cluster, 3, replicas=2) == ""
    assert remove(cluster, 2, replicas=2) == NOT_ENOUGH.format(2, 1, 2)
    assert remove(cluster, 2, replicas=2, force=True) == ""
    assert cluster.stores[2].physically_destroyed


def test_a_store_leaves_and_is_buried_when_it_is_empty() -> None:
    cluster = cluster_of(4)
    assert remove(cluster, 1) == ""
    assert remove(cluster, 1) == ""  # once more is nothing new
    leaving = cluster.stores[1]
    assert (leaving.state, leaving.node_state) == (OFFLINE, metapb.Removing)
    assert cluster.book.profile(1).remove_peer == UNLIMITED_RATE
    assert said(apply(cluster, bury_store=1)) == "store 1 still holds 1 regions"
    move_region(cluster, 2)
    assert apply(cluster, bury_store=1).refusal is None
    assert (cluster.stores[1].state, cluster.stores[1].node_state) == (TOMBSTONE, metapb.Removed)
    assert remove(cluster, 1) == "[PD:core:ErrStoreRemoved]store 1 has been removed"
    assert said(apply(cluster, raise_store=1)) == "[PD:core:ErrStoreRemoved]store 1 has been removed"
    again = apply(cluster, put_store=store(1))
    assert again.refusal is not None
    assert (again.refusal.type, again.refusal.message) == (pdpb.STORE_TOMBSTONE, "store is tombstone")


def test_a_store_that_leaves_may_come_back_with_its_limits() -> None:
    cluster = cluster_of(4)
    apply(cluster, limit_store=drillpb.PdStoreLimit(store_id=4, rate=7, remove_peer=True))
    remove(cluster, 4)
    assert apply(cluster, raise_store=4).refusal is None
    assert (cluster.stores[4].state, cluster.stores[4].node_state) == (UP, metapb.Serving)
    profile = cluster.book.profile(4)
    assert (profile.add_peer, profile.remove_peer) == (15, 7)


def test_a_destroyed_store_does_not_come_back_and_frees_its_address() -> None:
    cluster = cluster_of(4)
    remove(cluster, 4, force=True)
    assert said(apply(cluster, raise_store=4)) == "[PD:core:ErrStoreDestroyed]store 4 has been physically destroyed"
    assert remove(cluster, 4) == "[PD:core:ErrStoreDestroyed]store 4 has been physically destroyed"
    assert said(apply(cluster, put_store=store(5, address="127.0.0.1:20164"))) == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"remove_store": drillpb.PdStoreRemoval(store_id=9)}, "[PD:core:ErrStoreNotFound]store 9 not found"),
        ({"raise_store": 9}, "[PD:core:ErrStoreNotFound]store 9 not found"),
        ({"bury_store": 9}, "[PD:core:ErrStoreNotFound]store 9 not found"),
        ({"bury_store": 1}, "[PD:cluster:ErrStoreIsUp]store is still up, please remove store gracefully"),
        ({"weigh_store": drillpb.PdStoreWeight(store_id=9)}, "[PD:core:ErrStoreNotFound]store 9 not found"),
        ({"limit_store": drillpb.PdStoreLimit(store_id=9)}, "[PD:core:ErrStoreNotFound]store 9 not found"),
        (
            {"label_store": drillpb.PdStoreLabels(store_id=9)},
            "[PD:cluster:ErrInvalidStoreID]invalid store id 9, not found",
        ),
    ],
)
def test_what_is_refused(command: dict[str, object], message: str) -> None:
    assert said(apply(cluster_of(3), **command)) == message


def test_a_tombstone_is_forgotten_only_without_regions() -> None:
    cluster = cluster_of(4)
    remove(cluster, 4)
    assert apply(cluster, forget_store=4).refusal is None  # no tombstone yet: stays
    assert 4 in cluster.stores
    apply(cluster, bury_store=4)
    move_region(cluster, 1, 4)  # a late report that still names it
    assert said(apply(cluster, forget_store=4)) == "failed stores: 4"
    move_region(cluster, 1)
    apply(cluster, forget_store=4)
    assert 4 not in cluster.stores


def test_stores_and_their_profiles_outlive_a_snapshot() -> None:
    cluster = cluster_of(4)
    apply(cluster, weigh_store=drillpb.PdStoreWeight(store_id=2, leader=0.5, region=2))
    apply(cluster, limit_store=drillpb.PdStoreLimit(store_id=2, rate=3, add_peer=True))
    apply(cluster, label_store=drillpb.PdStoreLabels(store_id=2, labels=[metapb.StoreLabel(key="zone", value="a")]))
    remove(cluster, 4)
    again = Cluster.from_message(cluster.to_message())
    assert again.to_message() == cluster.to_message()
    assert apply(again, raise_store=4).refusal is None
    assert again.book.profile(4).remove_peer == 15


def test_the_cluster_is_of_the_release_of_its_oldest_living_store() -> None:
    cluster = cluster_of(3)
    for store_id in (2, 3):
        apply(cluster, put_store=store(store_id, version="8.2.0"))
    assert cluster.cluster_version == "8.1.0"
    remove(cluster, 1, replicas=1)
    move_region(cluster, 2)
    apply(cluster, bury_store=1)
    assert cluster.cluster_version == "8.2.0"


def labels(text: str) -> list[metapb.StoreLabel]:
    pairs = [each.partition("=") for each in text.split() if each]
    return [metapb.StoreLabel(key=key, value=value) for key, _, value in pairs]


@pytest.mark.parametrize(
    ("known", "new", "merged"),
    [
        ("zone=a", "rack=1", "zone=a rack=1"),
        ("zone=a rack=1", "ZONE=b", "zone=b rack=1"),
        ("zone=a rack=1", "zone=", "rack=1"),
        ("", "zone=a", "zone=a"),
    ],
)
def test_labels_are_merged(known: str, new: str, merged: str) -> None:
    assert merged_labels(labels(known), labels(new)) == labels(merged)


@pytest.mark.parametrize(
    ("given", "wanted", "mistake"),
    [
        ("zone=a", ["zone"], ""),
        ("ZONE=a", ["zone"], "key matching the label was not found in the PD, store label key: ZONE "),
        ("", ["zone"], "label configuration is incorrect, need to specify the key: zone "),
        ("zone=a x=1", ["zone"], "key matching the label was not found in the PD, store label key: x "),
        ("", [], ""),
    ],
)
def test_labels_that_must_match(given: str, wanted: list[str], mistake: str) -> None:
    assert strict_mistake(labels(given), wanted) == mistake


@pytest.mark.parametrize(("text", "is_right"), [("a=b", True), ("$a=", True), ("-a=b", False), ("a=b!", False)])
def test_the_form_of_labels(text: str, is_right: bool) -> None:
    assert (label_mistake(labels(text)) == "") is is_right


def reported(cluster: Cluster, size_mib: int) -> Reports:
    reports = Reports()
    region = next(iter(cluster.regions))
    reports.hear_region(
        pdpb.RegionHeartbeatRequest(region=region, leader=region.peers[0], approximate_size=size_mib * MIB)
    )
    return reports


def test_how_far_a_store_has_come() -> None:
    cluster, departures = cluster_of(4), Departures()
    now = 10**18
    assert departures.look(cluster, reported(cluster, 100), now) == []
    remove(cluster, 1)
    assert departures.look(cluster, reported(cluster, 100), now + 1) == []  # begins at once
    told = departures.progress()[1]
    assert (told.fraction, told.speed, told.left_s) == (0, 0, FOREVER_S)
    now += LOOK_EVERY_NS
    departures.look(cluster, reported(cluster, 60), now)
    told = departures.progress()[1]
    assert (round(told.fraction, 6), told.speed, told.left_s) == (0.4, 4, 15)
    move_region(cluster, 2)
    assert departures.look(cluster, reported(cluster, 60), now + 1) == []  # only at the next look
    commands = departures.look(cluster, reported(cluster, 60), now + LOOK_EVERY_NS)
    assert commands == [drillpb.PdCommand(bury_store=1)]
    cluster.apply(commands[0].SerializeToString())
    departures.look(cluster, reported(cluster, 60), now + 2 * LOOK_EVERY_NS)
    assert departures.progress() == {}


def test_sizes_are_summed_only_while_a_store_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a walk over all regions, of milliseconds with a thousand of them."""
    cluster, reports = cluster_of(4), Reports()
    monkeypatch.setattr(Reports, "totals", lambda *given: pytest.fail("nobody leaves"))
    assert Departures().look(cluster, reports, 10**18) == []


def test_an_old_tombstone_is_forgotten() -> None:
    cluster, departures = cluster_of(4), Departures()
    remove(cluster, 4)
    apply(cluster, bury_store=4)
    month_ns = 30 * 24 * 3600 * 10**9
    assert departures.look(cluster, Reports(), month_ns) == []
    assert departures.look(cluster, Reports(), month_ns + LOOK_EVERY_NS) == [drillpb.PdCommand(forget_store=4)]
