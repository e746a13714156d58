"""Asking another PD member over HTTP: to pass a request on to the leader, and to see whether a member answers.

Rules: one connection for one request, and a deadline on all of it, so that a member that is stopped or gone holds
nobody up. Failures are one exception. It knows no paths.
"""

from __future__ import annotations

import asyncio

import h11

from drillyard.emulator.http import HttpRequest, HttpResponse

MAX_ANSWER = 256 << 20
_HOP = {"connection", "content-length", "date", "keep-alive", "transfer-encoding"}


class Unanswered(Exception):
    """The other member could not be asked, or did not answer in time."""


async def ask(address: tuple[str, int], request: HttpRequest, within_s: float) -> HttpResponse:
    """The answer of the member at an address to this request."""
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(*address)
            try:
                return await _exchange(reader, writer, request)
            finally:
                writer.close()
    except (OSError, TimeoutError, h11.ProtocolError) as error:
        raise Unanswered(f"{address[0]}:{address[1]}: {error or type(error).__name__}") from error


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: HttpRequest) -> HttpResponse:
    connection = h11.Connection(h11.CLIENT)
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
    headers += [("Connection", "close"), ("Content-Length", str(len(request.body)))]
    head = h11.Request(method=request.method, target=request.target, headers=headers)
    parts = (head, h11.Data(data=request.body), h11.EndOfMessage())
    if writer.is_closing():  # uvloop answers a write after that with no OSError
        raise ConnectionResetError("the connection ended at once")
    writer.write(b"".join(connection.send(part) or b"" for part in parts))
    await writer.drain()
    response: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_ANSWER:
                raise h11.RemoteProtocolError("the answer is too long")
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return _answer_of(response, bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("the connection ended before the answer")


def _answer_of(response: h11.Response, body: bytes) -> HttpResponse:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw_items()]
    kind = next((value for name, value in pairs if name.lower() == "content-type"), "")
    kept = [(name, value) for name, value in pairs if name.lower() not in _HOP and name.lower() != "content-type"]
    return HttpResponse(response.status_code, body, kind, tuple(kept))
