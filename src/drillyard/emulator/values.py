"""Values that are made by the thousand: dataclasses that the type checker keeps from being changed.

A frozen dataclass sets each of its fields through a call, so to make one costs four times as much as to make a plain
one (docs/decisions/values.md). What Raft and the stores say to each other and to their shells is made of such values,
several for every message. `@value` makes a plain slotted dataclass, equal and hashed by its fields, and tells the type
checker that it is frozen: an assignment to a field is an error of `./yard check`, not of the running program.

For all that is not made on the way of every request, `@dataclass(frozen=True, slots=True)` stays the rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    return dataclass(slots=True, unsafe_hash=True)(cls)
