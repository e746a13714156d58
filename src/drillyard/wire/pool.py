"""Message classes from compiled descriptors, in a pool of our own.

Rules: nothing of ours goes into protobuf's process-wide pool, so our `metapb` lives beside anybody else's. Any protobuf
runtime since 5.26 will do. It does not check or change what the descriptors say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

_DESCRIPTORS = Path(__file__).parent / "descriptors"


# The C runtime, when there is one, is used directly: its public wrappers import the whole pure Python runtime as well,
# which six starting members would each pay for.
_COMPILED = getattr(descriptor, "_message", None)


def _new_pool() -> Any:
    if _COMPILED is not None:
        return _COMPILED.DescriptorPool()
    from google.protobuf.descriptor_pool import DescriptorPool

    return DescriptorPool()


def _class_of(message: Any, module: str) -> Any:
    if _COMPILED is not None:
        return _COMPILED.MessageMeta(message.name, (Message,), {"DESCRIPTOR": message, "__module__": module})
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(message)


POOL = _new_pool()


def publish(name: str, module: dict[str, Any]) -> None:
    """Puts the classes, enums and enum values of `name`.proto into a module, as protoc's own Python code would."""
    POOL.AddSerializedFile((_DESCRIPTORS / f"{name}.binpb").read_bytes())
    file = POOL.FindFileByName(f"{name}.proto")
    for message in file.message_types_by_name.values():
        module[message.name] = _class_of(message, f"drillyard.wire.{name}")
    for enum in file.enum_types_by_name.values():
        wrapper = module[enum.name] = EnumTypeWrapper(enum)
        for value in enum.values:
            module[value.name] = value.number
            setattr(wrapper, value.name, value.number)  # else each use is a search in Python, of a microsecond
    module["DESCRIPTOR"] = file
