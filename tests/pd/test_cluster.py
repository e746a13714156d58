"""PD's replicated state: commands, their refusals, region epochs and store states."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.emulator.pd.cluster import Cluster, RegionTree, bootstrap_mistake, state_name
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.stores import parse_version
from drillyard.wire import drillpb, metapb, pdpb

SECOND = 10**9


def region(region_id: int, start: bytes, end: bytes, epoch: tuple[int, int], *stores: int) -> metapb.Region:
    """`epoch` is version and conf_ver."""
    return metapb.Region(
        id=region_id,
        start_key=start,
        end_key=end,
        region_epoch=metapb.RegionEpoch(version=epoch[0], conf_ver=epoch[1]),
        peers=[metapb.Peer(id=region_id * 100 + store, store_id=store) for store in stores or (1,)],
    )


def store(store_id: int, address: str = "", version: str = "8.1.0") -> metapb.Store:
    return metapb.Store(id=store_id, address=address or f"127.0.0.1:2016{store_id}", version=version)


def apply(cluster: Cluster, **command: object) -> Outcome:
    return cluster.apply(drillpb.PdCommand(**command).SerializeToString())  # type: ignore[arg-type]


def bootstrapped() -> Cluster:
    cluster = Cluster()
    first = drillpb.PdBootstrap(store=store(1), region=region(2, b"", b"", (1, 1)), now_ns=5 * SECOND)
    assert apply(cluster, bootstrap=first).refusal is None
    return cluster


@pytest.mark.parametrize(
    ("state", "silent_s", "name"),
    [
        (metapb.Up, 0, "Up"),
        (metapb.Up, 20, "Up"),
        (metapb.Up, 20.001, "Disconnected"),
        (metapb.Up, 1800, "Disconnected"),
        (metapb.Up, 1800.001, "Down"),
        (metapb.Up, -5, "Up"),  # the clock went back
        (metapb.Offline, 0, "Offline"),
        (metapb.Offline, 9999, "Offline"),
        (metapb.Tombstone, 9999, "Tombstone"),
    ],
)
def test_the_state_of_a_store(state: metapb.StoreState, silent_s: float, name: str) -> None:
    now_ns = 10**18
    heard = metapb.Store(state=state, last_heartbeat=now_ns - int(silent_s * SECOND))
    assert state_name(heard, now_ns, 1800 * SECOND) == name


def test_a_store_that_never_sent_a_heartbeat_is_down() -> None:
    assert state_name(store(1), 10**18, 1800 * SECOND) == "Down"


def test_a_short_down_time_comes_before_disconnected() -> None:
    heard = metapb.Store(last_heartbeat=10**18 - 15 * SECOND)
    assert state_name(heard, 10**18, 10 * SECOND) == "Down"


def test_a_cluster_is_bootstrapped_once() -> None:
    cluster = bootstrapped()
    again = drillpb.PdBootstrap(store=store(7), region=region(8, b"", b"", (1, 1)), now_ns=9)
    refusal = apply(cluster, bootstrap=again).refusal
    assert refusal is not None
    assert (refusal.type, refusal.message) == (pdpb.ALREADY_BOOTSTRAPPED, "cluster is already bootstrapped")
    assert list(cluster.stores) == [1]
    assert cluster.bootstrapped_at_ns == 5 * SECOND


@pytest.mark.parametrize(
    ("request_", "mistake"),
    [
        (pdpb.BootstrapRequest(region=region(2, b"", b"", (1, 1))), "missing store meta"),
        (pdpb.BootstrapRequest(store=store(0), region=region(2, b"", b"", (1, 1))), "zero store id"),
        (pdpb.BootstrapRequest(store=store(1)), "missing region meta"),
        (pdpb.BootstrapRequest(store=store(1), region=region(2, b"a", b"", (1, 1))), "key range"),
        (pdpb.BootstrapRequest(store=store(1), region=region(0, b"", b"", (1, 1))), "zero region id"),
        (pdpb.BootstrapRequest(store=store(1), region=region(2, b"", b"", (1, 1), 1, 3)), "peer count 2"),
        (pdpb.BootstrapRequest(store=store(1), region=region(2, b"", b"", (1, 1), 3)), "peer store id 3 != 1"),
        (pdpb.BootstrapRequest(store=store(1), region=region(2, b"", b"", (1, 1), 1)), ""),
    ],
)
def test_what_may_not_bootstrap(request_: pdpb.BootstrapRequest, mistake: str) -> None:
    said = bootstrap_mistake(request_, 77)
    assert mistake in said
    assert bool(said) == bool(mistake)


def test_an_address_belongs_to_one_store() -> None:
    cluster = bootstrapped()
    refusal = apply(cluster, put_store=store(5, "127.0.0.1:20161")).refusal
    assert refusal is not None
    assert refusal.message.startswith("duplicated store address")
    assert 5 not in cluster.stores


@pytest.mark.parametrize(
    ("version", "words"),
    [("6.0.0", "version should compatible with version  8.1.0, got 6.0.0"), ("new", "is not a version")],
)
def test_versions_that_do_not_fit(version: str, words: str) -> None:
    cluster = bootstrapped()
    refusal = apply(cluster, put_store=store(5, version=version)).refusal
    assert refusal is not None
    assert words in refusal.message


def test_the_cluster_version_is_the_lowest_of_its_stores() -> None:
    cluster = Cluster()
    first = drillpb.PdBootstrap(store=store(1, version=""), region=region(2, b"", b"", (1, 1)))
    apply(cluster, bootstrap=first)
    assert apply(cluster, put_store=store(1, version="8.1.0")).refusal is None
    assert apply(cluster, put_store=store(3, version="8.2.0")).refusal is None
    assert cluster.cluster_version == "8.1.0"


@pytest.mark.parametrize(
    ("text", "version"),
    [("", (1, 0, 0)), ("v8.1.0-alpha", (8, 1, 0)), ("6.6.0", (6, 6, 0)), ("6.6", None), ("a.b.c", None)],
)
def test_versions(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


def test_a_store_keeps_its_heartbeat_and_labels_when_it_comes_back() -> None:
    cluster = bootstrapped()
    labelled = store(3)
    labelled.labels.add(key="host", value="h1")
    apply(cluster, put_store=labelled)
    apply(cluster, store_beat=drillpb.PdStoreBeat(store_id=3, at_ns=50))
    again = store(3, "127.0.0.1:9")
    again.labels.add(key="zone", value="z")
    apply(cluster, put_store=again)
    kept = cluster.stores[3]
    assert (kept.last_heartbeat, kept.node_state, kept.address) == (50, metapb.Serving, "127.0.0.1:9")
    assert {label.key: label.value for label in kept.labels} == {"host": "h1", "zone": "z"}


def test_a_store_is_preparing_until_its_first_heartbeat() -> None:
    cluster = bootstrapped()
    assert cluster.stores[1].node_state == metapb.Preparing
    apply(cluster, store_beat=drillpb.PdStoreBeat(store_id=1, at_ns=1))
    assert cluster.stores[1].node_state == metapb.Serving


def test_a_tombstone_stays_one() -> None:
    cluster = bootstrapped()
    cluster.stores[1].state = metapb.Tombstone
    refusal = apply(cluster, put_store=store(1)).refusal
    assert refusal is not None
    assert refusal.type == pdpb.STORE_TOMBSTONE


@pytest.mark.parametrize(
    ("newcomer", "is_taken"),
    [
        (region(2, b"", b"", (5, 4)), True),  # the very same
        (region(2, b"", b"", (5, 5)), True),
        (region(2, b"", b"", (5, 3)), False),  # an older conf_ver
        (region(2, b"", b"", (4, 9)), False),  # an older version
        (region(2, b"m", b"", (6, 4)), True),  # its left half was split off
        (region(9, b"a", b"b", (4, 9)), False),  # would cover a newer one
        (region(9, b"a", b"b", (5, 1)), True),  # a split of it
        (region(2, b"a", b"", (1, 1)), True),  # made anew by hand
    ],
)
def test_only_newer_epochs_are_taken(newcomer: metapb.Region, is_taken: bool) -> None:
    tree = RegionTree()
    assert tree.put(region(2, b"", b"", (5, 4))) == ""
    stale = tree.put(newcomer)
    assert (not stale) == is_taken
    assert stale.startswith("region is stale") != is_taken


def test_a_region_drops_what_it_covers() -> None:
    tree = RegionTree()
    for place, (start, end) in enumerate([(b"", b"c"), (b"c", b"m"), (b"m", b"")], 1):
        tree.put(region(place, start, end, (3, 1), place, 9))
    tree.put(region(2, b"", b"m", (4, 1), 2, 9))  # took its left neighbour in
    assert [each.id for each in tree] == [2, 3]
    assert tree.get(1) is None
    assert {store_id: number for store_id, number in tree.peers.items() if number} == {2: 1, 3: 1, 9: 2}


def test_look_ups() -> None:
    tree = RegionTree()
    for place, (start, end) in enumerate([(b"", b"c"), (b"c", b"m"), (b"p", b"")], 1):
        tree.put(region(place, start, end, (1, 1)))

    def id_of(found: metapb.Region | None) -> int:
        return 0 if found is None else found.id

    assert [id_of(tree.find(key)) for key in (b"", b"b", b"c", b"l", b"m", b"o", b"p", b"z")] == [
        1,
        1,
        2,
        2,
        0,
        0,
        3,
        3,
    ]
    assert [id_of(tree.before(key)) for key in (b"", b"d", b"q", b"n")] == [0, 1, 0, 0]
    assert [id_of(tree.after(each)) for each in tree] == [2, 0, 0]
    assert [each.id for each in tree.scan(b"d", b"", 0)] == [2, 3]
    assert [each.id for each in tree.scan(b"", b"", 2)] == [1, 2]
    assert [each.id for each in tree.scan(b"n", b"p", 0)] == []
    assert [each.id for each in tree.scan(b"a", b"c", 0)] == [1]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 9), st.integers(1, 10), st.integers(1, 9), st.integers(1, 3)),
        max_size=40,
    )
)
def test_regions_never_overlap(puts: list[tuple[int, int, int, int, int]]) -> None:
    tree = RegionTree()
    for region_id, start, length, version, conf_ver in puts:
        tree.put(region(region_id, bytes([start]), bytes([start + length]), (version, conf_ver)))
        ordered = list(tree)
        assert all(left.end_key <= right.start_key for left, right in itertools.pairwise(ordered))
        assert len(ordered) == len(tree) == sum(tree.peers.values())
        assert all(tree.find(each.start_key) is each for each in ordered)


def test_id_windows_never_meet() -> None:
    cluster = Cluster()
    ends = [1]
    for _ in range(3):
        apply(cluster, lead=drillpb.PdLead(member_id=1, ids=1000, cluster_id=4, now_ms=1, window_ms=3000))
        ends.append(cluster.ids_end)
        ends.append(apply(cluster, allot_ids=1000).value)
    assert ends == [1, 1001, 2001, 3001, 4001, 5001, 6001]


def test_a_new_leader_starts_its_timestamps_after_the_bound() -> None:
    cluster = Cluster()
    lead = drillpb.PdLead(member_id=1, cluster_id=4, now_ms=1000, window_ms=3000)
    assert apply(cluster, lead=lead).value == 1000
    assert apply(cluster, raise_bound_ms=9000).value == 9000
    assert apply(cluster, raise_bound_ms=8000).value == 9000
    lead = drillpb.PdLead(member_id=2, cluster_id=5, now_ms=2000, window_ms=3000)  # its clock is behind
    assert apply(cluster, lead=lead).value == 9000
    assert cluster.bound_ms == 12000
    assert cluster.cluster_id == 4


def test_a_member_with_another_data_directory_is_refused() -> None:
    cluster = Cluster()
    assert apply(cluster, publish=drillpb.PdMember(id=1, incarnation=5, client_urls=["a"])).refusal is None
    assert apply(cluster, publish=drillpb.PdMember(id=1, incarnation=5, client_urls=["b"])).refusal is None
    assert apply(cluster, publish=drillpb.PdMember(id=1, incarnation=6)).refusal is not None
    assert list(cluster.members[1].client_urls) == ["b"]


def test_safe_points_only_move_forward() -> None:
    cluster = bootstrapped()
    assert [apply(cluster, safe_point=each).value for each in (5, 3, 9)] == [5, 5, 9]


def test_service_safe_points() -> None:
    cluster = bootstrapped()

    def ask(service: str, safe_point: int, expires_s: int, now_s: int) -> int:
        wanted = drillpb.PdServiceSafePoint(service_id=service, safe_point=safe_point, expires_s=expires_s, now_s=now_s)
        return apply(cluster, service_safe_point=wanted).value

    assert ask("backup", 100, 50, 10) == 0, "the collector has collected nothing yet"
    assert ask("gc_worker", 150, 1 << 40, 10) == 100
    assert ask("late", 70, 50, 10) == 100, "behind the lowest: not taken"
    assert ask("gc_worker", 160, 1 << 40, 51) == 160, "the backup has expired"
    assert ask("backup", 170, 99, 51) == 160
    assert ask("backup", 0, 0, 51) == 160, "given up"
    assert list(cluster.service_safe_points) == ["gc_worker"]


def test_the_state_survives_its_record() -> None:
    cluster = bootstrapped()
    apply(cluster, lead=drillpb.PdLead(member_id=1, term=3, cluster_id=4, ids=1000, now_ms=7, window_ms=3000))
    apply(cluster, publish=drillpb.PdMember(id=1, name="pd0", incarnation=5))
    apply(cluster, put_region=region(2, b"", b"", (1, 2), 1, 2))
    apply(cluster, safe_point=5)
    apply(cluster, setting=drillpb.PdSetting(key="replication.max-replicas", value="5"))
    record = cluster.to_message()
    assert Cluster.from_message(drillpb.PdState.FromString(record.SerializeToString())).to_message() == record


def test_an_unknown_command_changes_nothing() -> None:
    cluster = bootstrapped()
    before = cluster.to_message()
    assert cluster.apply(b"") == Outcome()
    assert cluster.to_message() == before
