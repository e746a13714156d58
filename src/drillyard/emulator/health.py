"""The standard gRPC health service, by which clients and load balancers ask whether a server serves.

A member that answers serves: what is not ready yet does not listen. The server as a whole has the empty name; no other
service is known by name, as in PD and TiKV.
"""

from __future__ import annotations

import asyncio

from drillyard.wire import health
from drillyard.wire.rpc import Handlers, RpcError, ServerStream, Status
from drillyard.wire.services import HEALTH

WatchStream = ServerStream[health.HealthCheckRequest, health.HealthCheckResponse]

_STATUS = health.HealthCheckResponse.ServingStatus


def handlers() -> Handlers:
    return {HEALTH.Check: check, HEALTH.Watch: watch}


async def check(request: health.HealthCheckRequest) -> health.HealthCheckResponse:
    if request.service:
        raise RpcError(Status.NOT_FOUND, "unknown service")
    return health.HealthCheckResponse(status=_STATUS.SERVING)


async def watch(stream: WatchStream) -> None:
    """The status now and at each change, of which there is none: the stream ends with its client or the server."""
    request = await stream.recv()
    known = request is not None and not request.service
    await stream.send(health.HealthCheckResponse(status=_STATUS.SERVING if known else _STATUS.SERVICE_UNKNOWN))
    await asyncio.get_running_loop().create_future()
