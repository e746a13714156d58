"""The memcomparable form: known answers, and the properties that its users rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drillyard.wire import keys

KEYS = st.binary(max_size=40) | st.lists(st.sampled_from([b"\x00", b"\xff", b"a"]), max_size=20).map(b"".join)


@pytest.mark.parametrize(
    ("plain", "encoded"),
    [
        (b"", "0000000000000000f7"),
        (b"\x01\x02\x03", "0102030000000000fa"),
        (b"\x01\x02\x03\x00", "0102030000000000fb"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "0102030405060708ff0000000000000000f7"),
        (b"123456789", "3132333435363738ff3900000000000000f8"),
    ],
)
def test_known_answers(plain: bytes, encoded: str) -> None:
    assert keys.encode(plain).hex() == encoded
    assert keys.decode(bytes.fromhex(encoded)) == (plain, b"")


@given(KEYS, st.binary(max_size=12))
def test_decoding_undoes_encoding_and_leaves_the_rest(plain: bytes, rest: bytes) -> None:
    assert keys.decode(keys.encode(plain) + rest) == (plain, rest)


@given(KEYS, KEYS)
def test_order_is_kept(one: bytes, other: bytes) -> None:
    assert (one < other) == (keys.encode(one) < keys.encode(other))


@given(KEYS, KEYS)
def test_no_encoded_key_begins_another(one: bytes, other: bytes) -> None:
    assert one == other or not keys.encode(other).startswith(keys.encode(one))


@given(st.binary(max_size=30))
def test_other_bytes_are_refused_or_were_an_encoded_key(blob: bytes) -> None:
    try:
        plain, rest = keys.decode(blob)
    except keys.BadKey:
        return
    assert keys.encode(plain) + rest == blob


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "ends early"),
        (b"\x00" * 8, "ends early"),
        (b"\x00" * 8 + b"\xf6", "a marker is 247 to 255"),
        (b"abcdefgh\xf8", "is not zero"),
        (b"abcdefgh\xff", "ends early"),
    ],
)
def test_what_is_wrong_is_said(blob: bytes, reason: str) -> None:
    with pytest.raises(keys.BadKey, match=reason):
        keys.decode(blob)


def test_hex_is_upper_case_and_forgiving() -> None:
    assert keys.to_hex(b"\x01\xab") == "01AB"
    assert keys.from_hex("01aB") == b"\x01\xab"
    for text in ("0", "0g", "é1", " 01 "):
        with pytest.raises(keys.BadKey):
            keys.from_hex(text)
