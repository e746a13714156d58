"""Who may enter and leave PD's group, and who should lead it."""

from __future__ import annotations

import pytest

from drillyard.emulator.pd.membership import (
    INCOMPLETE,
    NO_MEMBER,
    NOT_ENOUGH,
    SAME_ADDRESS,
    SAME_NAME,
    UNHEALTHY,
    Roll,
    heir,
    join_mistake,
    removal_mistake,
)
from drillyard.wire import drillpb


def roll(voters: str, active: str) -> Roll:
    return Roll(frozenset(map(int, voters)), frozenset(map(int, active)), int(active[0]))


@pytest.mark.parametrize(
    ("voters", "active", "member", "mistake"),
    [
        ("123", "123", 3, ""),
        ("123", "123", 1, ""),  # the leader itself
        ("123", "12", 3, ""),  # one that is away
        ("123", "12", 2, UNHEALTHY),  # would leave one of two
        ("123", "123", 4, NO_MEMBER),
        ("12", "12", 2, ""),
        ("12", "12", 1, ""),
        ("1", "1", 1, NOT_ENOUGH),
        ("12345", "123", 4, ""),
        ("12345", "123", 3, UNHEALTHY),
        ("12345", "1234", 4, ""),
    ],
)
def test_a_removal_leaves_a_quorum(voters: str, active: str, member: int, mistake: str) -> None:
    assert removal_mistake(roll(voters, active), member) == mistake


KNOWN = [
    drillpb.PdMember(id=member, name=f"pd{member}", peer_urls=[f"http://h:{member}"], incarnation=member)
    for member in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("new", "active", "mistake"),
    [
        (drillpb.PdMember(id=4, name="pd4", peer_urls=["http://h:4"]), "123", ""),
        (drillpb.PdMember(id=4, name="pd4", peer_urls=["http://h:4"]), "12", UNHEALTHY),
        (drillpb.PdMember(name="pd4", peer_urls=["http://h:4"]), "123", INCOMPLETE),
        (drillpb.PdMember(id=4, peer_urls=["http://h:4"]), "123", INCOMPLETE),
        (drillpb.PdMember(id=4, name="pd4"), "123", INCOMPLETE),
        (drillpb.PdMember(id=4, name="pd4", peer_urls=["http://h:4", "http://"]), "123", INCOMPLETE),
        (drillpb.PdMember(id=4, name="pd4", peer_urls=["http://h:99999"]), "123", INCOMPLETE),
        (drillpb.PdMember(id=4, name="pd2", peer_urls=["http://h:4"]), "123", SAME_NAME),
        (drillpb.PdMember(id=4, name="pd4", peer_urls=["http://h:2"]), "123", SAME_ADDRESS),
        (drillpb.PdMember(id=2, name="pd2", peer_urls=["http://h:2"], incarnation=2), "12", ""),  # is in already
        (drillpb.PdMember(id=2, name="pd2", peer_urls=["http://h:2"], incarnation=9), "123", SAME_NAME),
    ],
)
def test_who_may_come_in(new: drillpb.PdMember, active: str, mistake: str) -> None:
    assert join_mistake(roll("123", active), new, KNOWN) == mistake


@pytest.mark.parametrize(
    ("priorities", "active", "chosen"),
    [
        ({}, "123", 0),
        ({2: 1}, "123", 2),
        ({2: 1}, "13", 0),  # away
        ({1: 1, 2: 1}, "123", 0),
        ({1: -1}, "123", 2),
        ({2: 1, 3: 5}, "123", 3),
    ],
)
def test_who_should_lead(priorities: dict[int, int], active: str, chosen: int) -> None:
    assert heir(priorities, roll("123", active)) == chosen
