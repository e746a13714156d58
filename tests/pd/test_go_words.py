"""Mistakes of clients in the words of Go's decoders."""

from __future__ import annotations

import pytest

from drillyard.emulator.pd.routes.go import NoJson, json_kind, json_of


@pytest.mark.parametrize(
    ("body", "message", "offset"),
    [
        (b"", "unexpected end of JSON input", 0),
        (b"{", "unexpected end of JSON input", 1),
        (b'{"a"', "unexpected end of JSON input", 4),
        (b'"abc', "unexpected end of JSON input", 4),
        (b"bad", "invalid character 'b' looking for beginning of value", 1),
        (b"not json", "invalid character 'o' in literal null (expecting 'u')", 2),
        (b"[trux]", "invalid character 'x' in literal true (expecting 'e')", 5),
        (b"tru", "unexpected end of JSON input", 3),
        (b"{a: 1}", "invalid character 'a' looking for beginning of object key string", 2),
        (b'{"a" 1}', "invalid character '1' after object key", 6),
        (b'{"a": 1 2}', "invalid character '2' after object key:value pair", 9),
        (b"{} x", "invalid character 'x' after top-level value", 4),
        (b"'a'", r"invalid character '\'' looking for beginning of value", 1),
        (b"[NaN]", "invalid character 'N' looking for beginning of value", 2),
        ('{"é" 1}'.encode(), "invalid character '1' after object key", 7),
    ],
)
def test_json(body: bytes, message: str, offset: int) -> None:
    with pytest.raises(NoJson) as caught:
        json_of(body)
    assert (caught.value.mistake.message, caught.value.mistake.offset) == (message, offset)


def test_broken_text_is_mended_and_not_guessed_at() -> None:
    assert json_of(b'["\xff"]') == ["\ufffd"]
    with pytest.raises(NoJson):
        json_of('"x"'.encode("utf-16"))


def test_kinds() -> None:
    values: list[object] = [1, 1.5, True, "x", [], {}]
    assert [json_kind(value) for value in values] == ["number", "number", "bool", "string", "array", "object"]
