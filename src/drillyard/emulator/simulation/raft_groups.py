"""Whole Raft groups on virtual time, from one seed.

`simulate(seed)` runs a group through two phases. In the *safety* phase everything goes wrong that a design must
survive: messages are lost, delayed, doubled and reordered, links are cut, nodes crash and lose unsynced writes, the
membership changes, leadership is pushed around, logs are compacted. Whatever happens, nothing that Raft promises may be
broken. In the *liveness* phase the world is healed, and within a bounded time the group must serve every client again
and end up with equal states. A core that is safe only because it stands still fails there.

The first phase hands back a history of what clients saw. Whether it is linearizable is judged by somebody else.

Rules: no clock and no chance but the ones here, so a seed says everything; events at the same time happen in the order
in which they were planned. Each seed draws its own weather: some are nearly calm, for calm hides other bugs than storm.
A `Scale` can order one kind of trouble instead. Mishaps strike at random, and, as *ambushes*, just when a leader was
elected or changes the membership: most of what can go wrong in Raft goes wrong there.

Clients send an operation once and never again. A refusal before the proposal was taken, and an entry that was replaced
by another, are certain failures; silence is not knowing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

from msgspec import Struct, field
from msgspec.structs import replace

from drillyard.emulator.raft import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Message,
    Options,
    ProposalDropped,
    ProtocolBroken,
    Role,
    electors,
    is_joint,
    members,
)
from drillyard.emulator.simulation.parts import BOOT_INDEX, Dice, Disk, Node, Speed, Violation, Witness

__all__ = ["Call", "Outcome", "Scale", "Simulation", "Violation", "Weather", "simulate"]

MILLISECOND_US = 1_000
TICK_US = 10 * MILLISECOND_US


class Weather(Struct, frozen=True):
    """What a seed does to its group, in permille and milliseconds."""

    loss: int = 0
    doubling: int = 0
    delay_ms: int = 1
    straggling: int = 0  # messages that take ten times as long
    mishap_every_ms: int = 100
    ambushes: tuple[str, ...] = ("crash", "stop", "isolate", "halve", "separate")  # what befalls a leader
    ambush: int = 0  # how often a mishap strikes just when a leader is elected or changes the membership
    speed: Speed = field(default_factory=Speed)


class Scale(Struct, frozen=True):
    """How large a simulation is, and which kind of trouble it looks for; what is None is drawn by the seed."""

    voters: int | None = None
    spares: int = 2  # nodes that the group may take in
    clients: int = 4
    keys: int = 3
    safety_ms: int = 2_000
    liveness_ms: int = 6_000  # at most; it ends as soon as the group has converged
    weather: Weather | None = None
    options: Options | None = None
    mishaps: tuple[str, ...] | None = None  # names of `Simulation`'s methods for misfortunes, without the underscore


class Call(Struct, frozen=True):
    """One operation as its client saw it; `outcome` is "ok", "failed" (certainly without effect) or "unknown"."""

    client: int
    kind: str  # "get" or "put"
    key: bytes
    value: bytes | None
    called_us: int
    returned_us: int
    outcome: str


class Outcome(Struct, frozen=True):
    """What a simulation that broke no promise amounts to."""

    seed: int
    trace: str  # a hash over everything that happened: equal seeds give equal traces
    history: tuple[Call, ...]
    elections: int
    decided: int
    crashes: int
    changes: int
    snapshots: int


def simulate(seed: int, scale: Scale | None = None) -> Outcome:
    """Run one seed; every exception says which."""
    try:
        return Simulation(seed, scale).run()
    except Exception as failure:
        failure.add_note(f"seed {seed}: replay with drillyard.emulator.simulation.raft_groups.simulate({seed})")
        raise


class Client:
    """Does one operation after another, at whichever node it takes for the leader."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.target = 1
        self.writes = (0, 300, 1000)[number % 3]  # permille of its operations: some only read, some only write
        self.operation = 0  # under way; 0: none
        self.has_put = self.has_got = False  # since the world was healed


