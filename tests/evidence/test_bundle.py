"""The files of a bundle: whole or not there, for the owner only, bounded, without secrets."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from drillyard.flows import bundle as bundles
from drillyard.flows.bundle import BUNDLE_BYTES, FILE_BYTES, LOG_BYTES, Bundle, newest
from drillyard.runtimes import logs

AT = 1_000_000.5


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_bundle_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "e", "why", AT)
    bundle.write("a/b/c.txt", "text")
    bundle.write_page("index.html", "<p>")
    assert names(tmp_path / "e") == ["19700112T134640Z-why.partial"]
    assert newest(tmp_path / "e") is None
    path = bundle.finish()
    assert names(tmp_path / "e") == ["19700112T134640Z-why", "19700112T134640Z-why.tar.gz"]
    assert newest(tmp_path / "e") == path
    archive = path.with_name(f"{path.name}.tar.gz")
    for one in (path, archive, *path.rglob("*")):
        assert stat.S_IMODE(one.stat().st_mode) == (0o700 if one.is_dir() else 0o600), one
    with tarfile.open(archive) as tar:
        held = {one.name: one for one in tar.getmembers() if one.isfile()}
        assert sorted(held) == [f"{path.name}/a/b/c.txt", f"{path.name}/index.html"]
        for name in held:
            packed = tar.extractfile(name)
            assert packed is not None
            assert packed.read() == (tmp_path / "e" / name).read_bytes()


def test_two_that_are_written_at_once_do_not_meet(tmp_path: Path) -> None:
    made = [Bundle(tmp_path, "why", AT) for _ in range(2)]
    made[1].finish()
    made.append(Bundle(tmp_path, "why", AT))
    assert [one.finish().name[-5:] for one in (made[0], made[2])] == ["Z-why", "why-3"]


def test_what_was_cut_short_stays_and_counts_for_nothing(tmp_path: Path) -> None:
    Bundle(tmp_path, "why", AT).write("a.txt", "text")
    assert newest(tmp_path) is None
    assert Bundle(tmp_path, "why", AT).finish().name == "19700112T134640Z-why-2"
    assert (tmp_path / "19700112T134640Z-why.partial" / "a.txt").read_text() == "text"


def test_an_archive_that_cannot_be_written_leaves_no_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(tmp_path, "why", AT)
    bundle.write("a.txt", "text")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", full)
    with pytest.raises(OSError, match="No space left"):
        bundle.finish()
    assert names(tmp_path) == ["19700112T134640Z-why.partial"]


def test_a_long_file_keeps_both_ends_and_says_what_is_missing(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "why", AT)
    lines = "".join(f"line {at:08}\n" for at in range(200_000))
    written = bundle.write("long.txt", lines)
    assert len(written) <= FILE_BYTES + 100
    assert written.startswith("line 00000000\n")
    assert written.endswith("line 00199999\n")
    told = [line for line in written.splitlines() if not line.startswith("line ")]
    missing = len(lines) - sum(len(line) + 1 for line in written.splitlines() if line.startswith("line "))
    assert told == [f"[drillyard: {missing} bytes are left out here]"]
    assert bundle.kept[0].size == len(written)
    assert bundle.kept[0].cut == len(lines) - len(written)


def test_a_hundred_long_logs_share_the_room_and_stay_below_the_limit(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "why", AT)
    line = b"x" * 99 + b"\n"
    log = line * (LOG_BYTES // len(line))
    files = {f"logs/tikv{at}.log": b"first\n" + log + b"last\n" for at in range(100)}
    written = bundle.write_all({**files, "deployment/plan.json": b"{}", "logs/short.log": b"short\n"})
    assert written["deployment/plan.json"] == "{}"
    assert written["logs/short.log"] == "short\n"
    assert sum(one.size for one in bundle.kept) <= BUNDLE_BYTES + 100 * len(files)
    for path in files:
        assert written[path].startswith("first\n")
        assert written[path].endswith("last\n")
        assert len(written[path]) > BUNDLE_BYTES // 110


def test_when_there_is_no_room_left_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLE_BYTES", 10)
    bundle = Bundle(tmp_path, "why", AT)
    assert bundle.write("a.txt", "0123456789") == "0123456789"
    assert bundle.write("b.txt", "text") == "[drillyard: 4 bytes are left out here]\n"


def test_secrets_go_and_are_counted_and_other_bytes_stay(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "why", AT)
    shown = bundle.write("a.log", b"password=hunter2 \xff\xfe\nregion_id=2\n")
    bundle.write("b.json", '{"token": "a1", "secret": "b2"}')
    path = bundle.finish()
    assert (path / "a.log").read_bytes() == b"password=[redacted]\nregion_id=2\n"
    assert "�" not in shown
    assert bundle.redacted == 3
    again = Bundle(tmp_path, "again", AT)
    assert again.write("raw.log", b"key=\xff\xfe\n") == "key=��\n"
    assert (again.finish() / "raw.log").read_bytes() == b"key=\xff\xfe\n"


@pytest.mark.parametrize("size", [0, 10, logs.HEAD_BYTES + logs.TAIL_BYTES])
def test_a_log_that_is_not_long_is_kept_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(os.urandom(size))
    assert logs.both_ends(path) == path.read_bytes()


def test_of_a_long_log_the_beginning_stays_too(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("Welcome\n" + "x" * 100 + "\n" + f"{'y' * 999}\n" * 3_000 + "Bye\n")
    kept = logs.both_ends(path).decode()
    assert len(kept) < logs.HEAD_BYTES + logs.TAIL_BYTES + 100
    assert kept.startswith("Welcome\n")
    assert kept.endswith("y\nBye\n")
    assert kept.count("bytes are left out here") == 1
    assert set(map(len, kept.splitlines()[2:-1])) <= {999, len("[drillyard: 1234567 bytes are left out here]")}
    assert logs.both_ends(tmp_path / "nothing") == b""
