"""The mind of PD's leader, driven by hand: nothing here has a clock, a socket or a loop."""

from __future__ import annotations

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.coordinator import Candidate, Coordinator, Send, first_command, start_of
from drillyard.wire import drillpb, metapb, pdpb

SECOND_NS = 10**9


class Lead:
    """A coordinator over a state that agrees to everything at once."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        outcome = self.cluster.apply(first_command(Candidate(1, 7), 1, 1000).SerializeToString())
        start = start_of(outcome, self.cluster)
        self.mind = Coordinator(self.cluster, Settings(Options("pd0", "", "", "", "", "", ""), dict), start.ids)
        self.now_ns = SECOND_NS

    def drive(self) -> list[Send]:
        """Carries out all that it wants until it wants nothing more; what it sends."""
        sends: list[Send] = []
        while (output := self.mind.take_output()).proposals or output.sends:
            sends += output.sends
            for proposal in output.proposals:
                self.mind.settle(proposal, self.cluster.apply(proposal.command.SerializeToString()), self.now_ns)
        return sends

    def bootstrap(self, stores: int) -> metapb.Region:
        region = metapb.Region(
            id=100,
            region_epoch=metapb.RegionEpoch(version=1, conf_ver=1),
            peers=[metapb.Peer(id=101, store_id=1)],
        )
        first = drillpb.PdBootstrap(store=metapb.Store(id=1, address="a"), region=region)
        self.cluster.apply(drillpb.PdCommand(bootstrap=first).SerializeToString())
        for store_id in range(2, stores + 1):
            store = metapb.Store(id=store_id, address=f"a{store_id}", version="8.1.0")
            self.cluster.apply(drillpb.PdCommand(put_store=store).SerializeToString())
        return region


def test_a_step_follows_a_heartbeat_and_is_repeated_later() -> None:
    lead = Lead()
    region = lead.bootstrap(2)
    for store_id in (1, 2):
        assert lead.mind.hear_store(pdpb.StoreStats(store_id=store_id), lead.now_ns) is None
    lead.mind.hear_region(pdpb.RegionHeartbeatRequest(region=region, leader=region.peers[0], term=6), lead.now_ns)
    (first,) = lead.drive()
    assert first.store_id == 1
    assert first.response.header.cluster_id == 7
    (change,) = first.response.change_peer_v2.changes
    assert change.peer.store_id == 2
    lead.now_ns += 10 * SECOND_NS
    lead.mind.tick(lead.now_ns)
    assert [send.response for send in lead.drive()] == [first.response]


def test_a_meta_that_is_not_agreed_on_is_not_acted_on() -> None:
    lead = Lead()
    region = lead.bootstrap(2)
    for store_id in (1, 2):
        lead.mind.hear_store(pdpb.StoreStats(store_id=store_id), lead.now_ns)
    lead.drive()
    moved = metapb.Region()
    moved.CopyFrom(region)
    moved.region_epoch.conf_ver = 2
    request = pdpb.RegionHeartbeatRequest(region=moved, leader=region.peers[0], term=6)
    lead.mind.hear_region(request, lead.now_ns)
    output = lead.mind.take_output()
    assert not output.sends
    (proposal,) = output.proposals
    assert proposal.command.put_region == moved
    lead.mind.settle(proposal, lead.cluster.apply(proposal.command.SerializeToString()), lead.now_ns)
    assert [send.response.region_epoch.conf_ver for send in lead.drive()] == [2]


def test_no_heartbeat_overtakes_the_one_that_brings_a_new_meta() -> None:
    """The command was applied, and before its driver says so the region's next heartbeat comes in."""
    lead = Lead()
    region = lead.bootstrap(1)
    moved = metapb.Region()
    moved.CopyFrom(region)
    moved.region_epoch.conf_ver = 2
    moved.peers.add(id=102, store_id=2)
    before = pdpb.RegionHeartbeatRequest(region=moved, leader=moved.peers[0], term=6, pending_peers=[moved.peers[1]])
    lead.mind.hear_region(before, lead.now_ns)
    (proposal,) = lead.mind.take_output().proposals
    outcome = lead.cluster.apply(proposal.command.SerializeToString())
    lead.mind.hear_region(pdpb.RegionHeartbeatRequest(region=moved, leader=moved.peers[0], term=6), lead.now_ns)
    lead.mind.settle(proposal, outcome, lead.now_ns)
    lead.drive()
    assert not lead.mind.reports.regions[100].request.pending_peers


def test_ids_that_run_out_are_asked_for_once() -> None:
    lead = Lead()
    taken = [lead.mind.take_id() for _ in range(1001)]
    assert taken[-2:] == [1000, 0]
    output = lead.mind.take_output()
    (proposal,) = output.proposals
    lead.mind.settle(proposal, lead.cluster.apply(proposal.command.SerializeToString()), lead.now_ns)
    assert lead.mind.take_id() == 1001
