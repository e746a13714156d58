"""The witness of a whole cluster: it sees every store and every PD at once, and knows no mercy.

What it holds them to, at every moment:

- a region has at most one leader in a term;
- a version of a region's range is the same wherever it is applied, and the newest ranges tile the key space;
- two regions on one store do not overlap;
- replicas that have applied the same entry hold the same pairs and the same region;
- a peer id names one replica of one region on one store for ever; a peer that left its region does not come back, one
  that was destroyed stays dead, and none is destroyed that its region still counts on;
- timestamps only rise: one is above every other that was received before it was asked for, and none comes twice;
- no id is given away twice;
- what PD knows of a region never goes back, its regions do not overlap, and its members agree after each command.

Whether the clients' histories are linearizable is judged by somebody else, afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.simulation.parts import Violation
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.state import Pair

AGREEMENT_EVERY = 8  # commands: comparing whole states is dear


class Witness:
    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], int] = {}  # by region and term
        self._ranges: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # by region and version
        self._tiles: dict[int, Region] = {}
        self._newest: dict[int, Region] = {}  # by region: the one with the highest conf_ver that anybody applied
        self._left: set[int] = set()  # peers
        self._homes: dict[int, tuple[int, int]] = {}  # by peer: its region and store
        self._states: dict[tuple[int, int], tuple[Region, tuple[Pair, ...]]] = {}  # by region and index
        self._dead: dict[tuple[int, int], int] = {}  # by store and region: the highest peer that is dead
        self._stamps: set[tuple[int, int]] = set()
        self.last_stamp = (0, 0)
        self._ids: set[int] = set()
        self._pd_states: dict[int, bytes] = {}
        self._pd_epochs: dict[int, tuple[int, int]] = {}
        self._pd_index = 0
        self.elections = 0
        self.splits = self.merges = self.moves = 0

    # ---- stores ----

    def see_leader(self, region_id: int, term: int, peer_id: int) -> bool:
        """Whether this leader is new."""
        known = self._leaders.setdefault((region_id, term), peer_id)
        if known != peer_id:
            raise Violation("one leader a term", f"{known} and {peer_id} both lead region {region_id} in term {term}")
        if len(self._leaders) == self.elections:
            return False
        self.elections = len(self._leaders)
        return True

    def see_regions(self, regions: tuple[Region, ...]) -> None:
        """What one entry made of its region and of others, as it was applied somewhere."""
        is_new = False
        for region in regions:
            if not region.is_initialized:
                continue
            self._see_peers(region)
            bounds = (region.start, region.end)
            key = (region.id, region.epoch.version)
            known = self._ranges.setdefault(key, bounds)
            if known != bounds:
                raise Violation("one range a version", f"region {key} is {bounds} here and {known} there")
            newest = self._tiles.get(region.id)
            if newest is None or newest.epoch.version < region.epoch.version:
                is_new |= self._lay(region)
        if is_new:
            self.splits += len(regions) > 1
            self._check_tiles()

    def _see_peers(self, region: Region) -> None:
        newest = self._newest.get(region.id)
        if newest is not None and newest.epoch.conf_ver >= region.epoch.conf_ver:
            return
        self._newest[region.id] = region
        self.moves += 1
        if newest is not None:
            self._left.update({peer.id for peer in newest.peers} - {peer.id for peer in region.peers})
        for peer in region.peers:
            if peer.id in self._left:
                raise Violation("who left a region does not come back", f"{peer.id} is a peer of {region} again")
            home = (region.id, peer.store_id)
            if self._homes.setdefault(peer.id, home) != home:
                raise Violation("a peer id names one replica", f"{peer.id} is {home} and {self._homes[peer.id]}")

    def _lay(self, region: Region) -> bool:
        """Puts the newest range of a region down; what it covers must be older."""
        covered = [tile for tile in self._tiles.values() if tile.id != region.id and tile.overlaps(region)]
        if any(tile.epoch.version >= region.epoch.version for tile in covered):
            if region.id in self._tiles:
                newer = max(covered, key=lambda tile: tile.epoch.version)
                raise Violation("ranges tile the key space", f"{region} covers {newer}, which is not older")
            return False  # a region that was swallowed meanwhile, or has been cut up since, is applied late somewhere
        self.merges += bool(covered) and region.id in self._tiles
        for tile in covered:
            del self._tiles[tile.id]
        self._tiles[region.id] = region
        return True

    def _check_tiles(self) -> None:
        tiles = sorted(self._tiles.values(), key=lambda tile: tile.start)
        reached = b""
        for place, tile in enumerate(tiles):
            if tile.start != reached or (not tile.end and place + 1 < len(tiles)):
                raise Violation("ranges tile the key space", f"at {reached!r} comes {tile}")
            reached = tile.end
        if reached:
            raise Violation("ranges tile the key space", f"nothing begins at {reached!r}")

    def see_store(self, store_id: int, regions: Iterable[Region]) -> None:
        """All regions of one store, when one of them has changed its range."""
        ordered = sorted((region for region in regions if region.is_initialized), key=lambda region: region.start)
        for left, right in pairwise(ordered):
            if left.overlaps(right):
                raise Violation("no overlap on a store", f"store {store_id} holds {left} and {right}")

    def see_state(self, applied: int, region: Region, pairs: tuple[Pair, ...]) -> None:
        known = self._states.setdefault((region.id, applied), (region, pairs))
        if known[0] != region:
            raise Violation("equal replicas", f"after entry {applied} one has {region}, another {known[0]}")
        if known[1] != pairs:
            lost = set(known[1]) ^ set(pairs)
            raise Violation("equal replicas", f"region {region.id} differs after entry {applied} in {sorted(lost)}")

    def see_written(self, store_id: int, region_id: int, peer_id: int) -> None:
        """A replica that is not destroyed wrote something."""
        if peer_id <= self._dead.get((store_id, region_id), 0):
            raise Violation("a destroyed peer stays dead", f"{peer_id} of region {region_id} is back on {store_id}")

    def see_condemned(self, region_id: int, peer_id: int) -> None:
        """A replica is about to be destroyed."""
        newest = self._newest.get(region_id)
        if newest is not None and region_id in self._tiles and newest.peer(peer_id) is not None:
            raise Violation("no living peer is destroyed", f"{peer_id} is a peer of {newest}")

    def see_destroyed(self, store_id: int, region_id: int, peer_id: int) -> None:
        """Its tombstone is durable."""
        key = (store_id, region_id)
        self._dead[key] = max(self._dead.get(key, 0), peer_id)

    @property
    def tiles(self) -> dict[int, Region]:
        return self._tiles

    # ---- PD ----

    def see_id(self, given: int) -> None:
        if given in self._ids:
            raise Violation("no id is given twice", f"{given} was given before")
        self._ids.add(given)

    def see_stamp(self, stamp: tuple[int, int], floor: tuple[int, int]) -> None:
        """`floor`: the highest that anybody had received when this one was asked for."""
        if stamp in self._stamps:
            raise Violation("timestamps rise", f"{stamp} was given twice")
        if stamp <= floor:
            raise Violation("timestamps rise", f"{stamp} was given after {floor} had been received")
        self._stamps.add(stamp)

    def received(self, stamp: tuple[int, int]) -> None:
        """A client has it: whoever asks from now on has to get a later one."""
        self.last_stamp = max(self.last_stamp, stamp)

    def see_pd(self, member: str, index: int, cluster: Cluster) -> None:
        """A member has applied this command."""
        if index % AGREEMENT_EVERY == 0:
            state = cluster.to_message().SerializeToString()
            if self._pd_states.setdefault(index, state) != state:
                raise Violation("PD's members agree", f"{member} differs after command {index}")
        if index <= self._pd_index:
            return
        self._pd_index = index
        reached, last = b"", None
        for region in cluster.regions:
            epoch = (region.region_epoch.version, region.region_epoch.conf_ver)
            known = self._pd_epochs.get(region.id, epoch)
            if epoch[0] < known[0] or epoch[1] < known[1]:
                raise Violation("PD never goes back", f"region {region.id} was at {known} and is at {epoch}")
            self._pd_epochs[region.id] = epoch
            if last is not None and (not reached or region.start_key < reached):
                raise Violation("PD's regions do not overlap", f"{last} and {region.id}")
            reached, last = region.end_key, region.id
