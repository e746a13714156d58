"""Who may enter and leave PD's own group, and who should lead it: rules on values.

Rules: a group is changed only while it would still have a quorum of members that answer, as etcd protects it; a member
that is away may always be removed. One comes in under a name and an address that nobody has, and never again under an
id that was removed: without its old data it is a new member. Refusals are in the words of the real PD.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from drillyard.wire import drillpb

UNHEALTHY = "etcdserver: unhealthy cluster"
NOT_ENOUGH = "etcdserver: re-configuration failed due to not enough started members"
NO_MEMBER = "etcdserver: member not found"
SAME_ADDRESS = "etcdserver: Peer URLs already exists"
SAME_NAME = "missing data or join a duplicated pd"
REMOVED = "this member was removed from the cluster"
INCOMPLETE = "a member that joins has an id, a name, and peer URLs with scheme, host and port"


class Roll(Struct, frozen=True):
    """The group as its leader sees it. `active` are the voters that answer, the leader among them."""

    voters: frozenset[int]
    active: frozenset[int]
    leader: int

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1


def removal_mistake(roll: Roll, member_id: int) -> str:
    """Why a member may not be removed now; nothing if it may."""
    if member_id not in roll.voters:
        return NO_MEMBER
    if len(roll.voters) == 1:
        return NOT_ENOUGH
    if member_id not in roll.active:
        return ""
    return UNHEALTHY if len(roll.active) - 1 < 1 + (len(roll.voters) - 1) // 2 else ""


def join_mistake(roll: Roll, new: drillpb.PdMember, known: Iterable[drillpb.PdMember]) -> str:
    """Why a member may not come in now; nothing if it may, or has done so already."""
    if not (new.id and new.name and new.peer_urls and all(map(_is_url, new.peer_urls))):
        return INCOMPLETE  # it could never answer, and would count for the quorum from now on
    for member in known:
        if member.id == new.id and member.incarnation == new.incarnation:
            return ""
        if member.id == new.id or member.name == new.name:
            return SAME_NAME
        if set(member.peer_urls) & set(new.peer_urls):
            return SAME_ADDRESS
    return UNHEALTHY if roll.active < roll.voters else ""


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port is not None
    except ValueError:
        return False


def heir(priorities: Mapping[int, int], roll: Roll) -> int:
    """The member that should lead instead of the one that does: of a higher priority, and answering; else 0."""
    best = max(sorted(roll.active), key=lambda member_id: priorities.get(member_id, 0))
    return best if priorities.get(best, 0) > priorities.get(roll.leader, 0) else 0
