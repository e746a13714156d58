"""The keeper's side of one connection: JSON lines in, JSON lines out, never waiting.

Rules: a client that reads too slowly to keep up is dropped, and so is one that sends a line without end; it can come
back and be told again. What the lines mean is the keeper's. Standard library only: the keeper lives on this.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drillyard.runtimes.journal import Record

LINE_LIMIT = 1 << 20


class Client:
    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.is_subscriber = False
        self.is_open = True
        self._unread = b""

    def send(self, answer: Record) -> None:
        data = json.dumps(answer).encode() + b"\n"
        try:
            self.is_open = self.is_open and self.socket.send(data) == len(data)
        except OSError:
            self.is_open = False

    def lines(self) -> list[bytes]:
        """The whole lines that have come since."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        if not data or len(self._unread) > LINE_LIMIT:
            self.is_open = False
        return lines
