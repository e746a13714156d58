"""Where the seconds go when the cluster starts in containers: by `drillyard up`, and by plain `docker compose`."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.deployment import LIMIT_S, Deployment
from bench.figures import Figure, Results
from bench.plan import BenchFailed

FILE = Path(__file__).resolve().parents[1] / "subjects" / "tikv" / "docker-compose.yaml"
IMAGES = {"PD_IMAGE": "drillyard/pd-source:local", "TIKV_IMAGE": "drillyard/tikv-emulator:local"}
PLAIN = {"PD_PORT": "12379", "TIKV_PORT": "12160", "TIKV_STATUS_PORT": "12180", "TIKV_OPEN_FILES": "20000"}


def measure(results: Results) -> None:
    """One start and one stop each way, on the images of `scripts/build-images` unless the environment names others."""
    for name, image in IMAGES.items():
        os.environ.setdefault(name, image)
    with tempfile.TemporaryDirectory(prefix="drillyard-bench-") as home:
        _by_drillyard(Deployment(Path(home), Path()), results)
    _by_hand(f"bench-{secrets.token_hex(4)}", results)


def _by_drillyard(bench: Deployment, results: Results) -> None:
    name = ("--name", f"bench-{secrets.token_hex(4)}")
    try:
        up = bench.run("up", "--runtime", "compose", *name)
        report = up.document["report"]
        began = next(
            entry["at"] - gate["open_after_s"]
            for entry in report["timeline"]
            for gate in report["gates"]
            if entry["gate"] == gate["gate"]
        )
        results.add(_step("the last PD container has started"), _last_start(report, "pd") - began)
        opened = {gate["gate"]: gate["open_after_s"] for gate in report["gates"]}
        for gate in ("pd-quorum", "timestamps"):
            results.add(_step(f"gate {gate} is open"), opened[gate])
        results.add(_step("the last TiKV container has started"), _last_start(report, "tikv") - began)
        for gate in ("processes", "stores-up", "replicated", "data-path"):
            results.add(_step(f"gate {gate} is open"), opened[gate])
        results.add(_step("the command has ended"), up.took_s)
    finally:
        down = bench.run("down", "--delete-data", *name)
    results.add(_figure("drillyard down --delete-data of containers"), down.took_s)


def _last_start(report: dict[str, Any], role: str) -> float:
    starts = [e["at"] for e in report["timeline"] if e["member"].startswith(role) and " started" in e["text"]]
    return float(max(starts))


def _figure(what: str) -> Figure:
    return Figure(f"compose: {what}", what, "s")


def _step(what: str) -> Figure:
    return _figure(f"drillyard up --runtime compose: {what}")


def _by_hand(project: str, results: Results) -> None:
    command = ["docker", "compose", "-p", project, "-f", str(FILE)]
    environment = {**os.environ, **PLAIN}

    def run(*words: str) -> float:
        began = time.perf_counter()
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:
            raise BenchFailed(f"docker compose {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return time.perf_counter() - began

    began = time.perf_counter()
    try:
        results.add(_figure("docker compose up -d: the command has ended"), run("up", "-d"))
        while _stores_up(PLAIN["PD_PORT"]) < 3:
            if time.perf_counter() - began > LIMIT_S:
                raise BenchFailed("the stores did not come Up")
            time.sleep(0.05)
        results.add(_figure("docker compose up -d: PD shows three stores Up"), time.perf_counter() - began)
    finally:
        took_s = run("down", "--volumes")
    results.add(_figure("docker compose down --volumes"), took_s)


def _stores_up(port: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/pd/api/v1/stores", timeout=1) as answer:
            stores = json.load(answer)["stores"]
    except (OSError, ValueError, KeyError):
        return 0
    return sum(1 for store in stores if store["store"].get("state_name") == "Up")
