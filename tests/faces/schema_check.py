"""As much of JSON Schema as docs/drillyard.schema.json uses; a keyword it does not know is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "drillyard.schema.json").read_text())

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_KNOWN = {"$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties"}
_KNOWN |= {"items", "enum", "const", "anyOf"}


def problems(value: Any, schema: dict[str, Any] | None = None, at: str = "$") -> list[str]:
    """Where the value breaks the schema; empty when it does not."""
    schema = SCHEMA if schema is None else schema
    assert set(schema) <= _KNOWN, f"unknown keywords at {at}: {set(schema) - _KNOWN}"
    found = []
    if "$ref" in schema:
        found += problems(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], at)
    if "anyOf" in schema and all(problems(value, one, at) for one in schema["anyOf"]):
        found.append(f"{at}: {value!r} fits no alternative")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if "type" in schema and not _is_of(value, schema["type"]):
        return [*found, f"{at}: {value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        found += _object_problems(value, schema, at)
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            found += problems(item, schema["items"], f"{at}[{number}]")
    return found


def _object_problems(value: dict[str, Any], schema: dict[str, Any], at: str) -> list[str]:
    known = schema.get("properties", {})
    found = [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        rest = schema.get("additionalProperties", True)
        if name in known:
            found += problems(item, known[name], f"{at}.{name}")
        elif rest is False:
            found.append(f"{at}: {name} is unknown")
        elif isinstance(rest, dict):
            found += problems(item, rest, f"{at}.{name}")
    return found


def _is_of(value: Any, kinds: str | list[str]) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    return any(isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)
