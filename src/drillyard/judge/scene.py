"""The scene that a cause is looked for in: what was observed and judged, who ended, what logs say, how the wait went.

Rules: a record and plain questions to it; no opinions. A member that was not looked at counts as running.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from drillyard.judge import ends
from drillyard.judge.ends import Ended, logged_at
from drillyard.judge.readiness import NOT_ASKED, Readiness, Status
from drillyard.observation import Observation, Probe, ProcessSeen, StartedMember, StoreSeen, StoresSeen
from drillyard.topology import Role

RECENT_S = 60.0  # older log lines are about something else


@dataclass(frozen=True, slots=True)
class Pace:
    """How a wait went: all in seconds; a single look has waited for nothing."""

    waited_s: float = 0.0
    quiet_s: float = 0.0  # since anything in the picture last changed
    slept_s: float = 0.0  # the longest that this machine, or we on it, stood still
    woke_ago_s: float = 0.0  # since the end of that
    clock_set_s: float = 0.0  # how far this machine's clock was set meanwhile, forwards or (negative) backwards


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that the catalogue looks at. `words` are the last log lines of each member; `option` is what a command
    needs to mean this deployment, such as " --name other"."""

    observation: Observation
    readiness: Readiness
    ends: tuple[Ended, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pace: Pace = Pace()
    option: str = ""

    @property
    def pds(self) -> tuple[StartedMember, ...]:
        return self.observation.started.of_role(Role.PD)

    @property
    def tikvs(self) -> tuple[StartedMember, ...]:
        return self.observation.started.of_role(Role.TIKV)

    def process(self, name: str) -> ProcessSeen:
        seen = self.observation.answer(Probe.PROCESS, name, ProcessSeen)
        return seen if seen is not None else ProcessSeen(running=True)

    def runs(self, name: str) -> bool:
        seen = self.process(name)
        return seen.running and not seen.paused

    def is_gone(self, name: str) -> bool:
        """Whether it ended or is paused; one that was not started yet is not gone."""
        return not self.runs(name) and not self.process(name).held_back

    @property
    def is_down(self) -> bool:
        """Whether nothing runs."""
        return not any(self.process(member.name).running for member in self.observation.started.members)

    @property
    def unasked(self) -> list[Ended]:
        """The ends that nobody asked for, the first first."""
        return sorted((end for end in self.ends if not end.is_asked), key=lambda end: end.at)

    def age_s(self, name: str) -> float:
        """How long the member has run."""
        return self.observation.at - self.process(name).started_at

    def failures(self, name: str, probes: Iterable[Probe]) -> list[str]:
        """Why these probes have no answer from the member; one without an entry was answered or not asked."""
        asked = (self.observation.reading(probe, name) for probe in probes)
        return [reading.failure.text for reading in asked if reading is not None and reading.failure is not None]

    def answers(self, name: str, probes: Iterable[Probe]) -> bool:
        asked = (self.observation.reading(probe, name) for probe in probes)
        return any(reading is not None and reading.answer is not None for reading in asked)

    def store(self, member: StartedMember) -> StoreSeen | None:
        """PD's entry of the member, if PD was asked and has one."""
        seen = self.observation.answer_once(Probe.STORES, StoresSeen)
        return next((store for store in seen.stores if store.address == member.address), None) if seen else None

    def recent(self, name: str) -> tuple[str, ...]:
        """Log lines of the member's present run that tell their time, the newest first, none older than a minute."""
        lines = reversed(ends.of_last_run(self.words.get(name, ())))
        return tuple(line for line in lines if self.observation.at - logged_at(line, 0.0) <= RECENT_S)

    def named(self) -> tuple[str, ...]:
        """The members that keep a gate closed; who was not asked yet does not."""
        closed = (verdict for verdict in self.readiness.verdicts if verdict.status is not Status.HOLDS)
        lacks = (lack for verdict in closed for lack in verdict.lacks if NOT_ASKED not in lack.text)
        return tuple(dict.fromkeys(name for lack in lacks for name in lack.members))
