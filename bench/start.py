"""The command line itself: help, status and the other commands, start and stop; and what idle members hold."""

from __future__ import annotations

import subprocess
import time

from bench import figures
from bench.deployment import COMMAND, Deployment, reported_s, standing, temporary
from bench.figures import Results

MEMBER = "tikv0"
COMMANDS = ("list", "connect", "logs", "verify", "diagnose", f"restart {MEMBER}", f"kill {MEMBER}", f"start {MEMBER}")
IDLE_S = 5.0  # from ready until memory is read


def commands(results: Results) -> None:
    with standing() as deployment:
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
            results.add(figures.HELP, time.perf_counter() - began)
            results.add(figures.STATUS, deployment.run("status").took_s)
            for words in COMMANDS:
                results.add(figures.command(words), deployment.run(*words.split()).took_s)
                if words in (f"restart {MEMBER}", f"start {MEMBER}"):
                    deployment.run("verify", "--wait")


def start(results: Results) -> None:
    with temporary() as deployment:
        up = deployment.up()
        results.add(figures.UP, up.took_s)
        results.add(figures.LAG, reported_s(up) - deployment.truth_s())
        results.add(figures.STOP, deployment.run("down", "--delete-data").took_s)


def memory(results: Results) -> None:
    with standing() as deployment:
        time.sleep(IDLE_S)
        rss, pss = largest(deployment)
        results.add(figures.RSS, rss)
        results.add(figures.PSS, pss)


def largest(deployment: Deployment) -> tuple[float, float]:
    """RSS and PSS, in MB, each of the member that has most of it."""
    held = deployment.memory_mb()
    return max(rss for rss, _ in held), max(pss for _, pss in held)
