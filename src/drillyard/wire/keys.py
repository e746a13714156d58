"""How keys are written where plain bytes will not do.

Transactional clients and PD compare keys in the memcomparable form: groups of eight bytes, each followed by a marker
byte of 255 minus the count of padding zeros; the last group always has padding. The order of the encoded keys is the
order of the plain ones, and no encoded key is a prefix of another. PD prints keys as upper-case hex.
RawKV keys are plain everywhere. Nothing here knows which of the two a key is.
"""

from __future__ import annotations

GROUP = 8
_MARKER = 255

PROBE_PREFIX = b"\xff\xff\xffdrillyard/probe/"  # the keys that are ours, at the end of the key space


class BadKey(ValueError):
    """Bytes or text that no key is written as."""


def encode(plain: bytes) -> bytes:
    """The memcomparable form of a key."""
    encoded = bytearray()
    for start in range(0, len(plain) + 1, GROUP):
        group = plain[start : start + GROUP]
        padding = GROUP - len(group)
        encoded += group + bytes(padding)
        encoded.append(_MARKER - padding)
    return bytes(encoded)


def decode(encoded: bytes) -> tuple[bytes, bytes]:
    """The plain key at the start of `encoded`, and what follows it."""
    plain = bytearray()
    for start in range(0, len(encoded), GROUP + 1):
        group = encoded[start : start + GROUP + 1]
        if len(group) <= GROUP:
            break
        padding = _MARKER - group[GROUP]
        if padding > GROUP:
            raise BadKey(
                f"byte {start + GROUP} of an encoded key is {group[GROUP]}; a marker is {_MARKER - GROUP} to 255"
            )
        if padding == 0:
            plain += group[:GROUP]
            continue
        if any(group[GROUP - padding : GROUP]):
            raise BadKey(f"padding before byte {start + GROUP} of an encoded key is not zero")
        return bytes(plain + group[: GROUP - padding]), encoded[start + GROUP + 1 :]
    raise BadKey(f"an encoded key ends early, after {len(encoded)} bytes")


def to_hex(key: bytes) -> str:
    """As PD prints keys."""
    return key.hex().upper()


def from_hex(text: str) -> bytes:
    if len(text) % 2 or any(character not in "0123456789abcdefABCDEF" for character in text):
        raise BadKey(f"{text!r} is not a key in hexadecimal")
    return bytes.fromhex(text)
