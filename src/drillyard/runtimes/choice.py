"""Every runtime under one home, as one: a deployment is found by its name, whichever runtime runs it.

Rules: nothing is decided here but which runtime is meant; a name belongs to one. What only one runtime takes (an
executable, an image) is refused where the other was chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from drillyard.runtimes import compose_plans
from drillyard.runtimes.abilities import (
    DEFAULT_NAME,
    Ability,
    Deployment,
    Exit,
    LogTail,
    MemberEvent,
    Misuse,
    PlanDiffers,
    Reach,
    RuntimeRefusal,
    StopReport,
)
from drillyard.runtimes.compose_plans import ComposePlan, Images
from drillyard.runtimes.home import Home
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.owners import Orphan
from drillyard.runtimes.plans import Executables, Plan
from drillyard.topology import Topology

if TYPE_CHECKING:
    from drillyard.runtimes.compose import ComposeRuntime

LOCAL, COMPOSE = "local", "compose"
NAMES = (LOCAL, COMPOSE)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be planned. What is left out stays as it was remembered, or is the usual."""

    name: str = DEFAULT_NAME
    runtime: str | None = None
    topology: Topology | None = None
    executables: Executables | None = None
    images: Images | None = None


class Runtimes:
    def __init__(self, home: Path | None = None, compose: ComposeRuntime | None = None) -> None:
        self.home = Home(home)
        self._local = LocalRuntime(self.home)
        if compose is not None:
            self._compose = compose

    @cached_property
    def _compose(self) -> ComposeRuntime:
        from drillyard.runtimes.compose import ComposeRuntime  # late: most commands are about local members

        return ComposeRuntime(self.home)

    @property
    def abilities(self) -> frozenset[Ability]:
        """What any of them can do; a deployment says what its own can."""
        return self._local.abilities | self._compose.abilities

    def _of(self, name: str) -> LocalRuntime | ComposeRuntime:
        return self._compose if (self.home.directory(name) / compose_plans.FILE).exists() else self._local

    def remembered(self, name: str) -> Plan | ComposePlan | None:
        return self._of(name).remembered(name)

    def names(self) -> tuple[str, ...]:
        return self.home.names()

    def own(self, name: str) -> AbstractContextManager[None]:
        return self.home.own(name)

    def orphans(self) -> tuple[Orphan, ...]:
        return self.home.orphans()

    async def plan(self, wish: Wish) -> Plan | ComposePlan:
        """The plan of an existing deployment, or a new one on the runtime that is wished. Raises Misuse, PortTaken."""
        if wish.runtime is not None and wish.runtime not in NAMES:
            raise Misuse(f"{wish.runtime!r} is no runtime", f"use {' or '.join(NAMES)}")
        exists = wish.name in self.names()
        there = self._of(wish.name).name
        chosen = wish.runtime or (there if exists else LOCAL)
        if exists and chosen != there:
            mend = "use another name, or take it down with its data first (`drillyard down --delete-data`)"
            raise PlanDiffers(f"deployment {wish.name!r} exists on the {there} runtime", mend)
        if chosen == LOCAL:
            if wish.images is not None:
                raise Misuse("an image is for containers", "add `--runtime compose`, or name an executable instead")
            return await self._local.plan(wish.topology, wish.name, wish.executables)
        if wish.executables is not None:
            raise Misuse("an executable is for local members", "name an image instead (`--pd-image`, `--tikv-image`)")
        return await self._compose.plan(wish.topology, wish.name, wish.images)

    async def start(self, plan: Plan | ComposePlan, tell: Callable[[str], None] = lambda _: None) -> Deployment:
        """Start what can be started at once; `tell` hears what takes long or should be known."""
        if isinstance(plan, ComposePlan):
            return await self._compose.start(plan, tell)
        return await self._local.start(plan)

    async def adopt(self, project: str, name: str) -> Deployment:
        return await self._compose.adopt(project, name)

    async def list(self) -> tuple[Deployment, ...]:
        """Every deployment that can be looked at; `names` also tells the others."""
        found = []
        for name in self.names():
            with contextlib.suppress(RuntimeRefusal):
                found.append(await self.deployment(name))
        return tuple(found)

    # --- one deployment, on its own runtime --------------------------------------------------------------------------

    async def deployment(self, name: str) -> Deployment:
        return await self._of(name).deployment(name)

    async def start_rest(self, name: str) -> None:
        await self._of(name).start_rest(name)

    async def start_member(self, name: str, member: str) -> None:
        await self._of(name).start_member(name, member)

    async def stop_member(self, name: str, member: str) -> Exit:
        return await self._of(name).stop_member(name, member)

    async def restart_member(self, name: str, member: str) -> None:
        await self._of(name).restart_member(name, member)

    async def kill_member(self, name: str, member: str) -> Exit:
        return await self._of(name).kill_member(name, member)

    async def pause_member(self, name: str, member: str) -> None:
        await self._of(name).pause_member(name, member)

    async def resume_member(self, name: str, member: str) -> None:
        await self._of(name).resume_member(name, member)

    async def stop(self, name: str, *, delete_data: bool = False) -> StopReport:
        return await self._of(name).stop(name, delete_data=delete_data)

    def watch(self, name: str) -> AsyncIterator[MemberEvent]:
        return self._of(name).watch(name)

    async def tails(self, name: str, member: str, lines: int, ended_at: float | None = None) -> tuple[LogTail, ...]:
        return await self._of(name).tails(name, member, lines, ended_at)

    def follow(self, name: str, member: str | None) -> AsyncIterator[tuple[str, str]]:
        return self._of(name).follow(name, member)

    async def keepsakes(self, name: str) -> Mapping[str, bytes]:
        return await self._of(name).keepsakes(name)

    def reach(self, deployment: Deployment) -> AbstractAsyncContextManager[Reach]:
        return self._of(deployment.name).reach(deployment)
