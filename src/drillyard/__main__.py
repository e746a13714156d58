"""`python -m drillyard` is the command line."""

from __future__ import annotations

from drillyard.faces.cli import main

main()
