"""How hypothesis runs in every directory: no example is judged by the time it takes, because a machine that stands
still for a moment is no finding, and every run draws the same examples, so that a run that fails fails again."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("drillyard", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("drillyard")
