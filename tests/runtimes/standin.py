"""A stand-in for a server: takes the real flags, listens on its ports, and ends as `--stand-in=` says.

exit:N ends with code N after listening; ignore-term outlives SIGTERM; by default it ends with code 0 on SIGTERM. It
writes its pid into its data directory before it listens, and prints "serving" once it does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:] if a.startswith("--") and "=" in a)
    behaviour = flags.get("stand-in", "")
    if behaviour == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:  # kept until it is waited for: a handler is not run for a signal that comes just before a wait
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    data_dir = Path(flags["data-dir"])
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    listeners = []
    for flag in ("client-urls", "peer-urls", "addr", "status-addr"):
        if flag in flags:
            host, port = flags[flag].removeprefix("http://").rsplit(":", 1)
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
            listener.listen()
            listeners.append(listener)
    print("serving", flush=True)
    if behaviour.startswith("exit:"):
        sys.exit(int(behaviour.removeprefix("exit:")))
    if behaviour == "ignore-term":
        signal.pause()
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