class Simulation:
    """One group, its network, its clients and its misfortunes."""

    def __init__(self, seed: int, scale: Scale | None = None) -> None:
        self.seed = seed
        self.dice = Dice(seed)
        self.scale = scale if scale is not None else Scale()
        self.witness = Witness()
        self.now_us = 0
        self.history: list[Call] = []
        self._trace = blake2b(digest_size=16)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0
        self._calls: dict[int, Call] = {}
        self._operations = 0
        self._cut: set[tuple[int, int]] = set()  # links, one direction each
        self._is_stormy = True
        self._crashes = self._changes = self._snapshots = 0
        self._weather = self.scale.weather or self._draw_weather()
        self._mishaps = self._draw_mishaps()
        self._nodes = self._create_nodes()
        self._clients = [Client(number) for number in range(1, self.scale.clients + 1)]

    def run(self) -> Outcome:
        for client in self._clients:
            self.after(self.dice.below(50 * MILLISECOND_US), partial(self._begin_operation, client))
        self.after(self._weather.mishap_every_ms * MILLISECOND_US, self._mishap)
        try:
            self._run_until(self.scale.safety_ms * MILLISECOND_US)
            self._heal()
            self._run_until(self.now_us + self.scale.liveness_ms * MILLISECOND_US, self._has_converged)
        except ProtocolBroken as broken:
            raise Violation("the core stopped itself", str(broken)) from broken
        if not self._has_converged():
            raise Violation("liveness", self._why_not_converged())
        trace = self._trace.hexdigest()
        counts = (self.witness.elections, self.witness.last_decided, self._crashes, self._changes, self._snapshots)
        unknown = [replace(call, outcome="unknown", returned_us=self.now_us) for call in self._calls.values()]
        return Outcome(self.seed, trace, tuple(self.history + unknown), *counts)

    # ---- the world, as nodes know it ---------------------------------------------------------------------------

    def after(self, delay_us: int, call: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._events, (self.now_us + delay_us, self._planned, call))

    def note(self, text: str) -> None:
        self._trace.update(b"%d %b\n" % (self.now_us, text.encode()))

    def send(self, message: Message, values: dict[bytes, bytes] | None) -> None:
        weather = self._weather
        if message.snapshot is not None:
            self._snapshots += 1
        copies = 2 if self.dice.happens(weather.doubling) else 1
        if (message.sender, message.to) in self._cut or self.dice.happens(weather.loss):
            copies = 0
        for _ in range(copies):
            delay = self.dice.between(50, weather.delay_ms * MILLISECOND_US)
            if self.dice.happens(weather.straggling):
                delay *= 10
            self.after(delay, lambda: self._deliver(message, values))
        if message.snapshot is not None and not copies:
            self.after(5 * MILLISECOND_US, lambda: self._report(message, ok=False))

    def answer(self, operation: int, outcome: str, value: bytes | None) -> None:
        """The answer to a client's operation; the client may have given up on it."""
        self.after(self.dice.between(1, MILLISECOND_US), lambda: self._end_operation(operation, outcome, value))

    def tempt(self, node: int) -> None:
        if self._is_stormy and self.dice.happens(self._weather.ambush):
            delay = self.dice.below(self.dice.pick((1, TICK_US // 4, 4 * TICK_US)))
            self.after(delay, lambda: self._ambush(self._nodes[node]))

    def _deliver(self, message: Message, values: dict[bytes, bytes] | None) -> None:
        node = self._nodes[message.to]
        if node.sleeps_until_us > self.now_us:
            self._when_awake(node, lambda: self._deliver(message, values))
            return
        arrives = node.is_up and (message.sender, message.to) not in self._cut
        if arrives:
            self.note(f"{message.kind.name} {message.sender}>{message.to} {message.term} {message.index}")
            node.deliver(message, values)
        if message.snapshot is not None:
            self._report(message, ok=arrives)

    def _when_awake(self, node: Node, call: Callable[[], None]) -> None:
        """What came while a node was stopped waits for it, and is found in any order."""
        self.after(node.sleeps_until_us - self.now_us + self.dice.below(MILLISECOND_US), call)

    def _report(self, message: Message, *, ok: bool) -> None:
        sender = self._nodes[message.sender]
        if sender.is_up:
            sender.raft.report_snapshot(message.to, ok)
            sender.wake()

    # ---- time --------------------------------------------------------------------------------------------------

    def _run_until(self, end_us: int, is_enough: Callable[[], bool] | None = None) -> None:
        events = self._events
        next_look_us = self.now_us
        while events and events[0][0] <= end_us:
            self.now_us, _, call = heapq.heappop(events)
            call()
            if is_enough is not None and self.now_us >= next_look_us:
                next_look_us = self.now_us + 5 * TICK_US
                if is_enough():
                    return

    def _draw_weather(self) -> Weather:
        dice = self.dice
        if dice.happens(100):
            return Weather(mishap_every_ms=dice.between(50, 400))
        return Weather(
            loss=dice.pick((0, 10, 50, 150, 300)),
            doubling=dice.pick((0, 20, 200)),
            delay_ms=dice.pick((1, 3, 8, 20)),
            straggling=dice.pick((0, 20, 100)),
            mishap_every_ms=dice.pick((20, 50, 100, 250)),
            ambush=dice.pick((0, 100, 500)),
            speed=Speed(
                turn_us=dice.pick((100, 1_000)),
                sync_us=dice.pick((100, 5_000, 30_000)),
                apply_us=dice.pick((100, 10_000, 100_000)),
                keeps_entries=dice.pick((0, 0, 2)),
            ),
        )

    def _draw_options(self) -> Options:
        dice = self.dice
        return Options(
            election_ticks=dice.pick((4, 6, 10)),
            heartbeat_ticks=dice.pick((1, 2)),
            max_append_bytes=dice.pick((1, 150, 1 << 20)),
            max_inflight=dice.pick((1, 3, 256)),
            max_committed_bytes=dice.pick((1, 1 << 20)),
        )

    def _draw_mishaps(self) -> tuple[Callable[[], None], ...]:
        """Each seed does much of some things and nothing of others: what hides behind one misfortune shows then."""
        if self.scale.mishaps is not None:
            return tuple(getattr(self, f"_{name}") for name in self.scale.mishaps)
        kinds = (
            *(self._cut_in_two, self._cut_leader_off, self._cut_link, self._mend),
            *(self._crash_one, self._crash_leader, self._cut_power, self._stop_leader),
            *(self._transfer, self._compact),
        )
        drawn = tuple(kind for kind in kinds for _ in range(self.dice.pick((0, 0, 1, 4))))
        return (*drawn, *([self._change_membership] * self.dice.pick((0, 2, 8))), self._mend, self._restart)

    def _create_nodes(self) -> dict[int, Node]:
        options = self.scale.options or self._draw_options()
        voters = self.scale.voters or self.dice.pick((3, 3, 3, 4, 5))
        configuration = Configuration(frozenset(range(1, voters + 1)))
        nodes: dict[int, Node] = {}
        for number in range(1, voters + self.scale.spares + 1):
            is_spare = number > voters
            disk = Disk(Configuration() if is_spare else configuration, 0 if is_spare else BOOT_INDEX)
            nodes[number] = Node(number, disk, self, options)
            nodes[number].speed = self._weather.speed
            period = TICK_US - 500 + self.dice.below(1_000)  # no two clocks run alike
            self.after(self.dice.below(period), partial(self._tick, number, period))
        return nodes

    def _tick(self, number: int, period_us: int) -> None:
        self.after(period_us, lambda: self._tick(number, period_us))
        node = self._nodes[number]
        if node.is_up and node.sleeps_until_us <= self.now_us:
            node.tick()

    # ---- clients -----------------------------------------------------------------------------------------------

    def _begin_operation(self, client: Client) -> None:
        if not self._is_stormy and client.has_put and client.has_got:
            return
        self._operations += 1
        operation = client.operation = self._operations
        if self.dice.happens(100):
            client.target = self.dice.pick(sorted(self._nodes))
        is_put = self.dice.happens(client.writes) if self._is_stormy else not client.has_put
        key = b"k%d" % self.dice.below(self.scale.keys)
        value = b"v%d" % operation if is_put else None
        kind = "put" if is_put else "get"
        self._calls[operation] = Call(client.number, kind, key, value, self.now_us, 0, "unknown")
        self.note(f"client {client.number} {kind} {key!r} at {client.target}")
        self.after(self.dice.between(1, MILLISECOND_US), lambda: self._ask(client.target, operation))
        self.after(150 * MILLISECOND_US, lambda: self._give_up(client, operation))

    def _ask(self, target: int, operation: int) -> None:
        node = self._nodes[target]
        if node.sleeps_until_us > self.now_us:
            self._when_awake(node, lambda: self._ask(target, operation))
            return
        call = self._calls.get(operation)
        if call is None:  # its client has given up: it was recorded as unknown, and that includes never
            return
        if not node.is_up:
            self.answer(operation, "failed", None)
        elif call.value is not None:
            node.put(operation, call.key, call.value)
        else:
            node.get(operation, call.key)

    def _give_up(self, client: Client, operation: int) -> None:
        if client.operation == operation:
            call = self._calls.pop(operation)
            self.history.append(replace(call, returned_us=self.now_us))
            self._move_on(client, "unknown")

    def _end_operation(self, operation: int, outcome: str, value: bytes | None) -> None:
        call = self._calls.pop(operation, None)
        if call is None:
            return
        seen = call.value if call.kind == "put" else value
        self.history.append(replace(call, value=seen, returned_us=self.now_us, outcome=outcome))
        client = self._clients[call.client - 1]
        if not self._is_stormy and outcome == "ok":
            client.has_put |= call.kind == "put"
            client.has_got |= call.kind == "get"
        self.note(f"client {client.number} {outcome} {seen!r}")
        self._move_on(client, outcome)

    def _move_on(self, client: Client, outcome: str) -> None:
        client.operation = 0
        if outcome != "ok":
            hint = self._nodes[client.target].raft.leader
            is_told = hint in self._nodes and hint != client.target and self.dice.happens(800)
            client.target = hint if is_told else self.dice.pick(sorted(self._nodes))
        pause_ms = self.dice.between(1, 15 if outcome == "ok" else 40)
        self.after(pause_ms * MILLISECOND_US, lambda: self._begin_operation(client))

    # ---- misfortunes -------------------------------------------------------------------------------------------

    def _mishap(self) -> None:
        if not self._is_stormy:
            return
        mishap = self.dice.pick(self._mishaps)
        self.note(mishap.__name__)
        mishap()
        self.after(self.dice.between(1, 2 * self._weather.mishap_every_ms) * MILLISECOND_US, self._mishap)

    def _cut_in_two(self) -> None:
        self._cut_around({number for number in self._nodes if self.dice.happens(500)})

    def _cut_around(self, side: set[int], at_most_ticks: int = 40) -> None:
        self._cut = {(a, b) for a in self._nodes for b in self._nodes if (a in side) != (b in side)}
        if self.dice.happens(800):
            self.after(self.dice.between(1, at_most_ticks) * TICK_US, self._mend)

    def _cut_leader_off(self) -> None:
        leader = self._some_leader()
        if leader is not None:
            self._cut_around({leader.number})

    def _cut_link(self) -> None:
        """One direction only: the worse case."""
        self._cut.add((self.dice.pick(sorted(self._nodes)), self.dice.pick(sorted(self._nodes))))

    def _mend(self) -> None:
        self._cut.clear()

    def _ambush(self, leader: Node) -> None:
        if not self._is_stormy:
            return
        kind = self.dice.pick(self._weather.ambushes)
        self.note(f"ambush: {kind}")
        if kind == "crash":
            self._crash(leader)
        elif kind == "stop":
            leader.sleeps_until_us = self.now_us + self.dice.between(2, 40) * TICK_US
        else:
            sides = {
                "isolate": (),
                "halve": [number for number in self._nodes if self.dice.happens(500)],
                "separate": leader.raft.configuration.voters,
            }
            self._cut_around({leader.number, *sides[kind]}, at_most_ticks=30)

    def _crash_one(self) -> None:
        self._crash(self._nodes[self.dice.pick(sorted(self._nodes))])

    def _crash_leader(self) -> None:
        leader = self._some_leader()
        if leader is not None:
            self._crash(leader)

    def _stop_leader(self) -> None:
        """It does not run for a while and, when it wakes, still believes that it leads."""
        leader = self._some_leader()
        if leader is not None:
            leader.sleeps_until_us = self.now_us + self.dice.between(2, 40) * TICK_US

    def _cut_power(self) -> None:
        """Everything goes down at once and is up again at once."""
        for node in self._nodes.values():
            self._crash(node)
            node.start()

    def _crash(self, node: Node) -> None:
        if node.is_up:
            self._crashes += 1
            node.crash()
            if self.dice.happens(900):
                self.after(self.dice.below(20) * TICK_US, lambda: None if node.is_up else node.start())

    def _restart(self) -> None:
        down = [node for node in self._nodes.values() if not node.is_up]
        if down:
            self.dice.pick(down).start()

    def _some_leader(self) -> Node | None:
        """Any node that believes that it leads, even if it is the only one to believe it."""
        leaders = [node for node in self._nodes.values() if node.is_up and node.raft.role is Role.LEADER]
        return self.dice.pick(leaders) if leaders else None

    def _transfer(self) -> None:
        leader = self._some_leader()
        if leader is not None:
            leader.raft.transfer_leader(self.dice.pick(sorted(electors(leader.raft.configuration))))
            leader.wake()

    def _compact(self) -> None:
        node = self._nodes[self.dice.pick(sorted(self._nodes))]
        if node.is_up:
            node.compact(keep=self.dice.below(6))

    def _change_membership(self) -> None:
        leader = self._some_leader()
        if leader is None:
            self.after(5 * TICK_US, lambda: self._change_membership() if self._is_stormy else None)
            return
        kinds = (ChangeKind.ADD_VOTER, ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE)
        count = 0 if is_joint(leader.raft.configuration) else self.dice.pick((1, 1, 2, 2, 3))
        numbers = sorted(self._nodes)
        changes = tuple(Change(self.dice.pick(kinds), numbers.pop(self.dice.below(len(numbers)))) for _ in range(count))
        self._propose_change(leader, ConfigurationChange(changes), b"reject" if self.dice.happens(100) else b"")

    def _replace_voters(self) -> None:
        """All voters but the leader, by all that have no vote: the two halves of the joint state share one node."""
        leader = self._some_leader()
        if leader is not None:
            configuration = leader.raft.configuration
            changes = tuple(
                Change(ChangeKind.REMOVE if number in configuration.voters else ChangeKind.ADD_VOTER, number)
                for number in sorted(self._nodes)
                if number != leader.number and not is_joint(configuration)
            )
            self._propose_change(leader, ConfigurationChange(changes), b"")

    def _propose_change(self, leader: Node, change: ConfigurationChange, data: bytes) -> None:
        try:
            leader.raft.propose_change(change, data)
        except ProposalDropped:
            return
        self._changes += 1
        leader.wake()

    # ---- healing -----------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Let the storm end: from now on only the past can keep the group from working."""
        self.note("healed")
        self._is_stormy = False
        self._cut.clear()
        self._weather = Weather()
        for client in self._clients:
            client.has_put = client.has_got = False
        for node in self._nodes.values():
            node.speed = self._weather.speed
            node.sleeps_until_us = 0
            if not node.is_up:
                node.start()
        self._leave_joint()

    def _leave_joint(self) -> None:
        """What an operator does: a group that is left in a joint configuration needs somebody to end it."""
        for node in self._nodes.values():
            if node.raft.role is Role.LEADER and is_joint(node.raft.configuration):
                self._propose_change(node, ConfigurationChange(), b"")
        self.after(10 * TICK_US, self._leave_joint)

    def _has_converged(self) -> bool:
        return not self._why_not_converged()

    def _why_not_converged(self) -> str:
        waiting = [client.number for client in self._clients if not (client.has_put and client.has_got)]
        if waiting:
            return f"clients {waiting} are not served"
        last_term = max(node.raft.term for node in self._nodes.values() if node.raft.role is not Role.PRE_CANDIDATE)
        leaders = [node for node in self._nodes.values() if node.raft.role is Role.LEADER]
        if len(leaders) != 1:
            return f"{len(leaders)} nodes lead, the last term is {last_term}"
        leader = leaders[0]
        if is_joint(leader.raft.configuration):
            return "the joint configuration is not left"
        for number in sorted(members(leader.raft.configuration)):
            node = self._nodes[number]
            if node.raft.applied != leader.raft.last_index or node.values != leader.values:
                return f"{number} has applied {node.raft.applied} of {leader.raft.last_index}"
        return ""
