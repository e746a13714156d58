"""What one PD member is while it runs: its place in the group, its lead if it has one, and who the others are.

Rules: a member serves as leader from the moment its first entry of the term is applied until the term or the role
changes; in between `lead` is None and everybody is told "not leader". Each member puts its own record (name, client
addresses, version) into the replicated state through whoever leads. A member that comes back with an emptied data
directory under its old address has forgotten its votes: it takes no part before a quorum has looked whether it knows
it, is refused, and stops by name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from msgspec import Struct, field

from drillyard.emulator.pd.consensus import Consensus, Undetermined
from drillyard.emulator.pd.coordinator import Candidate
from drillyard.emulator.pd.events import Events
from drillyard.emulator.pd.leadership import Clock, Leadership, Means, begin
from drillyard.emulator.pd.membership import REMOVED, Roll, heir, join_mistake, removal_mistake
from drillyard.emulator.raft.types import Change, ChangeKind, ProposalDropped
from drillyard.wire import drillpb, pdpb
from drillyard.wire.rpc import Channel, RpcError, Status
from drillyard.wire.services import MEMBERS

INTRODUCE_EVERY_S = 0.1
INTRODUCE_TIMEOUT_S = 1.0
MEET_EVERY_S = 0.02
ASK_EVERY_S = 1.0
LEAVE_S = 0.5
HAND_OVER_S = 5.0


class MemberRefused(Exception):
    """The group does not take this member as it is: why, and what to do."""


class Identity(Struct, frozen=True):
    """This member, and the first members of its group by id; for one that joined later, whom it found there, too."""

    record: drillpb.PdMember
    group_id: int
    first: dict[int, drillpb.PdMember]
    joined_to: dict[int, drillpb.PdMember] = field(default_factory=dict)


class PdMember:
    def __init__(self, identity: Identity, consensus: Consensus, means: Means) -> None:
        self.identity = identity
        self.consensus = consensus
        self.settings = means.settings
        self.options = means.settings.options
        self.lead: Leadership | None = None
        self.changed = asyncio.Event()  # set and replaced whenever the leader as seen from here may have changed
        self.on_refused: Callable[[MemberRefused], None] = lambda refused: None
        self.on_heard: Callable[[int], None] = lambda member_id: None  # another member has just come up
        self._means = means
        self._log = means.log
        self._fresh_cluster_id = 0
        self._taking_over: asyncio.Task[None] | None = None
        self._introducing: asyncio.Task[None] | None = None
        self._seen_leader = 0
        self._asking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._last_leader: drillpb.PdMember | None = None
        self.is_removed = False

    def start(self, fresh_cluster_id: int) -> None:
        self._fresh_cluster_id = fresh_cluster_id
        self.consensus.on_change = self._on_change
        self.consensus.on_apply = self._on_apply
        loop = asyncio.get_running_loop()
        self._introducing = loop.create_task(self._introduce_until_known())
        self._watching = loop.create_task(self._watch_priorities())
        self._asking = loop.create_task(self._ask_while_leaderless())

    def close(self) -> None:
        self._lose_lead()
        for task in (self._introducing, self._asking, self._watching):
            if task is not None:
                task.cancel()
        self.consensus.close()

    @property
    def events(self) -> Events:
        return self._means.events

    @property
    def clock(self) -> Clock:
        return self._means.clock

    def set_log_level(self, level: str) -> None:
        """Of this member, from now on and until it ends."""
        self.settings.log_level = level
        self._log.set_level(level)
        self._log.warn("log level changed", level=level)

    # ---- who is who ----

    @property
    def cluster_id(self) -> int:
        return self.consensus.cluster.cluster_id

    def records(self) -> list[drillpb.PdMember]:
        """All members in the order of their ids, with what they said of themselves so far."""
        cluster = self.consensus.cluster
        known = {**self.identity.first, **self.identity.joined_to, **self.consensus.introduced, **cluster.members}
        return [known[member_id] for member_id in sorted(known) if member_id not in cluster.removed_members]

    def address_of(self, member_id: int) -> str | None:
        """Where the others of the group reach a member."""
        urls = [record.peer_urls for record in self.records() if record.id == member_id]
        return urls[0][0].rpartition("//")[2].rstrip("/") if urls and urls[0] else None

    def roll(self) -> Roll:
        consensus = self.consensus
        return Roll(consensus.voters, consensus.active(), self.identity.record.id)

    def leader(self) -> drillpb.PdMember | None:
        """Who leads PD as this member knows it: elected, and with its first entry applied here."""
        lead, consensus = self.consensus.cluster.lead, self.consensus
        if self.is_removed:
            return self._last_leader  # whom it knew last: it hears of no other
        if not lead.member_id or (consensus.leader, consensus.term) != (lead.member_id, lead.term):
            return None
        if consensus.leads and self.lead is None:
            return None
        return next((each for each in self.records() if each.id == lead.member_id), None)

    # ---- the lead ----

    def _on_change(self) -> None:
        if self.lead is not None or self._taking_over is not None:
            self._lose_lead()
        if self.consensus.leads:
            self._taking_over = asyncio.get_running_loop().create_task(self._take_over())
        if self.consensus.leader == 0 and self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_while_leaderless())
        self._tell_changed()

    def _on_apply(self) -> None:
        if self.identity.record.id in self.consensus.cluster.removed_members:
            self._leave()
        leader = self.leader()
        leader_id = leader.id if leader is not None else 0
        if leader_id != self._seen_leader:
            self._tell_changed()

    def _tell_changed(self) -> None:
        leader = self.leader()
        leader_id = leader.id if leader is not None else 0
        if leader is not None and leader_id != self._seen_leader:
            self._log.info("pd leader is known", leader=leader.name, leader_id=leader_id, term=self.consensus.term)
        self._seen_leader = leader_id
        if leader is not None and leader_id != self.identity.record.id:
            self._last_leader = leader
        self.changed.set()
        self.changed = asyncio.Event()

    async def _take_over(self) -> None:
        """From the election to the first moment at which this member may serve."""
        candidate = Candidate(self.identity.record.id, self._fresh_cluster_id)
        self._log.info("campaign pd leader ok", campaign_leader_name=self.options.name, term=self.consensus.term)
        try:
            start = await begin(self.consensus, self._means.clock, candidate)
        except (ProposalDropped, Undetermined) as error:
            self._log.warn("lost the lead before it began", error=str(error))
            return
        self.lead = Leadership(self.consensus, self._means, start)
        self._taking_over = None
        self._log.info(
            "PD cluster leader is ready to serve",
            pd_leader_name=self.options.name,
            cluster_id=self.cluster_id,
            first_timestamp_ms=start.first_ms,
            first_id=start.ids[0],
        )
        self._tell_changed()

    def _lose_lead(self) -> None:
        if self._taking_over is not None:
            self._taking_over.cancel()
            self._taking_over = None
        if self.lead is not None:
            self.lead.end()
            self.lead = None
            self._log.warn("no longer the leader", term=self.consensus.term, leader=self.consensus.leader)

    # ---- introductions ----

    async def introduce(self, request: drillpb.IntroduceRequest) -> drillpb.IntroduceResponse:
        """Another member says who it is. The leader records it; everybody says what is recorded."""
        if request.group_id == self.identity.group_id and self._is_removed(request.member.id):
            return drillpb.IntroduceResponse(is_removed=True)
        if request.group_id != self.identity.group_id or not self._is_one_of_us(request.member.id):
            raise RpcError(
                Status.FAILED_PRECONDITION,
                f"{request.member.name} was started with another --initial-cluster than {self.options.name}, "
                f"which has {self.options.initial_cluster}",
            )
        self.on_heard(request.member.id)
        known = self._known(request.member.id)
        is_other = known is not None and known.incarnation != request.member.incarnation
        if self.lead is not None and known != request.member and not is_other:
            await self._record(request.member)
            known = self._known(request.member.id)
        return drillpb.IntroduceResponse(known=known, leads=self.lead is not None)

    def _is_removed(self, member_id: int) -> bool:
        return member_id in self.consensus.cluster.removed_members

    def _is_one_of_us(self, member_id: int) -> bool:
        return any(record.id == member_id for record in self.records()) or member_id in self.consensus.voters

    def _known(self, member_id: int) -> drillpb.PdMember | None:
        return self.consensus.cluster.members.get(member_id) or self.consensus.introduced.get(member_id)

    async def _record(self, record: drillpb.PdMember) -> None:
        try:
            await self.consensus.submit(drillpb.PdCommand(publish=record))
        except (ProposalDropped, Undetermined) as error:
            raise RpcError(Status.UNAVAILABLE, str(error)) from error

    async def meet(self) -> None:
        """Before a new member votes, a quorum of the group (with itself) has to say that it does not know it.

        If one of them knows it under another data directory, or has another idea of the group, it is refused.
        """
        quorum = len(self.identity.first) // 2 + 1
        is_said = False
        while True:
            answers = await self.greet()
            for answer in answers:
                if isinstance(answer, RpcError) and answer.status is Status.FAILED_PRECONDITION:
                    raise MemberRefused(f"{answer.message}; start all members with the same --initial-cluster")
                if isinstance(answer, drillpb.IntroduceResponse):
                    self._refuse_double(answer)
            if 1 + sum(1 for answer in answers if isinstance(answer, drillpb.IntroduceResponse)) >= quorum:
                return
            if not is_said:
                is_said = True
                self._log.info("this member is new, and waits until a quorum has come up", quorum=quorum)
            await asyncio.sleep(MEET_EVERY_S)

    async def greet(self) -> list[drillpb.IntroduceResponse | BaseException]:
        """Tells all the others that this member is there, so that they need not find out; what each of them says."""
        others = [each for each in self.records() if each.id != self.identity.record.id and each.peer_urls]
        answers = await asyncio.gather(*(self._call(other) for other in others), return_exceptions=True)
        if any(isinstance(answer, drillpb.IntroduceResponse) and answer.is_removed for answer in answers):
            self._leave()
        return answers

    def _refuse_double(self, answer: drillpb.IntroduceResponse) -> None:
        if answer.known.id and answer.known.incarnation != self.identity.record.incarnation:
            raise MemberRefused(
                f"member {self.options.name} ({answer.known.id}) has already been part of this cluster with another "
                f"data directory than {self.options.data_dir}; give it that one back: without it, it forgot its votes"
            )

    async def _call(self, other: drillpb.PdMember) -> drillpb.IntroduceResponse:
        host, port = split_url(other.peer_urls[0])
        channel = Channel(host, port)
        request = drillpb.IntroduceRequest(group_id=self.identity.group_id, member=self.identity.record)
        try:
            return await channel.unary(MEMBERS.Introduce, request, timeout_s=INTRODUCE_TIMEOUT_S)
        finally:
            channel.close()

    # ---- entering and leaving ----

    async def join(self, request: drillpb.JoinRequest) -> drillpb.JoinResponse:
        """A new member wants to come in; asked again, the answer is the same."""
        if self.lead is None:
            raise RpcError(Status.UNAVAILABLE, "not leader")
        new = request.member
        if self._is_removed(new.id):
            return drillpb.JoinResponse(refusal=REMOVED)
        if mistake := join_mistake(self.roll(), new, self.records()):
            return drillpb.JoinResponse(refusal=mistake)
        if new.id not in self.consensus.voters:
            self._log.info("adding a member", name=new.name, member_id=new.id, peer_urls=",".join(new.peer_urls))
            await self._change(Change(ChangeKind.ADD_VOTER, new.id), drillpb.PdCommand(publish=new))
        return drillpb.JoinResponse(
            group_id=self.identity.group_id,
            member_id=new.id,
            members=self.records(),
            founders=self.identity.first.values(),
        )

    async def remove(self, member_id: int) -> str:
        """Takes a member out of the group; says why not, if not."""
        if mistake := removal_mistake(self.roll(), member_id):
            return mistake
        self._log.info("removing a member", member_id=member_id)
        await self._change(Change(ChangeKind.REMOVE, member_id), drillpb.PdCommand(remove_member=member_id))
        return ""

    async def _change(self, change: Change, command: drillpb.PdCommand) -> None:
        try:
            await self.consensus.change_members(change, command)
        except (ProposalDropped, Undetermined) as error:
            raise RpcError(Status.UNAVAILABLE, str(error)) from error

    def _leave(self) -> None:
        """This member was removed. Like the real one it stays up, so that whoever looks finds it, and does no more."""
        if self.is_removed:
            return
        self.is_removed = True
        self._lose_lead()
        self._log.warn("this member has been removed from the cluster and takes no part in it any more")
        # Not at once: as a leader it still has to tell the others that its removal is settled.
        asyncio.get_running_loop().call_later(LEAVE_S, self.consensus.retire)
        self._tell_changed()

    async def _ask_while_leaderless(self) -> None:
        """A member that hears no leader may have been removed while it was away: nobody sends it anything then."""
        while self.consensus.leader == 0 and not self.is_removed:
            await asyncio.sleep(ASK_EVERY_S)
            if self.consensus.leader == 0:
                await self.greet()
        self._asking = None

    async def _watch_priorities(self) -> None:
        """Now and then hands the lead to a member that was given a higher priority."""
        while True:
            await asyncio.sleep(self.options.priority_check_s)
            chosen = heir(self.consensus.cluster.priorities, self.roll()) if self.lead is not None else 0
            if chosen:
                self._log.info("transfer leader to a member of higher priority", to=chosen)
                with contextlib.suppress(ProposalDropped):
                    await self.consensus.hand_over(chosen, HAND_OVER_S)

    # ---- introductions ----

    async def _introduce_until_known(self) -> None:
        """Puts this member's record into the state; again after a change of addresses at a restart."""
        record = self.identity.record
        while not self.is_removed and self.consensus.cluster.members.get(record.id) != record:
            known = self.consensus.cluster.members.get(record.id)
            try:
                if known is not None:
                    self._refuse_double(drillpb.IntroduceResponse(known=known))
                if self.lead is not None:
                    await self._record(record)
                elif (leader := self.leader()) is not None:
                    self._refuse_double(await self._call(leader))
                    await asyncio.sleep(INTRODUCE_EVERY_S)  # until it is applied here, too
                else:
                    await self.changed.wait()
            except MemberRefused as refused:
                self.on_refused(refused)
                return
            except RpcError as error:
                self._log.warn("cannot introduce this member to the leader", error=str(error))
                await asyncio.sleep(INTRODUCE_EVERY_S)


def to_pdpb(record: drillpb.PdMember) -> pdpb.Member:
    return pdpb.Member(
        name=record.name,
        member_id=record.id,
        peer_urls=record.peer_urls,
        client_urls=record.client_urls,
    )


def split_url(url: str) -> tuple[str, int]:
    """Host and port of http://host:port."""
    host, _, port = url.rpartition("//")[2].rstrip("/").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
