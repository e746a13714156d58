"""The TOML file: what it may say, and how it is refused."""

from __future__ import annotations

import pytest

from drillyard.topology import Profile, Purpose, Role, Topology, TopologyError
from drillyard.topology_file import parse_topology


def test_an_empty_file_is_the_default() -> None:
    assert parse_topology("") == Topology.of()


def test_a_file_without_a_profile_has_the_usual_one_of_its_runtime() -> None:
    assert parse_topology("tikv = 1", usual=Profile.UPSTREAM).profile is Profile.UPSTREAM
    assert parse_topology('profile = "laptop"', usual=Profile.UPSTREAM).profile is Profile.LAPTOP


def test_counts_and_profile() -> None:
    assert parse_topology('pd = 1\ntikv = 5\nprofile = "upstream"') == Topology.of(1, 5, Profile.UPSTREAM)


def test_a_file_that_says_everything() -> None:
    whole = parse_topology(
        """
        tikv = 3
        host = "127.0.0.2"
        [[pd]]
        name = "alpha"
        client-port = 4000
        peer-port = 4001
        flags = ["--force-new-cluster"]
        config = { lease = 7, replication = { location-labels = ["zone"] } }
        [[pd]]
        host = "127.0.0.3"
        [pd-config]
        lease = 5
        schedule.max-store-down-time = "1m"
        [tikv-config.raftstore]
        hibernate-regions = false
        """
    )
    alpha, pd1, tikv0 = whole.members[:3]
    assert (alpha.name, alpha.host, alpha.flags) == ("alpha", "127.0.0.2", ("--force-new-cluster",))
    assert alpha.ports == {Purpose.CLIENT: 4000, Purpose.PEER: 4001}
    assert alpha.config == {
        "lease": 7,
        "schedule.max-store-down-time": "1m",
        "replication.location-labels": ["zone"],
    }
    assert (pd1.name, pd1.host, pd1.ports, pd1.config["lease"]) == ("pd1", "127.0.0.3", {}, 5)
    assert (tikv0.role, tikv0.config) == (Role.TIKV, {"raftstore.hibernate-regions": False})


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("pd = [", "cluster.toml", "not TOML"),
        ("pds = 3", "pds", "unknown key; did you mean pd?"),
        ("zebra = 3", "zebra", "unknown key; known are: profile, host, pd, tikv, pd-config, tikv-config"),
        ('[[pd]]\nclientport = 3\n[[pd]]\nname = "b"', "pd[0].clientport", "unknown key; did you mean client-port?"),
        ("[[tikv]]\npeer-port = 3", "tikv[0].peer-port", "unknown key"),
        ('[[pd]]\nclient-port = "high"', "pd[0].client-port", "'high' does not fit; write a whole number"),
        ("pd = [1]", "pd[0]", "1 does not fit; write a table"),
        ('profile = "fast"', "profile", "write one of 'laptop' or 'upstream'"),
        ("pd = 0", "pd", "0 PD members; give a number from 1 to 50"),
        ("[pd-config]\nsince = 1979-05-27", "since", "cannot be a setting"),
        ("[[pd]]\nclient-port = 70000", "pd[0] (pd0).client-port", "out of range"),
        ("pd = 2\n[[tikv]]\nstatus-port = 70000", "tikv[0] (tikv0).status-port", "out of range"),
    ],
)
def test_what_is_refused(text: str, field: str, words: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "cluster.toml")
    assert field in [problem.field for problem in caught.value.problems]
    assert words in str(caught.value)


def test_tables_are_not_blamed_for_being_no_count() -> None:
    with pytest.raises(TopologyError) as caught:
        parse_topology('[[pd]]\nname = "a"\nclient-prot = 3000')
    assert [problem.field for problem in caught.value.problems] == ["pd[0].client-prot"]
