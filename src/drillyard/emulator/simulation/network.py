"""The links between members: each direction may be cut by itself; messages get lost, doubled, late and out of order.

Rules: a message carries a call that happens at the receiver, if that is up and the link still stands. It is told
nothing of what became of it, except for a transfer (a snapshot's), which like a stream ends well or badly, and the
sender learns that if it lives. A question is two messages; its asker must live with never being answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from drillyard.emulator.simulation.world import MILLISECOND_US, Member, World

STRAGGLERS = 20


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._cut: set[tuple[int, int]] = set()
        self.messages = 0

    # ---- traffic ----

    def send(self, sender: Member, to: Member, call: Callable[[], object], *, once: bool = False) -> bool:
        """Whether the link stands, as the sender may notice. `once`: a request or an answer, never doubled."""
        world = self._world
        weather, dice = world.weather, world.dice
        link = (sender.address, to.address)
        if link in self._cut:
            return False
        if weather.loss and dice.happens(weather.loss):
            return True
        arrive = partial(self._arrive, link, to, call)
        world.after(self._delay_us(), arrive)
        if weather.doubling and not once and dice.happens(weather.doubling):
            world.after(self._delay_us(), arrive)
        return True

    def _delay_us(self) -> int:
        weather, dice = self._world.weather, self._world.dice
        delay_us = 50 + dice.below(weather.delay_us)
        if weather.straggling and dice.happens(weather.straggling):
            delay_us *= STRAGGLERS
        return delay_us

    def _arrive(self, link: tuple[int, int], to: Member, call: Callable[[], object]) -> None:
        if link in self._cut:
            return
        self.messages += 1
        if to.is_up and to.wakes_us <= self._world.now_us:
            call()
        else:
            to.take(call)

    def ask(
        self,
        asker: Member,
        asked: Member,
        question: Callable[[Callable[[Any], None]], None],
        answered: Callable[[Any], None],
    ) -> None:
        """`question` is put to the asked member with the way back; an asker that died meanwhile hears nothing."""
        life = asker.life

        def settle(answer: Any) -> None:
            if asker.life == life:
                answered(answer)

        def reply(answer: Any) -> None:
            self.send(asked, asker, lambda: settle(answer), once=True)

        self.send(asker, asked, lambda: question(reply), once=True)

    def transfer(self, sender: Member, to: Member, deliver: Callable[[], bool], done: Callable[[bool], None]) -> None:
        """Something large, in pieces: it arrives whole or not at all. `deliver` says whether it was wanted."""
        world = self._world
        life = sender.life
        link, back = (sender.address, to.address), (to.address, sender.address)
        lost = world.dice.happens(3 * world.weather.loss)

        def end(ok: bool) -> None:
            if sender.life == life:
                sender.take(lambda: done(ok))

        def arrive() -> None:
            ok = not lost and to.is_up and link not in self._cut
            if not ok:
                end(False)
                return
            self.messages += 1

            def hand_over() -> None:
                taken = deliver()
                world.after(self._delay_us(), lambda: end(taken and back not in self._cut))

            to.take(hand_over)

        world.after(2 * MILLISECOND_US + 3 * self._delay_us(), arrive)

    # ---- cuts ----

    def cut(self, one: Iterable[Member], other: Iterable[Member], *, both_ways: bool = True) -> None:
        others = [member.address for member in other]
        for member in one:
            for address in others:
                if address != member.address:
                    self._cut.add((member.address, address))
                    if both_ways:
                        self._cut.add((address, member.address))

    def mend(self) -> None:
        self._cut.clear()
