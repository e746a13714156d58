"""Mistakes in what a client sent, in the words of Go's decoders: clients and people read them."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

Json = Any

# What Go's decoder says it was looking for where Python's stopped.
_EXPECTED = (
    ("Expecting value", "looking for beginning of value"),
    ("Expecting property name", "looking for beginning of object key string"),
    ("Illegal trailing comma", "looking for beginning of object key string"),
    ("Expecting ':'", "after object key"),
    ("Expecting ','", "after object key:value pair"),
    ("Extra data", "after top-level value"),
)
_LITERALS = {literal[0]: literal for literal in ("true", "false", "null")}


class JsonMistake(Struct, frozen=True):
    """What is wrong, and after how many bytes the decoder saw it."""

    message: str
    offset: int


class NoJson(Exception):
    """A body that is no JSON."""

    def __init__(self, mistake: JsonMistake) -> None:
        super().__init__(mistake.message)
        self.mistake = mistake


def json_of(body: bytes) -> Json:
    """A body as JSON, read as Go reads it: in UTF-8, and without the numbers that only Python knows. Raises NoJson."""
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise NoJson(_mistake_of(error)) from error
    except _Constant as constant:
        place = text.index(str(constant))
        message = f"invalid character {quoted(text[place])} looking for beginning of value"
        raise NoJson(JsonMistake(message, place + 1)) from constant


class _Constant(Exception):
    """NaN or one of the infinities."""


def _refuse_constant(name: str) -> None:
    raise _Constant(name)


def _mistake_of(error: json.JSONDecodeError) -> JsonMistake:
    text, place = error.doc, error.pos
    looked_for = next((words for start, words in _EXPECTED if error.msg.startswith(start)), "in JSON input")
    if (literal := _LITERALS.get(text[place : place + 1])) and looked_for == _EXPECTED[0][1]:
        known = next(
            count for count in range(len(literal)) if text[place + count : place + count + 1] != literal[count]
        )
        place += known
        looked_for = f"in literal {literal} (expecting '{literal[known]}')"
    if place >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return JsonMistake("unexpected end of JSON input", len(text.encode()))
    return JsonMistake(f"invalid character {quoted(text[place])} {looked_for}", len(text[: place + 1].encode()))


def json_kind(value: Json) -> str:
    """What Go calls a value."""
    kinds = ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def wrong_kind(value: Json, wanted: str = "map[string]interface {}") -> str:
    return f"json: cannot unmarshal {json_kind(value)} into Go value of type {wanted}"


def quoted(character: str) -> str:
    """A character as Go prints it."""
    return {"'": r"'\''", '"': "'\"'"}.get(character, f"'{character}'")
