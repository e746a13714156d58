"""Servers with something wrong with them: executables that are the emulated member, except for one thing."""

from __future__ import annotations

import sys
from pathlib import Path

from drillyard.topology import Role


def broken(directory: Path, role: Role, how: str, *, only: str = "") -> str:
    """An executable for `--pd-binary` or `--tikv-binary`: runs `how`, Python, before it becomes the member.

    With `only` just the member of that name is broken. `me` is the member's name there, `arguments` its flags."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{role.value}-server"
    body = "\n".join(f"    {line}" for line in how.strip().splitlines())
    path.write_text(
        f"""#!{sys.executable} -P
import pathlib, sys, threading, time

arguments = sys.argv[1:]
me = next(pathlib.Path(one.split("=", 1)[1]).name for one in arguments if one.startswith("--data-dir="))
if {only!r} in ("", me):
{body}
from drillyard.emulator.{role.value} import server

sys.exit(server.main(arguments))
"""
    )
    path.chmod(0o755)
    return str(path)


# A start that takes its time, and says what it does.
SLOW_START = """
log = next(one.split("=", 1)[1] for one in arguments if one.startswith("--log-file="))
for what in ("opening", "reading the manifest", "replaying the log", "checking", "building filters", "warming up") * 9:
    with open(log, "a") as file:
        print(time.strftime('[%Y/%m/%d %H:%M:%S.000 +00:00]', time.gmtime()), '[INFO]', f'["{what}"]', file=file)
    time.sleep(0.5)
"""
HANG = """
time.sleep(600)
"""
# The clock of this process is an hour slow.
SLOW_CLOCK = """
real_ns, real_s = time.time_ns, time.time
time.time_ns, time.time = lambda: real_ns() - 3600 * 10**9, lambda: real_s() - 3600
"""
# Every sync takes longer than an answer is waited for.
SLOW_DISK = """
from drillyard.emulator.storage import Storage
sync_once = Storage._sync_once
def slowly(self):
    time.sleep(2.5)
    sync_once(self)
Storage._sync_once = slowly
"""
# Says that it is well, and answers none of its clients.
MUTE = """
import asyncio
from drillyard.emulator.tikv.raw import RawKv
async def never(self, request):
    await asyncio.sleep(600)
RawKv.put = never
"""
FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (28, 28))
"""
# No file may grow large: what the storage sees is a full disk.
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
"""
# Somebody else listens at its address.
PORT_TAKEN = """
import socket
host, port = next(one.split("=", 1)[1] for one in arguments if one.startswith("--addr=")).split(":")
somebody = socket.create_server((host, int(port)))
"""
