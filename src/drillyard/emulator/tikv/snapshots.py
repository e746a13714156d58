"""A region's snapshot on its way: read from a view in parts, kept as parts where it arrives, moved into place at last.

Rules: a part holds little more than `PART_BYTES` of pairs (or one larger pair), and the loop runs between two parts.
The first part has the region. The carrier may cut the bytes anywhere, so each part begins with its length; one that
says it is larger than any part can be is refused before it is gathered. What arrives
is written under keys of its own and touches nothing that is served; moving it into place can be begun again after a
crash, because the parts stay until the replica's record says that it is done.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator

from google.protobuf.message import DecodeError

from drillyard.emulator.storage import Batch, Storage, View
from drillyard.emulator.store.region import Region
from drillyard.emulator.store.state import Family
from drillyard.emulator.tikv.records import (
    arriving_key,
    arriving_range,
    data_place,
    data_range,
    key_at,
    pack_region,
    spans_of,
    unpack_region,
)
from drillyard.wire import drillpb
from drillyard.wire.rpc import MAX_MESSAGE, RpcError, Status

PART_BYTES = 128 << 10
MAX_PART_BYTES = PART_BYTES + MAX_MESSAGE  # a pair came here in one message, when it was written
_LENGTH = struct.Struct(">I")


async def parts_of(region: Region, view: View) -> AsyncGenerator[bytes, None]:
    """The region and its pairs as the view shows them."""
    yield _framed(drillpb.SnapshotPart(region=pack_region(region), absorbed=region.absorbed))
    part, size = drillpb.SnapshotPart(), 0
    for span in spans_of(region):
        for place, value in view.walk(*data_range(span)):
            part.pairs.add(key=key_at(place), value=value, family=span.family)
            size += len(place) + len(value)
            if size >= PART_BYTES:
                yield _framed(part)
                part, size = drillpb.SnapshotPart(), 0
                await asyncio.sleep(0)
    if size:
        yield _framed(part)


def _framed(part: drillpb.SnapshotPart) -> bytes:
    body = part.SerializeToString()
    return _LENGTH.pack(len(body)) + body


async def _parts_in(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts as they were before they were cut into chunks."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        while len(gathered) >= _LENGTH.size:
            length = _LENGTH.unpack_from(gathered)[0]
            if length > MAX_PART_BYTES:
                raise RpcError(Status.INVALID_ARGUMENT, f"a part of the snapshot of {length} bytes")
            end = _LENGTH.size + length
            if len(gathered) < end:
                break
            yield bytes(gathered[_LENGTH.size : end])
            del gathered[:end]
    if gathered:
        raise RpcError(Status.INVALID_ARGUMENT, "the snapshot ends inside a part")


class Snapshots:
    """Those that are arriving: at most one for each region."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._arriving: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._arriving)

    async def receive(self, region_id: int, chunks: AsyncIterator[bytes]) -> Region:
        """Keeps the parts on disk until they are moved into place or dropped; nothing is kept of a broken transfer."""
        if region_id in self._arriving:
            raise RpcError(Status.ABORTED, f"another snapshot of region {region_id} is arriving")
        self._arriving.add(region_id)
        try:
            return await self._keep(region_id, chunks)
        except BaseException:
            self.drop(region_id)
            raise
        finally:
            self._arriving.discard(region_id)

    def drop(self, region_id: int) -> None:
        if self._storage.failure is None:
            batch = Batch()
            batch.delete_range(*arriving_range(region_id))
            self._storage.write(batch)

    async def _keep(self, region_id: int, chunks: AsyncIterator[bytes]) -> Region:
        region: Region | None = None
        number = 0
        async for chunk in _parts_in(chunks):
            if region is None:
                region = _region_in(chunk, region_id)
                continue
            _part_in(chunk)  # what cannot be read must not be found out when it is to be moved into place
            batch = Batch()
            batch.put(arriving_key(region_id, number), chunk)
            self._storage.write(batch)
            number += 1
            await asyncio.sleep(0)
        if region is None:
            raise RpcError(Status.INVALID_ARGUMENT, "a snapshot without its region")
        return region


def _part_in(chunk: bytes) -> drillpb.SnapshotPart:
    try:
        return drillpb.SnapshotPart.FromString(chunk)
    except DecodeError as error:
        raise RpcError(Status.INVALID_ARGUMENT, f"a part of the snapshot cannot be read: {error}") from error


def _region_in(chunk: bytes, region_id: int) -> Region:
    try:
        part = _part_in(chunk)
        region = unpack_region(part.region, part.absorbed)
    except ValueError as error:
        raise RpcError(Status.INVALID_ARGUMENT, f"the first part of the snapshot cannot be read: {error}") from error
    if region.id != region_id or not region.is_initialized:
        raise RpcError(Status.INVALID_ARGUMENT, f"the snapshot is of region {region.id}, not {region_id}")
    return region


async def move_into_place(storage: Storage, region: Region) -> None:
    """Replaces the region's pairs by those that have arrived."""
    batch = Batch()
    for span in spans_of(region):
        batch.delete_range(*data_range(span))
    storage.write(batch)
    cursor, end = arriving_range(region.id)
    while found := storage.scan(cursor, end, 1):
        place, chunk = found[0]
        batch = Batch()
        for pair in drillpb.SnapshotPart.FromString(chunk).pairs:
            batch.put(data_place(pair.key, Family(pair.family)), pair.value)
        storage.write(batch)
        cursor = place + b"\0"
        await asyncio.sleep(0)
