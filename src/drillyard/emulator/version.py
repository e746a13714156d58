"""What the emulated members say they are."""

from drillyard import __version__

EMULATED_VERSION = "8.1.0"  # the release of PD and TiKV whose behaviour is emulated
GIT_HASH = f"drillyard-{__version__}"  # stands where the real servers show their commit, so that anyone can tell
ON_DISK_FORMAT = 2
"""What the data directories are like; a version opens its own and all before it.

1: Raft logs, replicas and pairs, one family.
2: three families (the pairs of format 1 are the default one's), values that may carry their expiry, transactions.
   Everything of format 1 means the same, so that an upgrade has nothing to rewrite. A version that knows only format 1
   would lose the other families in snapshots and serve expiries as parts of values: it is kept out by the number.
"""
