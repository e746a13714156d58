"""Stock levels in TiKV: what arrives and what leaves is written down, and the stock is the sum.

Every movement is a key of its own, whose name is chosen before the first attempt. So an attempt of which nobody knows
whether it was carried out can be repeated: it counts once.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tikv_client.asynchronous import RawClient

T = TypeVar("T")

ATTEMPT_S = 2.0  # a call to a store that hangs would wait for it
PAUSE_S = 0.05
PAGE = 500


class Unavailable(Exception):
    """TiKV did not serve in time."""


class Inventory:
    def __init__(self, pd_endpoints: Sequence[str], patience_s: float = 60.0) -> None:
        self._pd_endpoints = list(pd_endpoints)
        self._patience_s = patience_s
        self._client: RawClient | None = None

    async def move(self, item: str, count: int) -> None:
        """Write down that `count` pieces came in or, below zero, went out."""
        key = f"stock/{_checked(item)}/{uuid.uuid4()}".encode()
        await self._insist(lambda client: client.put(key, str(count).encode()))

    async def stock(self, item: str) -> int:
        """How many pieces there are."""
        start, end = f"stock/{_checked(item)}/".encode(), f"stock/{item}0".encode()  # "0" comes after "/"
        total = 0
        while True:
            first = start
            page = await self._insist(lambda client: client.scan(first, end, PAGE))  # noqa: B023 - awaited here
            total += sum(int(count) for _, count in page)
            if len(page) < PAGE:
                return total
            start = page[-1][0] + b"\0"

    async def _insist(self, attempt: Callable[[RawClient], Awaitable[T]]) -> T:
        """Attempt it until it succeeds or patience is over; after a failure with a client that asks PD anew."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    if self._client is None:
                        self._client = await RawClient.connect(self._pd_endpoints)
                    return await attempt(self._client)
            except Exception as error:  # all that tikv-client raises is plain Exceptions
                self._client = None
                if time.monotonic() > deadline:
                    raise Unavailable(f"not served within {self._patience_s:g} s: {error}") from error
            await asyncio.sleep(PAUSE_S)


def _checked(item: str) -> str:
    if not item or "/" in item:
        raise ValueError(f"{item!r} is no name of an item: it is empty or has a '/'")
    return item
