"""From a simulation's history to the judge's words."""

from __future__ import annotations

from drillyard.emulator.simulation.raft_groups import Outcome, Scale, Violation, simulate
from drillyard.judge import consistency


def run(seed: int, scale: Scale | None = None) -> Outcome:
    """Simulate a seed and judge what its clients saw."""
    outcome = simulate(seed, scale)
    history = [
        consistency.Operation(
            consistency.Kind.GET if call.kind == "get" else consistency.Kind.PUT,
            call.key,
            call.called_us,
            call.returned_us,
            call.value,
            consistency.Outcome(call.outcome),
            client=str(call.client),
        )
        for call in outcome.history
    ]
    judgement = consistency.check(history, steps_per_key=100_000)
    if judgement.verdict is consistency.Verdict.NOT_LINEARIZABLE:
        raise Violation("linearizable history", f"seed {seed}: {judgement.explain()}")
    return outcome
