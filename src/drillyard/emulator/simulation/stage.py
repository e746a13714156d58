"""What the members of one simulated cluster share: the world, the network, the witness, and each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from drillyard.emulator.pd.config import Options as PdOptions
from drillyard.emulator.raft.types import Options
from drillyard.emulator.simulation.invariants import Witness
from drillyard.emulator.simulation.network import Network
from drillyard.emulator.simulation.world import World
from drillyard.emulator.store.replica import Settings

if TYPE_CHECKING:
    from drillyard.emulator.simulation.pds import PdMember
    from drillyard.emulator.simulation.stores import StoreMember

TICK_US = 100_000
STORE_PERIOD_US = 1_000_000
REGION_PERIOD_US = 2_000_000


class Stage(Struct):
    world: World
    network: Network
    witness: Witness
    store_settings: Settings
    pd_settings: PdOptions
    pd_raft: Options
    keys: int  # of `clients.KEYS`, that clients begin their operations at
    pds: dict[int, PdMember] = field(default_factory=dict)  # by member id
    stores: list[StoreMember] = field(default_factory=list)
    known: dict[int, StoreMember] = field(default_factory=dict)  # those that have an id, by it

    def store(self, store_id: int) -> StoreMember | None:
        return self.known.get(store_id)

    def pd_lead(self) -> PdMember | None:
        """The PD that serves, as an all-seeing eye knows it: of those that believe so the one of the latest term."""
        leading = [pd for pd in self.pds.values() if pd.is_up and pd.lead is not None]
        return max(leading, key=lambda pd: pd.raft.term, default=None)
