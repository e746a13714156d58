"""A command line of its own for each test."""

from __future__ import annotations

from shell import drillyard as drillyard
