"""How a call to a member can fail to bring an answer. One exception for every client, with words for people.

Rules: `kind` is for programs and stays stable; `text` says what happened and where. A call that failed says nothing
about the member's health; that is for the judge.
"""

from __future__ import annotations

from collections.abc import Callable

Dial = Callable[[str], str]  # where to connect for an address, host:port both; raises OSError when there is no way

REFUSED = "refused"
TIMED_OUT = "timed-out"
BROKEN = "broken"
STATUS = "status"
MALFORMED = "malformed"
NO_LEADER = "no-leader"
NOT_RUNNING = "not-running"


class CallFailed(Exception):
    """A member gave no usable answer."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def timed_out(address: str, timeout_s: float) -> CallFailed:
    return CallFailed(TIMED_OUT, f"{address} gave no answer within {timeout_s * 1000:.0f} ms")


def from_os_error(address: str, error: OSError) -> CallFailed:
    """The operating system's refusal, told without its numbers where it has a plain word."""
    if isinstance(error, ConnectionRefusedError):
        return CallFailed(REFUSED, f"nothing listens at {address}")
    if isinstance(error, ConnectionError):
        return CallFailed(BROKEN, f"{address} closed the connection")
    return CallFailed(BROKEN, f"{address}: {error.strerror or error}")


def split_address(address: str) -> tuple[str, int]:
    """host:port, the host of an IPv6 address without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def strip_scheme(url: str) -> str:
    """host:port of a URL as PD lists it."""
    return url.split("://", 1)[-1].rstrip("/")


def directly(address: str) -> str:
    """The dial for members that are reached at the addresses by which they are known."""
    return address
