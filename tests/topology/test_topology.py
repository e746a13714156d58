"""Topologies: the flags they render to, and what is refused with which words."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from drillyard import topology
from drillyard.topology import (
    Files,
    Member,
    Profile,
    Purpose,
    Role,
    Topology,
    TopologyError,
    flatten,
    quorum,
    render_config,
    tolerated,
)

FILES = Files("/d/data", "/d/m.toml", "/d/m.log")


def settled(given: Topology) -> Topology:
    """Ports 1000, 1001, … in the order of members and purposes."""
    keys = [(m.name, purpose) for m in given.members for purpose in topology.PURPOSES[m.role]]
    return given.settle({key: 1000 + at for at, key in enumerate(keys)})


def test_the_default_is_three_and_three() -> None:
    default = Topology.of()
    assert [m.name for m in default.members] == ["pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2"]
    assert (default.pd_quorum, default.replicas, default.is_settled) == (2, 3, False)
    assert settled(default).is_settled


def test_a_pd_renders_to_the_real_flags() -> None:
    whole = settled(Topology.of(2, 1))
    assert whole.flags_of(whole.member("pd1"), FILES) == (
        "--name=pd1",
        "--data-dir=/d/data",
        "--client-urls=http://127.0.0.1:1002",
        "--advertise-client-urls=http://127.0.0.1:1002",
        "--peer-urls=http://127.0.0.1:1003",
        "--advertise-peer-urls=http://127.0.0.1:1003",
        "--initial-cluster=pd0=http://127.0.0.1:1001,pd1=http://127.0.0.1:1003",
        "--config=/d/m.toml",
        "--log-file=/d/m.log",
        "-L",
        "info",
    )


def test_a_tikv_renders_to_the_real_flags_and_its_own() -> None:
    extra = Member("kv", Role.TIKV, flags=("--labels=zone=a",))
    whole = settled(Topology((*Topology.of(2, 0).members, extra)))
    assert whole.flags_of(whole.member("kv"), FILES) == (
        "--addr=127.0.0.1:1004",
        "--advertise-addr=127.0.0.1:1004",
        "--status-addr=127.0.0.1:1005",
        "--advertise-status-addr=127.0.0.1:1005",
        "--data-dir=/d/data",
        "--pd=127.0.0.1:1000,127.0.0.1:1002",
        "--config=/d/m.toml",
        "--log-file=/d/m.log",
        "-L",
        "info",
        "--labels=zone=a",
    )


def test_an_ipv6_host_is_bracketed() -> None:
    whole = settled(Topology((Member("pd0", Role.PD, "::1"),)))
    assert whole.pd_endpoints == ("[::1]:1000",)


def test_ports_that_were_asked_for_stay() -> None:
    asked = Topology((Member("pd0", Role.PD, ports={Purpose.CLIENT: 5000}),))
    assert settled(asked).member("pd0").addresses == {"client": "127.0.0.1:5000", "peer": "127.0.0.1:1001"}


@pytest.mark.parametrize(
    ("voters", "needed", "may_fail"), [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (6, 4, 2), (7, 4, 3)]
)
def test_quorum_arithmetic(voters: int, needed: int, may_fail: int) -> None:
    assert (quorum(voters), tolerated(voters)) == (needed, may_fail)
    assert needed + may_fail <= voters


@pytest.mark.parametrize(("stores", "replicas"), [(0, 1), (1, 1), (2, 1), (3, 3), (4, 3), (7, 3)])
def test_pd_is_told_how_many_replicas_are_possible(stores: int, replicas: int) -> None:
    whole = Topology.of(1, stores)
    assert whole.config_of(whole.member("pd0"))["replication.max-replicas"] == replicas


@pytest.mark.parametrize("profile", list(Profile))
def test_an_election_takes_ten_ticks_of_a_store(profile: Profile) -> None:
    whole = Topology.of(profile=profile)
    config = whole.config_of(whole.member("tikv0"))
    assert config["raftstore.raft-election-timeout-ticks"] == 10
    assert config["raftstore.raft-base-tick-interval"] == {Profile.LAPTOP: "100ms", Profile.UPSTREAM: "1s"}[profile]


def test_a_members_own_setting_wins_over_the_profile() -> None:
    whole = Topology((Member("pd0", Role.PD, config={"lease": 9}),))
    assert whole.config_of(whole.member("pd0"))["lease"] == 9


def test_rendered_config_is_the_toml_it_means() -> None:
    config: dict[str, topology.ConfigValue] = {
        "a": 1,
        "s.t.b": 'quo"te\\ \n',
        "s.c": True,
        "s.t.l": ["x", 2.5],
        "z-1": "100ms",
    }
    assert flatten(tomllib.loads(render_config(config))) == config


def member(name: str = "pd0", role: Role = Role.PD, **more: object) -> Member:
    return Member(name, role, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "field", "words"),
    [
        ([member("t", Role.TIKV)], "pd", "no PD"),
        ([member(), member()], "pd[1] (pd0).name", "already; give each member its own name"),
        ([member(""), member()], "pd[0] ().name", "no member name"),
        ([member("../x")], "pd[0] (../x).name", "no member name; use 1 to 63"),
        ([member(host="")], "pd[0] (pd0).host", "no host"),
        ([member(host="a b")], "pd[0] (pd0).host", "no host"),
        ([member(ports={Purpose.CLIENT: 0})], "pd[0] (pd0).client-port", "0 is out of range; use 1 to 65535"),
        ([member(ports={Purpose.PEER: 65536})], "pd[0] (pd0).peer-port", "65536 is out of range"),
        ([member(ports={Purpose.STATUS: 7})], "pd[0] (pd0).status-port", "a PD has no such port"),
        (
            [member(ports={Purpose.CLIENT: 7}), member("pd1", ports={Purpose.PEER: 7})],
            "pd[1] (pd1).peer-port",
            "127.0.0.1:7 is the client address of pd0 already; give one of them another port",
        ),
        ([member(flags=("--name=x",))], "pd[0] (pd0).flags", "--name=x is set by the topology"),
    ],
)
def test_what_is_refused(members: list[Member], field: str, words: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology(tuple(members))
    [problem] = caught.value.problems
    assert problem.field == field
    assert words in str(problem)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(TopologyError) as caught:
        Topology((member("x y", Role.TIKV), member("t", Role.TIKV, ports={Purpose.STATUS: -1})))
    assert len(caught.value.problems) == 3


def test_the_same_port_on_another_host_is_another_address() -> None:
    one, two = member(ports={Purpose.CLIENT: 7}), member("pd1", host="127.0.0.2", ports={Purpose.CLIENT: 7})
    assert len(Topology((one, two)).members) == 2


@pytest.mark.parametrize(("pd", "tikv", "field"), [(0, 3, "pd"), (3, -1, "tikv"), (51, 3, "pd")])
def test_counts_out_of_reach(pd: int, tikv: int, field: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology.of(pd, tikv)
    assert [p.field for p in caught.value.problems] == [field]


def test_even_counts_are_allowed() -> None:
    assert len(Topology.of(2, 4).members) == 6


def test_the_module_is_pure() -> None:
    text = Path(topology.__file__).read_text()
    assert not any(f"import {name}" in text for name in ("asyncio", "socket", "os", "time", "random", "subprocess"))
