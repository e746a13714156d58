"""Who a PD member is: founder of a group, newcomer to a running one, or what its data directory says it is.

Rules: a founder's id is made from its peer address and the token of the cluster, as the real one's, so it is known
before anybody has talked to anybody. A newcomer's id is drawn, so that one which was removed never comes back under its
old id. Both are written into the data directory before anybody else is told. From then on the directory counts: flags
of a founder that contradict it stop the member by name, and `--join` of a member that is in already means nothing.

To come in, a newcomer asks any member who leads, and the leader to be taken in. It may ask again after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from drillyard.emulator import flags
from drillyard.emulator.logs import Log
from drillyard.emulator.member import NamedStop
from drillyard.emulator.pd.config import Options
from drillyard.emulator.pd.member import Identity, split_url
from drillyard.emulator.pd.membership import SAME_NAME
from drillyard.emulator.raft_codec import MalformedRecord
from drillyard.emulator.storage import Batch, Storage
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import drillpb, pdpb
from drillyard.wire.rpc import Channel, RpcError
from drillyard.wire.services import MEMBERS, PD

IDENTITY_KEY = b"pd/identity"
JOIN_S = 10.0  # as long as the real one tries to reach somebody
CALL_S = 2.0
RETRY_S = 0.1


def check_url(flag: str, url: str) -> None:
    scheme, separator, address = url.partition("://")
    if not separator or scheme != "http" or "," in url:
        flags.refuse(f"{flag} {url!r} is not usable", "give one URL like http://127.0.0.1:2379 (no TLS here)")
    try:
        flags.address(address.rstrip("/"))
    except ValueError as error:
        flags.refuse(f"{flag} {url!r} is not usable", str(error))


def initial_members(text: str) -> dict[str, str]:
    """Name to peer URL, in the order given."""
    members: dict[str, str] = {}
    for part in text.split(","):
        name, equals, url = part.strip().partition("=")
        if not equals or not name:
            flags.refuse(f"--initial-cluster {text!r} is not usable", "write it like pd0=http://127.0.0.1:2380,pd1=...")
        check_url("--initial-cluster", url)
        if name in members or url in members.values():
            flags.refuse(f"--initial-cluster names {part.strip()} twice", "give each member once, at its own URL")
        members[name] = url
    return members


def member_id_of(peer_url: str, token: str) -> int:
    """The id that the real server would have: eight bytes of a hash of address and token."""
    digest = hashlib.sha1(f"{peer_url}{token}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def group_id_of(member_ids: Sequence[int]) -> int:
    text = b"".join(member_id.to_bytes(8, "big") for member_id in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8], "big")


async def identity_of(options: Options, storage: Storage, log: Log) -> Identity:
    """Who this member is; a newcomer is taken in first."""
    kept = _kept(storage)
    if kept is not None and not kept.has_asked:
        if kept.joined_to or options.join:
            return _known(options, kept)
        return _founder(options, kept)
    if options.join:
        return await _joined(options, storage, log, kept or _draft(options, storage))
    return _founder(options, _found(options, storage))


def _kept(storage: Storage) -> drillpb.PdIdentity | None:
    record = storage.get(IDENTITY_KEY)
    if record is None:
        return None
    try:
        return drillpb.PdIdentity.FromString(record)
    except DecodeError as error:
        raise MalformedRecord("the record of who this member is cannot be read") from error


def _keep(storage: Storage, record: drillpb.PdIdentity) -> drillpb.PdIdentity:
    batch = Batch()
    batch.put(IDENTITY_KEY, record.SerializeToString())
    storage.write(batch)
    storage.sync()
    return record


# ---- founders ----


def _founders(options: Options) -> dict[int, drillpb.PdMember]:
    token = options.initial_cluster_token
    return {
        member_id_of(url, token): drillpb.PdMember(id=member_id_of(url, token), name=name, peer_urls=[url])
        for name, url in initial_members(options.initial_cluster).items()
    }


def _own_id(options: Options) -> int:
    return next(member_id for member_id, record in _founders(options).items() if record.name == options.name)


def _found(options: Options, storage: Storage) -> drillpb.PdIdentity:
    founders = _founders(options)
    record = drillpb.PdIdentity(
        member_id=_own_id(options),
        name=options.name,
        incarnation=secrets.randbits(63),
        group_id=group_id_of(tuple(founders)),
        first_members={each.name: member_id for member_id, each in founders.items()},
    )
    return _keep(storage, record)


def _founder(options: Options, kept: drillpb.PdIdentity) -> Identity:
    """A founder that was given the flags of its first start."""
    founders, own_id = _founders(options), _own_id(options)
    if (kept.member_id, kept.group_id) != (own_id, group_id_of(tuple(founders))):
        members = ", ".join(sorted(kept.first_members))
        raise NamedStop(
            f"{options.data_dir} is of member {kept.name} ({kept.member_id}) of the cluster of {members}, and "
            f"the flags say {options.name} ({own_id}) of {', '.join(each.name for each in founders.values())}",
            "give the same --name, --initial-cluster and peer URLs as at its first start, or an empty --data-dir",
        )
    return Identity(_own(options, kept), kept.group_id, founders)


# ---- newcomers ----


def _known(options: Options, kept: drillpb.PdIdentity) -> Identity:
    """A member that is in already, started with --join: the directory says all, but for its addresses now."""
    if kept.name != options.name:
        raise NamedStop(
            f"{options.data_dir} is of member {kept.name}, and --name is {options.name}",
            "give the same --name as at its first start, or an empty --data-dir",
        )
    founders = {member_id: drillpb.PdMember(id=member_id, name=name) for name, member_id in kept.first_members.items()}
    return Identity(_own(options, kept), kept.group_id, founders, {each.id: each for each in kept.joined_to})


def _draft(options: Options, storage: Storage) -> drillpb.PdIdentity:
    incarnation = secrets.randbits(63)
    member_id = member_id_of(
        options.advertise_peer_urls, f"{options.initial_cluster_token}{time.time_ns()}{incarnation}"
    )
    record = drillpb.PdIdentity(member_id=member_id, name=options.name, incarnation=incarnation, has_asked=True)
    return _keep(storage, record)


async def _joined(options: Options, storage: Storage, log: Log, draft: drillpb.PdIdentity) -> Identity:
    endpoints = options.join.split(",")
    if options.advertise_client_urls in endpoints:
        raise NamedStop("join self is forbidden", "name a member of the running cluster in --join")
    if draft.name != options.name:
        raise NamedStop(
            f"{options.data_dir} was to join as {draft.name}, and --name is {options.name}",
            "give the same --name as at its first start, or an empty --data-dir",
        )
    request = drillpb.JoinRequest(member=_own(options, draft))
    log.info("joining a cluster", endpoints=options.join, member_id=draft.member_id)
    answer = await _ask_to_join(endpoints, request)
    if answer.refusal:
        mend = "give it its data directory back, or another --name" if answer.refusal == SAME_NAME else _MEND_JOIN
        raise NamedStop(answer.refusal, mend)
    record = drillpb.PdIdentity(
        member_id=draft.member_id,
        name=draft.name,
        incarnation=draft.incarnation,
        group_id=answer.group_id,
        first_members={each.name: each.id for each in answer.founders},
        joined_to=answer.members,
    )
    return _known(options, _keep(storage, record))


_MEND_JOIN = "see with members and health that all its members answer, and start this one again"


async def _ask_to_join(endpoints: Sequence[str], request: drillpb.JoinRequest) -> drillpb.JoinResponse:
    """The answer of whoever leads; an end by name if nobody is found in time."""
    loop = asyncio.get_running_loop()
    deadline, trouble = loop.time() + JOIN_S, "nobody answers"
    while loop.time() < deadline:
        leaders = [await _leader_at(endpoint) for endpoint in endpoints]
        for url in dict.fromkeys(url for url in leaders if url):
            try:
                return await _call(url, request)
            except RpcError as error:
                trouble = str(error)
        await asyncio.sleep(RETRY_S)
    raise NamedStop(
        f"cannot join the cluster at {','.join(endpoints)}: context deadline exceeded ({trouble})",
        "name client URLs of members that run and have a leader",
    )


async def _leader_at(endpoint: str) -> str:
    """The client URL of the leader, as the member at an endpoint knows it; nothing if it does not say."""
    channel = Channel(*split_url(endpoint))
    try:
        answer = await channel.unary(PD.GetMembers, pdpb.GetMembersRequest(), timeout_s=CALL_S)
    except RpcError:
        return ""
    finally:
        channel.close()
    return answer.leader.client_urls[0] if answer.leader.client_urls else ""


async def _call(url: str, request: drillpb.JoinRequest) -> drillpb.JoinResponse:
    channel = Channel(*split_url(url))
    try:
        return await channel.unary(MEMBERS.Join, request, timeout_s=JOIN_S)
    finally:
        channel.close()


def _own(options: Options, record: drillpb.PdIdentity) -> drillpb.PdMember:
    """What this member says of itself."""
    return drillpb.PdMember(
        id=record.member_id,
        name=options.name,
        peer_urls=[options.advertise_peer_urls],
        client_urls=[options.advertise_client_urls],
        deploy_path=str(Path(sys.argv[0]).resolve().parent),
        binary_version=f"v{EMULATED_VERSION}",
        git_hash=GIT_HASH,
        incarnation=record.incarnation,
    )
