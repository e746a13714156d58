"""The pictures in docs/shots/: real commands on a real cluster, taken on a terminal of fixed size.

Each shot has a cluster of its own under a temporary home, which is removed after it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.terminal import Frame, frames_of, picture_of, text_of

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "docs" / "shots"


@dataclass(frozen=True, slots=True)
class Shot:
    """What is typed, what is done before that (shell), and the moment: the first that shows this, or the end."""

    name: str
    typed: str
    before: str = ""
    moment: str = ""


# Somebody kills a store; and the others have elected.
KILL_9 = """
kill -9 "$(./yard status --json | python3 -c '
import json, sys
print(next(one["pid"] for one in json.load(sys.stdin)["deployment"]["members"] if one["name"] == "tikv1"))')"
until ./yard verify 2>&1 | grep -q 'data-path *open'; do :; done
"""
# A cluster whose region tikv0 leads, so that its end is felt.
LED_BY_TIKV0 = r"""
leader() {
    ./yard status --json | python3 -c '
import json, sys, urllib.request
status = json.load(sys.stdin)["deployment"]
endpoint = status["pd_endpoints"][0]
def ask(path):
    return json.load(urllib.request.urlopen(f"http://{endpoint}/pd/api/v1/{path}"))
leads = ask("regions")["regions"][0]["leader"]["store_id"]
where = next(one["store"]["address"] for one in ask("stores")["stores"] if one["store"]["id"] == leads)
print(next(one["name"] for one in status["members"] if one["addresses"]["client"] == where))'
}
./yard up
until [ "$(leader)" = tikv0 ]; do
    ./yard restart "$(leader)"
    ./yard verify --wait
done
"""
ALL = (
    Shot("up-starting", "./yard up", moment=r"timestamps +open(.*\n)+.*replicated +(closed|unknown)"),
    Shot("up", "./yard up"),
    Shot("failure", "./yard verify", before=f"./yard up{KILL_9}"),
    Shot("outage", "./yard kill tikv0 --measure", before=LED_BY_TIKV0),
    Shot("two-killed", "./yard verify", before="./yard up\n./yard kill tikv1\n./yard kill tikv2"),
)
NAMES = tuple(shot.name for shot in ALL)


def take(names: list[str]) -> int:
    unknown = sorted({*names} - {*NAMES})
    if unknown:
        print(f"error: there is no shot {unknown[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    SHOTS.mkdir(exist_ok=True)
    for shot in ALL:
        if shot.name in names:
            path = SHOTS / f"{shot.name}.svg"
            path.write_text(picture_of(shot.typed, taken(shot)), encoding="utf-8")
            print(f"took {path.relative_to(ROOT)}")
    return 0


def taken(shot: Shot) -> Frame:
    with tempfile.TemporaryDirectory(prefix="yard-") as home:
        environment = {**os.environ, "DRILLYARD_HOME": home}
        try:
            if shot.before:
                _quietly(shot.before, environment)
            frames = frames_of(["sh", "-c", shot.typed], environment, ROOT)
        finally:
            _quietly("./yard down --delete-data", environment)
    moments = [frame for frame in frames if re.search(shot.moment, text_of(frame))] if shot.moment else frames[-1:]
    if not moments:
        raise SystemExit(f"{shot.name}: never showed {shot.moment!r}; the last was\n{text_of(frames[-1])}")
    return moments[0]


def _quietly(script: str, environment: Mapping[str, str]) -> None:
    done = subprocess.run(["sh", "-eu"], input=script, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"this failed: {script}\n{done.stdout}{done.stderr}")
