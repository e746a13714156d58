"""Where a region is to be cut: keys found while its pairs go by, in order.

Rules, as TiKV's: a region is cut when it holds more than `max_bytes` or `max_keys`, into parts of `split_bytes` or
`split_keys`, into at most `SPLITS_AT_ONCE` new ones at a time, and the last part is not made smaller than it has to be.
On PD's wish it is cut in the middle by size. A key with a version behind it is cut to the key alone, so that the
versions of one key stay together; a plain key that happens to look like one is cut too, which does no harm.
Unlike TiKV's, the middle is found in small regions as well: any two keys can be parted.
"""

from __future__ import annotations

from msgspec import Struct

from drillyard.emulator.store.region import Region
from drillyard.wire import keys as key_codec

SPLITS_AT_ONCE = 10
MARKS = 256  # places that are remembered on the way to the middle


class SplitLimits(Struct, frozen=True):
    split_bytes: int = 96 << 20
    max_bytes: int = 144 << 20
    split_keys: int = 960_000
    max_keys: int = 1_440_000

    def is_exceeded(self, size: int, keys: int) -> bool:
        return size >= self.max_bytes or keys >= self.max_keys


class Ruler:
    """Cuts when one measure of a region is too large: its bytes, or its keys."""

    __slots__ = ("_keys", "_limit", "_part", "_so_far")

    def __init__(self, part: int, limit: int) -> None:
        self._part = part
        self._limit = limit
        self._so_far = 0  # since the last cut
        self._keys: list[bytes] = []

    def pass_by(self, key: bytes, weight: int) -> None:
        self._so_far += weight
        if self._so_far > self._part and len(self._keys) < SPLITS_AT_ONCE:
            self._keys.append(key)
            self._so_far = weight

    def keys(self) -> list[bytes]:
        """Without the last cut if what is behind it could stay with what is before."""
        return self._keys if self._so_far + self._part >= self._limit else self._keys[:-1]


class Middle:
    """Remembers keys at equal distances, wider ones as the region turns out larger."""

    __slots__ = ("_distance", "_marks", "_size")

    def __init__(self) -> None:
        self._distance = 1
        self._size = 0
        self._marks: list[tuple[int, bytes]] = []

    def pass_by(self, key: bytes, size: int) -> None:
        if not self._marks or self._size >= self._marks[-1][0] + self._distance:
            self._marks.append((self._size, key))
            if len(self._marks) > MARKS:
                self._marks = self._marks[::2]
                self._distance = max(2 * self._distance, self._size // MARKS)
        self._size += size

    def key(self) -> bytes | None:
        """The first remembered key behind the middle, or the last one before it."""
        if len(self._marks) < 2:
            return None
        half = self._size // 2
        return next((key for at, key in self._marks[1:] if at >= half), self._marks[-1][1])


class Survey:
    """One walk over a region: what it holds, and where it is to be cut."""

    __slots__ = ("_middle", "_of_bytes", "_of_keys", "count", "size")

    def __init__(self, limits: SplitLimits) -> None:
        self.size = self.count = 0
        self._of_bytes = Ruler(limits.split_bytes, limits.max_bytes)
        self._of_keys = Ruler(limits.split_keys, limits.max_keys)
        self._middle = Middle()

    def pass_by(self, key: bytes, size: int) -> None:
        """The families come one after the other; only keys of the same one are in order."""
        self.size += size
        self.count += 1
        self._of_bytes.pass_by(key, size)
        self._of_keys.pass_by(key, 1)
        self._middle.pass_by(key, size)

    def oversize_keys(self, region: Region) -> tuple[bytes, ...]:
        return valid_keys(region, self._of_bytes.keys() or self._of_keys.keys())

    def middle_key(self, region: Region) -> tuple[bytes, ...]:
        key = self._middle.key()
        return valid_keys(region, [key] if key is not None else [])


def without_version(key: bytes) -> bytes:
    try:
        _, rest = key_codec.decode(key)
    except key_codec.BadKey:
        return key
    return key[: len(key) - len(rest)]


def valid_keys(region: Region, keys: list[bytes]) -> tuple[bytes, ...]:
    """In order, each once, and inside the region."""
    stripped = {without_version(key) for key in keys}
    return tuple(sorted(key for key in stripped if region.has_key(key) and key > region.start))
