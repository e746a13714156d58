"""Our messages against tikv-python's own: written with the one, read with the other, field by field."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tikv._proto import errorpb_pb2, kvrpcpb_pb2, metapb_pb2, pdpb_pb2

from drillyard.wire import errorpb, kvrpcpb, metapb, pdpb

PAIRS = [(metapb_pb2, metapb), (errorpb_pb2, errorpb), (kvrpcpb_pb2, kvrpcpb), (pdpb_pb2, pdpb)]


def messages_in_common() -> list[tuple[str, ModuleType, ModuleType]]:
    return [
        (name, theirs, ours)
        for theirs, ours in PAIRS
        for name in sorted(theirs.DESCRIPTOR.message_types_by_name)
        if hasattr(ours, name)
    ]


def filled(message: Any, depth: int = 0) -> Any:
    """The message with a telling value in every field."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # only one field is a map, and tikv-python lacks it
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth < 3:
                target = getattr(message, field.name)
                filled(target.add() if field.is_repeated else target, depth + 1)
                if not field.is_repeated:
                    target.SetInParent()
            continue
        value = value_of(field)
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)
    return message


def value_of(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return max(value.number for value in field.enum_type.values)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\x00\xff" + field.name.encode()
    if field.type == FieldDescriptor.TYPE_STRING:
        return field.name
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64):
        return 2**64 - field.number
    return field.number + 1000


def by_number(message: Any) -> dict[int, Any]:
    """What is set, by field number: names differ between the two, numbers must not."""
    seen: dict[int, Any] = {}
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            seen[field.number] = [by_number(item) for item in value] if field.is_repeated else by_number(value)
        else:
            seen[field.number] = list(value) if field.is_repeated else value
    return seen


def test_we_have_every_message_of_theirs() -> None:
    missing = [
        name for theirs, ours in PAIRS for name in theirs.DESCRIPTOR.message_types_by_name if not hasattr(ours, name)
    ]
    assert not missing
    assert len(messages_in_common()) > 55


@pytest.mark.parametrize(("name", "theirs", "ours"), messages_in_common(), ids=lambda value: str(value)[:40])
def test_what_they_write_we_read(name: str, theirs: ModuleType, ours: ModuleType) -> None:
    written = filled(getattr(theirs, name)())
    read = getattr(ours, name).FromString(written.SerializeToString())
    assert by_number(read) == by_number(written)


@pytest.mark.parametrize(("name", "theirs", "ours"), messages_in_common(), ids=lambda value: str(value)[:40])
def test_what_we_write_they_keep(name: str, theirs: ModuleType, ours: ModuleType) -> None:
    """They know fewer fields; what they do not know they must pass on unharmed."""
    written = filled(getattr(ours, name)())
    passed_on = getattr(theirs, name).FromString(written.SerializeToString()).SerializeToString()
    assert getattr(ours, name).FromString(passed_on) == written


def test_golden_bytes() -> None:
    request = kvrpcpb.RawPutRequest(
        context=kvrpcpb.Context(
            region_id=2,
            region_epoch=metapb.RegionEpoch(conf_ver=5, version=1),
            peer=metapb.Peer(id=3, store_id=1),
        ),
        key=b"k",
        value=b"v",
    )
    assert request.SerializeToString().hex() == "0a0e0802120408051001" + "1a0408031001" + "12016b" + "1a0176"
