"""What becomes of a command on PD's replicated state: a value, or a refusal in PD's words."""

from __future__ import annotations

from msgspec import Struct

from drillyard.wire import pdpb


class Refusal(Struct, frozen=True):
    """Why a command was not carried out, as PD's clients are told it."""

    type: pdpb.ErrorType
    message: str


class Outcome(Struct, frozen=True):
    """What became of a command. `value` is the end of an id window, a first timestamp, or a safe point.

    `covered` are the regions that a new meta took the place of, beside its own.
    """

    value: int = 0
    refusal: Refusal | None = None
    covered: tuple[int, ...] = ()


DONE = Outcome()


def refuse(message: str) -> Outcome:
    return Outcome(refusal=Refusal(pdpb.UNKNOWN, message))
