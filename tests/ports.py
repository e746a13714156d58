"""Ports for what a test starts itself.

Rules: they lie below those that the system lends to connecting programs, so that a member that comes back finds its own
still free, and below those that `up` chooses from. A test process gives no port twice, and holds the newest against
the test processes beside it, by binding the same number in UDP, which no member uses.
"""

from __future__ import annotations

import random
import socket
from collections import deque

RANGE = range(10_000, 20_000)
HELD = 400  # by then those that were asked for first have been listened on, or were never meant to be

_given: set[int] = set()
_held: deque[socket.socket] = deque()


def free_port() -> int:
    chance = random.Random()  # what seeds the other one must not make two processes choose alike
    while True:
        port = chance.choice(RANGE)
        if port not in _given and _take(port):
            _given.add(port)
            return port


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def _take(port: int) -> bool:
    hold = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        hold.bind(("127.0.0.1", port))
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
    except OSError:
        hold.close()
        return False
    _held.append(hold)
    if len(_held) > HELD:
        _held.popleft().close()
    return True
