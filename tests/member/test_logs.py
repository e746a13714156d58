"""The log's line format, and that nothing in a line can break it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from drillyard.emulator import logs

LINE = re.compile(
    r"\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d\d:\d\d\] "
    r"\[(DEBUG|INFO|WARN|ERROR|FATAL)\] \[test_logs\.py:\d+\] (.*)\n"
)


def written(tmp_path: Path, level: str = "info", message: str = "m", **fields: object) -> str:
    log = logs.open_log(tmp_path / "deep" / "member.log", level)
    log.info(message, **fields)
    log.close()
    return (tmp_path / "deep" / "member.log").read_text()


@pytest.mark.parametrize(
    ("message", "fields", "rest"),
    [
        ("Welcome to TiKV", {}, '["Welcome to TiKV"]'),
        ("bare", {"k": "v"}, "[bare] [k=v]"),
        (
            "m",
            {"region_id": 2, "ok": True, "rate": 0.5, "none": None},
            "[m] [region_id=2] [ok=true] [rate=0.5] [none=None]",
        ),
        ("m", {"url": "http://127.0.0.1:2379"}, "[m] [url=http://127.0.0.1:2379]"),
        ("m", {"k": "a b"}, '[m] [k="a b"]'),
        ("m", {"k": "a=b"}, '[m] [k="a=b"]'),
        ("m", {"k": "[PD]"}, '[m] [k="[PD]"]'),
        ("m", {"k": 'say "x"'}, '[m] [k="say \\"x\\""]'),
        ("m", {"k": "a\nb\t\x00"}, '[m] [k="a\\nb\\t\\u0000"]'),
        ("m", {"k": "ü€"}, "[m] [k=ü€]"),
        ("m", {"k": "\udcff"}, "[m] [k=\\udcff]"),
        ("m", {"key": b"\x01\xab"}, "[m] [key=01AB]"),
        ("m", {"k": ""}, "[m] [k=]"),
        ("[forged] [line]\n[2026]", {}, '["[forged] [line]\\n[2026]"]'),
    ],
)
def test_lines(tmp_path: Path, message: str, fields: dict[str, object], rest: str) -> None:
    match = LINE.fullmatch(written(tmp_path, "info", message, **fields))
    assert match is not None
    assert match[2] == rest


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["DEBUG", "INFO", "WARN", "ERROR", "FATAL"]),
        ("info", ["INFO", "WARN", "ERROR", "FATAL"]),
        ("warn", ["WARN", "ERROR", "FATAL"]),
        ("error", ["ERROR", "FATAL"]),
        ("fatal", ["ERROR", "FATAL"]),
    ],
)
def test_levels(tmp_path: Path, level: str, shown: list[str]) -> None:
    log = logs.open_log(tmp_path / "x.log", level)
    for write in (log.debug, log.info, log.warn, log.error, log.fatal):
        write("m")
    assert re.findall(r"\[([A-Z]+)\]", (tmp_path / "x.log").read_text()) == shown


def test_an_exception_is_one_line_with_its_stack(tmp_path: Path) -> None:
    log = logs.open_log(tmp_path / "x.log")
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        log.failure("it broke", error, request="GET /")
    (line,) = (tmp_path / "x.log").read_text().splitlines()
    assert '[error="ValueError: a\\nb"]' in line
    assert "test_an_exception_is_one_line_with_its_stack" in line


def test_it_appends(tmp_path: Path) -> None:
    for _ in range(2):
        log = logs.open_log(tmp_path / "x.log")
        log.info("m")
        log.close()
    assert (tmp_path / "x.log").read_text().count("[m]") == 2


def test_lines_that_a_full_disk_took_are_counted_and_said() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    log = logs.Log(full)
    log.info("one")
    log.info("two")
    os.dup2(writer, full)
    log.info("three")
    log.info("four")
    os.close(full)
    os.close(writer)
    lines = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    assert [line.rpartition("[")[2] for line in lines] == ["lost_lines=2]", "four]"]
