"""Flags and configuration: what is taken, and what a refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drillyard.emulator import flags
from drillyard.emulator.flags import BadFlag, Flag, Key

FLAGS = [
    Flag("name", "default", flags.text),
    Flag("addr", ("127.0.0.1", 20160), flags.address, "where it listens"),
    Flag("log-level", "info", flags.one_of("debug", "info", "warn", "error", "fatal"), short="L"),
    Flag("version", False, None, "print the version and exit", short="V"),
]
KEYS = [
    Key("lease", 3, flags.positive(flags.integer)),
    Key("raftstore.raft-base-tick-interval", 1.0, flags.positive(flags.duration)),
    Key("storage.reserve-space", 0, flags.size),
    Key("schedule.enable", True, flags.boolean),
]


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ([], {}),
        (["--name=pd0"], {"name": "pd0"}),
        (["--name", "pd0"], {"name": "pd0"}),
        (["-name=pd0"], {"name": "pd0"}),
        (["--name="], {"name": ""}),
        (["--name=a=b"], {"name": "a=b"}),
        (["--name=a", "--name=b"], {"name": "b"}),
        (["-L", "WARN"], {"log-level": "warn"}),
        (["-L=debug", "-V"], {"log-level": "debug", "version": True}),
        (["--version=false"], {}),
        (["--addr=[::1]:1"], {"addr": ("::1", 1)}),
    ],
)
def test_flags_that_are_taken(arguments: list[str], changed: dict[str, Any]) -> None:
    defaults = {"name": "default", "addr": ("127.0.0.1", 20160), "log-level": "info", "version": False}
    assert flags.parse_flags(FLAGS, arguments) == {**defaults, **changed}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nam=x"], "unknown flag --nam; did you mean --name?"),
        (["--zzz"], "unknown flag --zzz; known are --addr, --log-level, --name, --version, -L, -V"),
        (["pd0"], "unknown argument pd0; known are --addr, --log-level, --name, --version, -L, -V"),
        (["--name"], "--name has no value; write --name=VALUE"),
        (["-L", "loud"], "-L: 'loud' is not usable; one of debug, info, warn, error, fatal is wanted"),
        (["--addr=20160"], "--addr: '20160' is not usable; an address is written host:port, with a port up to 65535"),
        (
            ["--addr=x:70000"],
            "--addr: 'x:70000' is not usable; an address is written host:port, with a port up to 65535",
        ),
        (["--version=yes"], "--version: 'yes' is not usable; true or false is wanted"),
    ],
)
def test_flags_that_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(BadFlag) as refused:
        flags.parse_flags(FLAGS, arguments)
    assert str(refused.value) == message


def configured(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "member.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return flags.load_config(path, KEYS)


def test_configuration_that_is_taken(tmp_path: Path) -> None:
    text = 'lease = 2\n[raftstore]\nraft-base-tick-interval = "100ms"\n[storage]\nreserve-space = "5GiB"\n'
    assert configured(tmp_path, text) == {
        "lease": 2,
        "raftstore.raft-base-tick-interval": 0.1,
        "storage.reserve-space": 5 << 30,
        "schedule.enable": True,
    }
    assert configured(tmp_path, "")["lease"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leese = 2", "unknown key leese; did you mean lease?"),
        (
            "[raftstore]\nx = 1",
            "unknown key raftstore.x; known are lease, raftstore.raft-base-tick-interval, schedule.e",
        ),
        ("lease = 0", "lease: 0 is not usable; it must be more than zero"),
        ('lease = "many"', "lease: 'many' is not usable; a whole number is wanted"),
        ("lease = true", "lease: True is not usable; a whole number is wanted"),
        ("[raftstore]\nraft-base-tick-interval = 100", "raft-base-tick-interval: 100 is not usable; a duration is"),
        ("[schedule]\nenable = 1", "schedule.enable: 1 is not usable; true or false is wanted"),
        ("lease = [", "mend the file: it must be TOML in UTF-8"),
        (b"\xff\xfe", "mend the file: it must be TOML in UTF-8"),
    ],
)
def test_configuration_that_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(BadFlag) as refused:
        configured(tmp_path, text)
    assert message in str(refused.value)
    assert str(tmp_path / "member.toml") in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFlag, match=r"missing\.toml: No such file or directory; give the path"):
        flags.load_config(tmp_path / "missing.toml", KEYS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("1s", 1), ("1h30m", 5400), ("2d", 172_800), ("1.5s", 1.5), ("10us", 1e-5), ("1m 5s", 65)],
)
def test_durations(text: str, seconds: float) -> None:
    assert flags.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1", "1x", "-1s", "1s2", "ms1"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is written like"):
        flags.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), (4096, 4096), ("5GiB", 5 << 30), ("512MB", 512 << 20), ("1.5KB", 1536), ("2 TiB", 2 << 40), ("7B", 7)],
)
def test_sizes(text: Any, count: int) -> None:
    assert flags.size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "5XB", "five", True])
def test_bad_sizes(text: Any) -> None:
    with pytest.raises(ValueError, match="a size is written like"):
        flags.size(text)


def test_usage_names_every_flag() -> None:
    shown = flags.usage("tikv-server", FLAGS)
    for flag in FLAGS:
        assert f"--{flag.name}" in shown
        assert flag.about in shown
