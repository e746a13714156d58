"""The ground that a simulated cluster stands on: virtual time, chance, the weather, and the members' lives.

Rules: no clock and no chance but the ones here, so a seed says everything; events at the same time happen in the order
in which they were planned. A member that is down hears nothing, and nothing of an earlier life reaches a later one. A
member that is stalled (a process that was stopped) misses nothing: all of it waits until it wakes, in any order, and
the member knows nothing of the time that went by.

Everything that happens goes into one hash, the trace. What a person would want to read of it is kept as the tale.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush

from msgspec import Struct

from drillyard.emulator.simulation.parts import Dice

MILLISECOND_US = 1_000
SECOND_US = 1_000_000
TALE_LINES = 4_000


class Weather(Struct, frozen=True):
    """What a seed does to its cluster: frequencies in permille, times at most, each drawn anew."""

    loss: int = 0
    doubling: int = 0
    delay_us: int = 1_000
    straggling: int = 0  # messages that take twenty times as long
    mishap_every_ms: int = 400
    ambush: int = 0  # how often a mishap strikes just when something delicate has begun
    turn_us: int = 200  # until a member comes round to its work
    sync_us: int = 2_000


CALM = Weather()


class World:
    """Time and chance for one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = Dice(seed)
        self.now_us = 0
        self.weather = CALM
        self.is_stormy = False
        self.is_busy = False  # clients do all that they do, and not only what they must
        self.tale: list[tuple[int, str]] = []
        self.ambush: Callable[[str, Member], None] = lambda occasion, member: None
        self._trace = blake2b(digest_size=16)
        self._plan: list[tuple[int, int, Member | None, int, Callable[[], object]]] = []
        self._planned = 0

    @property
    def events(self) -> int:
        return self._planned - len(self._plan)

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def after(self, delay_us: int, call: Callable[[], object], member: Member | None = None, life: int = 0) -> None:
        """A call of a member's happens only in that life of it, and not while it is stalled."""
        self._planned += 1
        heappush(self._plan, (self.now_us + delay_us, self._planned, member, life, call))

    def note(self, text: str) -> None:
        """Into the trace only."""
        self._trace.update(f"{self.now_us} {text}\n".encode())

    def tell(self, text: str) -> None:
        """Into the trace and the tale."""
        self.note(text)
        if len(self.tale) < TALE_LINES:
            self.tale.append((self.now_us, text))

    def run(self, until_us: int, is_enough: Callable[[], bool] | None = None, look_every_us: int = 0) -> bool:
        """Lets time pass, at most until then; True as soon as it is enough."""
        if is_enough is None:
            self._pass(until_us)
            return False
        while not is_enough():
            if self.now_us >= until_us:
                return False
            self._pass(min(self.now_us + look_every_us, until_us))
        return True

    def _pass(self, until_us: int) -> None:
        plan = self._plan
        while plan and plan[0][0] <= until_us:
            self.now_us, _, member, life, call = heappop(plan)
            if member is None:
                call()
            elif member.life == life:
                if member.wakes_us <= self.now_us:
                    call()
                else:
                    member.put_off(call)
        self.now_us = until_us


class Member:
    """What a PD, a store and a client have in common: a name, a place in the network, a life."""

    def __init__(self, name: str, address: int, world: World) -> None:
        self.name = name
        self.address = address
        self.world = world
        self.is_up = False
        self.life = 0
        self.wakes_us = 0  # stalled until then

    def __str__(self) -> str:
        return self.name

    def begin_life(self) -> None:
        self.life += 1
        self.is_up = True
        self.wakes_us = 0

    def end_life(self) -> None:
        self.life += 1
        self.is_up = False
        self.wakes_us = 0

    def stall(self, for_us: int) -> None:
        self.wakes_us = self.world.now_us + for_us

    def later(self, delay_us: int, call: Callable[[], object]) -> None:
        """In this life, and not while stalled."""
        self.world.after(delay_us, call, self, self.life)

    def soon(self, call: Callable[[], object]) -> None:
        world = self.world
        world.after(world.dice.below(world.weather.turn_us + 1), call, self, self.life)

    def take(self, call: Callable[[], object]) -> None:
        """Something has arrived from outside: taken now, when awake, or never."""
        if self.is_up:
            if self.wakes_us <= self.world.now_us:
                call()
            else:
                self.put_off(call)

    def put_off(self, call: Callable[[], object]) -> None:
        """Until it wakes."""
        world = self.world
        self.later(self.wakes_us - world.now_us + world.dice.below(MILLISECOND_US), call)
