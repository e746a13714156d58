"""What the emulated members say they are."""

from drillyard import __version__

EMULATED_VERSION = "8.1.0"  # the release of PD and TiKV whose behaviour is emulated
GIT_HASH = f"drillyard-{__version__}"  # stands where the real servers show their commit, so that anyone can tell
ON_DISK_FORMAT = 1
