"""Messages that are well formed and make no sense, drawn from what their descriptors allow."""

from __future__ import annotations

import os
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# The same few examples each time; DRILLYARD_FUZZ=N takes N times as many, and others each time. Not a profile: other
# directories run in the same process.
_TIMES = int(os.environ.get("DRILLYARD_FUZZ", "0"))


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples * max(_TIMES, 1),
        derandomize=not _TIMES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


DEEPEST = 3
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_BYTES = st.one_of(st.binary(max_size=8), st.sampled_from([b"", b"\xff" * 9, b"k", b"t\x80", b"x" * 9000]))
_TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "default", "lock", "127.0.0.1:1", "http://", "8.1.0"]))


def messages(kind: type[Message]) -> SearchStrategy[Any]:
    return _fields(kind.DESCRIPTOR, 0).map(lambda values: _filled(kind(), values))


def _fields(descriptor: Any, depth: int) -> SearchStrategy[dict[str, Any]]:
    known = {field.name: _field(field, depth) for field in descriptor.fields if _may_have(field, depth)}
    return st.fixed_dictionaries({}, optional=known)


def _may_have(field: FieldDescriptor, depth: int) -> bool:
    return field.message_type is None or depth < DEEPEST


def _field(field: FieldDescriptor, depth: int) -> SearchStrategy[Any]:
    return st.lists(_value(field, depth), max_size=3) if _is_repeated(field) else _value(field, depth)


def _value(field: FieldDescriptor, depth: int) -> SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return st.deferred(lambda: _fields(field.message_type, depth + 1))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _TEXTS
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 12)  # unknown ones too
    if kind in _INTEGERS:
        least, most = _INTEGERS[kind]
        return st.one_of(st.integers(0, 10), st.sampled_from([least, most, most - 1]), st.integers(least, most))
    return st.floats()


def _filled(message: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for entry in value:
                _put_entry(getattr(message, name), field, entry)
        elif field.message_type is None:
            _set(message, name, value, is_repeated=_is_repeated(field))
        elif _is_repeated(field):
            for one in value:
                _filled(getattr(message, name).add(), one)
        else:
            inner = getattr(message, name)
            inner.SetInParent()
            _filled(inner, value)
    return message


def _set(message: Any, name: str, value: Any, *, is_repeated: bool) -> None:
    if is_repeated:
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def _put_entry(mapping: Any, field: FieldDescriptor, entry: dict[str, Any]) -> None:
    assert field.message_type is not None
    key = field.message_type.fields_by_name["key"]
    value = field.message_type.fields_by_name["value"]
    chosen = entry.get("key", key.default_value)
    if value.message_type is not None:
        _filled(mapping[chosen], entry.get("value", {}))
    else:
        mapping[chosen] = entry.get("value", value.default_value)


def _is_repeated(field: FieldDescriptor) -> bool:
    told: Any = field  # the older way to ask is deprecated, and the newer one is not in every runtime
    return bool(told.is_repeated if hasattr(told, "is_repeated") else told.label == FieldDescriptor.LABEL_REPEATED)
